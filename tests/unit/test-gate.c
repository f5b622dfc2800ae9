/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of tracking/gate: the numbered rules of gate.h.
 */
#include "tracking/gate.h"

#include <time.h>

#include "step.h"
#include "unit.h"

struct crossing {
	struct gate *gate;
	unsigned ticket;
	_Atomic bool inside;
	_Atomic bool leave; /* it stays inside until this is set */
};

static void
doze_ms(unsigned ms)
{
	struct timespec t = { .tv_nsec = (long)ms * 1000000 };

	(void)nanosleep(&t, NULL);
}

static void
cross(void *arg)
{
	struct crossing *c = arg;

	c->ticket = gate_enter(c->gate);
	atomic_store(&c->inside, true);
	while (!atomic_load(&c->leave))
		doze_ms(1);
	gate_leave(c->gate, c->ticket);
}

static void
start_inside(struct actor *a, struct crossing *c, struct gate *g)
{
	*c = (struct crossing){ .gate = g };
	actor_start(a, cross, c);
	while (!atomic_load(&c->inside))
		doze_ms(1);
}

static void
rule_1_an_open_gate_takes_no_lock(void **s)
{
	struct gate g;
	unsigned ticket;

	(void)s;
	gate_init(&g);
	/* were a lock taken, this would wait for ever */
	assert_int_equal(pthread_mutex_lock(&g.lock.m), 0);
	ticket = gate_enter(&g);
	gate_leave(&g, ticket);
	assert_int_equal(pthread_mutex_unlock(&g.lock.m), 0);
	gate_destroy(&g);
}

static void
rule_2_a_closed_gate_keeps_writes_out_until_it_is_opened(void **s)
{
	struct gate g;
	struct crossing c = { .gate = &g, .leave = true };
	struct actor a;

	(void)s;
	step_reset();
	gate_init(&g);
	gate_close(&g);
	assert_true(gate_wait_empty(&g, 1000));
	actor_start(&a, cross, &c);
	assert_true(actor_is_held_at(&a, "gate.wait", 1));
	assert_false(atomic_load(&c.inside));
	gate_open(&g);
	actor_join(&a);
	assert_true(atomic_load(&c.inside));
	gate_destroy(&g);
	step_end();
}

static void
rule_2_a_write_that_stepped_back_does_not_count_as_inside(void **s)
{
	struct gate g;
	struct crossing c = { .gate = &g, .leave = true };
	struct actor a;

	(void)s;
	step_reset();
	step_arm("gate.wait");
	gate_init(&g);
	gate_close(&g);
	actor_start(&a, cross, &c);
	step_wait_parked("gate.wait"); /* it saw that the gate is closed */
	assert_true(gate_wait_empty(&g, 0));
	step_release("gate.wait");
	gate_open(&g);
	actor_join(&a);
	gate_destroy(&g);
	step_end();
}

static void
rule_2_a_close_waits_for_the_write_inside(void **s)
{
	struct gate g;
	struct crossing c;
	struct actor a;

	(void)s;
	step_reset();
	gate_init(&g);
	start_inside(&a, &c, &g);
	gate_close(&g);
	assert_false(gate_wait_empty(&g, 20));
	atomic_store(&c.leave, true);
	assert_true(gate_wait_empty(&g, 10000));
	gate_open(&g);
	actor_join(&a);
	gate_destroy(&g);
	step_end();
}

static void
rule_2_writes_of_either_side_are_waited_for(void **s)
{
	(void)s;
	for (int side = 0; side < 2; side++) {
		struct gate g;
		struct crossing c;
		struct actor a;

		gate_init(&g);
		if (side)
			gate_turn(&g);
		start_inside(&a, &c, &g);
		gate_turn(&g);
		gate_close(&g);
		assert_false(gate_wait_empty(&g, 20));
		atomic_store(&c.leave, true);
		assert_true(gate_wait_empty(&g, 10000));
		gate_open(&g);
		actor_join(&a);
		gate_destroy(&g);
	}
}

static void
rule_4_writes_of_before_the_turn_are_told_from_later_ones(void **s)
{
	struct gate g;
	struct crossing before, after;
	struct actor a, b;

	(void)s;
	gate_init(&g);
	start_inside(&a, &before, &g);
	gate_turn(&g);
	start_inside(&b, &after, &g); /* it is open */
	assert_false(gate_has_turned(&g));
	atomic_store(&before.leave, true);
	actor_join(&a);
	assert_true(gate_has_turned(&g));
	gate_turn(&g); /* now the other one is of before */
	assert_false(gate_has_turned(&g));
	atomic_store(&after.leave, true);
	actor_join(&b);
	assert_true(gate_has_turned(&g));
	gate_destroy(&g);
}

static struct gate *closing_gate;
static _Atomic bool was_empty;

static void
wait_empty(void *arg)
{
	(void)arg;
	atomic_store(&was_empty, gate_wait_empty(closing_gate, 60000));
}

/* The closer sleeps when the last one leaves: it must be woken. */
static void
rule_2_the_last_write_to_leave_wakes_the_closer(void **s)
{
	struct gate g;
	struct crossing c;
	struct actor writer, closer;

	(void)s;
	step_reset();
	gate_init(&g);
	closing_gate = &g;
	start_inside(&writer, &c, &g);
	gate_close(&g);
	actor_start(&closer, wait_empty, NULL);
	assert_true(actor_is_held_at(&closer, "none", 0));
	atomic_store(&c.leave, true);
	actor_join(&closer);
	assert_true(atomic_load(&was_empty));
	gate_open(&g);
	actor_join(&writer);
	gate_destroy(&g);
	step_end();
}

/* Threads take the shards in turn. */
static void
rule_2_every_shard_is_looked_at(void **s)
{
	(void)s;
	step_reset();
	for (int i = 0; i < GATE_SHARDS; i++) {
		struct gate g;
		struct crossing c;
		struct actor a;

		gate_init(&g);
		gate_turn(&g);
		start_inside(&a, &c, &g);
		assert_in_range(gate_shard(c.ticket), 0, GATE_SHARDS - 1);
		gate_close(&g);
		assert_false(gate_wait_empty(&g, 0));
		atomic_store(&c.leave, true);
		actor_join(&a);
		assert_true(gate_wait_empty(&g, 0));
		gate_open(&g);
		gate_destroy(&g);
	}
	step_end();
}

static void
rule_3_many_gates_close_before_any_is_waited_for(void **s)
{
	struct gate g[2];
	struct crossing inside, outside;
	struct actor a, b;

	(void)s;
	step_reset();
	gate_init(&g[0]);
	gate_init(&g[1]);
	start_inside(&a, &inside, &g[0]);
	gate_close(&g[0]); /* returns at once, though a write is inside */
	gate_close(&g[1]);
	outside = (struct crossing){ .gate = &g[1], .leave = true };
	actor_start(&b, cross, &outside);
	assert_true(actor_is_held_at(&b, "gate.wait", 1));
	atomic_store(&inside.leave, true);
	assert_true(gate_wait_empty(&g[0], 10000));
	assert_true(gate_wait_empty(&g[1], 10000));
	gate_open(&g[0]);
	gate_open(&g[1]);
	actor_join(&a);
	actor_join(&b);
	gate_destroy(&g[0]);
	gate_destroy(&g[1]);
	step_end();
}

#define LEAVERS 8
static struct crossing leaving[LEAVERS];

/* One leaves every 60 ms. */
static void
let_them_leave(void *arg)
{
	(void)arg;
	for (int i = 0; i < LEAVERS; i++) {
		doze_ms(60);
		atomic_store(&leaving[i].leave, true);
	}
}

static uint64_t
now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Regression: every write that left began the wait anew. */
static void
the_time_to_wait_is_not_renewed_by_writes_that_leave(void **s)
{
	struct gate g;
	struct crossing stuck;
	struct actor as, a[LEAVERS], usher;
	uint64_t start;

	(void)s;
	step_reset();
	gate_init(&g);
	start_inside(&as, &stuck, &g);
	for (size_t i = 0; i < LEAVERS; i++)
		start_inside(&a[i], &leaving[i], &g);
	gate_close(&g);
	actor_start(&usher, let_them_leave, NULL);
	start = now_ms();
	assert_false(gate_wait_empty(&g, 100));
	assert_in_range(now_ms() - start, 99, 350); /* it was 580 */
	actor_join(&usher);
	for (size_t i = 0; i < LEAVERS; i++)
		actor_join(&a[i]);
	atomic_store(&stuck.leave, true);
	assert_true(gate_wait_empty(&g, 10000));
	gate_open(&g);
	actor_join(&as);
	gate_destroy(&g);
	step_end();
}

/* Kept for the sake of the thread sanitizer, and not counted as coverage. */

struct shared {
	struct gate gate;
	unsigned long plain; /* written behind the closed gate only */
	unsigned long counters[4];
	_Atomic bool stop;
};

struct racer {
	struct shared *s;
	unsigned i;
	unsigned long sum;
};

static void
race(void *arg)
{
	struct racer *r = arg;

	while (!atomic_load(&r->s->stop)) {
		unsigned ticket = gate_enter(&r->s->gate);

		r->sum += r->s->plain;
		r->s->counters[r->i]++;
		gate_leave(&r->s->gate, ticket);
	}
}

static void
what_is_changed_behind_a_closed_gate_needs_no_other_lock(void **s)
{
	struct shared sh = { 0 };
	struct racer r[4];
	struct actor a[4];

	(void)s;
	gate_init(&sh.gate);
	for (unsigned i = 0; i < 4; i++) {
		r[i] = (struct racer){ .s = &sh, .i = i };
		actor_start(&a[i], race, &r[i]);
	}
	for (int i = 0; i < 300; i++) {
		unsigned long before[4], now[4];

		gate_close(&sh.gate);
		assert_true(gate_wait_empty(&sh.gate, 10000));
		sh.plain++;
		for (unsigned j = 0; j < 4; j++)
			before[j] = sh.counters[j];
		for (unsigned j = 0; j < 4; j++)
			now[j] = sh.counters[j];
		assert_memory_equal(before, now, sizeof now);
		gate_open(&sh.gate);
	}
	atomic_store(&sh.stop, true);
	for (unsigned i = 0; i < 4; i++)
		actor_join(&a[i]);
	gate_destroy(&sh.gate);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rule_1_an_open_gate_takes_no_lock),
		cmocka_unit_test(
			rule_2_a_closed_gate_keeps_writes_out_until_it_is_opened),
		cmocka_unit_test(
			rule_2_a_write_that_stepped_back_does_not_count_as_inside),
		cmocka_unit_test(rule_2_a_close_waits_for_the_write_inside),
		cmocka_unit_test(
			rule_2_the_last_write_to_leave_wakes_the_closer),
		cmocka_unit_test(rule_2_every_shard_is_looked_at),
		cmocka_unit_test(rule_2_writes_of_either_side_are_waited_for),
		cmocka_unit_test(
			rule_3_many_gates_close_before_any_is_waited_for),
		cmocka_unit_test(
			rule_4_writes_of_before_the_turn_are_told_from_later_ones),
		cmocka_unit_test(
			the_time_to_wait_is_not_renewed_by_writes_that_leave),
		cmocka_unit_test(
			what_is_changed_behind_a_closed_gate_needs_no_other_lock),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

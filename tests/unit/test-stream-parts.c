/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The parts of a stream by themselves: ranges, the speed limit, the plan, the
 * pool of buffers and the window.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"
#include "stream/buffers.h"
#include "stream/pace.h"
#include "stream/plan.h"
#include "stream/ranges.h"
#include "stream/window.h"
#include "unit.h"

#define MS    UINT64_C(1000000)
#define START (1000 * 1000 * MS)

/* --- ranges ---------------------------------------------------------------------------- */

static void
ranges_join_what_continues(void **state)
{
	struct ranges r = { .n = 0 };
	struct run run;

	(void)state;
	ranges_add(&r, 0, 10, 0);
	ranges_add(&r, 10, 10, 0);
	ranges_add(&r, 20, 10, RUN_ZERO);
	ranges_add(&r, 40, 10, RUN_ZERO);
	assert_int_equal(r.n, 3);
	assert_int_equal(r.bytes, 40);
	assert_true(ranges_take(&r, 15, &run));
	assert_int_equal(run.off, 0);
	assert_int_equal(run.len, 15);
	assert_true(ranges_take(&r, 15, &run));
	assert_int_equal(run.off, 15);
	assert_int_equal(run.len, 5);
	assert_true(ranges_take(&r, 15, &run));
	assert_int_equal(run.off, 20);
	assert_int_equal(run.flags, RUN_ZERO);
	assert_true(ranges_take(&r, 15, &run));
	assert_false(ranges_take(&r, 15, &run));
	assert_int_equal(r.bytes, 0);
	assert_int_equal(r.n, 0);
	ranges_destroy(&r);
}

/* A range that is taken in part must not be joined to what it was cut from
 * in another place of the disk.
 */
static void
ranges_grow_while_they_are_taken(void **state)
{
	struct ranges r = { .n = 0 };
	struct run run;
	uint64_t sum = 0;

	(void)state;
	for (uint64_t i = 0; i < 1000; i++) {
		ranges_add(&r, i * 100, 50, 0);
		if (i % 3 == 0 && ranges_take(&r, 30, &run))
			sum += run.len;
	}
	while (ranges_take(&r, 7, &run))
		sum += run.len;
	assert_int_equal(sum, 1000 * 50);
	ranges_destroy(&r);
}

/* --- pace ------------------------------------------------------------------------------------ */

/* Take pieces as fast as allowed for @ms; returns the bytes. */
static uint64_t
take_for(struct pace *p, uint64_t *now, uint64_t ms, uint64_t piece)
{
	uint64_t end = *now + ms * MS, sum = 0;

	while (*now < end) {
		uint64_t wait = pace_wait(p, *now);

		if (wait) {
			*now += wait;
			continue;
		}
		pace_charge(p, *now, piece);
		sum += piece;
	}
	return sum;
}

static void
speed_holds_over_a_second_and_over_a_minute(void **state)
{
	static const uint64_t speeds[] = { 1 << 20, 50 << 20, 1000 << 20 };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(speeds); i++) {
		struct pace p = { .speed = 0 };
		uint64_t now = START, sum;

		pace_set(&p, now, speeds[i]);
		sum = take_for(&p, &now, 1000, 65536);
		assert_in_range(sum, speeds[i] * 99 / 100,
				speeds[i] * 111 / 100 + 65536);
		sum = take_for(&p, &now, 60000, 65536);
		assert_in_range(sum, speeds[i] * 60 * 99 / 100,
				speeds[i] * 60 * 101 / 100);
	}
}

static void
a_pause_is_not_followed_by_a_burst(void **state)
{
	struct pace p = { .speed = 0 };
	uint64_t now = START, sum;

	(void)state;
	pace_set(&p, now, 10 << 20);
	(void)take_for(&p, &now, 1000, 65536);
	now += 3600 * 1000 * MS;
	sum = take_for(&p, &now, 100, 65536);
	/* what two slices may have */
	assert_in_range(sum, 1 << 20, (2 << 20) + 2 * 65536);
}

static void
a_changed_speed_counts_at_once(void **state)
{
	struct pace p = { .speed = 0 };
	uint64_t now = START;

	(void)state;
	pace_set(&p, now, 1);
	assert_int_equal(pace_wait(&p, now), 0); /* the first always goes */
	pace_charge(&p, now, 262144);
	assert_in_range(pace_wait(&p, now), 262000 * 1000 * MS,
			262145 * 1000 * MS);
	pace_set(&p, now, 262144 * 10);
	assert_in_range(pace_wait(&p, now), 99 * MS, 101 * MS);
	pace_set(&p, now, 0);
	assert_int_equal(pace_wait(&p, now), 0);
	/* the largest numbers do not wrap */
	pace_set(&p, now, 1);
	pace_charge(&p, now, UINT64_C(1) << 40);
	pace_set(&p, now, INT64_MAX);
	pace_charge(&p, now, UINT64_C(1) << 40);
	assert_true(pace_wait(&p, now) < 1000 * MS);
}

static void
pieces_fit_the_slice(void **state)
{
	struct pace p = { .speed = 0 };

	(void)state;
	assert_int_equal(pace_piece(&p, 65536, 1 << 18), 1 << 18);
	p.speed = 1;
	assert_int_equal(pace_piece(&p, 65536, 1 << 18), 65536);
	p.speed = 2000000;
	assert_int_equal(pace_piece(&p, 65536, 1 << 18), 3 * 65536);
	p.speed = UINT64_MAX;
	assert_int_equal(pace_piece(&p, 65536, 1 << 18), 1 << 18);
}

/* --- plan --------------------------------------------------------------------------------------- */

/* An image whose extents are a table. */
struct fake {
	struct block block;
	const struct run *extents; /* off is ignored */
	size_t n;
	uint64_t cached; /* bytes that readahead was asked for */
};

static int
fake_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	    unsigned *flags)
{
	struct fake *f = container_of(b, struct fake, block);
	uint64_t at = 0;

	for (size_t i = 0; i < f->n; i++) {
		uint64_t end = at + f->extents[i].len;

		if (off < end) {
			*n = min_u64(len, end - off);
			*flags = f->extents[i].flags ? BLOCK_ZERO : 0;
			return 0;
		}
		at = end;
	}
	return EIO;
}

static const struct block_ops fake_ops = { .extent = fake_extent };

/* All that a plan hands out, with @max_data and @max_zero. */
static struct ranges
all_of(struct plan *p, uint64_t max_data, uint64_t max_zero)
{
	struct ranges all = { .n = 0 };
	struct run run;
	uint64_t at = 0;

	for (;;) {
		while (plan_take(p, max_data, max_zero, &run)) {
			uint64_t max = run.flags ? max_zero : max_data;

			assert_true(run.off >= at);
			assert_in_range(run.len, 1, max);
			if (!run.flags) /* does not cross a multiple */
				assert_int_equal(run.off / max,
						 (run.off + run.len - 1) / max);
			ranges_add(&all, run.off, run.len, run.flags);
			at = run.off + run.len;
		}
		if (p->complete)
			return all;
		p->looking = true;
		plan_look(p);
		plan_publish(p);
	}
}

static void
check_plan(const struct run *extents, size_t n, const struct run *want,
	   size_t nwant)
{
	struct fake f = { .block.ops = &fake_ops, .extents = extents, .n = n };
	struct view_reader reader = { .image = &f.block, .store = -1 };
	struct plan p = { .reader = &reader, .align = 4096 };
	struct ranges got;

	for (size_t i = 0; i < n; i++)
		p.limit += extents[i].len;
	p.copy.size = p.limit;
	p.copy.unit = 65536;
	got = all_of(&p, 262144, GiB);
	assert_int_equal(got.n, nwant);
	assert_int_equal(got.bytes, p.limit);
	for (size_t i = 0; i < nwant; i++) {
		assert_int_equal(got.v[i].len, want[i].len);
		assert_int_equal(got.v[i].flags, want[i].flags);
	}
	ranges_destroy(&got);
}

#define DATA(n)                        \
	{                              \
		.len = (n), .flags = 0 \
	}
#define ZERO(n)                               \
	{                                     \
		.len = (n), .flags = RUN_ZERO \
	}

static void
a_plan_follows_the_extents(void **state)
{
	static const struct run e[] = { DATA(MiB), ZERO(MiB), DATA(MiB + 512) };

	(void)state;
	check_plan(e, 3, e, 3);
}

static void
zero_runs_shrink_to_the_alignment(void **state)
{
	static const struct run e[] = { DATA(MiB + 512), ZERO(MiB),
					DATA(MiB - 512) };
	static const struct run want[] = { DATA(MiB + 4096), ZERO(MiB - 4096),
					   DATA(MiB) };

	(void)state;
	check_plan(e, 3, want, 3);
}

static void
short_holes_travel_with_the_data(void **state)
{
	static const struct run e[] = { DATA(65536), ZERO(28672), DATA(36864),
					ZERO(32768), DATA(32768) };
	static const struct run want[] = { DATA(131072), ZERO(32768),
					   DATA(32768) };

	(void)state;
	check_plan(e, 5, want, 3);
}

static void
a_hole_at_the_end_may_be_short_and_unaligned(void **state)
{
	static const struct run e[] = { DATA(65536), ZERO(512) };
	static const struct run tiny[] = { ZERO(512) };

	(void)state;
	check_plan(e, 2, e, 2);
	check_plan(tiny, 1, tiny, 1);
}

static void
many_extents_take_several_rounds(void **state)
{
	struct run e[3 * PLAN_RUNS];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(e); i++)
		e[i] = (struct run){ .len = 65536, .flags = i % 2 };
	check_plan(e, ARRAY_SIZE(e), e, ARRAY_SIZE(e));
}

static void
readahead_stays_within_its_span(void **state)
{
	static const struct run e[] = { DATA(64 * MiB), ZERO(64 * MiB),
					DATA(64 * MiB) };
	struct fake f = { .block.ops = &fake_ops, .extents = e, .n = 3 };
	struct view_reader reader = { .image = &f.block, .store = -1 };
	struct plan p = { .reader = &reader,
			  .align = 4096,
			  .limit = 192 * MiB,
			  .copy = { .size = 192 * MiB, .unit = 65536 } };
	uint64_t at = 0, sum = 0;
	struct run run, ahead;

	(void)state;
	plan_look(&p);
	plan_publish(&p);
	while (plan_take(&p, 262144, GiB, &run)) {
		if (!plan_ahead(&p, &run, &ahead))
			continue;
		assert_true(ahead.off >= at);
		assert_true(ahead.off >= run.off + run.len);
		assert_true(ahead.off + ahead.len <= run.off + 8 * MiB);
		assert_true(ahead.off + ahead.len <= 64 * MiB ||
			    ahead.off >= 128 * MiB);
		at = ahead.off + ahead.len;
		sum += ahead.len;
	}
	assert_true(sum >= 120 * MiB);
}

/* --- buffers --------------------------------------------------------------------------------------- */

#define BUDGET (BUFFERS_BUDGET / BUFFER_SIZE)

struct user {
	struct buffers_share share;
	struct buffers_waiter waiter;
	unsigned woken;
	void *held[BUDGET + 1];
	unsigned n;
};

static void
on_wake(struct buffers_waiter *w)
{
	container_of(w, struct user, waiter)->woken++;
}

static void
user_init(struct user *u)
{
	memset(u, 0, sizeof *u);
	u->waiter.wake = on_wake;
	buffers_attach(&u->share);
}

static bool
user_get(struct user *u)
{
	void *p = buffers_get(&u->share, &u->waiter);

	if (p) {
		memset(p, 1, BUFFER_SIZE);
		u->held[u->n++] = p;
	}
	return p;
}

static void
user_put(struct user *u)
{
	buffers_put(&u->share, u->held[--u->n]);
}

static void
user_end(struct user *u)
{
	buffers_forget(&u->waiter);
	while (u->n)
		user_put(u);
	buffers_detach(&u->share);
}

static void
the_budget_holds_but_everybody_gets_one(void **state)
{
	struct user a, b;

	(void)state;
	user_init(&a);
	user_init(&b);
	for (unsigned i = 0; i < BUDGET; i++)
		assert_true(user_get(&a));
	assert_false(user_get(&a));
	assert_int_equal(buffers_count(), BUDGET);
	assert_true(user_get(&b));
	assert_false(user_get(&b));
	assert_int_equal(buffers_count(), BUDGET + 1);
	user_end(&a);
	user_end(&b);
	assert_int_equal(buffers_count(), 0);
}

static void
waiters_are_woken_in_order_and_the_poor_first(void **state)
{
	struct user a, b, c;

	(void)state;
	user_init(&a);
	user_init(&b);
	user_init(&c);
	assert_true(user_get(&b));
	assert_true(user_get(&c));
	while (user_get(&a))
		;
	assert_false(user_get(&b));
	assert_false(user_get(&c));
	assert_int_equal(a.woken + b.woken + c.woken, 0);
	/* c has none any more: it is woken first, though it came last.  One
	 * buffer is free then, so that the first in the line may try too.
	 */
	user_put(&c);
	assert_int_equal(c.woken, 1);
	assert_int_equal(a.woken, 1);
	assert_int_equal(b.woken, 0);
	assert_true(user_get(&c));
	user_put(&a);
	assert_int_equal(b.woken, 1);
	user_end(&a);
	user_end(&b);
	user_end(&c);
}

static void
who_was_forgotten_is_not_woken(void **state)
{
	struct user a;

	(void)state;
	user_init(&a);
	while (user_get(&a))
		;
	buffers_forget(&a.waiter);
	buffers_forget(&a.waiter);
	user_put(&a);
	assert_int_equal(a.woken, 0);
	user_end(&a);
}

/* --- the window --------------------------------------------------------------------------- */

/* A target that answers a piece @far after it has worked on it for @work,
 * on @wide pieces at a time.  Keeps the window full for @n answers; returns
 * the time that they took.
 */
static uint64_t
keep_full(struct window *w, uint64_t start, uint64_t far, uint64_t work,
	  unsigned wide, unsigned n)
{
	uint64_t sent[64], ready[64], now = start;
	unsigned head = 0, tail = 0;

	while (n--) {
		for (; tail - head < w->size; tail++) {
			/* the one that is @wide before it makes room */
			uint64_t from = now;

			if (tail - head >= wide)
				from = max_u64(from,
					       ready[(tail - wide) % 64] - far);
			sent[tail % 64] = now;
			ready[tail % 64] = from + work + far;
		}
		now = max_u64(now, ready[head % 64]);
		window_answer(w, now, now - sent[head % 64], tail - head);
		head++;
	}
	return now;
}

static void
a_far_target_gets_as_many_as_there_are(void **state)
{
	struct window w;

	(void)state;
	window_init(&w, 16);
	assert_int_equal(w.size, WINDOW_START);
	keep_full(&w, START, 10 * MS, MS / 10, 16, 400);
	assert_int_equal(w.size, 16);
}

static void
a_slow_target_gets_few(void **state)
{
	struct window w;

	(void)state;
	window_init(&w, 16);
	keep_full(&w, START, 0, 50 * MS, 1, 400);
	assert_in_range(w.size, WINDOW_MIN, WINDOW_QUEUE_MAX + 1);
}

static void
a_target_that_works_in_parallel_is_kept_busy(void **state)
{
	struct window w;

	(void)state;
	window_init(&w, 16);
	keep_full(&w, START, 0, 5 * MS, 8, 400);
	assert_in_range(w.size, 8 + 1, 8 + WINDOW_QUEUE_MAX + 1);
}

/* What was fast becomes slow (its disk is busy), and fast again. */
static void
the_window_follows_a_change(void **state)
{
	struct window w;
	uint64_t now;

	(void)state;
	window_init(&w, 16);
	now = keep_full(&w, START, 10 * MS, MS / 10, 16, 400);
	now = keep_full(&w, now, 10 * MS, 50 * MS, 1, 400);
	assert_in_range(w.size, WINDOW_MIN, WINDOW_QUEUE_MAX + 2);
	now = keep_full(&w, now, 10 * MS, MS / 10, 16, 400);
	assert_int_equal(w.size, 16);
	/* a longer way is no queue, once the shorter is forgotten */
	keep_full(&w, now, 100 * MS, MS / 10, 16, 8000);
	assert_int_equal(w.size, 16);
}

/* A lane that has less to send than the window lets is not given more. */
static void
an_unused_window_does_not_grow(void **state)
{
	struct window w;

	(void)state;
	window_init(&w, 16);
	for (unsigned i = 0; i < 100; i++)
		window_answer(&w, START + i * MS, MS, 1);
	assert_int_equal(w.size, WINDOW_START);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranges_join_what_continues),
		cmocka_unit_test(ranges_grow_while_they_are_taken),
		cmocka_unit_test(speed_holds_over_a_second_and_over_a_minute),
		cmocka_unit_test(a_pause_is_not_followed_by_a_burst),
		cmocka_unit_test(a_changed_speed_counts_at_once),
		cmocka_unit_test(pieces_fit_the_slice),
		cmocka_unit_test(a_plan_follows_the_extents),
		cmocka_unit_test(zero_runs_shrink_to_the_alignment),
		cmocka_unit_test(short_holes_travel_with_the_data),
		cmocka_unit_test(a_hole_at_the_end_may_be_short_and_unaligned),
		cmocka_unit_test(many_extents_take_several_rounds),
		cmocka_unit_test(readahead_stays_within_its_span),
		cmocka_unit_test(the_budget_holds_but_everybody_gets_one),
		cmocka_unit_test(waiters_are_woken_in_order_and_the_poor_first),
		cmocka_unit_test(who_was_forgotten_is_not_woken),
		cmocka_unit_test(a_far_target_gets_as_many_as_there_are),
		cmocka_unit_test(a_slow_target_gets_few),
		cmocka_unit_test(a_target_that_works_in_parallel_is_kept_busy),
		cmocka_unit_test(the_window_follows_a_change),
		cmocka_unit_test(an_unused_window_does_not_grow),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

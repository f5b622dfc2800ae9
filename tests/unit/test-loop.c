/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of base/loop (the numbered rules of loop.h) and base/work.
 */
#include "base/loop.h"

#include <string.h>
#include <time.h>

#include "base/work.h"
#include "step.h"
#include "unit.h"

struct note {
	struct task task;
	struct loop *loop;
	unsigned ran, again;
	struct note *cancel;
	bool stop, in_caller;
};

static bool in_caller;

static void
run_note(struct task *t)
{
	struct note *n = container_of(t, struct note, task);

	n->ran++;
	n->in_caller = in_caller;
	if (n->cancel)
		loop_cancel(n->loop, &n->cancel->task);
	if (n->again) {
		n->again--;
		loop_defer(n->loop, t);
	}
	if (n->stop && !n->again)
		loop_stop(n->loop);
}

static struct note
note(struct loop *l)
{
	return (struct note){ .task = { .fn = run_note }, .loop = l };
}

static void
rule_1_a_deferred_task_runs_later_and_not_inside_its_caller(void **s)
{
	struct loop l;
	struct note n;

	(void)s;
	assert_true(loop_init(&l));
	n = note(&l);
	n.stop = true;
	in_caller = true;
	loop_defer(&l, &n.task);
	assert_int_equal(n.ran, 0);
	in_caller = false;
	loop_run(&l);
	assert_int_equal(n.ran, 1);
	assert_false(n.in_caller);
	loop_destroy(&l);
}

static unsigned socket_turns;

static void
on_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
	(void)revents;
	(void)w;
	socket_turns++;
	ev_break(ev, EVBREAK_ALL);
}

static void
rule_1_a_task_that_defers_itself_does_not_starve_the_loop(void **s)
{
	struct loop l;
	struct note n;
	ev_timer t;

	(void)s;
	assert_true(loop_init(&l));
	n = note(&l);
	n.again = 1000000000;
	loop_defer(&l, &n.task);
	ev_timer_init(&t, on_timer, 0.01, 0);
	ev_timer_start(l.ev, &t);
	socket_turns = 0;
	loop_run(&l);
	assert_int_equal(socket_turns, 1);
	assert_true(n.ran > 0);
	loop_cancel(&l, &n.task);
	loop_destroy(&l);
}

static void
rule_1_tasks_run_in_the_order_in_which_they_were_deferred(void **s)
{
	struct loop l;
	struct note a, b, c;

	(void)s;
	assert_true(loop_init(&l));
	a = b = c = note(&l);
	a.cancel = &b; /* works only while b is behind a */
	c.stop = true;
	loop_defer(&l, &a.task);
	loop_defer(&l, &b.task);
	loop_defer(&l, &c.task);
	loop_run(&l);
	assert_int_equal(a.ran, 1);
	assert_int_equal(b.ran, 0);
	assert_int_equal(c.ran, 1);
	loop_destroy(&l);
}

struct poster {
	struct loop *l;
	struct note *n;
	unsigned ms;
};

static void
post_after_a_while(void *arg)
{
	struct poster *p = arg;
	struct timespec t = { .tv_nsec = (long)p->ms * 1000000 };

	(void)nanosleep(&t, NULL);
	loop_post(p->l, &p->n->task);
}

static void
rule_2_a_post_wakes_a_loop_that_sleeps(void **s)
{
	struct loop l;
	struct note n;
	struct actor a;
	struct poster p = { .l = &l, .n = &n, .ms = 30 };

	(void)s;
	assert_true(loop_init(&l));
	n = note(&l);
	n.stop = true;
	actor_start(&a, post_after_a_while, &p);
	loop_run(&l);
	actor_join(&a);
	assert_int_equal(n.ran, 1);
	loop_destroy(&l);
}

static void
rule_3_a_cancelled_task_does_not_run_and_can_be_queued_again(void **s)
{
	struct loop l;
	struct note a, b;

	(void)s;
	assert_true(loop_init(&l));
	a = b = note(&l);
	b.stop = true;
	loop_defer(&l, &a.task);
	loop_cancel(&l, &a.task);
	loop_cancel(&l, &a.task); /* not queued: nothing */
	loop_defer(&l, &b.task);
	loop_run(&l);
	assert_int_equal(a.ran, 0);
	loop_defer(&l, &a.task);
	loop_defer(&l, &b.task);
	loop_run(&l);
	assert_int_equal(a.ran, 1);
	loop_destroy(&l);
}

static void
the_last_of_a_list_can_be_cancelled_and_the_list_goes_on(void **s)
{
	struct loop l;
	struct note a, b, c;

	(void)s;
	assert_true(loop_init(&l));
	a = b = c = note(&l);
	c.stop = true;
	loop_defer(&l, &a.task);
	loop_defer(&l, &b.task);
	loop_cancel(&l, &b.task);
	loop_defer(&l, &c.task);
	loop_run(&l);
	assert_int_equal(a.ran + c.ran, 2);
	assert_int_equal(b.ran, 0);
	loop_destroy(&l);
}

static struct loop *test_loop;

static void
run_a_loop_of_somebody_else(void *arg)
{
	(void)arg;
	loop_own(test_loop);
	loop_run(test_loop);
}

static void
a_loop_can_be_handed_to_another_thread(void **s)
{
	struct loop l;
	struct note n;
	struct actor a;

	(void)s;
	assert_true(loop_init(&l));
	test_loop = &l;
	n = note(&l);
	n.stop = true;
	actor_start(&a, run_a_loop_of_somebody_else, NULL);
	loop_post(&l, &n.task);
	actor_join(&a);
	assert_int_equal(n.ran, 1);
	loop_own(&l);
	loop_destroy(&l);
}

/* --- work ------------------------------------------------------------------- */

struct job {
	struct work work;
	struct loop *loop;
	_Atomic bool *wait_for; /* until it becomes true, at most 3 s */
	_Atomic bool ran;
	pthread_t run_by, done_by;
	unsigned done;
	unsigned *left;
	bool saw;
};

static void
run_job(struct work *w)
{
	struct job *j = container_of(w, struct job, work);
	struct timespec t = { .tv_nsec = 1000000 };

	j->run_by = pthread_self();
	for (int i = 0; j->wait_for && i < 3000; i++) {
		if (atomic_load(j->wait_for)) {
			j->saw = true;
			break;
		}
		(void)nanosleep(&t, NULL);
	}
	atomic_store(&j->ran, true);
}

static void
job_done(struct work *w)
{
	struct job *j = container_of(w, struct job, work);

	j->done++;
	j->done_by = pthread_self();
	if (--*j->left == 0)
		loop_stop(j->loop);
}

static void
job_init(struct job *j, struct loop *l, unsigned *left)
{
	*j = (struct job){ .work = { .run = run_job, .done = job_done },
			   .loop = l,
			   .left = left };
}

static void
work_runs_elsewhere_and_is_done_on_the_loop_exactly_once(void **s)
{
	struct work_pool *p = work_pool_new(2);
	struct loop l;
	struct job jobs[20];
	unsigned left = ARRAY_SIZE(jobs);

	(void)s;
	assert_non_null(p);
	assert_true(loop_init(&l));
	for (size_t i = 0; i < ARRAY_SIZE(jobs); i++) {
		job_init(&jobs[i], &l, &left);
		work_submit(p, &l, &jobs[i].work);
	}
	loop_run(&l);
	for (size_t i = 0; i < ARRAY_SIZE(jobs); i++) {
		assert_int_equal(jobs[i].done, 1);
		assert_true(pthread_equal(jobs[i].done_by, pthread_self()));
		assert_false(pthread_equal(jobs[i].run_by, pthread_self()));
	}
	work_pool_free(p);
	loop_destroy(&l);
}

/* Regression: an idle thread was counted for each of two items that came
 * before it woke up, so that the second waited behind the first.
 */
static void
work_does_not_wait_behind_a_slow_item_while_threads_are_left(void **s)
{
	(void)s;
	for (int round = 0; round < 20; round++) {
		struct work_pool *p = work_pool_new(2);
		struct loop l;
		struct job first, slow, fast;
		unsigned left = 1;

		assert_true(loop_init(&l));
		job_init(&first, &l, &left);
		work_submit(p, &l, &first.work);
		loop_run(&l); /* one thread exists, and is (soon) idle */
		left = 2;
		job_init(&slow, &l, &left);
		job_init(&fast, &l, &left);
		slow.wait_for = &fast.ran;
		work_submit(p, &l, &slow.work);
		work_submit(p, &l, &fast.work);
		loop_run(&l);
		assert_true(slow.saw);
		work_pool_free(p);
		loop_destroy(&l);
	}
}

static void
a_pool_runs_no_more_items_at_once_than_it_may(void **s)
{
	struct work_pool *p = work_pool_new(1);
	struct loop l;
	struct job a, b;
	unsigned left = 2;

	(void)s;
	assert_true(loop_init(&l));
	job_init(&a, &l, &left);
	job_init(&b, &l, &left);
	work_submit(p, &l, &a.work);
	work_submit(p, &l, &b.work);
	loop_run(&l);
	assert_true(pthread_equal(a.run_by, b.run_by));
	work_pool_free(p);
	loop_destroy(&l);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			rule_1_a_deferred_task_runs_later_and_not_inside_its_caller),
		cmocka_unit_test(
			rule_1_a_task_that_defers_itself_does_not_starve_the_loop),
		cmocka_unit_test(
			rule_1_tasks_run_in_the_order_in_which_they_were_deferred),
		cmocka_unit_test(rule_2_a_post_wakes_a_loop_that_sleeps),
		cmocka_unit_test(
			rule_3_a_cancelled_task_does_not_run_and_can_be_queued_again),
		cmocka_unit_test(
			the_last_of_a_list_can_be_cancelled_and_the_list_goes_on),
		cmocka_unit_test(a_loop_can_be_handed_to_another_thread),
		cmocka_unit_test(
			work_runs_elsewhere_and_is_done_on_the_loop_exactly_once),
		cmocka_unit_test(
			work_does_not_wait_behind_a_slow_item_while_threads_are_left),
		cmocka_unit_test(a_pool_runs_no_more_items_at_once_than_it_may),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of base: bits, err, mem, mtx, park, log.
 */
#include "base/bits.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/log.h"
#include "base/mtx.h"
#include "base/park.h"
#include "step.h"
#include "unit.h"

/* How a child that runs @fn ends: 0, or the number of the signal. */
static int
signal_of_child(void (*fn)(void))
{
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		(void)!freopen("/dev/null", "w", stderr);
		/* cmocka and the sanitizers catch it otherwise */
		(void)signal(SIGABRT, SIG_DFL);
		fn();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

/* --- bits ------------------------------------------------------------------- */

static void
range_fits_cannot_be_fooled_by_sums_that_wrap(void **s)
{
	(void)s;
	assert_true(range_fits(0, 0, 0));
	assert_true(range_fits(10, 0, 10));
	assert_true(range_fits(4, 6, 10));
	assert_false(range_fits(4, 7, 10));
	assert_false(range_fits(11, 0, 10));
	assert_false(range_fits(UINT64_MAX, 2, 10));
	assert_false(range_fits(2, UINT64_MAX, 10));
	assert_true(range_fits(1, UINT64_MAX - 1, UINT64_MAX));
}

static void
rounding_keeps_multiples_and_moves_everything_else(void **s)
{
	(void)s;
	assert_int_equal(round_down(8191, 4096), 4096);
	assert_int_equal(round_down(8192, 4096), 8192);
	assert_int_equal(round_up(8192, 4096), 8192);
	assert_int_equal(round_up(8193, 4096), 12288);
	assert_int_equal(round_up(0, 4096), 0);
	assert_int_equal(div_up(0, 4096), 0);
	assert_int_equal(div_up(1, 4096), 1);
	assert_int_equal(div_up(4096, 4096), 1);
	assert_int_equal(div_up(UINT64_MAX, 2), UINT64_C(1) << 63);
	assert_true(is_pow2(1) && is_pow2(4096));
	assert_false(is_pow2(0) || is_pow2(4097));
	assert_int_equal(log2_of(UINT64_C(1) << 40), 40);
}

static void
a_single_byte_anywhere_makes_a_buffer_not_zero(void **s)
{
	static unsigned char buf[300];

	(void)s;
	for (size_t len = 0; len <= sizeof buf; len++) {
		assert_true(buf_is_zero(buf, len));
		for (size_t i = 0; i < len; i++) {
			buf[i] = 0x80;
			assert_false(buf_is_zero(buf, len));
			buf[i] = 0;
		}
	}
}

static void
a_zero_test_does_not_look_behind_its_buffer(void **s)
{
	static unsigned char buf[300];

	(void)s;
	for (size_t len = 0; len < sizeof buf; len++) {
		buf[len] = 1;
		assert_true(buf_is_zero(buf, len));
		buf[len] = 0;
	}
}

static void
a_run_ends_where_zero_and_data_meet(void **s)
{
	static unsigned char buf[10 * 512 + 100];
	bool zero;

	(void)s;
	memset(buf + 3 * 512 + 7, 1, 1); /* block 3 */
	memset(buf + 4 * 512, 1, 1); /* block 4 */
	assert_int_equal(buf_run(buf, sizeof buf, 512, &zero), 3 * 512);
	assert_true(zero);
	assert_int_equal(
		buf_run(buf + 3 * 512, sizeof buf - 3 * 512, 512, &zero),
		2 * 512);
	assert_false(zero);
	/* the last block is short */
	assert_int_equal(
		buf_run(buf + 5 * 512, sizeof buf - 5 * 512, 512, &zero),
		sizeof buf - 5 * 512);
	assert_true(zero);
	assert_int_equal(buf_run(buf, 100, 512, &zero), 100);
	assert_true(zero);
}

/* --- err -------------------------------------------------------------------- */

static void
an_error_keeps_its_cause_and_gains_context(void **s)
{
	struct err e = ERR_INIT;

	(void)s;
	assert_false(err_set(&e, ERR_GENERIC, ENOENT, "cannot open '%s'", "x"));
	assert_false(err_prefix(&e, "disk %d: ", 7));
	assert_string_equal(e.msg, "disk 7: cannot open 'x': No such file or "
				   "directory");
	assert_int_equal(e.os, ENOENT);
	assert_int_equal(e.cls, ERR_GENERIC);
	assert_string_equal(strrchr(e.file, '/') + 1, "test-base.c");
}

static void
an_error_without_a_slot_is_dropped_in_silence(void **s)
{
	(void)s;
	assert_false(err_set(NULL, ERR_GENERIC, 0, "x"));
	assert_false(err_prefix(NULL, "x"));
	assert_false(err_is_set(NULL));
	err_clear(NULL);
}

static void
a_prefix_on_no_error_makes_none(void **s)
{
	struct err e = ERR_INIT;

	(void)s;
	assert_false(err_prefix(&e, "x"));
	assert_false(err_is_set(&e));
}

static void
an_endless_message_is_cut_and_stays_a_string(void **s)
{
	struct err e = ERR_INIT;
	char *text = xzalloc(5000);

	(void)s;
	memset(text, 'x', 4999);
	(void)err_set(&e, ERR_GENERIC, EIO, "%s", text);
	assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
	(void)err_prefix(&e, "%s", text);
	assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
	free(text);
}

static void
set_twice(void)
{
	struct err e = ERR_INIT;

	(void)err_set(&e, ERR_GENERIC, 0, "first");
	(void)err_set(&e, ERR_GENERIC, 0, "second");
}

static void
a_slot_takes_one_error_only(void **s)
{
	(void)s;
	assert_int_equal(signal_of_child(set_twice), SIGABRT);
}

static void
an_error_moves_with_all_it_has(void **s)
{
	struct err a = ERR_INIT, b = ERR_INIT;

	(void)s;
	(void)err_set(&a, ERR_DEVICE_NOT_FOUND, EBUSY, "no");
	assert_false(err_move(&b, &a));
	assert_int_equal(b.cls, ERR_DEVICE_NOT_FOUND);
	assert_int_equal(b.os, EBUSY);
	assert_string_equal(b.msg, "no: Device or resource busy");
	err_clear(&b);
	assert_false(err_is_set(&b));
	(void)err_set(&b, ERR_GENERIC, 0, "again");
	assert_int_equal(b.os, 0);
}

/* --- mem -------------------------------------------------------------------- */

static int freed;

struct thing {
	int x;
};

static void
thing_free(struct thing *t)
{
	freed++;
	free(t);
}
DEFINE_CLEANUP(struct thing, thing_free);

static void
what_is_not_stolen_is_freed_at_the_end_of_its_scope(void **s)
{
	struct thing *kept;

	(void)s;
	freed = 0;
	{
		AUTO(thing_free) struct thing *a = xzalloc(sizeof *a);
		AUTO(thing_free) struct thing *b = xzalloc(sizeof *b);
		AUTO(thing_free) struct thing *none = NULL;

		(void)a;
		(void)none;
		kept = steal(&b);
		assert_null(b);
	}
	assert_int_equal(freed, 1);
	thing_free(kept);
}

static void
a_descriptor_is_closed_unless_it_was_taken(void **s)
{
	int left, taken;

	(void)s;
	{
		AUTO(close) int a = dup(0);
		AUTO(close) int b = dup(0);

		left = a;
		taken = steal_fd(&b);
		assert_int_equal(b, -1);
	}
	assert_int_equal(close(left), -1);
	assert_int_equal(close(taken), 0);
}

static void
ask_for_too_much(void)
{
	/* the sanitizers' allocators would write a report instead */
	volatile size_t n = SIZE_MAX / 4;

	(void)xcalloc(n, 8); /* the product wraps */
}

static void
an_impossible_allocation_aborts(void **s)
{
	(void)s;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip();
#endif
#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
	skip();
#endif
#endif
	assert_int_equal(signal_of_child(ask_for_too_much), SIGABRT);
}

/* --- mtx -------------------------------------------------------------------- */

NO_TSA static void
lock_upwards(void)
{
	struct mtx low, high;

	mtx_init(&high, LOCK_GATE);
	mtx_init(&low, LOCK_EPOCH);
	mtx_lock(&low);
	mtx_lock(&high);
}

NO_TSA static void
lock_two_of_a_row(void)
{
	struct mtx a, b;

	mtx_init(&a, LOCK_GATE);
	mtx_init(&b, LOCK_GATE);
	mtx_lock(&a);
	mtx_lock(&b);
}

NO_TSA static void
lock_downwards(void)
{
	struct mtx low, high;

	mtx_init(&high, LOCK_GATE);
	mtx_init(&low, LOCK_EPOCH);
	mtx_lock(&high);
	mtx_lock(&low);
	mtx_unlock(&high); /* any order of unlocking is right */
	mtx_unlock(&low);
	mtx_lock(&low);
	mtx_unlock(&low);
}

NO_TSA static void
unlock_what_is_not_held(void)
{
	struct mtx m;

	mtx_init(&m, LOCK_GATE);
	mtx_unlock(&m);
}

static void
locks_are_taken_from_top_to_bottom_only(void **s)
{
	(void)s;
	assert_int_equal(signal_of_child(lock_downwards), 0);
	assert_int_equal(signal_of_child(lock_upwards), SIGABRT);
}

static void
two_locks_of_one_row_are_refused(void **s)
{
	(void)s;
	assert_int_equal(signal_of_child(lock_two_of_a_row), SIGABRT);
}

static void
a_lock_is_unlocked_by_its_holder_only(void **s)
{
	(void)s;
	assert_int_equal(signal_of_child(unlock_what_is_not_held), SIGABRT);
}

static void
a_wait_with_a_limit_ends(void **s)
{
	struct mtx m;
	pthread_cond_t c;

	(void)s;
	mtx_init(&m, LOCK_GATE);
	cond_init(&c);
	mtx_lock(&m);
	assert_false(mtx_wait_ms(&m, &c, 20));
	assert_false(mtx_wait_ms(&m, &c, 0));
	mtx_unlock(&m);
	(void)pthread_cond_destroy(&c);
	mtx_destroy(&m);
}

/* --- park ------------------------------------------------------------------- */

static void
come_by_twice(void)
{
	(void)setenv("STILLPOINT_KILL_AT", "test.place:2", 1);
	park_from_environment();
	PARK("test.other");
	PARK("test.place");
	PARK("test.other");
	PARK("test.place");
}

static void
come_by_once(void)
{
	(void)setenv("STILLPOINT_KILL_AT", "test.place:2", 1);
	park_from_environment();
	PARK("test.place");
}

static void
come_by_without_a_number(void)
{
	(void)setenv("STILLPOINT_KILL_AT", "test.place", 1);
	park_from_environment();
	PARK("test.place");
}

static void
a_process_dies_at_the_nth_visit_to_the_place_it_was_told(void **s)
{
	(void)s;
	assert_int_equal(signal_of_child(come_by_twice), SIGKILL);
	assert_int_equal(signal_of_child(come_by_once), 0);
	assert_int_equal(signal_of_child(come_by_without_a_number), SIGKILL);
}

static void
park_at_place(void *arg)
{
	(void)arg;
	PARK("test.place");
}

static void
an_armed_place_holds_one_thread_until_it_is_released(void **s)
{
	struct actor a;

	(void)s;
	step_reset();
	step_arm("test.place");
	actor_start(&a, park_at_place, NULL);
	step_wait_parked("test.place");
	PARK("test.place"); /* the second one passes */
	assert_false(atomic_load(&a.returned));
	step_release("test.place");
	actor_join(&a);
	assert_int_equal(step_passed("test.place"), 2);
	step_end();
}

/* --- log -------------------------------------------------------------------- */

static char last_line[4096];
static unsigned lines;

static void
keep_line(enum log_level level, const char *line)
{
	(void)level;
	lines++;
	(void)snprintf(last_line, sizeof last_line, "%s", line);
}

static void
a_message_is_one_line_whatever_is_in_it(void **s)
{
	(void)s;
	log_set_sink(keep_line);
	log_set_level(LOG_LEVEL_INFO);
	lines = 0;
	log_info("name '%s'", "a\nerror: forged\r\n");
	assert_int_equal(lines, 1);
	assert_string_equal(last_line, "name 'a error: forged  '");
	log_debug("not wanted");
	assert_int_equal(lines, 1);
	log_set_level(LOG_LEVEL_DEBUG);
	log_debug("wanted");
	assert_int_equal(lines, 2);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(range_fits_cannot_be_fooled_by_sums_that_wrap),
		cmocka_unit_test(
			rounding_keeps_multiples_and_moves_everything_else),
		cmocka_unit_test(
			a_single_byte_anywhere_makes_a_buffer_not_zero),
		cmocka_unit_test(a_zero_test_does_not_look_behind_its_buffer),
		cmocka_unit_test(a_run_ends_where_zero_and_data_meet),
		cmocka_unit_test(an_error_keeps_its_cause_and_gains_context),
		cmocka_unit_test(an_error_without_a_slot_is_dropped_in_silence),
		cmocka_unit_test(a_prefix_on_no_error_makes_none),
		cmocka_unit_test(an_endless_message_is_cut_and_stays_a_string),
		cmocka_unit_test(a_slot_takes_one_error_only),
		cmocka_unit_test(an_error_moves_with_all_it_has),
		cmocka_unit_test(
			what_is_not_stolen_is_freed_at_the_end_of_its_scope),
		cmocka_unit_test(a_descriptor_is_closed_unless_it_was_taken),
		cmocka_unit_test(an_impossible_allocation_aborts),
		cmocka_unit_test(locks_are_taken_from_top_to_bottom_only),
		cmocka_unit_test(two_locks_of_one_row_are_refused),
		cmocka_unit_test(a_lock_is_unlocked_by_its_holder_only),
		cmocka_unit_test(a_wait_with_a_limit_ends),
		cmocka_unit_test(
			a_process_dies_at_the_nth_visit_to_the_place_it_was_told),
		cmocka_unit_test(
			an_armed_place_holds_one_thread_until_it_is_released),
		cmocka_unit_test(a_message_is_one_line_whatever_is_in_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The judge is judged: what it accepts and, above all, what it refuses.
 */
#include "../unit/unit.h"
#include "history.h"

enum { SECTORS = 16 };

struct world {
	struct history *h;
	uint8_t image[SECTORS * SECTOR];
};

static void
put(struct world *w, uint64_t sector, uint64_t word)
{
	for (size_t i = 0; i < SECTOR; i += sizeof word)
		memcpy(w->image + sector * SECTOR + i, &word, sizeof word);
}

static void
put_write(struct world *w, uint64_t seq, uint64_t first, uint64_t n)
{
	for (uint64_t i = first; i < first + n; i++)
		put(w, i, history_word(seq, 1, i));
}

static int
set_up(void **state)
{
	struct world *w = calloc(1, sizeof *w);

	put(w, 9, history_word(1, 1, 9)); /* from the start; the rest is zero */
	w->h = history_new(1, SECTORS, w->image);
	*state = w;
	return 0;
}

static int
tear_down(void **state)
{
	struct world *w = *state;

	history_free(w->h);
	free(w);
	return 0;
}

static void
request(struct world *w, uint64_t seq, uint64_t first, uint64_t n,
	int64_t start, int64_t end)
{
	struct op *o = history_begin(w->h, seq, first, n, start);

	history_end(w->h, o, end);
}

/* Could the image be from an instant in [from, to]? */
static bool
fits(struct world *w, int64_t from, int64_t to)
{
	char text[HISTORY_TEXT];
	struct gaps g;
	int64_t when = 0;
	bool ok;

	gaps_init(&g, from, to);
	ok = history_check(w->h, w->image, 0, SECTORS, true, &g, text) &&
	     gaps_instant(&g, &when, text);
	gaps_clear(&g);
	if (ok)
		assert_in_range(when, from, to);
	return ok;
}

static void
test_untouched_disk_holds_what_it_held(void **state)
{
	struct world *w = *state;

	assert_true(fits(w, 100, 200));
	put(w, 9, 0);
	assert_false(fits(w, 100, 200));
}

static void
test_write_is_there_from_its_start_and_must_be_after_its_answer(void **state)
{
	struct world *w = *state;

	request(w, 5, 2, 3, 100, 200);
	assert_true(fits(w, 0, 199)); /* not yet */
	assert_false(fits(w, 200, 300));
	put_write(w, 5, 2, 3);
	assert_false(fits(w, 0, 99));
	assert_true(fits(w, 0, 100));
	assert_true(fits(w, 300, 400));
}

static void
test_overwritten_value_must_not_come_back(void **state)
{
	struct world *w = *state;

	request(w, 5, 2, 1, 100, 200);
	request(w, 6, 2, 1, 300, 400);
	put_write(w, 5, 2, 1);
	assert_true(fits(w, 399, 500));
	assert_false(fits(w, 400, 500));
}

static void
test_writes_at_the_same_time_may_end_in_either_order(void **state)
{
	struct world *w = *state;

	request(w, 5, 2, 1, 100, 300);
	request(w, 6, 2, 1, 200, 250);
	put_write(w, 5, 2, 1);
	assert_true(fits(w, 400, 500));
	put_write(w, 6, 2, 1);
	assert_true(fits(w, 400, 500));
	put(w, 2, 0);
	assert_false(fits(w, 400, 500));
}

static void
test_sectors_must_share_one_instant(void **state)
{
	struct world *w = *state;

	request(w, 5, 2, 1, 100, 200);
	request(w, 6, 4, 1, 300, 400);
	put_write(w, 6, 4, 1); /* from 300 on, but 5 is missing: before 200 */
	assert_false(fits(w, 0, 500));
	put_write(w, 5, 2, 1);
	assert_true(fits(w, 0, 500));
}

static void
test_zeroes_are_values_too(void **state)
{
	struct world *w = *state;

	request(w, 5, 2, 1, 100, 200);
	request(w, 0, 2, 1, 300, 400);
	assert_true(fits(w, 0, 150));
	assert_false(fits(w, 200, 299)); /* between the zeroes */
	assert_true(fits(w, 200, 300));
	assert_true(fits(w, 500, 600));
	put_write(w, 5, 2, 1);
	assert_false(fits(w, 500, 600));
}

static void
test_write_is_there_as_a_whole_or_not_at_all(void **state)
{
	struct world *w = *state;

	request(w, 5, 2, 2, 100, 200);
	put_write(w, 5, 2, 1);
	assert_false(fits(w, 100, 199));
	put_write(w, 5, 3, 1);
	assert_true(fits(w, 100, 199));
}

static void
test_lost_write_may_be_there_or_not_or_in_part(void **state)
{
	struct world *w = *state;
	struct op *o = history_begin(w->h, 5, 2, 2, 100);

	history_lost(w->h, o, 200);
	assert_true(fits(w, 500, 600));
	put_write(w, 5, 2, 1);
	assert_true(fits(w, 500, 600));
	request(w, 6, 2, 2, 300, 400);
	assert_false(fits(w, 500, 600));
}

static void
test_unanswered_write_may_be_there_at_any_later_time(void **state)
{
	struct world *w = *state;
	struct op *o = history_begin(w->h, 5, 2, 1, 100);

	assert_true(fits(w, 500, 600));
	put_write(w, 5, 2, 1);
	assert_true(fits(w, 500, 600));
	assert_false(fits(w, 0, 99));
	history_end(w->h, o, 700);
}

static void
test_torn_and_misplaced_sectors_are_noticed(void **state)
{
	struct world *w = *state;

	request(w, 5, 2, 2, 100, 200);
	put_write(w, 5, 2, 2);
	w->image[2 * SECTOR + 300] ^= 1;
	assert_false(fits(w, 300, 400));
	put(w, 2, history_word(5, 1, 3));
	assert_false(fits(w, 300, 400));
	put(w, 2, history_word(5, 2, 2)); /* of another disk */
	assert_false(fits(w, 300, 400));
	put_write(w, 5, 2, 1);
	assert_true(fits(w, 300, 400));
}

static void
test_read_may_be_torn_only_while_the_sector_is_written(void **state)
{
	struct world *w = *state;
	char text[HISTORY_TEXT];
	struct gaps g;

	request(w, 5, 2, 1, 100, 200);
	put_write(w, 5, 2, 1);
	w->image[2 * SECTOR + 300] ^= 1;
	gaps_init(&g, 150, 300);
	assert_true(history_check(w->h, w->image, 0, SECTORS, false, &g, text));
	gaps_clear(&g);
	gaps_init(&g, 201, 300);
	assert_false(
		history_check(w->h, w->image, 0, SECTORS, false, &g, text));
	gaps_clear(&g);
	assert_false(fits(w, 150, 300));
}

/* Requests before the horizon are forgotten, what they left is not. */
static void
test_long_history_is_judged_as_a_short_one(void **state)
{
	struct world *w = *state;
	int64_t t = 1000;

	for (uint64_t seq = 2; seq < 5000; seq++, t += 10) {
		history_set_horizon(w->h, t);
		request(w, seq, 2, 1, t, t + 5);
	}
	assert_false(fits(w, t, t + 5));
	put_write(w, 4999, 2, 1);
	assert_true(fits(w, t, t + 5));
	put_write(w, 4998, 2, 1);
	assert_false(fits(w, t, t + 5));
}

int
main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		T(test_untouched_disk_holds_what_it_held),
		T(test_write_is_there_from_its_start_and_must_be_after_its_answer),
		T(test_overwritten_value_must_not_come_back),
		T(test_writes_at_the_same_time_may_end_in_either_order),
		T(test_sectors_must_share_one_instant),
		T(test_zeroes_are_values_too),
		T(test_write_is_there_as_a_whole_or_not_at_all),
		T(test_lost_write_may_be_there_or_not_or_in_part),
		T(test_unanswered_write_may_be_there_at_any_later_time),
		T(test_torn_and_misplaced_sectors_are_noticed),
		T(test_read_may_be_torn_only_while_the_sector_is_written),
		T(test_long_history_is_judged_as_a_short_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of view/view: the states of granules, their file, and both against a
 * slow and obvious model.
 */
#include "view/view.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/bits.h"
#include "fault.h"
#include "step.h"
#include "unit.h"

#define CHUNK UINT64_C(16384) /* granules in a page of states */

static struct view *
view_make(uint64_t size)
{
	struct err e = ERR_INIT;
	struct view *v;
	int fd = tmpfs_file();

	assert_ok(view_format(fd, size, &e), &e);
	assert_ok(view_open(fd, &v, &e), &e);
	return v;
}

static uint64_t
bytes_used(const struct view *v)
{
	struct stat st;

	assert_int_equal(fstat(view_fd(v), &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void
move(struct view *v, uint64_t g, enum view_state from, enum view_state to)
{
	int os;

	assert_true(view_move(v, g, from, to, &os));
	assert_int_equal(os, 0);
}

static void
no_hole(void *opaque, uint64_t g, uint64_t end)
{
	(void)opaque;
	fail_msg("a hole at %d to %d", (int)g, (int)end);
}

static void
the_granule_is_4_kib_up_to_1_tib_and_doubles_with_the_disk(void **s)
{
	(void)s;
	assert_int_equal(view_granule_for(0), 4096);
	assert_int_equal(view_granule_for(512), 4096);
	assert_int_equal(view_granule_for(TiB), 4096);
	/* granules are counted by fours */
	assert_int_equal(view_granule_for(TiB + 3 * 4096), 4096);
	assert_int_equal(view_granule_for(TiB + 4 * 4096), 8192);
	assert_int_equal(view_granule_for(2 * TiB), 8192);
	assert_int_equal(view_granule_for(16 * TiB), 65536);
}

static void
a_view_of_16_tib_is_made_scanned_and_done_in_no_time(void **s)
{
	struct timespec t0, t1;
	struct view *v;
	bool saved;
	double took;

	(void)s;
	(void)clock_gettime(CLOCK_MONOTONIC, &t0);
	v = view_make(16 * TiB);
	assert_int_equal(bytes_used(v), 4096 + 16 * TiB / 65536 / CHUNK);
	assert_int_equal(view_run(v, 0, 16 * TiB, &saved), 16 * TiB);
	assert_false(saved);
	move(v, 15 * TiB / 65536, VIEW_NEEDED, VIEW_SAVING);
	assert_int_equal(bytes_used(v), 4096 + 16 * TiB / 65536 / CHUNK + 4096);
	view_recover(v);
	assert_int_equal(view_get(v, 15 * TiB / 65536), VIEW_NEEDED);
	view_done(v, 0, 16 * TiB / 65536, no_hole, NULL);
	assert_int_equal(view_get(v, 7), VIEW_DONE);
	assert_int_equal(view_get(v, 15 * TiB / 65536), VIEW_DONE);
	(void)clock_gettime(CLOCK_MONOTONIC, &t1);
	took = (double)(t1.tv_sec - t0.tv_sec) +
	       (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
	assert_true(took < 0.25);
	view_unref(v);
}

static void
a_move_needs_the_state_that_it_names(void **s)
{
	struct view *v = view_make(GiB);
	int os;

	(void)s;
	assert_false(view_move(v, 3, VIEW_SAVED, VIEW_DONE, &os));
	assert_int_equal(os, 0);
	move(v, 3, VIEW_NEEDED, VIEW_SAVING);
	move(v, 3, VIEW_SAVING, VIEW_SAVED);
	assert_false(view_move(v, 3, VIEW_NEEDED, VIEW_DONE, &os));
	move(v, 3, VIEW_SAVED, VIEW_DONE);
	assert_int_equal(view_get(v, 2), VIEW_NEEDED);
	assert_int_equal(view_get(v, 4), VIEW_NEEDED);
	view_unref(v);
}

static void
a_move_that_cannot_allocate_says_why_and_changes_nothing(void **s)
{
	struct view *v = view_make(GiB);
	int os;

	(void)s;
	fault_fallocate(ENOSPC, 0, 1);
	assert_false(view_move(v, 3, VIEW_NEEDED, VIEW_SAVING, &os));
	assert_int_equal(os, ENOSPC);
	assert_int_equal(view_get(v, 3), VIEW_NEEDED);
	assert_int_equal(bytes_used(v), 2 * 4096);
	move(v, 3, VIEW_NEEDED, VIEW_SAVING);
	view_unref(v);
}

static void
a_chunk_that_nobody_touched_is_done_without_a_page(void **s)
{
	struct view *v = view_make(3 * CHUNK * 4096 + 512);
	int os;

	(void)s;
	view_done(v, 0, CHUNK, no_hole, NULL);
	assert_int_equal(bytes_used(v), 2 * 4096);
	/* the last chunk has one granule, a short one */
	view_done(v, 3 * CHUNK, 3 * CHUNK + 1, no_hole, NULL);
	assert_int_equal(bytes_used(v), 2 * 4096);
	assert_int_equal(view_get(v, CHUNK - 1), VIEW_DONE);
	assert_int_equal(view_get(v, CHUNK), VIEW_NEEDED);
	assert_int_equal(view_get(v, 3 * CHUNK), VIEW_DONE);
	assert_false(view_move(v, 5, VIEW_NEEDED, VIEW_SAVING, &os));
	assert_int_equal(os, 0);
	/* a part of a chunk needs its page */
	view_done(v, CHUNK + 5, CHUNK + 6, no_hole, NULL);
	assert_int_equal(bytes_used(v), 3 * 4096);
	assert_int_equal(view_get(v, CHUNK + 4), VIEW_NEEDED);
	assert_int_equal(view_get(v, CHUNK + 5), VIEW_DONE);
	view_unref(v);
}

static void
done_beyond_the_end_of_the_disk_is_cut(void **s)
{
	struct view *v = view_make(5 * 4096 + 512);

	(void)s;
	view_done(v, 0, UINT64_MAX, no_hole, NULL);
	assert_int_equal(view_get(v, 5), VIEW_DONE);
	view_unref(v);
}

struct holes {
	unsigned n;
	uint64_t g[8], end[8];
};

static void
note_hole(void *opaque, uint64_t g, uint64_t end)
{
	struct holes *h = opaque;

	assert_true(h->n < 8);
	h->g[h->n] = g;
	h->end[h->n++] = end;
}

static void
holes_reach_from_saved_to_saved_and_never_over_saving(void **s)
{
	static const uint64_t saved[] = { 3, 4, 5, 9, 20 };
	struct view *v = view_make(GiB);
	struct holes h = { 0 };

	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(saved); i++) {
		move(v, saved[i], VIEW_NEEDED, VIEW_SAVING);
		move(v, saved[i], VIEW_SAVING, VIEW_SAVED);
	}
	move(v, 10, VIEW_NEEDED, VIEW_SAVING);
	view_done(v, 0, 21, note_hole, &h);
	assert_int_equal(h.n, 2);
	assert_true(h.g[0] == 3 && h.end[0] == 10);
	assert_true(h.g[1] == 20 && h.end[1] == 21);
	assert_int_equal(view_get(v, 10), VIEW_SAVING);
	view_unref(v);
}

static void
after_the_death_of_a_data_plane_saving_is_needed_again(void **s)
{
	struct view *v = view_make(GiB);

	(void)s;
	move(v, 3, VIEW_NEEDED, VIEW_SAVING);
	move(v, 100000, VIEW_NEEDED, VIEW_SAVING);
	move(v, 4, VIEW_NEEDED, VIEW_SAVING);
	move(v, 4, VIEW_SAVING, VIEW_SAVED);
	view_done(v, 5, 6, no_hole, NULL);
	view_recover(v);
	assert_int_equal(view_get(v, 3), VIEW_NEEDED);
	assert_int_equal(view_get(v, 100000), VIEW_NEEDED);
	assert_int_equal(view_get(v, 4), VIEW_SAVED);
	assert_int_equal(view_get(v, 5), VIEW_DONE);
	view_unref(v);
}

static void
both_processes_see_one_set_of_states(void **s)
{
	struct err e = ERR_INIT;
	struct view *a = view_make(GiB), *b;
	int os;

	(void)s;
	assert_ok(view_open(dup(view_fd(a)), &b, &e), &e);
	move(a, 3, VIEW_NEEDED, VIEW_SAVING);
	assert_false(view_move(b, 3, VIEW_NEEDED, VIEW_SAVING, &os));
	assert_int_equal(view_get(b, 3), VIEW_SAVING);
	view_break(a, EIO);
	assert_int_equal(view_broken(b), EIO);
	view_unref(a);
	view_unref(b);
}

static void
open_with_header(size_t at, const void *bytes, size_t len, off_t grow,
		 const char *text)
{
	struct err e = ERR_INIT;
	struct view *v;
	int fd = tmpfs_file();
	struct stat st;

	assert_ok(view_format(fd, GiB, &e), &e);
	assert_int_equal(pwrite(fd, bytes, len, (off_t)at), len);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(ftruncate(fd, st.st_size + grow), 0);
	assert_fails_with(view_open(fd, &v, &e), &e, text);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* consumed */
}

static void
a_file_that_is_no_view_of_ours_is_refused(void **s)
{
	struct err e = ERR_INIT;
	struct view *v;
	uint32_t v2 = 2, bits = 11, bits_high = 41;
	uint64_t huge = UINT64_MAX, chunks = 99;

	(void)s;
	assert_fails(view_open(tmpfs_file(), &v, &e), &e,
		     "not a view's states");
	open_with_header(0, "WHATEVER", 8, 0, "not a view's states");
	open_with_header(8, &v2, 4, 0, "unknown version 2");
	open_with_header(12, &bits, 4, 0, "impossible geometry");
	open_with_header(12, &bits_high, 4, 0, "impossible geometry");
	open_with_header(16, &huge, 8, 0, "impossible geometry");
	open_with_header(24, &chunks, 8, 0, "impossible geometry");
	open_with_header(0, "", 0, 4096, "wrong length");
	open_with_header(0, "", 0, -1, "wrong length");
}

static void
a_size_that_no_disk_has_is_refused(void **s)
{
	struct err e = ERR_INIT;
	int fd = tmpfs_file();

	(void)s;
	assert_fails(view_format(fd, (UINT64_C(1) << 62) + 1, &e), &e,
		     "a view cannot have this size: File too large");
	(void)close(fd);
}

/* --- the model --------------------------------------------------------------- */

#define GRANULES (2 * 16384 + 100)
#define SIZE     (GRANULES * UINT64_C(4096) - 1024)

static unsigned char model[GRANULES];

static uint64_t
below(uint64_t n)
{
	return (uint64_t)rand() % n;
}

static void
model_hole(void *opaque, uint64_t g, uint64_t end)
{
	unsigned *n = opaque;

	assert_int_equal(model[g], VIEW_SAVED);
	assert_int_equal(model[end - 1], VIEW_SAVED);
	for (; g < end; g++) {
		assert_int_not_equal(model[g], VIEW_SAVING);
		*n += model[g] == VIEW_SAVED;
	}
}

static void
random_done(struct view *v)
{
	uint64_t g = below(GRANULES), end;
	unsigned holes = 0, want = 0;

	end = g + 1 + below(below(4) ? 50 : GRANULES);
	if (below(8) == 0)
		g = g / CHUNK * CHUNK;
	view_done(v, g, end, model_hole, &holes);
	for (; g < end && g < GRANULES; g++) {
		want += model[g] == VIEW_SAVED;
		if (model[g] != VIEW_SAVING)
			model[g] = VIEW_DONE;
	}
	assert_int_equal(holes, want);
}

static void
random_move(struct view *v)
{
	uint64_t g = below(3) ? below(200) : below(GRANULES);
	enum view_state from = (enum view_state)below(3); /* DONE is final */
	enum view_state to = (enum view_state)below(4);
	int os;
	bool ok = view_move(v, g, from, to, &os);

	assert_int_equal(ok, model[g] == from);
	if (ok)
		model[g] = (unsigned char)to;
}

static void
check_run(const struct view *v)
{
	uint64_t off = below(SIZE), len = 1 + below(SIZE - off), want = 0;
	bool saved, is = model[off / 4096] == VIEW_SAVED;
	uint64_t n = view_run(v, off, len, &saved);

	assert_int_equal(saved, is);
	while (want < len && (model[(off + want) / 4096] == VIEW_SAVED) == is)
		want = ((off + want) / 4096 + 1) * 4096 - off;
	assert_int_equal(n, min_u64(want, len));
}

static void
states_are_what_the_model_says(void **s)
{
	(void)s;
	for (unsigned seed = 1; seed <= 4; seed++) {
		struct view *v = view_make(SIZE);

		srand(seed);
		memset(model, 0, sizeof model);
		for (int step = 0; step < 5000; step++) {
			if (below(seed == 1 ? 20 : 500) == 0)
				random_done(v);
			else
				random_move(v);
			check_run(v);
		}
		for (uint64_t g = 0; g < GRANULES; g++)
			assert_int_equal(view_get(v, g), model[g]);
		view_unref(v);
	}
}

static void
move_fifth(void *arg)
{
	move(arg, 5, VIEW_NEEDED, VIEW_SAVING);
}

/* Two states of one word: one mover is parked with the old word in its hand. */
static void
rule_2_a_move_does_not_undo_its_neighbours(void **s)
{
	struct view *v = view_make(GiB);
	struct actor a;

	(void)s;
	step_reset();
	step_arm("view.move");
	actor_start(&a, move_fifth, v);
	step_wait_parked("view.move");
	move(v, 4, VIEW_NEEDED, VIEW_SAVING);
	move(v, 4, VIEW_SAVING, VIEW_SAVED);
	step_release("view.move");
	actor_join(&a);
	assert_int_equal(view_get(v, 4), VIEW_SAVED);
	assert_int_equal(view_get(v, 5), VIEW_SAVING);
	view_unref(v);
	step_end();
}

/* The same with many threads, for the sake of the thread sanitizer. */
struct mover {
	pthread_t thread;
	struct view *v;
	uint64_t first;
};

static void *
move_every_other(void *arg)
{
	struct mover *m = arg;
	int os;

	for (uint64_t g = m->first; g < 2 * CHUNK; g += 4) {
		if (!view_move(m->v, g, VIEW_NEEDED, VIEW_SAVING, &os) ||
		    !view_move(m->v, g, VIEW_SAVING, VIEW_SAVED, &os))
			return m;
	}
	return NULL;
}

static void
moves_of_neighbours_do_not_undo_each_other(void **s)
{
	struct view *v = view_make(2 * CHUNK * 4096);
	struct mover m[4];
	void *failed;
	bool saved;

	(void)s;
	for (unsigned i = 0; i < 4; i++) {
		m[i] = (struct mover){ .v = v, .first = i };
		assert_int_equal(pthread_create(&m[i].thread, NULL,
						move_every_other, &m[i]),
				 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		(void)pthread_join(m[i].thread, &failed);
		assert_null(failed);
	}
	assert_int_equal(view_run(v, 0, 2 * CHUNK * 4096, &saved),
			 2 * CHUNK * 4096);
	assert_true(saved);
	view_unref(v);
}

static void
what_is_saved_is_found_from_anywhere(void **state)
{
	uint64_t size = 5 * CHUNK * 4096;
	struct view *v = view_make(size);
	const uint64_t at[] = { 0, 31, 32, CHUNK - 1, 3 * CHUNK + 7 };
	uint64_t from = 0;

	(void)state;
	assert_int_equal(view_next_saved(v, 0, size), size);
	for (unsigned i = 0; i < ARRAY_SIZE(at); i++) {
		move(v, at[i], VIEW_NEEDED, VIEW_SAVING);
		assert_int_equal(view_next_saved(v, from, size), size);
		move(v, at[i], VIEW_SAVING, VIEW_SAVED);
		assert_int_equal(view_next_saved(v, from, size), at[i] * 4096);
		/* inside of a granule: there */
		assert_int_equal(view_next_saved(v, at[i] * 4096 + 5, size),
				 at[i] * 4096 + 5);
		/* not beyond the end that was given */
		assert_int_equal(view_next_saved(v, from, at[i] * 4096),
				 at[i] * 4096);
		from = (at[i] + 1) * 4096;
	}
	move(v, 31, VIEW_SAVED, VIEW_DONE);
	assert_int_equal(view_next_saved(v, 4096, size), 32 * 4096);
	view_unref(v);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			the_granule_is_4_kib_up_to_1_tib_and_doubles_with_the_disk),
		cmocka_unit_test(
			a_view_of_16_tib_is_made_scanned_and_done_in_no_time),
		cmocka_unit_test(a_move_needs_the_state_that_it_names),
		cmocka_unit_test(
			a_move_that_cannot_allocate_says_why_and_changes_nothing),
		cmocka_unit_test(
			a_chunk_that_nobody_touched_is_done_without_a_page),
		cmocka_unit_test(done_beyond_the_end_of_the_disk_is_cut),
		cmocka_unit_test(
			holes_reach_from_saved_to_saved_and_never_over_saving),
		cmocka_unit_test(
			after_the_death_of_a_data_plane_saving_is_needed_again),
		cmocka_unit_test(both_processes_see_one_set_of_states),
		cmocka_unit_test(a_file_that_is_no_view_of_ours_is_refused),
		cmocka_unit_test(a_size_that_no_disk_has_is_refused),
		cmocka_unit_test(states_are_what_the_model_says),
		cmocka_unit_test(rule_2_a_move_does_not_undo_its_neighbours),
		cmocka_unit_test(moves_of_neighbours_do_not_undo_each_other),
		cmocka_unit_test(what_is_saved_is_found_from_anywhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

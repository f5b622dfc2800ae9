/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of view/: the numbered rules of view.h, one parked thread at a time.
 * (Rule 4 is kept by the cut: see test-cut.c.)
 */
#include "view/view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "scene.h"
#include "step.h"
#include "unit.h"

#define SIZE (64 * 4096 + 512)

/* --- rule 1 ------------------------------------------------------------------ */

/* Before the image changes: may it? */
static void
check_rule_1(struct mem_image *m, uint64_t off, uint64_t len)
{
	struct scene *s = m->opaque;
	uint64_t g = off / GRANULE, end = div_up(off + len, GRANULE);

	for (; g < end; g++) {
		enum view_state st = view_get(s->view, g);

		assert_true(st == VIEW_SAVED || st == VIEW_DONE ||
			    view_broken(s->view));
	}
}

static void
watch_rule_1(struct scene *s)
{
	s->image->opaque = s;
	s->image->before_write = check_rule_1;
}

static void
rule_1_the_image_changes_under_saved_granules_only(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	watch_rule_1(&s);
	assert_int_equal(scene_write(&s, 3 * GRANULE, 2 * GRANULE, 0xaa), 0);
	assert_int_equal(scene_state(&s, 3 * GRANULE), VIEW_SAVED);
	assert_int_equal(scene_state(&s, 4 * GRANULE), VIEW_SAVED);
	assert_int_equal(scene_state(&s, 2 * GRANULE), VIEW_NEEDED);
	assert_int_equal(scene_state(&s, 5 * GRANULE), VIEW_NEEDED);
	scene_check_pattern(&s, 0, SIZE);
	assert_int_equal(s.image->data[3 * GRANULE], 0xaa);
	scene_destroy(&s);
}

static void
rule_1_a_write_in_the_middle_saves_the_whole_of_its_granules(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	watch_rule_1(&s);
	/* the last byte of one granule and the first of the next */
	assert_int_equal(scene_write(&s, 4 * GRANULE - 1, 2, 0xaa), 0);
	assert_int_equal(cbw_saved_bytes(s.cbw), 2 * GRANULE);
	/* the rest of them is overwritten without another copy */
	assert_int_equal(scene_write(&s, 3 * GRANULE, 2 * GRANULE, 0xbb), 0);
	assert_int_equal(cbw_saved_bytes(s.cbw), 2 * GRANULE);
	scene_check_pattern(&s, 0, SIZE);
	scene_destroy(&s);
}

static void
rule_1_the_short_granule_at_the_end_of_the_disk_is_saved(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	watch_rule_1(&s);
	assert_int_equal(scene_write(&s, SIZE - 1, 1, 0xaa), 0);
	assert_int_equal(cbw_saved_bytes(s.cbw), 512);
	scene_check_pattern(&s, 0, SIZE);
	scene_destroy(&s);
}

static void
rule_1_a_large_write_is_saved_to_its_last_granule(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	watch_rule_1(&s);
	assert_int_equal(scene_write(&s, 0, SIZE, 0xaa), 0);
	assert_int_equal(cbw_saved_bytes(s.cbw), SIZE);
	scene_check_pattern(&s, 0, SIZE);
	scene_destroy(&s);
}

struct guest {
	struct scene *s;
	uint64_t off, len;
	int byte, r;
};

static void
guest_writes(void *arg)
{
	struct guest *g = arg;

	g->r = scene_write(g->s, g->off, g->len, g->byte);
}

static void
rule_1_the_image_stays_until_the_copy_is_published(void **state)
{
	struct scene s;
	struct guest g = { .s = &s, .off = 0, .len = GRANULE, .byte = 0xaa };
	struct actor a;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	step_arm("cbw.copied");
	actor_start(&a, guest_writes, &g);
	step_wait_parked("cbw.copied");
	assert_int_equal(scene_state(&s, 0), VIEW_SAVING);
	assert_int_equal(s.image->data[0], mem_image_pattern(0));
	step_release("cbw.copied");
	actor_join(&a);
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	scene_check_pattern(&s, 0, SIZE);
	scene_destroy(&s);
	step_end();
}

static void
rule_1_what_is_done_is_overwritten_without_a_copy(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	watch_rule_1(&s);
	view_reader_done(&s.reader, 0, 8 * GRANULE);
	assert_int_equal(scene_write(&s, GRANULE, 8 * GRANULE, 0xaa), 0);
	assert_int_equal(cbw_saved_bytes(s.cbw), GRANULE);
	assert_int_equal(scene_state(&s, 7 * GRANULE), VIEW_DONE);
	assert_int_equal(scene_state(&s, 8 * GRANULE), VIEW_SAVED);
	scene_destroy(&s);
}

static void
rule_1_what_is_not_part_of_the_view_is_overwritten_without_a_copy(void **state)
{
	struct err e = ERR_INIT;
	struct epoch *mask;
	struct scene s;
	int fd = tmpfs_file();

	(void)state;
	assert_ok(epoch_format(fd, SIZE, GRANULE, &e), &e);
	assert_ok(epoch_open(fd, &mask, &e), &e);
	epoch_set(mask, 10 * GRANULE, 1);
	epoch_set(mask, 12 * GRANULE, 1);
	scene_init(&s, &(struct scene_options){
			       .size = SIZE, .mask = mask, .unit = GRANULE });
	assert_int_equal(scene_write(&s, 8 * GRANULE, 8 * GRANULE, 0xaa), 0);
	assert_int_equal(cbw_saved_bytes(s.cbw), 2 * GRANULE);
	for (uint64_t g = 8; g < 16; g++)
		assert_int_equal(scene_state(&s, g * GRANULE),
				 g == 10 || g == 12 ? VIEW_SAVED : VIEW_NEEDED);
	scene_check_pattern(&s, 10 * GRANULE, GRANULE);
	scene_check_pattern(&s, 12 * GRANULE, GRANULE);
	scene_destroy(&s);
}

/* --- rule 2 ------------------------------------------------------------------ */

static void
rule_2_one_thread_copies_and_the_other_waits_for_it(void **state)
{
	struct scene s;
	struct guest g1 = { .s = &s, .len = GRANULE, .byte = 0xaa };
	struct guest g2 = { .s = &s, .len = GRANULE, .byte = 0xbb };
	struct actor a, b;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	step_arm("cbw.claimed");
	actor_start(&a, guest_writes, &g1);
	step_wait_parked("cbw.claimed");
	actor_start(&b, guest_writes, &g2);
	assert_true(actor_is_held_at(&b, "cbw.wait", 1));
	assert_int_equal(s.image->data[0], mem_image_pattern(0));
	step_release("cbw.claimed");
	actor_join(&a);
	actor_join(&b);
	assert_int_equal(s.image->reads, 1);
	assert_int_equal(cbw_saved_bytes(s.cbw), GRANULE);
	scene_check_pattern(&s, 0, SIZE);
	scene_destroy(&s);
	step_end();
}

static void
rule_2_a_claim_succeeds_once(void **state)
{
	struct scene s;
	int os;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	assert_true(view_move(s.view, 5, VIEW_NEEDED, VIEW_SAVING, &os));
	assert_false(view_move(s.view, 5, VIEW_NEEDED, VIEW_SAVING, &os));
	assert_int_equal(os, 0);
	assert_int_equal(view_get(s.view, 4), VIEW_NEEDED);
	assert_int_equal(view_get(s.view, 5), VIEW_SAVING);
	assert_int_equal(view_get(s.view, 6), VIEW_NEEDED);
	scene_destroy(&s);
}

/* Or two writes could wait for each other. */
static void
rule_2_a_thread_publishes_its_own_before_it_waits_for_others(void **state)
{
	struct scene s;
	struct guest g1 = { .s = &s, .off = GRANULE, .len = 1, .byte = 0xaa };
	struct guest g2 = { .s = &s, .len = 3 * GRANULE, .byte = 0xbb };
	struct actor a, b;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	step_arm("cbw.claimed");
	actor_start(&a, guest_writes, &g1);
	step_wait_parked("cbw.claimed");
	actor_start(&b, guest_writes, &g2);
	assert_true(actor_is_held_at(&b, "cbw.wait", 1));
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	step_release("cbw.claimed");
	actor_join(&a);
	actor_join(&b);
	scene_check_pattern(&s, 0, SIZE);
	scene_destroy(&s);
	step_end();
}

static void
rule_2_a_writer_next_door_does_not_wait(void **state)
{
	struct scene s;
	struct guest g1 = { .s = &s, .len = 1, .byte = 0xaa };
	struct actor a;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	step_arm("cbw.claimed");
	actor_start(&a, guest_writes, &g1);
	step_wait_parked("cbw.claimed");
	assert_int_equal(scene_write(&s, GRANULE, GRANULE, 0xbb), 0);
	assert_int_equal(step_passed("cbw.wait"), 0);
	step_release("cbw.claimed");
	actor_join(&a);
	scene_destroy(&s);
	step_end();
}

/* --- rule 3 ------------------------------------------------------------------ */

/* A guest comes just before the reader's look at the image. */
static void
write_before_this_read(struct mem_image *m, uint64_t off, uint64_t len)
{
	m->before_read = NULL;
	assert_int_equal(scene_write(m->opaque, off, len, 0xaa), 0);
}

static void
rule_3_the_state_is_looked_at_after_the_image(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	s.image->opaque = &s;
	s.image->before_read = write_before_this_read;
	scene_check_pattern(&s, 0, 16 * GRANULE);
	assert_int_equal(s.image->data[0], 0xaa);
	scene_destroy(&s);
}

struct consumer {
	struct scene *s;
	uint64_t off, len;
	unsigned char *buf;
	int r;
};

static void
consumer_reads(void *arg)
{
	struct consumer *c = arg;

	c->r = view_reader_pread(&c->s->reader, c->buf, c->len, c->off);
}

static void
rule_3_a_write_after_the_read_of_the_image_does_no_harm(void **state)
{
	static unsigned char buf[2 * GRANULE];
	struct scene s;
	struct consumer c = { .s = &s, .len = sizeof buf, .buf = buf };
	struct actor a;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	step_arm("reader.after-image");
	actor_start(&a, consumer_reads, &c);
	step_wait_parked("reader.after-image");
	assert_int_equal(scene_write(&s, 0, GRANULE, 0xaa), 0);
	step_release("reader.after-image");
	actor_join(&a);
	assert_int_equal(c.r, 0);
	for (size_t i = 0; i < sizeof buf; i++)
		assert_int_equal(buf[i], mem_image_pattern(i));
	scene_destroy(&s);
	step_end();
}

static void
rule_3_saving_is_read_from_the_image_and_nobody_waits(void **state)
{
	struct scene s;
	struct guest g = { .s = &s, .len = GRANULE, .byte = 0xaa };
	struct actor a;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	step_arm("cbw.claimed"); /* nothing is in the store yet */
	actor_start(&a, guest_writes, &g);
	step_wait_parked("cbw.claimed");
	assert_int_equal(scene_state(&s, 0), VIEW_SAVING);
	scene_check_pattern(&s, 0, 2 * GRANULE);
	step_release("cbw.claimed");
	actor_join(&a);
	scene_destroy(&s);
	step_end();
}

static void
rule_3_what_is_partly_saved_is_read_from_both(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	for (uint64_t g = 0; g < 60; g += 7)
		assert_int_equal(scene_write(&s, g * GRANULE, 1, 0xaa), 0);
	scene_check_pattern(&s, 0, SIZE);
	scene_check_pattern(&s, 7 * GRANULE + 5, 100);
	scene_check_pattern(&s, 6 * GRANULE + 4000, 200);
	scene_check_pattern(&s, SIZE - 5, 5);
	scene_destroy(&s);
}

/* Zero at the cut stays a hole in the store, and reads as zero. */
static void
rule_3_zeroes_are_kept_as_a_hole(void **state)
{
	unsigned char buf[GRANULE];
	struct stat st;
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	memset(s.image->data, 0, 4 * GRANULE);
	assert_int_equal(scene_write(&s, GRANULE, GRANULE, 0xaa), 0);
	assert_int_equal(fstat(s.store, &st), 0);
	assert_int_equal(st.st_blocks, 0);
	assert_int_equal(view_reader_pread(&s.reader, buf, GRANULE, GRANULE),
			 0);
	assert_true(buf_is_zero(buf, sizeof buf));
	scene_destroy(&s);
}

/* A guest zeroes just before the reader asks the image what is zero. */
static void
zero_before_this_extent(struct mem_image *m, uint64_t off, uint64_t len)
{
	(void)len;
	m->before_extent = NULL;
	assert_int_equal(scene_zero(m->opaque, off, 2 * GRANULE), 0);
}

static void
rule_3_an_extent_is_believed_only_where_nothing_was_saved(void **state)
{
	struct scene s;
	uint64_t n;
	bool zero;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	s.image->opaque = &s;
	s.image->before_extent = zero_before_this_extent;
	assert_int_equal(view_reader_extent(&s.reader, 0, SIZE, &n, &zero), 0);
	assert_int_equal(n, 2 * GRANULE);
	assert_false(zero); /* the image says so, the cut does not */
	assert_int_equal(view_reader_extent(&s.reader, n, SIZE - n, &n, &zero),
			 0);
	assert_false(zero);
	scene_destroy(&s);
}

static void
rule_3_a_hole_that_was_there_at_the_cut_is_zero(void **state)
{
	struct scene s;
	uint64_t n;
	bool zero;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	memset(s.image->data, 0, 8 * GRANULE);
	assert_int_equal(view_reader_extent(&s.reader, 0, SIZE, &n, &zero), 0);
	assert_true(zero);
	assert_int_equal(n, 8 * GRANULE);
	/* only so far as nothing was saved */
	assert_int_equal(scene_write(&s, 5 * GRANULE, GRANULE, 0), 0);
	assert_int_equal(view_reader_extent(&s.reader, 0, SIZE, &n, &zero), 0);
	assert_true(zero);
	assert_int_equal(n, 5 * GRANULE);
	scene_destroy(&s);
}

/* --- rule 5 ------------------------------------------------------------------ */

static uint64_t
store_used(const struct scene *s)
{
	struct stat st;

	assert_int_equal(fstat(s->store, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void
rule_5_reading_makes_nothing_done_only_the_flush_does(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	assert_int_equal(scene_write(&s, 0, 4 * GRANULE, 0xaa), 0);
	scene_check_pattern(&s, 0, SIZE);
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	assert_int_equal(scene_state(&s, 4 * GRANULE), VIEW_NEEDED);
	assert_int_equal(store_used(&s), 4 * GRANULE);
	scene_check_pattern(&s, 0, SIZE); /* it can be sent again */
	view_reader_done(&s.reader, 0, SIZE);
	assert_int_equal(scene_state(&s, 0), VIEW_DONE);
	assert_int_equal(scene_state(&s, SIZE - 1), VIEW_DONE);
	assert_int_equal(store_used(&s), 0);
	scene_destroy(&s);
}

static void
rule_5_granules_that_are_partly_done_stay_as_they_are(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	assert_int_equal(scene_write(&s, 0, 4 * GRANULE, 0xaa), 0);
	view_reader_done(&s.reader, 100, 2 * GRANULE);
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	assert_int_equal(scene_state(&s, GRANULE), VIEW_DONE);
	assert_int_equal(scene_state(&s, 2 * GRANULE), VIEW_SAVED);
	scene_check_pattern(&s, 0, GRANULE);
	scene_check_pattern(&s, 2 * GRANULE, 2 * GRANULE);
	view_reader_done(&s.reader, 100, 200); /* inside of one granule */
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	scene_destroy(&s);
}

static void
rule_5_what_is_being_saved_is_not_made_done(void **state)
{
	struct scene s;
	struct guest g = { .s = &s, .len = GRANULE, .byte = 0xaa };
	struct actor a;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	step_arm("cbw.claimed");
	actor_start(&a, guest_writes, &g);
	step_wait_parked("cbw.claimed");
	view_reader_done(&s.reader, 0, 2 * GRANULE);
	assert_int_equal(scene_state(&s, 0), VIEW_SAVING);
	assert_int_equal(scene_state(&s, GRANULE), VIEW_DONE);
	step_release("cbw.claimed");
	actor_join(&a);
	assert_int_equal(g.r, 0);
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	scene_destroy(&s);
	step_end();
}

/* --- rule 6 ------------------------------------------------------------------ */

static void
check_rule_6(struct mem_image *m, uint64_t off, uint64_t len)
{
	struct scene *s = m->opaque;

	(void)off;
	(void)len;
	assert_int_equal(view_broken(s->view), ENOSPC);
}

static void
rule_6_a_view_says_that_it_is_broken_before_the_image_changes(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE,
						.store = "/dev/full" });
	s.image->opaque = &s;
	s.image->before_write = check_rule_6;
	assert_int_equal(scene_write(&s, 0, GRANULE, 0xaa), 0);
	assert_int_equal(s.image->writes, 1);
	assert_int_equal(s.broken_calls, 1);
	assert_int_equal(s.broken_os, ENOSPC);
	scene_destroy(&s);
}

static void
rule_6_the_first_reason_stays(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	assert_int_equal(view_broken(s.view), 0);
	view_break(s.view, EIO);
	view_break(s.view, ENOSPC);
	assert_int_equal(view_broken(s.view), EIO);
	scene_destroy(&s);
}

static void
rule_6_a_broken_view_cannot_be_read(void **state)
{
	unsigned char buf[GRANULE];
	struct scene s;
	uint64_t n;
	bool zero;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	view_break(s.view, ENOSPC);
	assert_int_equal(view_reader_pread(&s.reader, buf, sizeof buf, 0),
			 ENOSPC);
	assert_int_equal(view_reader_extent(&s.reader, 0, SIZE, &n, &zero),
			 ENOSPC);
	scene_destroy(&s);
}

/* The reader saw a new image: it must see that the view is broken as well. */
static void
rule_6_a_reader_notices_a_break_during_its_read(void **state)
{
	unsigned char buf[GRANULE];
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE,
						.store = "/dev/full" });
	s.image->opaque = &s;
	s.image->before_read = write_before_this_read;
	assert_int_equal(view_reader_pread(&s.reader, buf, sizeof buf, 0),
			 ENOSPC);
	scene_destroy(&s);
}

static void
break_before_this_extent(struct mem_image *m, uint64_t off, uint64_t len)
{
	struct scene *s = m->opaque;

	(void)len;
	m->before_extent = NULL;
	assert_int_equal(scene_zero(s, off, GRANULE), 0);
}

static void
rule_6_an_extent_notices_a_break_during_its_look(void **state)
{
	struct scene s;
	uint64_t n;
	bool zero;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE,
						.store = "/dev/full" });
	s.image->opaque = &s;
	s.image->before_extent = break_before_this_extent;
	assert_int_equal(view_reader_extent(&s.reader, 0, SIZE, &n, &zero),
			 ENOSPC);
	scene_destroy(&s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			rule_1_the_image_changes_under_saved_granules_only),
		cmocka_unit_test(
			rule_1_a_write_in_the_middle_saves_the_whole_of_its_granules),
		cmocka_unit_test(
			rule_1_the_short_granule_at_the_end_of_the_disk_is_saved),
		cmocka_unit_test(
			rule_1_a_large_write_is_saved_to_its_last_granule),
		cmocka_unit_test(
			rule_1_the_image_stays_until_the_copy_is_published),
		cmocka_unit_test(
			rule_1_what_is_done_is_overwritten_without_a_copy),
		cmocka_unit_test(
			rule_1_what_is_not_part_of_the_view_is_overwritten_without_a_copy),
		cmocka_unit_test(
			rule_2_one_thread_copies_and_the_other_waits_for_it),
		cmocka_unit_test(rule_2_a_claim_succeeds_once),
		cmocka_unit_test(
			rule_2_a_thread_publishes_its_own_before_it_waits_for_others),
		cmocka_unit_test(rule_2_a_writer_next_door_does_not_wait),
		cmocka_unit_test(rule_3_the_state_is_looked_at_after_the_image),
		cmocka_unit_test(
			rule_3_a_write_after_the_read_of_the_image_does_no_harm),
		cmocka_unit_test(
			rule_3_saving_is_read_from_the_image_and_nobody_waits),
		cmocka_unit_test(rule_3_what_is_partly_saved_is_read_from_both),
		cmocka_unit_test(rule_3_zeroes_are_kept_as_a_hole),
		cmocka_unit_test(
			rule_3_an_extent_is_believed_only_where_nothing_was_saved),
		cmocka_unit_test(
			rule_3_a_hole_that_was_there_at_the_cut_is_zero),
		cmocka_unit_test(
			rule_5_reading_makes_nothing_done_only_the_flush_does),
		cmocka_unit_test(
			rule_5_granules_that_are_partly_done_stay_as_they_are),
		cmocka_unit_test(rule_5_what_is_being_saved_is_not_made_done),
		cmocka_unit_test(
			rule_6_a_view_says_that_it_is_broken_before_the_image_changes),
		cmocka_unit_test(rule_6_the_first_reason_stays),
		cmocka_unit_test(rule_6_a_broken_view_cannot_be_read),
		cmocka_unit_test(
			rule_6_a_reader_notices_a_break_during_its_read),
		cmocka_unit_test(
			rule_6_an_extent_notices_a_break_during_its_look),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

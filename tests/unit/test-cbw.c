/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of view/cbw: what happens when saving fails, masks and units.
 */
#include "view/cbw.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "scene.h"
#include "step.h"
#include "unit.h"

#define SIZE (64 * 4096 + 512)

struct guest {
	struct scene *s;
	uint64_t off, len;
	int r;
};

static void
guest_writes(void *arg)
{
	struct guest *g = arg;

	g->r = scene_write(g->s, g->off, g->len, 0xaa);
}

/* --- the policy, both ways ----------------------------------------------------- */

static void
break_snapshot_a_full_store_breaks_the_view_and_not_the_write(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE,
						.store = "/dev/full" });
	assert_int_equal(scene_write(&s, 100, 10, 0xaa), 0);
	assert_int_equal(s.image->data[100], 0xaa);
	assert_int_equal(view_broken(s.view), ENOSPC);
	assert_int_equal(s.broken_calls, 1);
	assert_int_equal(s.broken_os, ENOSPC);
	/* later writes try nothing, and tell nobody again */
	assert_int_equal(scene_write(&s, GRANULE, GRANULE, 0xaa), 0);
	assert_int_equal(s.image->reads, 1);
	assert_int_equal(s.broken_calls, 1);
	assert_int_equal(cbw_saved_bytes(s.cbw), 0);
	scene_destroy(&s);
}

static void
break_guest_write_a_full_store_fails_the_write_and_not_the_view(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE,
						.policy = CBW_BREAK_GUEST_WRITE,
						.store = "/dev/full" });
	assert_int_equal(scene_write(&s, 100, 10, 0xaa), ENOSPC);
	assert_int_equal(s.image->writes, 0);
	assert_int_equal(view_broken(s.view), 0);
	assert_int_equal(s.broken_calls, 0);
	assert_int_equal(scene_state(&s, 100), VIEW_NEEDED);
	scene_check_pattern(&s, 0, SIZE);
	/* where nothing has to be saved, writes succeed */
	view_reader_done(&s.reader, 0, 2 * GRANULE);
	assert_int_equal(scene_write(&s, 100, 10, 0xaa), 0);
	scene_destroy(&s);
}

static void
break_snapshot_an_image_that_cannot_be_read_breaks_the_view(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	s.image->read_os = EIO;
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	assert_int_equal(view_broken(s.view), EIO);
	assert_int_equal(scene_state(&s, 0), VIEW_NEEDED);
	scene_destroy(&s);
}

static void
break_guest_write_a_write_that_failed_may_be_tried_again(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){
			       .size = SIZE, .policy = CBW_BREAK_GUEST_WRITE });
	s.image->read_os = EIO;
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), EIO);
	s.image->read_os = 0;
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	scene_check_pattern(&s, 0, SIZE);
	scene_destroy(&s);
}

/* --- cbw-timeout: a disk that hangs, which is a thread that is parked ------- */

static void
break_snapshot_a_save_that_takes_too_long_breaks_the_view(void **state)
{
	struct scene s;

	(void)state;
	step_reset();
	scene_init(&s,
		   &(struct scene_options){ .size = SIZE, .timeout_ms = 300 });
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	assert_int_equal(view_broken(s.view), 0);
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	step_arm("cbw.claimed");
	assert_int_equal(scene_write(&s, GRANULE, 512, 0xaa), 0);
	assert_int_equal(view_broken(s.view), ETIMEDOUT);
	assert_int_equal(s.broken_os, ETIMEDOUT);
	assert_int_equal(s.image->writes, 2);
	assert_false(cbw_is_quiet(s.cbw, 1));
	step_end();
	scene_destroy(&s);
}

static void
hung_scene(struct scene *s)
{
	step_reset();
	scene_init(s, &(struct scene_options){ .size = SIZE,
					       .policy = CBW_BREAK_GUEST_WRITE,
					       .timeout_ms = 50 });
	step_arm("cbw.claimed");
	assert_int_equal(scene_write(s, 0, 512, 0xaa), ETIMEDOUT);
}

static void
break_guest_write_a_save_that_takes_too_long_fails_the_write(void **state)
{
	struct scene s;

	(void)state;
	hung_scene(&s);
	assert_int_equal(s.image->writes, 0);
	assert_int_equal(view_broken(s.view), 0);
	/* the copy goes on */
	assert_int_equal(scene_state(&s, 0), VIEW_SAVING);
	step_release("cbw.claimed");
	assert_true(cbw_is_quiet(s.cbw, 10000));
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	scene_check_pattern(&s, 0, GRANULE);
	step_end();
	scene_destroy(&s);
}

static void
a_copy_that_fails_after_its_time_may_be_tried_again(void **state)
{
	struct scene s;

	(void)state;
	hung_scene(&s);
	s.image->read_os = EIO;
	step_release("cbw.claimed");
	assert_true(cbw_is_quiet(s.cbw, 10000));
	assert_int_equal(scene_state(&s, 0), VIEW_NEEDED);
	assert_int_equal(view_broken(s.view), 0);
	s.image->read_os = 0;
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	scene_check_pattern(&s, 0, GRANULE);
	step_end();
	scene_destroy(&s);
}

static void
a_write_does_not_wait_longer_for_the_save_of_another(void **state)
{
	struct scene s;
	struct guest g = { .s = &s, .off = 600, .len = 10 };
	struct actor a;

	(void)state;
	hung_scene(&s);
	actor_start(&a, guest_writes, &g);
	actor_join(&a);
	assert_int_equal(g.r, ETIMEDOUT);
	assert_int_equal(step_passed("cbw.claimed"), 1);
	assert_int_equal(s.image->writes, 0);
	step_end();
	scene_destroy(&s);
}

static void
destroy(void *arg)
{
	scene_destroy(arg);
}

static void
the_end_waits_for_copies_that_no_write_waits_for(void **state)
{
	struct scene s;
	struct actor a;

	(void)state;
	hung_scene(&s);
	actor_start(&a, destroy, &s);
	assert_true(actor_is_held_at(&a, "cbw.ending", 1));
	step_release("cbw.claimed");
	actor_join(&a);
	step_end();
}

static void
without_a_limit_a_save_may_take_its_time(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	s.image->read_ms = 50;
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	assert_int_equal(view_broken(s.view), 0);
	scene_check_pattern(&s, 0, GRANULE);
	scene_destroy(&s);
}

static void
a_full_tmpfs_for_the_states_is_a_failed_save(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	fault_fallocate(ENOSPC, 0, 1);
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	assert_int_equal(view_broken(s.view), ENOSPC);
	scene_destroy(&s);
	scene_init(&s, &(struct scene_options){
			       .size = SIZE, .policy = CBW_BREAK_GUEST_WRITE });
	fault_fallocate(ENOSPC, 0, 1);
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), ENOSPC);
	assert_int_equal(s.image->writes, 0);
	fault_fallocate(0, 0, 0);
	scene_destroy(&s);
}

static void
an_allocation_of_states_that_a_signal_interrupts_is_tried_again(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	fault_fallocate(EINTR, 0, 2);
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	assert_int_equal(view_broken(s.view), 0);
	assert_int_equal(scene_state(&s, 0), VIEW_SAVED);
	scene_destroy(&s);
}

/* --- who waits for a save that fails ------------------------------------------- */

static void
break_snapshot_who_waited_for_a_failed_save_goes_on(void **state)
{
	struct scene s;
	struct guest g1 = { .s = &s, .len = 512 };
	struct guest g2 = { .s = &s, .len = 512 };
	struct actor a, b;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE,
						.store = "/dev/full" });
	step_arm("cbw.claimed");
	actor_start(&a, guest_writes, &g1);
	step_wait_parked("cbw.claimed");
	actor_start(&b, guest_writes, &g2);
	assert_true(actor_is_held_at(&b, "cbw.wait", 1));
	step_release("cbw.claimed");
	actor_join(&a);
	actor_join(&b);
	assert_int_equal(g1.r, 0);
	assert_int_equal(g2.r, 0);
	assert_int_equal(s.broken_calls, 1);
	scene_destroy(&s);
	step_end();
}

static void
break_guest_write_who_waited_for_a_failed_save_tries_itself(void **state)
{
	struct scene s;
	struct guest g1 = { .s = &s, .len = 512 };
	struct guest g2 = { .s = &s, .len = 512 };
	struct actor a, b;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){
			       .size = SIZE, .policy = CBW_BREAK_GUEST_WRITE });
	s.image->read_os = EIO;
	step_arm("cbw.copied"); /* it has failed, and does not say so yet */
	actor_start(&a, guest_writes, &g1);
	step_wait_parked("cbw.copied");
	s.image->read_os = 0;
	actor_start(&b, guest_writes, &g2);
	assert_true(actor_is_held_at(&b, "cbw.wait", 1));
	step_release("cbw.copied");
	actor_join(&a);
	actor_join(&b);
	assert_int_equal(g1.r, EIO);
	assert_int_equal(g2.r, 0);
	assert_int_equal(s.image->writes, 1);
	scene_check_pattern(&s, 0, SIZE);
	scene_destroy(&s);
	step_end();
}

static void
a_view_that_was_given_up_saves_nothing_and_tells_nobody(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE,
						.store = "/dev/full" });
	cbw_give_up(s.cbw);
	assert_int_equal(view_broken(s.view), ECANCELED);
	assert_int_equal(scene_write(&s, 0, SIZE, 0xaa), 0);
	assert_int_equal(s.image->reads, 0);
	assert_int_equal(s.broken_calls, 0);
	scene_destroy(&s);
}

static void
a_save_under_way_when_the_view_is_given_up_tells_nobody(void **state)
{
	struct scene s;
	struct guest g = { .s = &s, .len = 512 };
	struct actor a;

	(void)state;
	step_reset();
	scene_init(&s, &(struct scene_options){ .size = SIZE,
						.store = "/dev/full" });
	step_arm("cbw.claimed");
	actor_start(&a, guest_writes, &g);
	step_wait_parked("cbw.claimed");
	cbw_give_up(s.cbw);
	step_release("cbw.claimed");
	actor_join(&a);
	assert_int_equal(g.r, 0);
	assert_int_equal(s.broken_calls, 0);
	assert_int_equal(view_broken(s.view), ECANCELED);
	scene_destroy(&s);
	step_end();
}

/* --- masks and units ------------------------------------------------------------ */

static struct epoch *
mask_make(uint64_t granularity)
{
	struct err e = ERR_INIT;
	struct epoch *ep;
	int fd = tmpfs_file();

	assert_ok(epoch_format(fd, SIZE, granularity, &e), &e);
	assert_ok(epoch_open(fd, &ep, &e), &e);
	return ep;
}

/* One write over the whole disk: which granules were saved? */
static void
saved_granules_are(uint64_t granularity, uint64_t unit, uint64_t dirty,
		   uint64_t from, uint64_t to)
{
	struct epoch *mask = mask_make(granularity);
	struct scene s;

	epoch_set(mask, dirty, 1);
	scene_init(&s, &(struct scene_options){
			       .size = SIZE, .mask = mask, .unit = unit });
	assert_int_equal(scene_write(&s, 0, SIZE, 0xaa), 0);
	for (uint64_t off = 0; off < SIZE; off += GRANULE) {
		enum view_state want =
			off >= from && off < to ? VIEW_SAVED : VIEW_NEEDED;

		if (scene_state(&s, off) != want)
			fail_msg("granule %d, mask %d, unit %d",
				 (int)(off / GRANULE), (int)granularity,
				 (int)unit);
	}
	scene_check_pattern(&s, from, min_u64(to, SIZE) - from);
	scene_destroy(&s);
}

static void
a_mask_is_rounded_outwards_to_its_unit_and_to_granules(void **state)
{
	(void)state;
	/* finer than a granule */
	saved_granules_are(512, 512, 5 * GRANULE + 600, 5 * GRANULE,
			   6 * GRANULE);
	saved_granules_are(512, 1024, 6 * GRANULE - 1, 5 * GRANULE,
			   6 * GRANULE);
	/* as coarse as one */
	saved_granules_are(4096, 4096, 7 * GRANULE, 7 * GRANULE, 8 * GRANULE);
	/* the unit is coarser than the bits, and the other way round */
	saved_granules_are(4096, 65536, 17 * GRANULE, 16 * GRANULE,
			   32 * GRANULE);
	saved_granules_are(65536, 4096, 17 * GRANULE, 16 * GRANULE,
			   32 * GRANULE);
	/* at the end of a disk that is no multiple of anything */
	saved_granules_are(4096, 65536, SIZE - 1, 64 * GRANULE, 65 * GRANULE);
	saved_granules_are(512, 512, SIZE - 1, 64 * GRANULE, 65 * GRANULE);
}

static void
small_writes_at_the_edge_of_the_mask_save_what_they_touch(void **state)
{
	struct epoch *mask = mask_make(512);
	struct scene s;

	(void)state;
	epoch_set(mask, 5 * GRANULE + 600, 1); /* its middle */
	scene_init(&s, &(struct scene_options){
			       .size = SIZE, .mask = mask, .unit = 512 });
	/* in the granule, outside of the dirty sector: the copy is by granule,
	 * so it may be saved, and must be right if it is
	 */
	assert_int_equal(scene_write(&s, 6 * GRANULE - 1, 1, 0xaa), 0);
	assert_int_equal(scene_write(&s, 6 * GRANULE, 1, 0xaa), 0);
	assert_int_equal(scene_state(&s, 6 * GRANULE), VIEW_NEEDED);
	scene_check_pattern(&s, 5 * GRANULE + 512, 512);
	assert_int_equal(scene_write(&s, 5 * GRANULE + 700, 1, 0xaa), 0);
	assert_int_equal(scene_state(&s, 5 * GRANULE), VIEW_SAVED);
	scene_check_pattern(&s, 5 * GRANULE + 512, 512);
	scene_destroy(&s);
}

static void
two_masks_are_a_union(void **state)
{
	struct err e = ERR_INIT;
	struct scene s;
	struct cbw *both;
	struct cbw_options o = { .unit = 4096, .n = 2 };
	struct epoch *a = mask_make(4096), *b = mask_make(65536);

	(void)state;
	epoch_set(a, 2 * GRANULE, 1);
	epoch_set(b, 40 * GRANULE, 1);
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	o.view = view_ref(s.view);
	o.store = dup(s.store);
	o.image = &s.image->block;
	o.mask[0] = a;
	o.mask[1] = b;
	assert_ok(cbw_new(&o, &both, &e), &e);
	assert_int_equal(cbw_before_write(both, 0, SIZE), 0);
	assert_int_equal(cbw_saved_bytes(both), 17 * GRANULE);
	assert_int_equal(scene_state(&s, 2 * GRANULE), VIEW_SAVED);
	assert_int_equal(scene_state(&s, 32 * GRANULE), VIEW_SAVED);
	assert_int_equal(scene_state(&s, 47 * GRANULE), VIEW_SAVED);
	assert_int_equal(scene_state(&s, 48 * GRANULE), VIEW_NEEDED);
	cbw_free(both);
	scene_destroy(&s);
}

static void
a_write_of_several_runs_saves_all_of_them(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	view_reader_done(&s.reader, 3 * GRANULE, GRANULE);
	view_reader_done(&s.reader, 9 * GRANULE, 20 * GRANULE);
	assert_int_equal(scene_write(&s, 40 * GRANULE, GRANULE, 0xaa), 0);
	assert_int_equal(scene_write(&s, 0, SIZE, 0xbb), 0);
	assert_int_equal(cbw_saved_bytes(s.cbw), SIZE - 21 * GRANULE);
	scene_check_pattern(&s, 0, 3 * GRANULE);
	scene_check_pattern(&s, 4 * GRANULE, 5 * GRANULE);
	scene_check_pattern(&s, 29 * GRANULE, SIZE - 29 * GRANULE);
	scene_destroy(&s);
}

/* Who follows a view looks at the number, and at the states when it moved. */
static void
saves_are_counted_when_they_can_be_seen(void **state)
{
	struct scene s;

	(void)state;
	scene_init(&s, &(struct scene_options){ .size = SIZE });
	assert_int_equal(view_saves(s.view), 0);
	assert_int_equal(scene_write(&s, 0, 512, 0xaa), 0);
	assert_int_equal(view_saves(s.view), 1);
	/* nothing to save, nothing to count */
	assert_int_equal(scene_write(&s, 0, 512, 0xbb), 0);
	assert_int_equal(view_saves(s.view), 1);
	scene_destroy(&s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			break_snapshot_a_full_store_breaks_the_view_and_not_the_write),
		cmocka_unit_test(
			break_guest_write_a_full_store_fails_the_write_and_not_the_view),
		cmocka_unit_test(
			break_snapshot_an_image_that_cannot_be_read_breaks_the_view),
		cmocka_unit_test(
			break_guest_write_a_write_that_failed_may_be_tried_again),
		cmocka_unit_test(
			break_snapshot_a_save_that_takes_too_long_breaks_the_view),
		cmocka_unit_test(
			break_guest_write_a_save_that_takes_too_long_fails_the_write),
		cmocka_unit_test(
			a_copy_that_fails_after_its_time_may_be_tried_again),
		cmocka_unit_test(
			a_write_does_not_wait_longer_for_the_save_of_another),
		cmocka_unit_test(
			the_end_waits_for_copies_that_no_write_waits_for),
		cmocka_unit_test(without_a_limit_a_save_may_take_its_time),
		cmocka_unit_test(a_full_tmpfs_for_the_states_is_a_failed_save),
		cmocka_unit_test(
			an_allocation_of_states_that_a_signal_interrupts_is_tried_again),
		cmocka_unit_test(
			break_snapshot_who_waited_for_a_failed_save_goes_on),
		cmocka_unit_test(
			break_guest_write_who_waited_for_a_failed_save_tries_itself),
		cmocka_unit_test(
			a_view_that_was_given_up_saves_nothing_and_tells_nobody),
		cmocka_unit_test(
			a_save_under_way_when_the_view_is_given_up_tells_nobody),
		cmocka_unit_test(
			a_mask_is_rounded_outwards_to_its_unit_and_to_granules),
		cmocka_unit_test(
			small_writes_at_the_edge_of_the_mask_save_what_they_touch),
		cmocka_unit_test(two_masks_are_a_union),
		cmocka_unit_test(a_write_of_several_runs_saves_all_of_them),
		cmocka_unit_test(saves_are_counted_when_they_can_be_seen),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

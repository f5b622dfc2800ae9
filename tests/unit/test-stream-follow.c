/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Streams that follow guests: only what they overwrite is sent, as it was.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bits.h"
#include "step.h"
#include "stream-rig.h"
#include "stream/target-priv.h"

#define MB  (UINT64_C(1) << 20)
#define K64 UINT64_C(65536)

/* The disk before the cut, what guests write, and the target before. */
enum { OLD = 1, NEW = 2, TARGET = 7 };

static int
set_up(void **state)
{
	struct err e = ERR_INIT;
	struct block_file_options f = { .name = "disk" };
	struct block *b;
	struct rig *r = *state = rig_new();
	int fd;

	step_reset();
	rig_source(r, 8 * MB);
	rig_fill(r, 0, r->size, OLD);
	rig_view(r);
	r->o.follow = true;
	fd = captive_open(&r->server, "disk", r->size);
	rig_fill_file(fd, 0, r->size, TARGET);
	f.fd = fd;
	assert_ok(block_file_open(&f, &b, &e), &e);
	assert_ok(target_open_block(b, "disk", &r->target, &e), &e);
	return 0;
}

static int
tear_down(void **state)
{
	step_end();
	rig_free(*state);
	return 0;
}

/* --- a guest, as src/view/cbw.c has it ------------------------------------------ */

static void
begin_to_save(struct rig *r, uint64_t g)
{
	char page[4096];
	int os;

	assert_true(view_move(r->view, g, VIEW_NEEDED, VIEW_SAVING, &os));
	assert_int_equal(pread(r->source, page, 4096, (off_t)(g * 4096)), 4096);
	assert_int_equal(pwrite(r->reader.store, page, 4096, (off_t)(g * 4096)),
			 4096);
}

static void
finish_saving(struct rig *r, uint64_t g)
{
	int os;

	assert_true(view_move(r->view, g, VIEW_SAVING, VIEW_SAVED, &os));
	view_count_save(r->view);
}

static void
overwrite(struct rig *r, uint64_t off)
{
	uint64_t g = off / 4096;

	if (view_get(r->view, g) == VIEW_NEEDED) {
		begin_to_save(r, g);
		finish_saving(r, g);
	}
	rig_fill(r, g * 4096, 4096, NEW);
}

/* The clusters at these offsets are old, the rest of the target is as it
 * was.
 */
static void
assert_target(struct rig *r, const uint64_t *cluster, unsigned n)
{
	int fd = captive_open(&r->server, "disk", 0);

	for (uint64_t off = 0; off < r->size; off += K64) {
		unsigned seed = TARGET;

		for (unsigned i = 0; i < n; i++)
			if (cluster[i] == off)
				seed = OLD;
		rig_assert_file(fd, off, K64, seed, off);
	}
	(void)close(fd);
}

static void
wait_for_done(struct rig *r, uint64_t off)
{
	uint64_t begin = rig_now_ms();

	while (view_get(r->view, off / 4096) != VIEW_DONE) {
		rig_run_ms(r, 5);
		assert_true(rig_now_ms() - begin < 20000);
	}
}

static void
drain(struct rig *r)
{
	stream_drain(r->stream);
	rig_wait(r);
	rig_assert_ok(r);
}

/* --- tests --------------------------------------------------------------------------- */

static void
rule_6_what_was_overwritten_before_a_drain_is_at_the_target(void **state)
{
	const uint64_t clusters[] = { 0, 3 * MB, 8 * MB - K64 };
	struct rig *r = *state;
	uint64_t offset, len;

	rig_start(r);
	overwrite(r, 0);
	overwrite(r, 3 * MB + 5 * 4096);
	overwrite(r, 3 * MB + 7 * 4096);
	overwrite(r, 8 * MB - 4096);
	drain(r);
	assert_target(r, clusters, 3);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(len, r->size);
	assert_int_equal(offset, 3 * K64);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(view_next_not_done(r->view, clusters[i],
						    clusters[i] + K64),
				 clusters[i] + K64);
}

static void
a_drain_without_anything_ends_at_once(void **state)
{
	struct rig *r = *state;

	rig_start(r);
	drain(r);
	assert_target(r, NULL, 0);
	assert_int_equal(stream_result(r->stream)->requests, 0);
}

static void
what_is_overwritten_is_sent_and_done_while_guests_go_on(void **state)
{
	const uint64_t clusters[] = { 1 * MB, 5 * MB };
	struct rig *r = *state;

	rig_start(r);
	overwrite(r, 1 * MB + 4096);
	wait_for_done(r, 1 * MB);
	assert_target(r, clusters, 1);
	/* the cluster is not needed any more: this one costs nothing */
	overwrite(r, 1 * MB + 8192);
	overwrite(r, 5 * MB);
	wait_for_done(r, 5 * MB);
	drain(r);
	assert_target(r, clusters, 2);
}

/* A granule is being saved when its cluster becomes DONE: it stays SAVED, and
 * its cluster, of which the image has changed now, must not be sent again.
 */
static void
rule_6_no_cluster_is_sent_twice(void **state)
{
	const uint64_t clusters[] = { 1 * MB };
	struct rig *r = *state;
	uint64_t offset, len;

	rig_start(r);
	step_arm("stream.block-flush");
	overwrite(r, 1 * MB);
	step_wait_parked("stream.block-flush");
	begin_to_save(r, (1 * MB + 4096) / 4096);
	step_release("stream.block-flush");
	wait_for_done(r, 1 * MB);
	finish_saving(r, (1 * MB + 4096) / 4096);
	overwrite(r, 1 * MB + 4096);
	overwrite(r, 1 * MB);
	overwrite(r, 1 * MB + 3 * 4096);
	rig_run_ms(r, 250); /* it would have noticed */
	drain(r);
	assert_target(r, clusters, 1);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(offset, K64);
}

/* A round that is under way when the drain comes has passed some of it. */
static void
rule_6_a_drain_begins_from_the_start_of_the_disk(void **state)
{
	const uint64_t clusters[] = { 0, 4 * MB };
	struct rig *r = *state;

	r->o.max_lanes = 1;
	overwrite(r, 4 * MB);
	step_arm("stream.block-write");
	rig_start(r);
	step_wait_parked("stream.block-write");
	overwrite(r, 0);
	stream_drain(r->stream);
	step_release("stream.block-write");
	rig_wait(r);
	rig_assert_ok(r);
	assert_target(r, clusters, 2);
}

static void
while_guests_rest_nothing_is_looked_at(void **state)
{
	struct rig *r = *state;
	unsigned before;

	rig_start(r);
	overwrite(r, 0);
	wait_for_done(r, 0);
	rig_run_ms(r, 250);
	before = step_passed("stream.looking");
	rig_run_ms(r, 500);
	assert_int_equal(step_passed("stream.looking"), before);
	assert_true(r->running);
	drain(r);
}

static void
speed_does_not_hold_it_back(void **state)
{
	struct rig *r = *state;
	uint64_t begin = rig_now_ms();

	r->o.speed = 1;
	rig_start(r);
	stream_set_speed(r->stream, 1);
	for (uint64_t off = 0; off < r->size; off += K64)
		overwrite(r, off);
	drain(r);
	assert_true(rig_now_ms() - begin < 20000);
}

static void
a_paused_one_sends_nothing_and_drains(void **state)
{
	const uint64_t clusters[] = { 2 * MB };
	struct rig *r = *state;

	rig_start(r);
	stream_pause(r->stream);
	overwrite(r, 2 * MB);
	rig_run_ms(r, 250);
	assert_target(r, NULL, 0);
	drain(r);
	assert_target(r, clusters, 1);
}

static void
a_cancel_ends_it_without_more(void **state)
{
	struct rig *r = *state;

	rig_start(r);
	rig_run_ms(r, 20);
	stream_cancel(r->stream);
	rig_wait(r);
	assert_true(stream_result(r->stream)->cancelled);
}

static void
a_view_that_is_given_up_ends_it(void **state)
{
	struct rig *r = *state;

	rig_start(r);
	rig_run_ms(r, 20);
	view_break(r->view, ENOSPC);
	rig_wait(r);
	assert_int_equal(stream_result(r->stream)->error.os, ENOSPC);
	assert_int_equal(stream_result(r->stream)->side, STREAM_SOURCE);
}

static void
without_a_view_there_is_nothing_to_follow(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;

	r->reader.view = NULL;
	r->o.loop = &r->loop;
	r->o.reader = &r->reader;
	r->o.target = r->target;
	assert_fails(stream_start(&r->o, &r->stream, &e), &e,
		     "There is nothing to follow");
}

/* --- over several connections --------------------------------------------------- */

static int
set_up_server(void **state)
{
	struct rig *r = *state = rig_new();

	step_reset();
	rig_source(r, 32 * MB);
	rig_fill(r, 0, r->size, OLD);
	rig_view(r);
	r->o.follow = true;
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	return 0;
}

/* The first lane, which looks after guests for all, loses its connection. */
static void
another_lane_looks_when_the_first_cannot(void **state)
{
	struct rig *r = *state;
	int fd = nbd_aio_get_fd(r->target->idle);

	rig_start(r);
	rig_run_ms(r, 300);
	overwrite(r, 0);
	wait_for_done(r, 0);
	assert_int_equal(shutdown(fd, SHUT_RDWR), 0);
	rig_run_ms(r, 300);
	overwrite(r, 8 * MB);
	wait_for_done(r, 8 * MB);
	drain(r);
	assert_true(stream_result(r->stream)->lanes > 1);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		T(rule_6_what_was_overwritten_before_a_drain_is_at_the_target),
		T(a_drain_without_anything_ends_at_once),
		T(what_is_overwritten_is_sent_and_done_while_guests_go_on),
		T(rule_6_no_cluster_is_sent_twice),
		T(rule_6_a_drain_begins_from_the_start_of_the_disk),
		T(while_guests_rest_nothing_is_looked_at),
		T(speed_does_not_hold_it_back),
		T(a_paused_one_sends_nothing_and_drains),
		T(a_cancel_ends_it_without_more),
		T(a_view_that_is_given_up_ends_it),
		T(without_a_view_there_is_nothing_to_follow),
		cmocka_unit_test_setup_teardown(
			another_lane_looks_when_the_first_cannot, set_up_server,
			tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

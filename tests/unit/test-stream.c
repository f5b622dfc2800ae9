/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Streams that end well, against real servers.  What goes wrong is in
 * test-stream-failure.c, the parts by themselves in test-stream-parts.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "stream-rig.h"
#include "stream/buffers.h"

#define MB (UINT64_C(1) << 20)

static int
set_up(void **state)
{
	*state = rig_new();
	return 0;
}

static int
tear_down(void **state)
{
	rig_free(*state);
	return 0;
}

static void
copy_is_equal_and_zeroes_do_not_travel(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;

	rig_source(r, 40 * MB + 512);
	rig_fill(r, 0, 20 * MB, 1);
	rig_write_zeroes(r, 20 * MB, 10 * MB);
	rig_fill(r, 40 * MB, 512, 2);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_int_equal(stream_result(r->stream)->lanes, 4);
	assert_int_equal(stream_result(r->stream)->bytes_sent, 20 * MB + 512);
	assert_int_equal(stream_result(r->stream)->bytes_zeroed, 20 * MB);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(len, 40 * MB + 65536);
	assert_int_equal(offset, len);
}

/* qemu-nbd without --persistent goes away with its last client, and without
 * --shared it takes one at a time.
 */
static void
qemu_nbd_stays_for_a_second_stream(void **state)
{
	struct rig *r = *state;

	if (!captive_has("qemu-nbd"))
		skip();
	rig_source(r, 8 * MB);
	rig_fill(r, 0, 3 * MB, 1);
	(void)captive_open(&r->server, "disk", r->size);
	captive_qemu_nbd(&r->server,
			 (const char *const[]){ "-f", "raw", "@/disk", NULL });
	rig_open_target(r);
	rig_copy(r);
	assert_int_equal(stream_result(r->stream)->lanes, 1);
	rig_assert_equal(r, "disk");
	rig_fill(r, 2 * MB, 5 * MB, 2);
	rig_copy(r);
	rig_assert_equal(r, "disk");
}

static void
only_what_is_dirty_is_copied(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;
	int fd;

	rig_source(r, 16 * MB);
	rig_fill(r, 0, 16 * MB, 1);
	rig_dirty(r, 65536);
	epoch_set(r->epoch, 3 * MB, 1);
	epoch_set(r->epoch, 15 * MB, 65537);
	fd = captive_open(&r->server, "disk", r->size);
	rig_fill_file(fd, 0, r->size, 7);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	rig_copy(r);
	rig_assert_file(fd, 0, 3 * MB, 7, 0);
	rig_assert_file(fd, 3 * MB, 65536, 1, 3 * MB);
	rig_assert_file(fd, 3 * MB + 65536, 12 * MB - 65536, 7, 3 * MB + 65536);
	rig_assert_file(fd, 15 * MB, 131072, 1, 15 * MB);
	rig_assert_file(fd, 15 * MB + 131072, 1 * MB - 131072, 7,
			15 * MB + 131072);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(len, 3 * 65536);
	assert_int_equal(offset, len);
	(void)close(fd);
}

static void
nothing_dirty_ends_at_once(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;

	rig_source(r, 16 * MB);
	rig_dirty(r, 65536);
	NBDKIT(r, "memory", "16M");
	rig_open_target(r);
	rig_copy(r);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(len, 0);
	assert_int_equal(offset, 0);
	assert_int_equal(stream_result(r->stream)->requests, 0);
}

static void
clusters_are_at_least_what_was_asked_for(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;

	rig_source(r, 4 * MB);
	rig_fill(r, 0, 4 * MB, 1);
	rig_dirty(r, 65536);
	epoch_set(r->epoch, 3 * MB - 1, 1);
	r->o.cluster = 1 * MB;
	NBDKIT(r, "memory", "4M");
	rig_open_target(r);
	rig_copy(r);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(len, 1 * MB);
	assert_int_equal(offset, len);
	assert_int_equal(stream_result(r->stream)->bytes_sent, 1 * MB);
}

/* Rule 1.  The server's flush does not return before the test says so. */
static void
a_range_is_done_only_after_a_flush(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;

	rig_source(r, 1 * MB);
	rig_fill(r, 0, 1 * MB, 1);
	rig_view(r);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "eval", "get_size=echo 1M", "can_flush=exit 0",
	       "pread=dd if=@/disk bs=1 count=0",
	       "pwrite=dd of=@/disk bs=$3 count=1 seek=$4 oflag=seek_bytes "
	       "iflag=fullblock conv=notrunc 2>/dev/null",
	       "flush=touch @/flushing; while ! test -e @/go; do sleep 0.01; "
	       "done");
	rig_open_target(r);
	rig_start(r);
	captive_wait_for(&r->server, "flushing");
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(offset, len);
	for (uint64_t g = 0; g < r->size / view_granule(r->view); g++)
		assert_int_equal(view_get(r->view, g), VIEW_NEEDED);
	captive_touch(&r->server, "go");
	rig_wait(r);
	rig_assert_ok(r);
	for (uint64_t g = 0; g < r->size / view_granule(r->view); g++)
		assert_int_equal(view_get(r->view, g), VIEW_DONE);
	rig_assert_equal(r, "disk");
}

/* What is acknowledged while a flush is under way is not covered by it. */
static void
a_flush_covers_only_what_came_before_it(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;

	rig_source(r, 16 * MB);
	rig_fill(r, 0, 16 * MB, 1);
	rig_view(r);
	r->o.max_lanes = 1;
	r->o.speed = 4 * MB;
	NBDKIT(r, "eval", "get_size=echo 16M", "can_flush=exit 0",
	       "thread_model=echo parallel", "pread=exit 1",
	       "pwrite=cat >/dev/null",
	       "flush=test -e @/flushing || { touch @/flushing; while ! test "
	       "-e @/go; do sleep 0.01; done; }");
	rig_open_target(r);
	rig_start(r);
	captive_wait_for(&r->server, "flushing");
	stream_progress(r->stream, &offset, &len);
	rig_run_until_offset(r, offset + 2 * MB);
	captive_touch(&r->server, "go");
	while (view_get(r->view, 0) != VIEW_DONE)
		rig_run_ms(r, 10);
	assert_int_equal(view_get(r->view, (offset + 2 * MB) / 4096 - 1),
			 VIEW_NEEDED);
	stream_set_speed(r->stream, 0);
	rig_wait(r);
	rig_assert_ok(r);
	assert_int_equal(view_get(r->view, 16 * MB / 4096 - 1), VIEW_DONE);
}

static void
without_flushes_a_range_is_done_at_the_end(void **state)
{
	struct rig *r = *state;

	rig_source(r, 2 * MB);
	rig_fill(r, 0, 2 * MB, 1);
	rig_view(r);
	r->o.speed = 1 * MB;
	NBDKIT(r, "eval", "get_size=echo 2M", "pread=exit 1",
	       "pwrite=cat >/dev/null");
	rig_open_target(r);
	assert_false(target_can_flush(r->target));
	rig_start(r);
	rig_run_until_offset(r, 1 * MB + 65536);
	assert_int_equal(view_get(r->view, 0), VIEW_NEEDED);
	stream_set_speed(r->stream, 0);
	rig_wait(r);
	rig_assert_ok(r);
	assert_int_equal(stream_result(r->stream)->flushes, 0);
	assert_int_equal(view_get(r->view, 0), VIEW_DONE);
	assert_int_equal(view_get(r->view, 511), VIEW_DONE);
}

static void
a_saved_granule_comes_from_the_store(void **state)
{
	struct rig *r = *state;
	char page[4096];
	int os;

	rig_source(r, 1 * MB);
	rig_fill(r, 0, 1 * MB, 1);
	rig_view(r);
	memset(page, 0x5a, sizeof page);
	assert_int_equal(pwrite(r->reader.store, page, 4096, 8192), 4096);
	assert_true(view_move(r->view, 2, VIEW_NEEDED, VIEW_SAVING, &os));
	assert_true(view_move(r->view, 2, VIEW_SAVING, VIEW_SAVED, &os));
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	rig_copy(r);
	/* the expected content, for the comparison */
	assert_int_equal(pwrite(r->source, page, 4096, 8192), 4096);
	rig_assert_equal(r, "disk");
}

/* --- what servers demand (rules 4 and 5) ----------------------------------------- */

static void
a_server_that_cannot_zero_gets_bytes(void **state)
{
	struct rig *r = *state;
	int fd;

	rig_source(r, 8 * MB);
	rig_fill(r, 1 * MB, 1 * MB, 1);
	fd = captive_open(&r->server, "disk", r->size);
	rig_fill_file(fd, 0, r->size, 7);
	(void)close(fd);
	NBDKIT(r, "--filter=nozero", "file", "@/disk");
	rig_open_target(r);
	assert_false(target_can_zero(r->target));
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_int_equal(stream_result(r->stream)->bytes_zeroed, 0);
	assert_int_equal(stream_result(r->stream)->bytes_sent, 8 * MB);
}

static void
requests_respect_block_sizes(void **state)
{
	struct rig *r = *state;
	int fd;

	/* holes and data that begin and end anywhere */
	rig_source(r, 8 * MB);
	rig_fill(r, 512, 1 * MB, 1);
	rig_fill(r, 3 * MB + 4096, 70000, 1);
	rig_write_zeroes(r, 500 * 1024, 100 * 1024);
	fd = captive_open(&r->server, "disk", r->size);
	rig_fill_file(fd, 0, r->size, 7);
	(void)close(fd);
	NBDKIT(r, "--filter=blocksize-policy", "file", "@/disk",
	       "blocksize-minimum=16K", "blocksize-preferred=64K",
	       "blocksize-maximum=64K", "blocksize-error-policy=error");
	rig_open_target(r);
	assert_int_equal(target_min_block(r->target), 16384);
	rig_copy(r);
	rig_assert_equal(r, "disk");
}

static void
a_tail_is_padded_where_the_target_has_room(void **state)
{
	struct rig *r = *state;
	char page[4096];
	int fd;

	rig_source(r, 1 * MB + 512);
	rig_fill(r, 0, r->size, 1);
	fd = captive_open(&r->server, "disk", 1 * MB + 4096);
	NBDKIT(r, "--filter=blocksize-policy", "file", "@/disk",
	       "blocksize-minimum=4K", "blocksize-error-policy=error");
	rig_open_target(r);
	rig_copy(r);
	rig_assert_file(fd, 0, r->size, 1, 0);
	assert_int_equal(pread(fd, page, 3584, 1 * MB + 512), 3584);
	for (size_t i = 0; i < 3584; i++)
		assert_int_equal(page[i], 0);
	(void)close(fd);
}

static void
a_tail_is_sent_as_it_is_where_the_target_ends(void **state)
{
	struct rig *r = *state;

	rig_source(r, 1 * MB + 512);
	rig_fill(r, 0, r->size, 1);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "--filter=blocksize-policy", "file", "@/disk",
	       "blocksize-minimum=4K");
	rig_open_target(r);
	assert_int_equal(target_min_block(r->target), 4096);
	rig_copy(r);
	rig_assert_equal(r, "disk");
}

static void
a_piece_does_not_become_many_requests(void **state)
{
	struct rig *r = *state;

	/* every other 64 KiB is zero, and every other 4 KiB of the rest */
	rig_source(r, 4 * MB);
	rig_fill(r, 0, 4 * MB, 1);
	for (uint64_t at = 0; at < 4 * MB; at += 128 * 1024)
		rig_write_zeroes(r, at, 64 * 1024);
	for (uint64_t at = 0; at < 4 * MB; at += 8192)
		rig_write_zeroes(r, at, 4096);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_true(stream_result(r->stream)->requests <= 16 * 4);
	assert_true(stream_result(r->stream)->bytes_zeroed >= 2 * MB);
	assert_true(stream_result(r->stream)->bytes_sent <= 2 * MB);
}

/* --- size ------------------------------------------------------------------------------- */

static void
an_empty_tebibyte_takes_no_time(void **state)
{
	struct rig *r = *state;
	uint64_t begin;

	rig_source(r, UINT64_C(1) << 40);
	NBDKIT(r, "memory", "1T");
	rig_open_target(r);
	begin = rig_now_ms();
	rig_copy(r);
	/* measured: 0.05 s; the rest is for busy machines and sanitizers */
	assert_true(rig_now_ms() - begin < 2000);
	assert_int_equal(stream_result(r->stream)->requests, 1024);
	/* zeroes are sent again for nothing: no reason to flush early */
	assert_true(stream_result(r->stream)->flushes <= 16);
	assert_int_equal(stream_result(r->stream)->bytes_sent, 0);
}

static void
one_cluster_of_sixteen_tebibytes_takes_no_time(void **state)
{
	struct rig *r = *state;
	uint64_t begin, offset, len;

	rig_source(r, UINT64_C(15) << 40);
	rig_fill(r, (UINT64_C(15) << 40) - 65536, 65536, 1);
	rig_dirty(r, 65536);
	epoch_set(r->epoch, (UINT64_C(15) << 40) - 1, 1);
	NBDKIT(r, "memory", "15T");
	rig_open_target(r);
	begin = rig_now_ms();
	rig_copy(r);
	/* measured: 2 ms */
	assert_true(rig_now_ms() - begin < 1000);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(len, 65536);
	assert_int_equal(offset, 65536);
	assert_int_equal(stream_result(r->stream)->requests, 1);
}

/* --- verbs -------------------------------------------------------------------------------- */

static void
speed_is_kept_and_can_be_changed(void **state)
{
	struct rig *r = *state;
	uint64_t begin = rig_now_ms(), took;

	rig_source(r, 64 * MB);
	rig_fill(r, 0, 64 * MB, 1);
	r->o.speed = 4 * MB;
	NBDKIT(r, "memory", "64M");
	rig_open_target(r);
	begin = rig_now_ms();
	rig_start(r);
	rig_run_until_offset(r, 6 * MB);
	took = rig_now_ms() - begin;
	assert_in_range(took, 1100, 1900);
	stream_set_speed(r->stream, 0);
	rig_wait(r);
	rig_assert_ok(r);
	assert_true(rig_now_ms() - begin - took < 1500);
}

static void
the_first_piece_always_goes(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;

	rig_source(r, 1 * MB);
	rig_fill(r, 0, 1 * MB, 1);
	r->o.speed = 1;
	NBDKIT(r, "memory", "1M");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 65536);
	rig_run_ms(r, 300);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(offset, 65536);
	assert_int_equal(len, 1 * MB);
	stream_cancel(r->stream);
	rig_wait(r);
	assert_true(stream_result(r->stream)->cancelled);
	assert_false(err_is_set(&stream_result(r->stream)->error));
}

static void
a_paused_stream_stands_still(void **state)
{
	struct rig *r = *state;
	uint64_t before, after, len;

	rig_source(r, 32 * MB);
	rig_fill(r, 0, 32 * MB, 1);
	r->o.speed = 8 * MB;
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 1 * MB);
	stream_pause(r->stream);
	while (r->paused == 0)
		rig_run_ms(r, 5);
	stream_progress(r->stream, &before, &len);
	stream_set_speed(r->stream, 0);
	rig_run_ms(r, 300);
	stream_progress(r->stream, &after, &len);
	assert_int_equal(before, after);
	assert_int_equal(r->paused, 1);
	stream_resume(r->stream);
	rig_wait(r);
	rig_assert_ok(r);
	rig_assert_equal(r, "disk");
}

static void
a_stream_over_tls(void **state)
{
	struct rig *r = *state;
	static const char key[] = "alice:00112233445566778899aabbccddeeff\n";
	int fd;

	rig_source(r, 24 * MB);
	rig_fill(r, 0, 24 * MB, 1);
	(void)captive_open(&r->server, "disk", r->size);
	fd = captive_open(&r->server, "keys", 0);
	assert_int_equal(write(fd, key, sizeof key - 1), sizeof key - 1);
	(void)close(fd);
	NBDKIT(r, "--tls=require", "--tls-psk=@/keys", "file", "@/disk");
	r->to.server.tls = true;
	r->to.server.tls_username = "alice";
	r->to.server.tls_psk_file = captive_path(&r->server, "keys");
	rig_open_target(r);
	rig_copy(r);
	assert_int_equal(stream_result(r->stream)->lanes, 4);
	rig_assert_equal(r, "disk");
}

static void
lanes_are_as_many_as_allowed(void **state)
{
	struct rig *r = *state;

	rig_source(r, 64 * MB);
	rig_fill(r, 0, 64 * MB, 1);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	r->o.max_lanes = 2;
	rig_copy(r);
	assert_int_equal(stream_result(r->stream)->lanes, 2);
	r->o.max_lanes = 0;
	rig_close_target(r);
	r->to.server.connections = 3;
	rig_open_target(r);
	rig_copy(r);
	assert_int_equal(stream_result(r->stream)->lanes, 3);
	rig_assert_equal(r, "disk");
}

/* --- many ------------------------------------------------------------------------------- */

#define MANY 64

struct many {
	struct loop *loop;
	unsigned left, most;
};

static void
on_one_of_many_done(struct stream *s, void *opaque)
{
	struct many *m = opaque;

	assert_false(err_is_set(&stream_result(s)->error));
	if (--m->left == 0)
		loop_stop(m->loop);
}

/* Looks at the pool now and then. */
static void
look(struct rig *r, struct many *m)
{
	while (m->left) {
		unsigned n = buffers_count();

		m->most = n > m->most ? n : m->most;
		rig_run_ms(r, 1);
	}
}

/* The rig's callback looks at the thread. */
static void
rule_7_done_runs_once_and_on_the_loop(void **state)
{
	struct rig *r = *state;

	rig_source(r, 32 * MB);
	rig_fill(r, 0, 32 * MB, 1);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	rig_copy(r);
	rig_run_ms(r, 50);
	assert_int_equal(r->done, 1);
	rig_assert_equal(r, "disk");
}

static void
sixty_four_streams_share_the_buffers(void **state)
{
	struct rig *r = *state;
	struct target *targets[MANY];
	struct stream *streams[MANY];
	struct many m = { .loop = &r->loop, .left = MANY };
	struct err e = ERR_INIT;

	rig_source(r, 6 * MB);
	rig_fill(r, 0, 6 * MB, 1);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	r->o.loop = &r->loop;
	r->o.reader = &r->reader;
	r->o.done = on_one_of_many_done;
	r->o.opaque = &m;
	for (unsigned i = 0; i < MANY; i++) {
		assert_ok(target_open(&r->to, &targets[i], &e), &e);
		r->o.target = targets[i];
		assert_ok(stream_start(&r->o, &streams[i], &e), &e);
	}
	look(r, &m);
	assert_in_range(m.most, 1, BUFFERS_BUDGET / BUFFER_SIZE);
	for (unsigned i = 0; i < MANY; i++) {
		stream_free(streams[i]);
		target_free(targets[i]);
	}
	assert_int_equal(buffers_count(), 0);
	rig_assert_equal(r, "disk");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		T(copy_is_equal_and_zeroes_do_not_travel),
		T(qemu_nbd_stays_for_a_second_stream),
		T(only_what_is_dirty_is_copied),
		T(nothing_dirty_ends_at_once),
		T(clusters_are_at_least_what_was_asked_for),
		T(a_range_is_done_only_after_a_flush),
		T(a_flush_covers_only_what_came_before_it),
		T(without_flushes_a_range_is_done_at_the_end),
		T(a_saved_granule_comes_from_the_store),
		T(a_server_that_cannot_zero_gets_bytes),
		T(requests_respect_block_sizes),
		T(a_tail_is_padded_where_the_target_has_room),
		T(a_tail_is_sent_as_it_is_where_the_target_ends),
		T(a_piece_does_not_become_many_requests),
		T(an_empty_tebibyte_takes_no_time),
		T(one_cluster_of_sixteen_tebibytes_takes_no_time),
		T(speed_is_kept_and_can_be_changed),
		T(the_first_piece_always_goes),
		T(a_paused_stream_stands_still),
		T(lanes_are_as_many_as_allowed),
		T(rule_7_done_runs_once_and_on_the_loop),
		T(sixty_four_streams_share_the_buffers),
		T(a_stream_over_tls),
	};

	if (!captive_has("nbdkit"))
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}

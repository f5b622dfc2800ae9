/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Streams to images of our own: the rules of stream.h where no server is in
 * between.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "step.h"
#include "stream-rig.h"

#define MB (UINT64_C(1) << 20)

static int
set_up(void **state)
{
	*state = rig_new();
	step_reset();
	return 0;
}

static int
tear_down(void **state)
{
	step_end();
	rig_free(*state);
	return 0;
}

/* --- a driver that is strict, and fails when told to ----------------------------- */

struct strict {
	struct block block;
	struct block *file; /* owned */
	atomic_int fail_write, fail_flush; /* errno values */
	atomic_uint bad; /* requests that were not as they must be */
	atomic_uint zeroes;
	_Atomic uint64_t longest; /* of all requests, bytes */
};

static struct strict *
strict(struct block *b)
{
	return container_of(b, struct strict, block);
}

static void
look(struct strict *s, uint64_t off, uint64_t len)
{
	uint64_t mask = s->block.min_block - 1;

	if (len > s->longest)
		s->longest = len; /* one lane at a time */
	if (((off | len) & mask) || off + len > s->block.size)
		atomic_fetch_add(&s->bad, 1);
}

static int
strict_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	struct strict *s = strict(b);

	look(s, off, len);
	if (s->fail_write)
		return s->fail_write;
	return block_pwrite(s->file, buf, len, off);
}

static int
strict_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	struct strict *s = strict(b);

	look(s, off, len);
	atomic_fetch_add(&s->zeroes, 1);
	return block_zero(s->file, off, len, flags);
}

static int
strict_flush(struct block *b)
{
	struct strict *s = strict(b);

	return s->fail_flush ? s->fail_flush : block_flush(s->file);
}

static void
strict_free(struct block *b)
{
	struct strict *s = strict(b);

	block_free(s->file);
	free(s);
}

static const struct block_ops strict_ops = {
	.name = "strict",
	.free = strict_free,
	.pwrite = strict_pwrite,
	.zero = strict_zero,
	.flush = strict_flush,
};

/* --- targets ----------------------------------------------------------------------- */

static struct block *
open_file(struct rig *r, const char *name, uint64_t size)
{
	struct block_file_options f = { .name = name };
	struct err e = ERR_INIT;
	struct block *b;

	f.fd = captive_open(&r->server, name, size);
	assert_ok(block_file_open(&f, &b, &e), &e);
	return b;
}

static void
use_block(struct rig *r, struct block *b)
{
	struct err e = ERR_INIT;

	assert_ok(target_open_block(b, "disk", &r->target, &e), &e);
}

static struct strict *
use_strict(struct rig *r, uint64_t size, uint32_t min_block)
{
	struct strict *s = xzalloc(sizeof *s);

	s->file = open_file(r, "disk", size);
	s->block = *s->file;
	s->block.ops = &strict_ops;
	s->block.min_block = min_block;
	use_block(r, &s->block);
	return s;
}

static uint64_t
allocated(struct rig *r, const char *name)
{
	struct stat st;

	assert_int_equal(stat(captive_path(&r->server, name), &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static bool
any_done(const struct rig *r)
{
	return view_next_done(r->view, 0, r->size) < r->size;
}

static bool
all_done(const struct rig *r)
{
	return view_next_not_done(r->view, 0, r->size) == r->size;
}

/* --- copies that end well -------------------------------------------------------------- */

static void
a_copy_to_a_file_is_equal_and_leaves_holes(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;
	struct block *b;
	int fd;

	rig_source(r, 40 * MB + 512);
	rig_fill(r, 0, 10 * MB, 1);
	rig_write_zeroes(r, 10 * MB, 10 * MB);
	rig_fill(r, 40 * MB, 512, 2);
	b = open_file(r, "disk", r->size);
	b->discard_unmap = true;
	fd = captive_open(&r->server, "disk", 0);
	rig_fill_file(fd, 0, r->size, 7);
	(void)close(fd);
	use_block(r, b);
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_true(allocated(r, "disk") <= 11 * MB);
	assert_int_equal(stream_result(r->stream)->lanes, 2);
	assert_int_equal(stream_result(r->stream)->bytes_sent, 10 * MB + 512);
	assert_int_equal(stream_result(r->stream)->bytes_zeroed, 30 * MB);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(len, 40 * MB + 65536);
	assert_int_equal(offset, len);
}

/* "discard": "ignore" means that no space is given up. */
static void
without_discard_zeroes_keep_their_space(void **state)
{
	struct rig *r = *state;

	rig_source(r, 8 * MB);
	use_block(r, open_file(r, "disk", r->size));
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_true(allocated(r, "disk") >= 8 * MB);
}

static void
only_what_is_dirty_is_written(void **state)
{
	struct rig *r = *state;
	int fd;

	rig_source(r, 16 * MB);
	rig_fill(r, 0, 16 * MB, 1);
	rig_dirty(r, 65536);
	epoch_set(r->epoch, 3 * MB, 1);
	fd = captive_open(&r->server, "disk", r->size);
	rig_fill_file(fd, 0, r->size, 7);
	use_block(r, open_file(r, "disk", r->size));
	rig_copy(r);
	rig_assert_file(fd, 0, 3 * MB, 7, 0);
	rig_assert_file(fd, 3 * MB, 65536, 1, 3 * MB);
	rig_assert_file(fd, 3 * MB + 65536, 13 * MB - 65536, 7, 3 * MB + 65536);
	(void)close(fd);
}

static void
null_takes_everything(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;
	struct block *b;

	rig_source(r, 32 * MB);
	rig_fill(r, 0, 20 * MB, 1);
	assert_ok(block_null_open(r->size, 0, &b, &e), &e);
	use_block(r, b);
	rig_copy(r);
	assert_int_equal(stream_result(r->stream)->bytes_sent, 20 * MB);
}

/* --- the rules ---------------------------------------------------------------------------- */

static void
rule_1_a_range_is_done_only_after_the_image_was_flushed(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;

	rig_source(r, 1 * MB);
	rig_fill(r, 0, 1 * MB, 1);
	rig_view(r);
	use_block(r, open_file(r, "disk", r->size));
	step_arm("stream.block-flush");
	rig_start(r);
	step_wait_parked("stream.block-flush");
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(offset, len);
	assert_false(any_done(r));
	step_release("stream.block-flush");
	rig_wait(r);
	rig_assert_ok(r);
	assert_true(all_done(r));
	rig_assert_equal(r, "disk");
}

static void
rule_1_nothing_is_done_when_the_flush_fails(void **state)
{
	struct rig *r = *state;
	struct strict *s;

	rig_source(r, 1 * MB);
	rig_fill(r, 0, 1 * MB, 1);
	rig_view(r);
	s = use_strict(r, r->size, 1);
	s->fail_flush = EIO;
	rig_start(r);
	rig_wait(r);
	assert_int_equal(stream_result(r->stream)->error.os, EIO);
	assert_int_equal(stream_result(r->stream)->side, STREAM_TARGET);
	assert_false(any_done(r));
}

static void
rule_3_a_cancelled_stream_makes_no_request_more(void **state)
{
	struct rig *r = *state;
	unsigned before;

	rig_source(r, 64 * MB);
	rig_fill(r, 0, 64 * MB, 1);
	use_block(r, open_file(r, "disk", r->size));
	r->o.max_lanes = 1;
	step_arm("stream.block-write");
	rig_start(r);
	step_wait_parked("stream.block-write");
	stream_cancel(r->stream);
	before = step_passed("stream.block-write");
	step_release("stream.block-write");
	rig_wait(r);
	assert_true(stream_result(r->stream)->cancelled);
	assert_int_equal(step_passed("stream.block-write"), before);
}

static void
rule_5_requests_respect_the_image_s_blocks(void **state)
{
	struct rig *r = *state;
	struct strict *s;

	/* holes and data that begin and end anywhere */
	rig_source(r, 8 * MB);
	rig_fill(r, 512, 1 * MB, 1);
	rig_fill(r, 3 * MB + 4096, 70000, 1);
	rig_write_zeroes(r, 500 * 1024, 100 * 1024);
	s = use_strict(r, r->size, 16384);
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_int_equal(s->bad, 0);
	assert_true(s->zeroes > 0);
}

static void
rule_10_the_source_is_discarded_only_after_a_flush(void **state)
{
	struct rig *r = *state;
	struct block *b;

	rig_source(r, 4 * MB);
	rig_fill(r, 0, 4 * MB, 1);
	rig_dirty(r, 65536);
	epoch_set(r->epoch, 1 * MB, 2 * MB);
	rig_view(r);
	use_block(r, open_file(r, "disk", r->size));
	b = open_file(r, "source", 0);
	b->discard_unmap = true;
	r->o.discard = b;
	step_arm("stream.block-flush");
	rig_start(r);
	step_wait_parked("stream.block-flush");
	rig_assert_file(r->source, 0, r->size, 1, 0);
	step_release("stream.block-flush");
	rig_wait(r);
	rig_assert_ok(r);
	assert_int_equal(allocated(r, "source"), 2 * MB);
	rig_assert_file(r->source, 0, 1 * MB, 1, 0);
	rig_assert_file(r->source, 3 * MB, 1 * MB, 1, 3 * MB);
	block_free(b);
}

static void
no_more_pieces_than_workers_are_in_flight(void **state)
{
	struct rig *r = *state;

	rig_source(r, 64 * MB);
	rig_fill(r, 0, 64 * MB, 1);
	use_block(r, open_file(r, "disk", r->size));
	r->o.max_workers = 1;
	step_arm("stream.block-write");
	rig_start(r);
	step_wait_parked("stream.block-write");
	rig_run_ms(r, 100); /* others would have come by */
	assert_int_equal(step_passed("stream.block-write"), 1);
	step_release("stream.block-write");
	rig_wait(r);
	rig_assert_ok(r);
	rig_assert_equal(r, "disk");
	assert_int_equal(stream_result(r->stream)->lanes, 1);
}

/* Kicks reach whoever waits, whichever lane ends a piece. */
static void
lanes_share_the_workers(void **state)
{
	struct rig *r = *state;

	rig_source(r, 64 * MB);
	rig_fill(r, 0, 64 * MB, 1);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	r->o.max_workers = 3;
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_int_equal(stream_result(r->stream)->lanes, 3);
}

static void
no_request_is_longer_than_a_chunk(void **state)
{
	struct rig *r = *state;
	struct strict *s;

	rig_source(r, 8 * MB);
	rig_fill(r, 0, 4 * MB, 1);
	s = use_strict(r, r->size, 1);
	r->o.max_chunk = 3 * 65536;
	r->o.max_lanes = 1;
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_int_equal(s->longest, 3 * 65536);
	assert_int_equal(s->bad, 0);
}

static void
an_image_that_is_full_fails_the_stream_with_its_errno(void **state)
{
	struct rig *r = *state;
	struct strict *s;

	rig_source(r, 4 * MB);
	rig_fill(r, 0, 4 * MB, 1);
	rig_view(r);
	s = use_strict(r, r->size, 1);
	s->fail_write = ENOSPC;
	rig_start(r);
	rig_wait(r);
	assert_int_equal(stream_result(r->stream)->error.os, ENOSPC);
	assert_int_equal(stream_result(r->stream)->side, STREAM_TARGET);
	assert_false(any_done(r));
}

static void
an_image_that_is_read_only_is_refused(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;
	struct block *b;

	rig_source(r, 1 * MB);
	b = open_file(r, "disk", r->size);
	b->read_only = true;
	use_block(r, b);
	r->o.loop = &r->loop;
	r->o.reader = &r->reader;
	r->o.target = r->target;
	assert_false(stream_start(&r->o, &r->stream, &e));
	assert_int_equal(e.os, EROFS);
}

/* --- a part of a target ---------------------------------------------------------------------- */

static void
a_disk_in_the_middle_of_an_export_stays_there(void **state)
{
	struct rig *r = *state;
	int fd;

	rig_source(r, 2 * MB);
	rig_fill(r, 0, 1 * MB, 1);
	fd = captive_open(&r->server, "disk", 4 * MB);
	rig_fill_file(fd, 0, 4 * MB, 7);
	NBDKIT(r, "--filter=blocksize-policy", "file", "@/disk",
	       "blocksize-minimum=4096", "blocksize-preferred=4096",
	       "blocksize-maximum=32M", "blocksize-error-policy=error");
	rig_open_target(r);
	r->o.at = 1 * MB;
	r->o.room = 2 * MB;
	rig_copy(r);
	rig_assert_file(fd, 0, 1 * MB, 7, 0);
	rig_assert_file(fd, 1 * MB, 1 * MB, 1, 0);
	rig_assert_file(fd, 3 * MB, 1 * MB, 7, 3 * MB);
	(void)close(fd);
}

/* The end of the disk is not the end of the export: nothing beyond it may be
 * written, not even to fill the last block.
 */
static void
what_follows_the_disk_in_an_export_is_not_written(void **state)
{
	struct rig *r = *state;
	int fd;

	rig_source(r, 1 * MB + 512);
	rig_fill(r, 0, r->size, 1);
	fd = captive_open(&r->server, "disk", 4 * MB);
	rig_fill_file(fd, 0, 4 * MB, 7);
	NBDKIT(r, "--filter=blocksize-policy", "file", "@/disk",
	       "blocksize-minimum=4096", "blocksize-preferred=4096",
	       "blocksize-maximum=32M", "blocksize-error-policy=error");
	rig_open_target(r);
	r->o.at = 1 * MB;
	r->o.room = r->size;
	rig_start(r);
	rig_wait(r);
	assert_true(err_is_set(&stream_result(r->stream)->error));
	rig_assert_file(fd, 2 * MB + 512, 2 * MB - 512, 7, 2 * MB + 512);
	(void)close(fd);
}

static void
a_disk_that_begins_inside_of_a_block_is_refused(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;

	rig_source(r, 1 * MB);
	(void)use_strict(r, 4 * MB, 4096);
	r->o.loop = &r->loop;
	r->o.reader = &r->reader;
	r->o.target = r->target;
	r->o.at = 512;
	assert_false(stream_start(&r->o, &r->stream, &e));
	assert_non_null(strstr(e.msg, "offset 512"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		T(a_copy_to_a_file_is_equal_and_leaves_holes),
		T(without_discard_zeroes_keep_their_space),
		T(only_what_is_dirty_is_written),
		T(null_takes_everything),
		T(rule_1_a_range_is_done_only_after_the_image_was_flushed),
		T(rule_1_nothing_is_done_when_the_flush_fails),
		T(rule_3_a_cancelled_stream_makes_no_request_more),
		T(rule_5_requests_respect_the_image_s_blocks),
		T(rule_10_the_source_is_discarded_only_after_a_flush),
		T(no_more_pieces_than_workers_are_in_flight),
		T(lanes_share_the_workers),
		T(no_request_is_longer_than_a_chunk),
		T(an_image_that_is_full_fails_the_stream_with_its_errno),
		T(an_image_that_is_read_only_is_refused),
		T(a_disk_in_the_middle_of_an_export_stays_there),
		T(what_follows_the_disk_in_an_export_is_not_written),
		T(a_disk_that_begins_inside_of_a_block_is_refused),
	};

	if (!captive_has("nbdkit"))
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}

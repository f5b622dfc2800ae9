/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Streams that go on after an error (rules 8 and 9 of stream.h): what failed
 * is sent again, the owner is asked once, and a stream that rests rests.
 */
#include <assert.h>
#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "step.h"
#include "stream-rig.h"

#define MB (UINT64_C(1) << 20)

/* How the owner answers, and how often it was asked. */
static struct {
	enum stream_action answer;
	unsigned asked;
	unsigned mend_after; /* remove the file "broken" after so many */
	enum stream_side side;
	int os;
	bool pause; /* as the daemon does: pause when holding */
} owner;

static enum stream_action
on_error(struct stream *s, enum stream_side side, const struct err *e,
	 void *opaque)
{
	struct rig *r = opaque;

	ASSERT_LOOP(&r->loop);
	assert_true(err_is_set(e));
	owner.asked++;
	owner.side = side;
	owner.os = e->os;
	if (owner.asked == owner.mend_after)
		(void)unlink(captive_path(&r->server, "broken"));
	if (owner.pause)
		stream_pause(s);
	return owner.answer;
}

static int
set_up(void **state)
{
	struct rig *r = rig_new();

	memset(&owner, 0, sizeof owner);
	r->o.error = on_error;
	*state = r;
	return 0;
}

static int
tear_down(void **state)
{
	rig_free(*state);
	return 0;
}

/* A server whose writes fail while the file "broken" exists. */
static void
serve_breakable(struct rig *r, const char *delay)
{
	(void)captive_open(&r->server, "disk", r->size);
	captive_touch(&r->server, "broken");
	NBDKIT(r, "--filter=error", "--filter=delay", "file", "@/disk",
	       "error-pwrite=EIO", "error-pwrite-rate=100%",
	       "error-pwrite-file=@/broken", delay);
	rig_open_target(r);
}

static void
mend(struct rig *r)
{
	assert_int_equal(unlink(captive_path(&r->server, "broken")), 0);
}

static void
assert_whole(struct rig *r)
{
	uint64_t offset, len;

	rig_assert_ok(r);
	rig_assert_equal(r, "disk");
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(offset, r->size);
	assert_int_equal(len, r->size);
}

/* --- rule 8: going on ----------------------------------------------------------- */

static void
rule_8_what_failed_is_sent_again(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 8 * MB);
	owner.answer = STREAM_RETRY;
	owner.mend_after = 3;
	serve_breakable(r, "wdelay=1ms");
	rig_start(r);
	rig_wait(r);
	assert_int_equal(owner.asked, 3);
	assert_int_equal(owner.side, STREAM_TARGET);
	assert_int_equal(owner.os, EIO);
	assert_whole(r);
}

static void
rule_8_a_rate_of_errors_costs_nothing_and_counts_nothing_twice(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 16 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	owner.answer = STREAM_RETRY;
	NBDKIT(r, "--filter=error", "file", "@/disk", "error-pwrite=ENOSPC",
	       "error-pwrite-rate=20%");
	rig_open_target(r);
	rig_start(r);
	rig_wait(r);
	assert_true(owner.asked > 0);
	assert_int_equal(owner.os, ENOSPC);
	assert_whole(r);
}

/* All that is in flight fails, and that is one error. */
static void
rule_8_the_owner_is_asked_once(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 8 * MB);
	owner.answer = STREAM_HOLD;
	serve_breakable(r, "wdelay=50ms");
	rig_start(r);
	rig_run_ms(r, 500);
	assert_int_equal(owner.asked, 1);
	stream_resume(r->stream);
	rig_run_ms(r, 500);
	assert_int_equal(owner.asked, 2);
	mend(r);
	stream_resume(r->stream);
	rig_wait(r);
	assert_int_equal(owner.asked, 2);
	assert_whole(r);
}

static void
rule_8_what_a_failed_flush_covered_is_sent_again(void **state)
{
	struct rig *r = *state;
	int fd;

	rig_source_filled(r, 2 * MB);
	rig_view(r);
	fd = captive_open(&r->server, "disk", r->size);
	captive_touch(&r->server, "broken");
	owner.answer = STREAM_HOLD;
	NBDKIT(r, "eval", "get_size=echo 2M", "can_flush=exit 0",
	       "thread_model=echo serialize_requests", "pread=exit 1",
	       "pwrite=dd of=@/disk bs=256K seek=$4 oflag=seek_bytes "
	       "conv=notrunc 2>/dev/null",
	       "flush=test ! -e @/broken || { echo EIO lies >&2; exit 1; }");
	rig_open_target(r);
	rig_start(r);
	while (!owner.asked)
		rig_run_ms(r, 10);
	assert_int_equal(view_get(r->view, 0), VIEW_NEEDED);
	/* what the server had taken it has lost */
	rig_fill_file(fd, 0, r->size, 9);
	(void)close(fd);
	mend(r);
	stream_resume(r->stream);
	rig_wait(r);
	assert_whole(r);
	assert_int_equal(view_get(r->view, 0), VIEW_DONE);
}

struct bad {
	struct block block;
	struct block *real;
	_Atomic bool broken;
};

static int
bad_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	struct bad *bad = container_of(b, struct bad, block);

	return bad->broken && off >= 5 * MB
		       ? EIO
		       : block_pread(bad->real, buf, len, off);
}

static int
bad_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	   unsigned *flags)
{
	(void)b;
	(void)off;
	*n = len;
	*flags = 0;
	return 0;
}

static void
rule_8_a_read_that_failed_is_tried_again(void **state)
{
	static const struct block_ops ops = { .name = "bad",
					      .pread = bad_pread,
					      .extent = bad_extent };
	struct rig *r = *state;
	struct bad bad = { .broken = true };

	rig_source_filled(r, 16 * MB);
	bad.block = *r->reader.image;
	bad.block.ops = &ops;
	bad.real = r->reader.image;
	r->reader.image = &bad.block;
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	owner.answer = STREAM_HOLD;
	rig_start(r);
	rig_run_ms(r, 300);
	assert_int_equal(owner.asked, 1);
	assert_int_equal(owner.side, STREAM_SOURCE);
	bad.broken = false;
	stream_resume(r->stream);
	rig_wait(r);
	assert_whole(r);
	r->reader.image = bad.real;
}

static void
the_owner_may_end_the_stream(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 8 * MB);
	owner.answer = STREAM_FAIL;
	serve_breakable(r, "wdelay=1ms");
	rig_start(r);
	rig_wait(r);
	assert_int_equal(owner.asked, 1);
	assert_int_equal(stream_result(r->stream)->side, STREAM_TARGET);
	assert_int_equal(stream_result(r->stream)->error.os, EIO);
}

static void
tries_become_rare_while_nothing_succeeds(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 1 * MB);
	owner.answer = STREAM_RETRY;
	serve_breakable(r, "wdelay=0");
	rig_start(r);
	rig_run_ms(r, 1000);
	/* after 50, 100, 200, 400 ms */
	assert_in_range(owner.asked, 3, 6);
	/* somebody who knows better does not wait */
	mend(r);
	stream_resume(r->stream);
	rig_wait(r);
	assert_whole(r);
}

static void
a_view_that_was_given_up_is_not_asked_about(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 16 * MB);
	rig_view(r);
	r->o.speed = 4 * MB;
	owner.answer = STREAM_RETRY;
	NBDKIT(r, "memory", "16M");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 1 * MB);
	view_break(r->view, ENOSPC);
	rig_wait(r);
	assert_int_equal(owner.asked, 0);
	assert_int_equal(stream_result(r->stream)->error.os, ENOSPC);
}

/* --- connections ------------------------------------------------------------------ */

static void
a_lost_connection_is_made_again_after_resume(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 48 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	owner.answer = STREAM_HOLD;
	NBDKIT(r, "--filter=delay", "file", "@/disk", "wdelay=20ms");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 8 * MB);
	captive_kill(&r->server);
	while (!owner.asked)
		rig_run_ms(r, 10);
	/* still away: asked again */
	stream_resume(r->stream);
	while (owner.asked < 2)
		rig_run_ms(r, 10);
	captive_restart(&r->server);
	stream_resume(r->stream);
	rig_wait(r);
	assert_int_equal(owner.asked, 2);
	assert_whole(r);
}

/* Not just the one that was the last to notice. */
static void
all_connections_are_made_again_after_resume(void **state)
{
	struct rig *r = *state;
	const struct stream_result *res;

	rig_source_filled(r, 64 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	owner.answer = STREAM_HOLD;
	NBDKIT(r, "--filter=delay", "file", "@/disk", "wdelay=40ms");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 4 * MB);
	captive_kill(&r->server);
	while (!owner.asked)
		rig_run_ms(r, 10);
	rig_run_ms(r, 100);
	captive_restart(&r->server);
	stream_resume(r->stream);
	rig_wait(r);
	assert_whole(r);
	res = stream_result(r->stream);
	assert_true(res->lanes > 1);
	assert_int_equal(res->reconnects, res->lanes);
}

static void
reconnecting_comes_before_the_owner(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 48 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	owner.answer = STREAM_HOLD;
	r->to.server.reconnect_delay_s = 10;
	NBDKIT(r, "--filter=delay", "file", "@/disk", "wdelay=20ms");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 8 * MB);
	captive_restart(&r->server);
	rig_wait(r);
	assert_int_equal(owner.asked, 0);
	assert_whole(r);
}

/* Nobody misses a connection while the stream is paused. */
static void
a_connection_that_is_lost_in_a_pause_is_no_error(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 16 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	owner.answer = STREAM_FAIL;
	r->o.speed = 4 * MB;
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 1 * MB);
	stream_pause(r->stream);
	rig_run_ms(r, 100);
	assert_int_equal(r->paused, 1);
	captive_restart(&r->server);
	rig_run_ms(r, 300);
	assert_int_equal(owner.asked, 0);
	stream_set_speed(r->stream, 0);
	stream_resume(r->stream);
	rig_wait(r);
	assert_int_equal(owner.asked, 0);
	assert_whole(r);
}

/* --- rule 9: resting ---------------------------------------------------------------- */

static void
rule_9_a_stream_that_rests_hands_out_nothing(void **state)
{
	struct rig *r = *state;
	unsigned before;

	rig_source_filled(r, 64 * MB);
	owner.answer = STREAM_HOLD;
	owner.pause = true;
	serve_breakable(r, "wdelay=5ms");
	step_reset();
	rig_start(r);
	while (!r->paused)
		rig_run_ms(r, 10);
	assert_int_equal(owner.asked, 1);
	before = step_passed("stream.before-read");
	rig_run_ms(r, 300);
	assert_int_equal(step_passed("stream.before-read"), before);
	assert_int_equal(r->done, 0);
	step_end();
	mend(r);
	stream_resume(r->stream);
	rig_wait(r);
	assert_whole(r);
}

/* All is sent and durable, and the last lane is about to say so. */
static void
rule_9_a_paused_stream_does_not_end(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 1 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	step_reset();
	step_arm("stream.finishing");
	rig_start(r);
	step_wait_parked("stream.finishing");
	stream_pause(r->stream);
	step_end();
	rig_run_ms(r, 300);
	assert_int_equal(r->done, 0);
	assert_int_equal(r->paused, 1);
	stream_resume(r->stream);
	rig_wait(r);
	assert_whole(r);
}

static void
a_stream_that_rests_can_be_cancelled(void **state)
{
	static const enum stream_action answers[] = { STREAM_HOLD,
						      STREAM_RETRY };
	struct rig *r = *state;
	uint64_t begin;

	rig_source_filled(r, 8 * MB);
	serve_breakable(r, "wdelay=1ms");
	for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
		owner.answer = answers[i];
		owner.asked = 0;
		rig_start(r);
		while (!owner.asked)
			rig_run_ms(r, 5);
		begin = rig_now_ms();
		stream_cancel(r->stream);
		rig_wait(r);
		assert_true(rig_now_ms() - begin <= 200);
		assert_true(stream_result(r->stream)->cancelled);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		T(rule_8_what_failed_is_sent_again),
		T(rule_8_a_rate_of_errors_costs_nothing_and_counts_nothing_twice),
		T(rule_8_the_owner_is_asked_once),
		T(rule_8_what_a_failed_flush_covered_is_sent_again),
		T(rule_8_a_read_that_failed_is_tried_again),
		T(the_owner_may_end_the_stream),
		T(tries_become_rare_while_nothing_succeeds),
		T(a_view_that_was_given_up_is_not_asked_about),
		T(a_lost_connection_is_made_again_after_resume),
		T(all_connections_are_made_again_after_resume),
		T(reconnecting_comes_before_the_owner),
		T(a_connection_that_is_lost_in_a_pause_is_no_error),
		T(rule_9_a_stream_that_rests_hands_out_nothing),
		T(rule_9_a_paused_stream_does_not_end),
		T(a_stream_that_rests_can_be_cancelled),
	};

	/* see test-stream-failure.c */
	(void)mallopt(M_PERTURB, 0xbf);
	if (!captive_has("nbdkit"))
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Streams and everything that can go wrong: servers that die, hang, are full
 * or lie, sources that break, and cancelling in the middle of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/park.h"
#include "step.h"
#include "stream-rig.h"

#define MB (UINT64_C(1) << 20)

#define READ "stream.before-read" /* where a lane is parked */

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
assert_failed(struct rig *r, enum stream_side side, int os, const char *text)
{
	const struct stream_result *res = stream_result(r->stream);

	assert_true(err_is_set(&res->error));
	assert_int_equal(res->side, side);
	assert_int_equal(res->error.os, os);
	if (!strstr(res->error.msg, text))
		fail_msg("'%s' is not in '%s'", text, res->error.msg);
	assert_false(res->cancelled);
}

/* Cancel, and be done in time (rule 3). */
static void
cancel_in_time(struct rig *r)
{
	uint64_t begin = rig_now_ms();

	stream_cancel(r->stream);
	rig_wait(r);
	assert_true(rig_now_ms() - begin <= 200);
	assert_true(stream_result(r->stream)->cancelled);
	assert_false(err_is_set(&stream_result(r->stream)->error));
}

/* --- opening ------------------------------------------------------------------------------- */

static void
a_server_that_does_not_exist_is_named(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;
	char want[200];

	r->to.server.open_timeout_s = 0;
	(void)snprintf(want, sizeof want,
		       "Failed to connect to '%s': No such file or directory",
		       r->server.socket);
	assert_fails(target_open(&r->to, &r->target, &e), &e, want);
	r->to.server.unix_path = NULL;
	r->to.server.host = "127.0.0.1";
	r->to.server.port = "1";
	assert_fails(target_open(&r->to, &r->target, &e), &e,
		     "Failed to connect to '127.0.0.1:1': Connection refused");
	r->to.server.host = NULL;
	assert_fails_with(target_open(&r->to, &r->target, &e), &e,
			  "needs a host and a port");
	r->target = NULL;
}

static void
an_export_that_does_not_exist_is_an_error(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;

	if (!captive_has("qemu-nbd"))
		skip();
	(void)captive_open(&r->server, "disk", 1 * MB);
	captive_qemu_nbd(&r->server,
			 (const char *const[]){ "-f", "raw", "-t", "-x", "one",
						"@/disk", NULL });
	r->to.server.export_name = "two";
	r->to.server.open_timeout_s = 0;
	assert_fails_with(target_open(&r->to, &r->target, &e), &e,
			  "Failed to connect to ");
	r->target = NULL;
}

static void
open_timeout_waits_for_a_server(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;
	uint64_t begin = rig_now_ms();

	r->to.server.open_timeout_s = 1;
	assert_false(target_open(&r->to, &r->target, &e));
	assert_in_range(rig_now_ms() - begin, 600, 1500);
	r->target = NULL;
}

static void
a_target_that_does_not_fit_is_refused(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;

	rig_source(r, 2 * MB);
	NBDKIT(r, "memory", "1M");
	rig_open_target(r);
	r->o.loop = &r->loop;
	r->o.reader = &r->reader;
	r->o.target = r->target;
	assert_fails_with(stream_start(&r->o, &r->stream, &e), &e,
			  "has 1048576 bytes, the source 2097152");
	rig_close_target(r);
	captive_kill(&r->server);
	NBDKIT(r, "-r", "memory", "2M");
	rig_open_target(r);
	r->o.target = r->target;
	assert_fails_with(stream_start(&r->o, &r->stream, &e), &e,
			  "Read-only file system");
}

/* --- errors of the target --------------------------------------------------------------------- */

static void
an_error_of_the_server_ends_the_stream(void **state)
{
	static const struct {
		const char *name;
		int os;
	} errors[] = { { "error=EIO", EIO }, { "error=ENOSPC", ENOSPC } };
	struct rig *r = *state;

	rig_source_filled(r, 8 * MB);
	for (size_t i = 0; i < ARRAY_SIZE(errors); i++) {
		NBDKIT(r, "--filter=error", "memory", "8M", errors[i].name,
		       "error-pwrite-rate=1");
		rig_open_target(r);
		rig_start(r);
		rig_wait(r);
		assert_failed(r, STREAM_TARGET, errors[i].os,
			      "cannot write to the target '");
		rig_close_target(r);
	}
}

static void
an_error_of_a_zero_request_ends_the_stream(void **state)
{
	struct rig *r = *state;

	rig_source(r, 8 * MB);
	NBDKIT(r, "--filter=error", "memory", "8M", "error=EIO",
	       "error-zero-rate=1");
	rig_open_target(r);
	rig_start(r);
	rig_wait(r);
	assert_failed(r, STREAM_TARGET, EIO, "cannot write to the target '");
}

static void
an_error_of_the_last_flush_ends_the_stream(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 1 * MB);
	rig_view(r);
	NBDKIT(r, "eval", "get_size=echo 1M", "can_flush=exit 0",
	       "pread=exit 1", "pwrite=cat >/dev/null",
	       "flush=echo ENOSPC full >&2; exit 1");
	rig_open_target(r);
	rig_start(r);
	rig_wait(r);
	assert_failed(r, STREAM_TARGET, ENOSPC, "cannot flush the target '");
	assert_int_equal(view_get(r->view, 0), VIEW_NEEDED);
}

static void
a_refused_tail_is_explained(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 1 * MB + 512);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "--filter=blocksize-policy", "file", "@/disk",
	       "blocksize-minimum=4K", "blocksize-error-policy=error");
	rig_open_target(r);
	rig_start(r);
	rig_wait(r);
	assert_failed(r, STREAM_TARGET, EINVAL,
		      "is not a multiple of its minimum block of 4096 bytes");
}

static void
a_server_that_limits_zeroes_is_asked_for_less(void **state)
{
	struct rig *r = *state;
	int fd;

	rig_source(r, 8 * MB);
	fd = captive_open(&r->server, "disk", r->size);
	rig_fill_file(fd, 0, r->size, 7);
	(void)close(fd);
	NBDKIT(r, "--filter=blocksize-policy", "eval", "get_size=echo 8M",
	       "can_flush=exit 0", "can_zero=exit 0", "pread=exit 1",
	       "pwrite=exit 1", "flush=exit 0",
	       "zero=test $3 -le 1048576 || { echo EINVAL no >&2; exit 1; }; "
	       "fallocate -p -o $4 -l $3 @/disk",
	       "blocksize-minimum=1", "blocksize-preferred=4K",
	       "blocksize-maximum=1M");
	rig_open_target(r);
	rig_copy(r);
	rig_assert_equal(r, "disk");
	assert_int_equal(stream_result(r->stream)->requests, 8);
}

/* --- connections that are lost ------------------------------------------------------------------ */

static void
a_killed_server_ends_the_stream_at_once(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 64 * MB);
	NBDKIT(r, "--filter=delay", "memory", "64M", "wdelay=100ms");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 4 * MB);
	captive_kill(&r->server);
	rig_wait(r);
	assert_failed(r, STREAM_TARGET, ESHUTDOWN, "closed the connection");
}

/* The first piece finds that the server is gone; what libnbd says of the next
 * one, on a dead handle, is "invalid".
 */
static void
a_loss_between_two_pieces_is_a_loss(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 1 * MB);
	NBDKIT(r, "memory", "1M");
	rig_open_target(r);
	step_reset();
	step_arm(READ);
	rig_start(r);
	step_wait_parked(READ);
	captive_kill(&r->server);
	step_release(READ);
	rig_wait(r);
	step_end();
	assert_failed(r, STREAM_TARGET, ESHUTDOWN, "closed the connection");
}

/* A server that keeps what was not flushed in files of their own, which are
 * lost when it is killed: rule 2 as the target sees it.  While there is a file
 * "hold", no flush is answered.
 */
static void
serve_with_volatile_cache(struct rig *r)
{
	int fd = captive_open(&r->server, "disk", r->size);

	(void)close(fd);
	NBDKIT(r, "eval", "get_size=echo 16M", "can_flush=exit 0",
	       "thread_model=echo parallel",
	       "get_ready=rm -f @/new.* @/cache.*", "pread=exit 1",
	       "pwrite=f=@/new.$4.$$; cat > $f; "
	       "test $(stat -c %s $f) = $3 && mv $f @/cache.$4",
	       "flush=while test -e @/hold; do sleep 0.1; done; "
	       "kill -0 $PPID || exit 1; "
	       "for f in @/cache.*; do test -e $f || continue; "
	       "dd if=$f of=@/disk bs=256K seek=${f##*.} oflag=seek_bytes "
	       "conv=notrunc 2>/dev/null; rm $f; done; touch @/flushed");
}

/* The lane is parked before a read: it goes on, and is parked @n reads later. */
static void
let_read(struct rig *r, unsigned n)
{
	while (n--) {
		unsigned passed = step_passed(READ);
		uint64_t begin = rig_now_ms();

		step_arm(READ);
		step_release(READ);
		while (step_passed(READ) == passed) {
			rig_run_ms(r, 1);
			if (rig_now_ms() - begin > 60000)
				fail_msg("the lane reads no more");
		}
	}
}

/* The same, but it reads on only when the server has been flushed. */
static void
let_flush(struct rig *r)
{
	(void)unlink(captive_path(&r->server, "flushed"));
	stream_pause(r->stream);
	step_release(READ);
	captive_wait_for(&r->server, "flushed");
	step_arm(READ);
	stream_resume(r->stream);
	step_wait_parked(READ);
}

static void
what_was_not_flushed_is_sent_again(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len, before;

	rig_source_filled(r, 16 * MB);
	r->to.server.reconnect_delay_s = 60;
	serve_with_volatile_cache(r);
	rig_open_target(r);
	step_reset();
	step_arm(READ);
	rig_start(r);
	step_wait_parked(READ);
	for (int i = 0; i < 2; i++) {
		let_read(r, 4);
		let_flush(r);
		captive_touch(&r->server, "hold");
		before = stream_result(r->stream)->bytes_sent;
		/* no more than 16 of them wait for their answers */
		let_read(r, 20);
		assert_true(stream_result(r->stream)->bytes_sent > before);
		captive_kill(&r->server);
		(void)unlink(captive_path(&r->server, "hold"));
		captive_restart(&r->server);
	}
	step_end();
	rig_wait(r);
	rig_assert_ok(r);
	rig_assert_equal(r, "disk");
	assert_int_equal(stream_result(r->stream)->reconnects, 2);
	assert_true(stream_result(r->stream)->bytes_sent > 16 * MB);
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(offset, 16 * MB);
	assert_int_equal(len, 16 * MB);
}

static void
several_lanes_reconnect(void **state)
{
	struct rig *r = *state;
	uint64_t offset, len;

	rig_source(r, 64 * MB);
	rig_fill(r, 0, 48 * MB, 1);
	(void)captive_open(&r->server, "disk", r->size);
	r->to.server.reconnect_delay_s = 10;
	NBDKIT(r, "--filter=delay", "file", "@/disk", "wdelay=20ms");
	rig_open_target(r);
	rig_start(r);
	for (uint64_t at = 8; at <= 32; at += 8) {
		rig_run_until_offset(r, at * MB);
		captive_restart(&r->server);
	}
	rig_wait(r);
	rig_assert_ok(r);
	rig_assert_equal(r, "disk");
	stream_progress(r->stream, &offset, &len);
	assert_int_equal(offset, 64 * MB);
	assert_int_equal(offset, len);
}

static void
a_server_that_stays_away_ends_the_stream(void **state)
{
	struct rig *r = *state;
	uint64_t begin;

	rig_source_filled(r, 64 * MB);
	r->to.server.reconnect_delay_s = 1;
	NBDKIT(r, "--filter=delay", "memory", "64M", "wdelay=20ms");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 4 * MB);
	captive_kill(&r->server);
	begin = rig_now_ms();
	rig_wait(r);
	assert_in_range(rig_now_ms() - begin, 800, 2500);
	assert_failed(r, STREAM_TARGET, ECONNREFUSED, "Failed to connect to '");
}

static void
another_export_is_not_continued(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 64 * MB);
	r->to.server.reconnect_delay_s = 20;
	NBDKIT(r, "--filter=delay", "memory", "64M", "wdelay=20ms");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 4 * MB);
	captive_kill(&r->server);
	NBDKIT(r, "memory", "128M");
	rig_wait(r);
	assert_failed(r, STREAM_TARGET, 0, "is not the one that was opened");
}

static void
without_flushes_a_lost_connection_is_the_end(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 16 * MB);
	r->to.server.reconnect_delay_s = 20;
	r->o.speed = 4 * MB;
	NBDKIT(r, "eval", "get_size=echo 16M", "pread=exit 1",
	       "pwrite=cat >/dev/null");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 2 * MB);
	captive_restart(&r->server);
	rig_wait(r);
	assert_failed(r, STREAM_TARGET, ESHUTDOWN, "closed the connection");
}

static void
a_kept_connection_that_died_is_replaced(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 2 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	captive_restart(&r->server);
	rig_copy(r);
	rig_assert_equal(r, "disk");
	captive_restart(&r->server);
	rig_fill(r, 0, 1 * MB, 3);
	rig_copy(r);
	rig_assert_equal(r, "disk");
}

/* --- servers that hang --------------------------------------------------------------------------- */

static void
a_silent_server_is_given_up(void **state)
{
	struct rig *r = *state;
	uint64_t begin;

	rig_source_filled(r, 64 * MB);
	r->to.response_timeout_s = 1;
	r->o.speed = 8 * MB;
	NBDKIT(r, "memory", "64M");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 2 * MB);
	captive_signal(&r->server, SIGSTOP);
	begin = rig_now_ms();
	rig_wait(r);
	assert_in_range(rig_now_ms() - begin, 800, 3000);
	assert_failed(r, STREAM_TARGET, ETIMEDOUT, "does not answer");
}

static void
cancel_does_not_wait_for_a_hung_server(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 64 * MB);
	NBDKIT(r, "--filter=delay", "memory", "64M", "wdelay=20ms");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 8 * MB);
	captive_signal(&r->server, SIGSTOP);
	rig_run_ms(r, 50);
	cancel_in_time(r);
}

static void
cancel_does_not_wait_for_a_slow_server(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 64 * MB);
	NBDKIT(r, "--filter=rate", "memory", "64M", "rate=160M");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 4 * MB);
	cancel_in_time(r);
}

static void
cancel_does_not_wait_for_a_connection(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 32 * MB);
	NBDKIT(r, "memory", "32M");
	rig_open_target(r);
	captive_signal(&r->server, SIGSTOP);
	/* the first lane sends into the void, the others shake hands */
	rig_start(r);
	rig_run_ms(r, 50);
	cancel_in_time(r);
}

static void
cancel_works_at_once_and_while_reconnecting(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 32 * MB);
	r->to.server.reconnect_delay_s = 30;
	NBDKIT(r, "--filter=delay", "memory", "32M", "wdelay=20ms");
	rig_open_target(r);
	rig_start(r);
	cancel_in_time(r);
	rig_start(r);
	rig_run_until_offset(r, 4 * MB);
	captive_kill(&r->server);
	rig_run_ms(r, 100);
	cancel_in_time(r);
}

static void
a_cancelled_stream_leaves_a_usable_target(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 16 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	r->o.speed = 4 * MB;
	rig_start(r);
	rig_run_until_offset(r, 1 * MB);
	cancel_in_time(r);
	r->o.speed = 0;
	rig_copy(r);
	rig_assert_equal(r, "disk");
}

/* --- sources that break ---------------------------------------------------------------------------- */

struct bad {
	struct block block;
	struct block *real;
	uint64_t from; /* reads at or beyond it fail */
};

static int
bad_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	struct bad *bad = container_of(b, struct bad, block);

	return off + len > bad->from ? EIO
				     : block_pread(bad->real, buf, len, off);
}

static int
bad_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	   unsigned *flags)
{
	(void)b;
	(void)off;
	(void)len;
	(void)n;
	(void)flags;
	return EIO;
}

static void
an_unreadable_source_ends_the_stream(void **state)
{
	static const struct block_ops ops = { .name = "bad",
					      .pread = bad_pread,
					      .extent = bad_extent };
	struct rig *r = *state;
	struct bad bad = { .from = 5 * MB };

	rig_source_filled(r, 16 * MB);
	bad.block = *r->reader.image;
	bad.block.ops = &ops;
	bad.real = r->reader.image;
	r->reader.image = &bad.block;
	NBDKIT(r, "memory", "16M");
	rig_open_target(r);
	rig_start(r);
	rig_wait(r);
	assert_failed(r, STREAM_SOURCE, EIO, "cannot read the source at ");
	r->reader.image = bad.real;
}

static void
a_broken_view_ends_the_stream(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 16 * MB);
	rig_view(r);
	r->o.speed = 4 * MB;
	NBDKIT(r, "memory", "16M");
	rig_open_target(r);
	rig_start(r);
	rig_run_until_offset(r, 1 * MB);
	view_break(r->view, ENOSPC);
	rig_wait(r);
	assert_failed(r, STREAM_SOURCE, ENOSPC,
		      "the snapshot of the source was given up: No space left "
		      "on device");
}

/* A lane that reads when the end comes finishes its read, and no more. */
static void
cancel_while_reading(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 4 * MB);
	NBDKIT(r, "memory", "4M");
	rig_open_target(r);
	step_reset();
	step_arm(READ);
	rig_start(r);
	step_wait_parked(READ);
	stream_cancel(r->stream);
	rig_run_ms(r, 50);
	assert_int_equal(r->done, 0);
	step_release(READ);
	rig_wait(r);
	assert_true(stream_result(r->stream)->cancelled);
	assert_true(step_passed(READ) <= 1);
	step_end();
}

/* The others wait for a planner that is busy, and go on after it. */
static void
lanes_wait_for_the_planner(void **state)
{
	struct rig *r = *state;

	rig_source_filled(r, 32 * MB);
	(void)captive_open(&r->server, "disk", r->size);
	NBDKIT(r, "file", "@/disk");
	rig_open_target(r);
	step_reset();
	step_arm("stream.looking");
	rig_start(r);
	step_wait_parked("stream.looking");
	rig_run_ms(r, 100);
	assert_int_equal(step_passed("stream.looking"), 1);
	step_release("stream.looking");
	rig_wait(r);
	step_end();
	rig_assert_ok(r);
	rig_assert_equal(r, "disk");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		T(a_server_that_does_not_exist_is_named),
		T(an_export_that_does_not_exist_is_an_error),
		T(open_timeout_waits_for_a_server),
		T(a_target_that_does_not_fit_is_refused),
		T(an_error_of_the_server_ends_the_stream),
		T(an_error_of_a_zero_request_ends_the_stream),
		T(an_error_of_the_last_flush_ends_the_stream),
		T(a_refused_tail_is_explained),
		T(a_server_that_limits_zeroes_is_asked_for_less),
		T(a_killed_server_ends_the_stream_at_once),
		T(a_loss_between_two_pieces_is_a_loss),
		T(what_was_not_flushed_is_sent_again),
		T(several_lanes_reconnect),
		T(a_server_that_stays_away_ends_the_stream),
		T(another_export_is_not_continued),
		T(without_flushes_a_lost_connection_is_the_end),
		T(a_kept_connection_that_died_is_replaced),
		T(a_silent_server_is_given_up),
		T(cancel_does_not_wait_for_a_hung_server),
		T(cancel_does_not_wait_for_a_slow_server),
		T(cancel_does_not_wait_for_a_connection),
		T(cancel_works_at_once_and_while_reconnecting),
		T(a_cancelled_stream_leaves_a_usable_target),
		T(an_unreadable_source_ends_the_stream),
		T(a_broken_view_ends_the_stream),
		T(cancel_while_reading),
		T(lanes_wait_for_the_planner),
	};

	/* what is freed looks negative: libnbd 1.14 reads the cookie of a
	 * command that failed while it was submitted after freeing it
	 */
	(void)mallopt(M_PERTURB, 0xbf);
	if (!captive_has("nbdkit"))
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}

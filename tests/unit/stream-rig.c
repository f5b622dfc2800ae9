/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream-rig.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "base/bits.h"

#define PATIENCE_MS 60000
#define BLOCK       ((size_t)65536)

uint64_t
rig_now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* --- content ---------------------------------------------------------------------------- */

/* Never zero, and different everywhere. */
static void
make(unsigned char *p, size_t len, unsigned seed, uint64_t at)
{
	for (size_t i = 0; i < len; i++) {
		uint64_t v = (at + i) / 8 + seed * UINT64_C(0x9e3779b97f4a7c15);

		v *= UINT64_C(0xff51afd7ed558ccd);
		p[i] = (unsigned char)(v >> (8 * ((at + i) % 8))) | 1;
	}
}

void
rig_fill_file(int fd, uint64_t off, uint64_t len, unsigned seed)
{
	unsigned char buf[BLOCK];

	while (len) {
		size_t n = (size_t)min_u64(len, sizeof buf);

		make(buf, n, seed, off);
		assert_int_equal(pwrite(fd, buf, n, (off_t)off), n);
		off += n;
		len -= n;
	}
}

void
rig_assert_file(int fd, uint64_t off, uint64_t len, unsigned seed, uint64_t at)
{
	unsigned char want[BLOCK], got[BLOCK];

	while (len) {
		size_t n = (size_t)min_u64(len, sizeof got);

		make(want, n, seed, at);
		assert_int_equal(pread(fd, got, n, (off_t)off), n);
		assert_memory_equal(got, want, n);
		off += n;
		at += n;
		len -= n;
	}
}

void
rig_assert_equal(struct rig *r, const char *name)
{
	unsigned char want[BLOCK], got[BLOCK];
	int fd = captive_open(&r->server, name, 0);

	for (uint64_t off = 0; off < r->size; off += BLOCK) {
		size_t n = (size_t)min_u64(r->size - off, BLOCK);

		assert_int_equal(pread(r->source, want, n, (off_t)off), n);
		assert_int_equal(pread(fd, got, n, (off_t)off), n);
		if (memcmp(want, got, n) != 0)
			fail_msg("the target differs near %llu",
				 (unsigned long long)off);
	}
	(void)close(fd);
}

/* --- the rig ------------------------------------------------------------------------------ */

static void
on_tick(struct ev_loop *ev, ev_timer *w, int revents)
{
	(void)w;
	(void)revents;
	ev_break(ev, EVBREAK_ALL);
}

struct rig *
rig_new(void)
{
	struct rig *r = xzalloc(sizeof *r);

	assert_true(loop_init(&r->loop));
	captive_init(&r->server);
	ev_timer_init(&r->tick, on_tick, 0., 0.);
	r->source = -1;
	r->reader.store = -1;
	r->o.cluster = STREAM_MIN_CLUSTER;
	r->to.server.unix_path = r->server.socket;
	r->to.server.open_timeout_s = 5;
	return r;
}

static void
end_stream(struct rig *r)
{
	if (!r->stream)
		return;
	if (r->running) {
		stream_cancel(r->stream);
		rig_wait(r);
	}
	stream_free(steal(&r->stream));
}

void
rig_free(struct rig *r)
{
	end_stream(r);
	rig_close_target(r);
	if (r->reader.image)
		block_free(r->reader.image);
	if (r->view)
		view_unref(r->view);
	if (r->epoch)
		epoch_unref(r->epoch);
	if (r->source >= 0)
		(void)close(r->source);
	if (r->reader.store >= 0)
		(void)close(r->reader.store);
	captive_destroy(&r->server);
	loop_destroy(&r->loop);
	free(r);
}

void
rig_source(struct rig *r, uint64_t size)
{
	struct block_file_options f = { .read_only = true, .name = "source" };
	struct err e = ERR_INIT;

	r->size = size;
	r->source = captive_open(&r->server, "source", size);
	f.fd = open(captive_path(&r->server, "source"), O_RDONLY | O_CLOEXEC);
	assert_ok(block_file_open(&f, &r->reader.image, &e), &e);
	r->reader.mask.size = size;
	r->o.size = size;
	r->o.copy.size = size;
}

void
rig_fill(struct rig *r, uint64_t off, uint64_t len, unsigned seed)
{
	rig_fill_file(r->source, off, len, seed);
}

void
rig_source_filled(struct rig *r, uint64_t size)
{
	rig_source(r, size);
	rig_fill(r, 0, size, 1);
}

void
rig_write_zeroes(struct rig *r, uint64_t off, uint64_t len)
{
	static const char zero[BLOCK];

	while (len) {
		size_t n = (size_t)min_u64(len, sizeof zero);

		assert_int_equal(pwrite(r->source, zero, n, (off_t)off), n);
		off += n;
		len -= n;
	}
}

void
rig_view(struct rig *r)
{
	struct err e = ERR_INIT;
	int fd = memfd_create("view", MFD_CLOEXEC);

	assert_ok(view_format(fd, r->size, &e), &e);
	assert_ok(view_open(fd, &r->view, &e), &e);
	r->reader.view = r->view;
	r->reader.store = captive_open(&r->server, "store", r->size);
}

void
rig_dirty(struct rig *r, uint64_t granularity)
{
	struct err e = ERR_INIT;
	int fd = memfd_create("epoch", MFD_CLOEXEC);

	assert_ok(epoch_format(fd, r->size, granularity, &e), &e);
	assert_ok(epoch_open(fd, &r->epoch, &e), &e);
	r->o.copy.v = &r->epoch;
	r->o.copy.n = 1;
}

void
rig_open_target(struct rig *r)
{
	struct err e = ERR_INIT;

	assert_ok(target_open(&r->to, &r->target, &e), &e);
}

void
rig_close_target(struct rig *r)
{
	end_stream(r);
	if (r->target)
		target_free(steal(&r->target));
}

/* --- the stream ----------------------------------------------------------------------------- */

static void
on_done(struct stream *s, void *opaque)
{
	struct rig *r = opaque;

	assert_ptr_equal(s, r->stream);
	ASSERT_LOOP(&r->loop);
	r->done++;
	r->running = false;
	loop_stop(&r->loop);
}

static void
on_paused(struct stream *s, void *opaque)
{
	struct rig *r = opaque;

	assert_ptr_equal(s, r->stream);
	ASSERT_LOOP(&r->loop);
	r->paused++;
}

void
rig_start(struct rig *r)
{
	struct err e = ERR_INIT;

	end_stream(r);
	r->o.loop = &r->loop;
	r->o.reader = &r->reader;
	r->o.target = r->target;
	r->o.name = "test";
	r->o.opaque = r;
	r->o.done = on_done;
	r->o.paused = on_paused;
	r->done = r->paused = 0;
	assert_ok(stream_start(&r->o, &r->stream, &e), &e);
	r->running = true;
}

void
rig_run_ms(struct rig *r, unsigned ms)
{
	uint64_t until = rig_now_ms() + ms;

	while (rig_now_ms() < until) {
		ev_now_update(r->loop.ev);
		ev_timer_set(&r->tick,
			     (double)(until - rig_now_ms()) / 1000. + 0.001,
			     0.);
		ev_timer_start(r->loop.ev, &r->tick);
		loop_run(&r->loop);
		ev_timer_stop(r->loop.ev, &r->tick);
	}
}

void
rig_wait(struct rig *r)
{
	uint64_t begin = rig_now_ms();

	while (r->running) {
		ev_now_update(r->loop.ev);
		ev_timer_set(&r->tick, 1., 0.);
		ev_timer_start(r->loop.ev, &r->tick);
		loop_run(&r->loop);
		ev_timer_stop(r->loop.ev, &r->tick);
		if (rig_now_ms() - begin > PATIENCE_MS)
			fail_msg("the stream does not end");
	}
	assert_int_equal(r->done, 1);
}

void
rig_run_until_offset(struct rig *r, uint64_t offset)
{
	uint64_t begin = rig_now_ms(), at = 0, len;

	for (;;) {
		stream_progress(r->stream, &at, &len);
		if (at >= offset || !r->running)
			break;
		rig_run_ms(r, 2);
		if (rig_now_ms() - begin > PATIENCE_MS)
			fail_msg("the stream stands still");
	}
	assert_true(at >= offset);
}

void
rig_assert_ok(struct rig *r)
{
	const struct stream_result *res = stream_result(r->stream);

	if (err_is_set(&res->error))
		fail_msg("the stream failed: %s", res->error.msg);
	assert_false(res->cancelled);
}

void
rig_copy(struct rig *r)
{
	rig_start(r);
	rig_wait(r);
	rig_assert_ok(r);
}

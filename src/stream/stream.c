/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A stream from its options to its result: how it starts, what its owner may
 * ask of it, and how it ends.
 */
#include "stream/stream-priv.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "base/bits.h"
#include "base/log.h"

/* Zeroes shorter than a page are data. */
#define MIN_ALIGN 4096

uint64_t
stream_now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* --- the end ------------------------------------------------------------------ */

void
stream_stop_locked(struct stream *s, enum stop_reason why)
{
	if (s->stop)
		return;
	atomic_store(&s->stop, why);
	stream_kick_locked(s, false);
}

void
stream_fail(struct stream *s, enum stream_side side, const struct err *e)
{
	mtx_lock(&s->lock);
	if (!s->stop) {
		s->result.error = *e;
		s->result.side = side;
	}
	stream_stop_locked(s, STOP_FAILED);
	mtx_unlock(&s->lock);
}

static void
on_finished(struct task *t)
{
	struct stream *s = container_of(t, struct stream, finished_task);

	stream_join_lanes(s);
	stream_trouble_end(s);
	buffers_detach(&s->buffers);
	s->result.cancelled = s->stop == STOP_CANCELLED;
	log_debug("%s: stream ended: %" PRIu64 " bytes sent, %" PRIu64
		  " zeroed, %" PRIu64 " requests, %" PRIu64
		  " flushes, %u lanes%s%s",
		  s->o.name, s->result.bytes_sent, s->result.bytes_zeroed,
		  s->result.requests, s->result.flushes, s->result.lanes,
		  err_is_set(&s->result.error) ? ": " : "",
		  s->result.error.msg);
	s->o.done(s, s->o.opaque);
}

/* --- pauses -------------------------------------------------------------------- */

void
stream_maybe_paused_locked(struct stream *s)
{
	if (!s->pausing || s->in_flight || s->paused_posted || s->stop)
		return;
	s->paused_posted = true;
	loop_post(s->o.loop, &s->paused_task);
}

static void
on_paused(struct task *t)
{
	struct stream *s = container_of(t, struct stream, paused_task);
	bool tell;

	mtx_lock(&s->lock);
	s->paused_posted = false;
	tell = s->pausing && s->in_flight == 0 && !s->stop;
	mtx_unlock(&s->lock);
	if (tell && s->o.paused)
		s->o.paused(s, s->o.opaque);
}

/* --- the start ----------------------------------------------------------------- */

uint64_t
stream_cluster(const struct target *t, uint64_t wanted)
{
	return max_u64(max_u64(STREAM_MIN_CLUSTER, wanted),
		       max_u64(target_min_block(t), target_cluster(t)));
}

/* How much of the target is the disk's. */
static uint64_t
room(const struct stream_options *o)
{
	uint64_t size = target_size(o->target);
	uint64_t rest = o->at < size ? size - o->at : 0;

	return o->room ? min_u64(o->room, rest) : rest;
}

static bool
check_options(const struct stream_options *o, struct err *e)
{
	const struct target *t = o->target;

	if (target_read_only(t))
		return err_set(e, ERR_GENERIC, EROFS, "The target '%s'",
			       target_address(t));
	if (round_up(room(o), 512) < o->size)
		return err_set(e, ERR_GENERIC, 0,
			       "The target '%s' has %" PRIu64
			       " bytes, the source %" PRIu64,
			       target_address(t), room(o), o->size);
	if (o->at % target_min_block(t))
		return err_set(e, ERR_GENERIC, 0,
			       "The target '%s' has blocks of %" PRIu32
			       " bytes, and offset %" PRIu64
			       " is inside of one",
			       target_address(t), target_min_block(t), o->at);
	if (o->follow && !o->reader->view)
		return err_set(e, ERR_GENERIC, 0, "There is nothing to follow");
	if (o->compress && !target_cluster(t))
		return err_set(e, ERR_GENERIC, ENOTSUP,
			       "The target '%s' cannot write compressed",
			       target_address(t));
	if (!is_pow2(o->cluster))
		return err_set(e, ERR_GENERIC, 0,
			       "The cluster of a job must be a power of 2");
	return true;
}

/* How large requests are, at most. */
static void
set_sizes(struct stream *s, const struct stream_options *o)
{
	const struct remote_info *info = &o->target->info;
	uint64_t max = min_u64(info->max_block, BUFFER_SIZE);

	if (o->max_chunk)
		max = min_u64(max, max_u64(o->max_chunk, s->o.cluster));
	s->piece = UINT64_C(1) << (63 - __builtin_clzll(max));
	if (o->compress)
		s->piece = target_cluster(o->target);
	s->max_zero = info->can_zero ? o->target->max_zero : s->piece;
	if (o->max_chunk)
		s->max_zero =
			min_u64(s->max_zero,
				max_u64(round_down(o->max_chunk, s->o.cluster),
					s->o.cluster));
}

static void
set_plan(struct stream *s, const struct stream_options *o)
{
	s->plan.reader = o->reader;
	s->plan.copy = o->copy;
	s->plan.copy.size = o->size;
	s->plan.copy.unit = max_u64(o->copy.n ? o->copy.unit : 0, s->o.cluster);
	s->plan.limit = s->limit;
	/* an image has nothing from zeroes that are less than a cluster */
	s->plan.align = max_u64(max_u64(MIN_ALIGN, o->target->info.min_block),
				target_cluster(o->target));
	s->plan.top = o->top;
}

static struct stream *
stream_new(const struct stream_options *o)
{
	struct stream *s = xzalloc(sizeof *s);

	s->o = *o;
	s->o.name = xstrdup(o->name ? o->name : "stream");
	s->o.cluster = stream_cluster(o->target, o->cluster);
	/* a target may lack what rounding to sectors added to the source */
	s->room = room(o);
	s->limit = min_u64(o->size, s->room);
	set_sizes(s, o);
	set_plan(s, o);
	mtx_init(&s->lock, LOCK_STREAM);
	pace_set(&s->pace, stream_now(), o->follow ? 0 : o->speed);
	s->paused_task.fn = on_paused;
	s->finished_task.fn = on_finished;
	stream_trouble_init(s);
	for (unsigned i = 0; i < STREAM_LANES; i++)
		lane_init(&s->lanes[i], s, i);
	return s;
}

bool
stream_start(const struct stream_options *o, struct stream **out, struct err *e)
{
	struct stream *s;
	int r;

	ASSERT_LOOP(o->loop);
	if (!check_options(o, e))
		return false;
	s = stream_new(o);
	if (o->follow &&
	    !plan_follow(&s->plan, max_u64(s->o.cluster,
					   view_granule(o->reader->view)))) {
		stream_free(s);
		return err_set(e, ERR_GENERIC, ENOMEM, "Cannot follow guests");
	}
	buffers_attach(&s->buffers);
	r = stream_start_first_lane(s);
	if (r) {
		buffers_detach(&s->buffers);
		stream_free(s);
		return err_set(e, ERR_GENERIC, r, "Cannot start a thread");
	}
	*out = s;
	return true;
}

void
stream_free(struct stream *s)
{
	ranges_destroy(&s->again);
	plan_destroy(&s->plan);
	mtx_destroy(&s->lock);
	free((char *)s->o.name);
	free(s);
}

/* --- what the daemon asks for ------------------------------------------------ */

void
stream_progress(const struct stream *s, uint64_t *offset, uint64_t *len)
{
	*len = atomic_load(&s->length);
	*offset = atomic_load(&s->offset);
}

void
stream_set_speed(struct stream *s, uint64_t speed)
{
	ASSERT_LOOP(s->o.loop);
	mtx_lock(&s->lock);
	if (!s->o.follow)
		pace_set(&s->pace, stream_now(), speed);
	stream_kick_locked(s, false);
	mtx_unlock(&s->lock);
}

void
stream_pause(struct stream *s)
{
	ASSERT_LOOP(s->o.loop);
	mtx_lock(&s->lock);
	s->pausing = true;
	stream_maybe_paused_locked(s);
	mtx_unlock(&s->lock);
}

void
stream_cancel(struct stream *s)
{
	ASSERT_LOOP(s->o.loop);
	mtx_lock(&s->lock);
	stream_stop_locked(s, STOP_CANCELLED);
	mtx_unlock(&s->lock);
}

void
stream_drain(struct stream *s)
{
	ASSERT_LOOP(s->o.loop);
	mtx_lock(&s->lock);
	s->draining = true;
	mtx_unlock(&s->lock);
	stream_resume(s);
}

const struct stream_result *
stream_result(const struct stream *s)
{
	return &s->result;
}

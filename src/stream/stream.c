/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the lanes of a stream share: what is left to do, the speed limit, the
 * accounts, and how it ends.  Everything here is short; what may block is in
 * the lanes.
 *
 * The account: every byte of the copy set is in exactly one of these places:
 * the plan (not handed out), @again (handed out before and come back),
 * @outstanding (with some lane), durable.  The stream has ended well when
 * the plan is complete and the first three are empty.
 */
#include "stream/stream-priv.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/park.h"

/* Zeroes shorter than a page are data. */
#define MIN_ALIGN 4096

/* More lanes than one are not worth their start for less. */
#define LANES_WORTH (16 * MiB)

/* Writes to one file take turns in the kernel: a second lane reads while the
 * first one writes, more of them only wait (spinning, beside the guests).  A GiB
 * of data from tmpfs to tmpfs took 0.55 s of processor time with one lane, 0.59
 * with two, 0.70 with four; nbdcopy 0.65, qemu-img convert 0.80.
 */
#define BLOCK_LANES 2

/* How long a guest's overwriting may go unnoticed by a stream that follows. */
#define FOLLOW_NS UINT64_C(100000000)

/* Of all streams of the process, beyond the first lane of each. */
#define EXTRA_LANES 32

#define STACK_BYTES (256 * KiB)

static _Atomic unsigned extra_lanes;

uint64_t
stream_now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void kick_all_locked(struct stream *s, bool hungry_only) NEEDS(s->lock);
static void maybe_paused_locked(struct stream *s) NEEDS(s->lock);
static void piece_ends_locked(struct stream *s) NEEDS(s->lock);
static bool take_locked(struct stream *s, uint64_t now, struct run *out)
	NEEDS(s->lock);
static void look_locked(struct stream *s) NEEDS(s->lock);
static enum take follow_locked(struct stream *s, const struct lane *l,
			       uint64_t *later) NEEDS(s->lock);
static enum take try_take_locked(struct stream *s, struct lane *l,
				 struct run *out, struct run *ahead,
				 uint64_t *later) NEEDS(s->lock);
static void stop_locked(struct stream *s, enum stop_reason why) NEEDS(s->lock);

/* --- waking ------------------------------------------------------------------- */

static void
kick_all_locked(struct stream *s, bool hungry_only)
{
	for (unsigned i = 0; i < STREAM_LANES; i++) {
		struct lane *l = &s->lanes[i];

		if (!l->live || (hungry_only && !l->hungry))
			continue;
		l->hungry = false;
		lane_kick(l);
	}
}

void
stream_kick_all_locked(struct stream *s)
{
	kick_all_locked(s, false);
}

void
stream_kick_all(struct stream *s)
{
	mtx_lock(&s->lock);
	kick_all_locked(s, false);
	mtx_unlock(&s->lock);
}

static void
maybe_paused_locked(struct stream *s)
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

/* --- handing out work ------------------------------------------------------- */

static bool
take_locked(struct stream *s, uint64_t now, struct run *out)
{
	uint64_t unit = max_u64(s->plan.align, STREAM_MIN_CLUSTER);
	uint64_t data = pace_piece(&s->pace, min_u64(unit, s->piece), s->piece);
	uint64_t zero =
		pace_piece(&s->pace, min_u64(unit, s->max_zero), s->max_zero);

	if (s->pace.speed && !is_pow2(data))
		data = UINT64_C(1) << (63 - __builtin_clzll(data));
	if (s->again.n > s->again.first) {
		const struct run *r = &s->again.v[s->again.first];

		if (!ranges_take(&s->again,
				 r->flags & RUN_ZERO ? zero
						     : data - r->off % data,
				 out))
			return false;
	} else if (!plan_take(&s->plan, data, zero, out)) {
		return false;
	}
	pace_charge(&s->pace, now, out->len);
	s->outstanding += out->len;
	s->in_flight++;
	s->pieces++;
	return true;
}

/* Take the planner's role for one round. */
static void
look_locked(struct stream *s)
{
	s->plan.looking = true;
	mtx_unlock(&s->lock);
	PARK("stream.looking");
	plan_look(&s->plan);
	mtx_lock(&s->lock);
	plan_publish(&s->plan);
	if (s->plan.left_out)
		atomic_fetch_sub(&s->length, s->plan.left_out * s->o.cluster);
	kick_all_locked(s, true);
}

/* Nothing is left of what was found: is it time to look again?  TAKE_WORK: it
 * is.  A guest's write must not wait for us and should not pay for waking us,
 * so we look from time to time, at one number; the first lane does, and others
 * while it has no connection.
 */
static enum take
follow_locked(struct stream *s, const struct lane *l, uint64_t *later)
{
	if (view_broken(s->o.reader->view))
		return TAKE_BROKEN;
	if (!plan_round_is_over(&s->plan))
		return TAKE_WORK;
	if (s->last_round) {
		s->plan.complete = true;
		kick_all_locked(s, true);
		return TAKE_NOTHING;
	}
	s->last_round = s->draining;
	if (s->draining || plan_has_news(&s->plan)) {
		plan_rewind(&s->plan);
		return TAKE_WORK;
	}
	if (l->number > 0 && s->lanes[0].usable)
		return TAKE_WAIT;
	*later = stream_now() + FOLLOW_NS;
	return TAKE_LATER;
}

static enum take
try_take_locked(struct stream *s, struct lane *l, struct run *out,
		struct run *ahead, uint64_t *later)
{
	for (;;) {
		uint64_t now = s->pace.speed ? stream_now() : 0;
		uint64_t wait = pace_wait(&s->pace, now);

		l->hungry = true;
		if (s->stop || s->pausing || s->trouble)
			return TAKE_WAIT;
		if (s->o.max_workers && s->pieces >= s->o.max_workers)
			return TAKE_WAIT; /* until one of them ends */
		if (wait) {
			*later = now + wait;
			return TAKE_LATER;
		}
		if (take_locked(s, now, out)) {
			l->hungry = false;
			if (out->flags & RUN_ZERO ||
			    !plan_ahead(&s->plan, out, ahead))
				ahead->len = 0;
			return TAKE_WORK;
		}
		if (s->plan.complete)
			return TAKE_NOTHING;
		if (s->plan.looking)
			return TAKE_WAIT;
		if (s->o.follow) {
			enum take t = follow_locked(s, l, later);

			if (t != TAKE_WORK)
				return t;
		}
		look_locked(s);
	}
}

enum take
stream_take(struct lane *l, struct run *out, struct run *ahead, uint64_t *later)
{
	struct stream *s = l->s;
	enum take t;

	mtx_lock(&s->lock);
	t = try_take_locked(s, l, out, ahead, later);
	mtx_unlock(&s->lock);
	return t;
}

/* --- the account ------------------------------------------------------------- */

/* The disk's last cluster counts in full. */
static uint64_t
in_clusters(const struct stream *s, const struct run *r)
{
	if (r->off + r->len != s->limit)
		return r->len;
	return r->len + round_up(s->limit, s->o.cluster) - s->limit;
}

static void
piece_ends_locked(struct stream *s)
{
	s->in_flight--;
	s->pieces--;
	if (s->o.max_workers)
		kick_all_locked(s, true);
}

void
stream_acked(struct stream *s, const struct run *r, unsigned requests,
	     uint64_t zeroed)
{
	if (!(r->flags & RUN_COUNTED))
		atomic_fetch_add(&s->offset, in_clusters(s, r));
	mtx_lock(&s->lock);
	s->result.requests += requests;
	s->result.bytes_zeroed += zeroed;
	s->result.bytes_sent += r->len - zeroed;
	s->any_acked = true;
	piece_ends_locked(s);
	maybe_paused_locked(s);
	mtx_unlock(&s->lock);
}

void
stream_durable(struct stream *s, uint64_t bytes)
{
	mtx_lock(&s->lock);
	assert(s->outstanding >= bytes);
	s->outstanding -= bytes;
	mtx_unlock(&s->lock);
}

void
stream_flush_moves(struct stream *s, int by)
{
	mtx_lock(&s->lock);
	if (by > 0)
		s->in_flight++;
	else
		s->in_flight--;
	s->result.flushes += by > 0;
	maybe_paused_locked(s);
	mtx_unlock(&s->lock);
}

void
stream_give_back(struct stream *s, const struct run *r)
{
	mtx_lock(&s->lock);
	assert(s->outstanding >= r->len);
	s->outstanding -= r->len;
	piece_ends_locked(s);
	ranges_add(&s->again, r->off, r->len, r->flags);
	kick_all_locked(s, true);
	maybe_paused_locked(s);
	mtx_unlock(&s->lock);
}

void
stream_give_back_ranges(struct stream *s, struct ranges *r)
{
	struct run run;

	mtx_lock(&s->lock);
	assert(s->outstanding >= r->bytes);
	s->outstanding -= r->bytes;
	while (ranges_take(r, UINT64_MAX, &run))
		ranges_add(&s->again, run.off, run.len, run.flags);
	kick_all_locked(s, true);
	mtx_unlock(&s->lock);
}

unsigned
stream_usable(struct lane *l, bool usable)
{
	struct stream *s = l->s;
	unsigned n;

	mtx_lock(&s->lock);
	if (usable && !l->usable)
		s->usable++;
	else if (!usable && l->usable)
		s->usable--;
	l->usable = usable;
	n = s->usable;
	if (n > s->result.lanes)
		s->result.lanes = n;
	mtx_unlock(&s->lock);
	return n;
}

void
stream_reconnected(struct stream *s)
{
	mtx_lock(&s->lock);
	s->result.reconnects++;
	mtx_unlock(&s->lock);
}

/* --- the end ------------------------------------------------------------------ */

static void
stop_locked(struct stream *s, enum stop_reason why)
{
	if (s->stop)
		return;
	atomic_store(&s->stop, why);
	kick_all_locked(s, false);
}

void
stream_fail(struct stream *s, enum stream_side side, const struct err *e)
{
	mtx_lock(&s->lock);
	if (!s->stop) {
		s->result.error = *e;
		s->result.side = side;
	}
	stop_locked(s, STOP_FAILED);
	mtx_unlock(&s->lock);
}

void
stream_maybe_finish(struct stream *s)
{
	PARK("stream.finishing");
	mtx_lock(&s->lock);
	if (!s->pausing && !s->trouble && s->plan.complete &&
	    !s->plan.looking && s->plan.first == s->plan.n &&
	    s->again.first == s->again.n && s->outstanding == 0 &&
	    s->in_flight == 0)
		stop_locked(s, STOP_SUCCESS);
	mtx_unlock(&s->lock);
}

void
stream_release(const struct stream *s, const struct run *r)
{
	view_reader_done(s->o.reader, r->off, r->len);
	if (s->o.discard)
		(void)block_discard(s->o.discard, r->off, r->len);
}

/* Without flushes there is no earlier moment at which the view may let go. */
static void
release_all(const struct stream *s)
{
	uint64_t at = 0, start, end;

	while (dirty_next(&s->plan.copy, at, &start, &end)) {
		end = min_u64(end, s->limit);
		view_reader_done(s->o.reader, start, end - start);
		/* the others do not copy all of the set */
		if (s->o.discard && !s->o.top && !s->o.follow)
			(void)block_discard(s->o.discard, start, end - start);
		at = end;
	}
}

void
stream_lane_finished(struct stream *s)
{
	bool last;

	mtx_lock(&s->lock);
	last = s->running == 1;
	mtx_unlock(&s->lock);
	/* only running lanes start others: the last one stays the last */
	if (last && s->stop == STOP_SUCCESS && !s->o.target->info.can_flush &&
	    s->o.reader->view)
		release_all(s);
	mtx_lock(&s->lock);
	s->running--;
	if (s->running == 0)
		loop_post(s->o.loop, &s->finished_task);
	mtx_unlock(&s->lock);
}

static void
on_finished(struct task *t)
{
	struct stream *s = container_of(t, struct stream, finished_task);

	for (unsigned i = 0; i < s->started; i++)
		(void)pthread_join(s->lanes[i].thread, NULL);
	stream_trouble_end(s);
	buffers_detach(&s->buffers);
	if (s->started > 1)
		atomic_fetch_sub(&extra_lanes, s->started - 1);
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

/* --- the start --------------------------------------------------------------- */

/* Signals belong to the loop's thread. */
static int
start_thread(struct lane *l)
{
	pthread_attr_t attr;
	sigset_t all, old;
	int r = pthread_attr_init(&attr);

	if (r)
		return r;
	(void)pthread_attr_setstacksize(&attr, STACK_BYTES);
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&l->thread, &attr, lane_run, l);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	(void)pthread_attr_destroy(&attr);
	return r;
}

static unsigned
good_lanes(const struct stream *s)
{
	const struct target *t = s->o.target;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned n = STREAM_LANES;

	if (!t->info.can_multi_conn || s->length < LANES_WORTH)
		return 1;
	if (t->block && !s->o.compress)
		n = BLOCK_LANES;
	if (cpus > 0)
		n = (unsigned)min_u64(n, (uint64_t)cpus * 2);
	if (t->max_lanes && t->max_lanes < n)
		n = t->max_lanes;
	if (s->o.max_lanes && s->o.max_lanes < n)
		n = s->o.max_lanes;
	if (s->o.max_workers && s->o.max_workers < n)
		n = s->o.max_workers;
	return n;
}

static bool
extra_lane_get(void)
{
	if (atomic_fetch_add(&extra_lanes, 1) < EXTRA_LANES)
		return true;
	atomic_fetch_sub(&extra_lanes, 1);
	return false;
}

/* Bytes of clusters. */
static uint64_t
bytes_to_copy(const struct stream *s)
{
	uint64_t cluster = s->o.cluster, at = 0, start, total = 0;

	if (!s->plan.copy.n)
		return round_up(s->limit, cluster);
	for (uint64_t end; dirty_next(&s->plan.copy, at, &start, &end);
	     at = end)
		total += round_up(end - start, cluster);
	return total;
}

void
stream_start_lanes(struct stream *s)
{
	unsigned lanes;

	atomic_store(&s->length, bytes_to_copy(s));
	lanes = good_lanes(s);
	for (unsigned i = 1; i < lanes; i++) {
		bool ok;

		if (!extra_lane_get())
			return;
		mtx_lock(&s->lock);
		ok = !s->stop && start_thread(&s->lanes[i]) == 0;
		s->running += ok;
		s->started += ok;
		mtx_unlock(&s->lock);
		if (!ok) {
			atomic_fetch_sub(&extra_lanes, 1);
			return;
		}
	}
}

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

static struct stream *
stream_new(const struct stream_options *o)
{
	const struct remote_info *info = &o->target->info;
	struct stream *s = xzalloc(sizeof *s);
	uint64_t max = min_u64(info->max_block, BUFFER_SIZE);

	s->o = *o;
	s->o.name = xstrdup(o->name ? o->name : "stream");
	s->o.cluster = stream_cluster(o->target, o->cluster);
	/* a target may lack what rounding to sectors added to the source */
	s->room = room(o);
	s->limit = min_u64(o->size, s->room);
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
	s->plan.reader = o->reader;
	s->plan.copy = o->copy;
	s->plan.copy.size = o->size;
	s->plan.copy.unit = max_u64(o->copy.n ? o->copy.unit : 0, s->o.cluster);
	s->plan.limit = s->limit;
	/* an image has nothing from zeroes that are less than a cluster */
	s->plan.align = max_u64(max_u64(MIN_ALIGN, info->min_block),
				target_cluster(o->target));
	s->plan.top = o->top;
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
	mtx_lock(&s->lock);
	s->running = s->started = 1;
	r = start_thread(&s->lanes[0]);
	mtx_unlock(&s->lock);
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
	kick_all_locked(s, false);
	mtx_unlock(&s->lock);
}

void
stream_pause(struct stream *s)
{
	ASSERT_LOOP(s->o.loop);
	mtx_lock(&s->lock);
	s->pausing = true;
	maybe_paused_locked(s);
	mtx_unlock(&s->lock);
}

void
stream_cancel(struct stream *s)
{
	ASSERT_LOOP(s->o.loop);
	mtx_lock(&s->lock);
	stop_locked(s, STOP_CANCELLED);
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

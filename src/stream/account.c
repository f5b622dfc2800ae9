/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The account of a stream, and handing out work from it: every byte of the copy
 * set is in exactly one of these places: the plan (not handed out), @again
 * (handed out before and come back), @outstanding (with some lane), durable.
 * The stream has ended well when the plan is complete and the first three are
 * empty.
 *
 * Everything here is short; what may block is in the lanes.
 */
#include <assert.h>

#include "base/bits.h"
#include "base/park.h"
#include "stream/stream-priv.h"

/* How long a guest's overwriting may go unnoticed by a stream that follows. */
#define FOLLOW_NS UINT64_C(100000000)

static void piece_ends_locked(struct stream *s) NEEDS(s->lock);
static bool take_locked(struct stream *s, uint64_t now, struct run *out)
	NEEDS(s->lock);
static void look_locked(struct stream *s) NEEDS(s->lock);
static enum take follow_locked(struct stream *s, const struct lane *l,
			       uint64_t *later) NEEDS(s->lock);
static enum take try_take_locked(struct stream *s, struct lane *l,
				 struct run *out, struct run *ahead,
				 uint64_t *later) NEEDS(s->lock);

/* --- handing out work --------------------------------------------------------- */

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
	stream_kick_locked(s, true);
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
		stream_kick_locked(s, true);
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

/* --- what becomes of it ------------------------------------------------------- */

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
		stream_kick_locked(s, true);
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
	stream_maybe_paused_locked(s);
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
	stream_maybe_paused_locked(s);
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
	stream_kick_locked(s, true);
	stream_maybe_paused_locked(s);
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
	stream_kick_locked(s, true);
	mtx_unlock(&s->lock);
}

/* --- what is safe ------------------------------------------------------------- */

void
stream_release(const struct stream *s, const struct run *r)
{
	view_reader_done(s->o.reader, r->off, r->len);
	if (s->o.discard)
		(void)block_discard(s->o.discard, r->off, r->len);
}

/* Without flushes there is no earlier moment at which the view may let go. */
void
stream_release_all(const struct stream *s)
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

/* --- the sum ------------------------------------------------------------------ */

/* Bytes of clusters. */
uint64_t
stream_bytes_to_copy(const struct stream *s)
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
stream_maybe_finish(struct stream *s)
{
	PARK("stream.finishing");
	mtx_lock(&s->lock);
	if (!s->pausing && !s->trouble && s->plan.complete &&
	    !s->plan.looking && s->plan.first == s->plan.n &&
	    s->again.first == s->again.n && s->outstanding == 0 &&
	    s->in_flight == 0)
		stream_stop_locked(s, STOP_SUCCESS);
	mtx_unlock(&s->lock);
}

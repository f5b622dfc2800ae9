/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Trouble: a read of the source or a write to the target failed, and the
 * stream rests until its owner has said what that means.
 *
 *   NONE --(a request fails)--> ASKING --(STREAM_FAIL)--> the stream ends
 *                               |    |
 *               (STREAM_RETRY)  |    |  (STREAM_HOLD)
 *                               v    v
 *                              RESTING --(the time is up, or resume)--> NONE
 *
 * Requests that fail while there is trouble belong to it: they were in flight
 * when it began.  So the owner is asked once for each time that the stream
 * went on and met an error.
 */
#include <assert.h>

#include "base/bits.h"
#include "stream/stream-priv.h"

/* How long a stream rests before it tries again: the shortest while it makes
 * progress in between, then twice as long each time.
 */
#define RETRY_MIN_S 0.05
#define RETRY_MAX_S 2.

static void over_locked(struct stream *s) NEEDS(s->lock);

static void
over_locked(struct stream *s)
{
	s->trouble = TROUBLE_NONE;
	s->went_on++;
	stream_kick_locked(s, false);
}

bool
stream_error(struct stream *s, enum stream_side side, const struct err *e)
{
	if (!s->o.error) {
		stream_fail(s, side, e);
		return false;
	}
	mtx_lock(&s->lock);
	if (s->trouble == TROUBLE_NONE && !s->stop) {
		s->trouble = TROUBLE_ASKING;
		s->trouble_side = side;
		s->trouble_error = *e;
		loop_post(s->o.loop, &s->trouble_task);
	}
	mtx_unlock(&s->lock);
	return true;
}

bool
stream_rests(struct stream *s)
{
	bool rests;

	mtx_lock(&s->lock);
	rests = s->pausing || s->trouble != TROUBLE_NONE;
	mtx_unlock(&s->lock);
	return rests;
}

uint64_t
stream_went_on(struct stream *s)
{
	uint64_t n;

	mtx_lock(&s->lock);
	n = s->went_on;
	mtx_unlock(&s->lock);
	return n;
}

static void
on_retry(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct stream *s = container_of(w, struct stream, retry);

	(void)ev;
	(void)revents;
	mtx_lock(&s->lock);
	over_locked(s);
	mtx_unlock(&s->lock);
}

/* Loop. */
static void
retry_later(struct stream *s, uint64_t requests)
{
	if (requests != s->retry_requests || s->retry_s == 0.)
		s->retry_s = RETRY_MIN_S;
	else if (s->retry_s * 2 <= RETRY_MAX_S)
		s->retry_s *= 2;
	s->retry_requests = requests;
	ev_timer_stop(s->o.loop->ev, &s->retry);
	ev_now_update(s->o.loop->ev);
	ev_timer_set(&s->retry, s->retry_s, 0.);
	ev_timer_start(s->o.loop->ev, &s->retry);
}

static void
on_trouble(struct task *t)
{
	struct stream *s = container_of(t, struct stream, trouble_task);
	enum stream_side side;
	uint64_t requests;
	struct err e;
	bool ask;

	mtx_lock(&s->lock);
	ask = s->trouble == TROUBLE_ASKING && !s->stop;
	if (ask)
		s->trouble = TROUBLE_RESTING;
	side = s->trouble_side;
	e = s->trouble_error;
	requests = s->result.requests;
	mtx_unlock(&s->lock);
	if (!ask)
		return;
	switch (s->o.error(s, side, &e, s->o.opaque)) {
	case STREAM_FAIL: stream_fail(s, side, &e); break;
	case STREAM_RETRY: retry_later(s, requests); break;
	case STREAM_HOLD: break;
	}
}

void
stream_trouble_init(struct stream *s)
{
	s->trouble_task.fn = on_trouble;
	ev_timer_init(&s->retry, on_retry, 0., 0.);
}

void
stream_trouble_end(struct stream *s)
{
	ev_timer_stop(s->o.loop->ev, &s->retry);
}

void
stream_resume(struct stream *s)
{
	ASSERT_LOOP(s->o.loop);
	ev_timer_stop(s->o.loop->ev, &s->retry);
	mtx_lock(&s->lock);
	s->pausing = false;
	/* what is still to be asked about is asked about */
	if (s->trouble == TROUBLE_RESTING)
		s->trouble = TROUBLE_NONE;
	s->went_on++;
	stream_kick_locked(s, false);
	mtx_unlock(&s->lock);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The requests of a lane: taking work, reading it, finding its zeroes,
 * submitting it, and what happens when it completes.  Runs on the lane's
 * thread only.  Answers are noted (lane_answered) and handled by lane_reap().
 */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/park.h"
#include "stream/stream-priv.h"

/* Pieces that one turn of the loop may take before it looks at the socket. */
#define FEED_BUDGET 4

/* A flush is worth its cost to the target after this time, and not more than
 * a fifth of the time is spent flushing.
 */
#define FLUSH_INTERVAL_NS UINT64_C(1000000000)
#define FLUSH_REST        4

/* Flush early when this much data would have to be sent again. */
#define FLUSH_BYTES  (1 * GiB)
#define FLUSH_RANGES 4096

#define SLOW_READ_NS UINT64_C(1000000000)

/* A target that cannot zero gets these. */
static const char zeroes[BUFFER_SIZE];

static const struct remote_info *
info_of(const struct lane *l)
{
	return &l->s->o.target->info;
}

void
lane_answered(struct lane *l, struct op *op, int os)
{
	op->answered = true;
	op->error = os;
	op->next = NULL;
	*l->completed_tail = op;
	l->completed_tail = &op->next;
}

/* --- submitting ---------------------------------------------------------------- */

/* The tail of a disk may be shorter than the target's minimum block: send
 * the rest of the block as zeroes when the target has room for it.
 */
static uint64_t
padding(const struct lane *l, uint64_t end)
{
	uint64_t to = round_up(end, info_of(l)->min_block);

	return end == l->s->limit && to <= l->s->room ? to - end : 0;
}

static struct op *
next_op(struct lane *l, struct piece *p)
{
	struct op *op = &p->ops[p->nops++];

	assert(p->nops <= PIECE_OPS);
	*op = (struct op){ .lane = l, .piece = p };
	p->pending++;
	return op;
}

static void
submit_data(struct lane *l, struct piece *p, uint64_t from, uint64_t to)
{
	uint64_t pad = padding(l, p->run.off + to);
	struct op *op;

	if (from == to)
		return;
	op = next_op(l, p);
	if (pad)
		memset((char *)p->buf + to, 0, pad);
	l->ops->write(l, op, (char *)p->buf + from, to - from + pad,
		      p->run.off + from);
}

static void
submit_zero(struct lane *l, struct piece *p, uint64_t from, uint64_t to)
{
	uint64_t len = to - from + padding(l, p->run.off + to);
	uint64_t off = p->run.off + from;
	struct op *op = next_op(l, p);

	if (info_of(l)->can_zero) {
		p->zeroed += to - from;
		l->ops->zero(l, op, len, off);
	} else {
		l->ops->write(l, op, zeroes, len, off);
	}
}

/* Data and zeroes of a piece that was read.  A run of zeroes is worth a
 * request of its own when it is long, and while the piece does not fall into
 * too many.
 */
static void
submit_split(struct lane *l, struct piece *p)
{
	uint64_t at = 0, sent = 0, len = p->run.len;

	if (!info_of(l)->can_zero) {
		submit_data(l, p, 0, len);
		return;
	}
	while (at < len) {
		bool zero;
		uint64_t n = buf_run((char *)p->buf + at, len - at,
				     l->s->plan.align, &zero);

		if (zero && (n >= PLAN_MIN_ZERO || n == len) &&
		    p->nops + 3 <= PIECE_OPS) {
			submit_data(l, p, sent, at);
			submit_zero(l, p, at, at + n);
			sent = at + n;
		}
		at += n;
	}
	submit_data(l, p, sent, len);
}

static void
fail_source(struct lane *l, const struct run *r, int os)
{
	struct stream *s = l->s;
	struct err e = ERR_INIT;

	if (s->o.reader->view && view_broken(s->o.reader->view)) {
		err_set(&e, ERR_GENERIC, view_broken(s->o.reader->view),
			"the snapshot of the source was given up");
		stream_fail(s, STREAM_SOURCE, &e);
		return;
	}
	err_set(&e, ERR_GENERIC, os,
		"cannot read the source at offset %" PRIu64, r->off);
	(void)stream_error(s, STREAM_SOURCE, &e);
}

static struct piece *
piece_get(struct lane *l, const struct run *r)
{
	struct piece *p = l->free;

	l->free = p->next;
	l->in_flight++;
	p->run = *r;
	p->nops = p->pending = 0;
	p->error = 0;
	p->zeroed = 0;
	return p;
}

/* A cluster to be compressed may be larger than the buffers of all streams.
 * The lane of an image has one piece at a time, so these are as few as lanes.
 */
static bool
own_buffer(const struct stream *s)
{
	return s->piece > BUFFER_SIZE;
}

static void
piece_put(struct lane *l, struct piece *p)
{
	if (p->buf && own_buffer(l->s))
		free(p->buf);
	else if (p->buf)
		buffers_put(&l->s->buffers, p->buf);
	p->buf = NULL;
	p->nops = 0;
	p->next = l->free;
	l->free = p;
	l->in_flight--;
}

/* Read and submit one run.  False: the source failed. */
static bool
submit_run(struct lane *l, const struct run *r, const struct run *ahead)
{
	const struct view_reader *src = l->s->o.reader;
	struct piece *p = piece_get(l, r);
	uint64_t before;
	int os;

	if (l->in_flight == 1 && !l->flush_in_flight)
		l->last_answer = stream_now();
	if (r->flags & RUN_ZERO) {
		submit_zero(l, p, 0, r->len);
		return true;
	}
	p->buf = steal(&l->spare);
	if (ahead->len)
		(void)block_cache(src->image, ahead->off, ahead->len);
	PARK("stream.before-read");
	before = stream_now();
	os = view_reader_pread(src, p->buf, r->len, r->off);
	/* a slow source is no reason to call the target silent */
	if (stream_now() - before > SLOW_READ_NS)
		l->last_answer = stream_now();
	if (os) {
		fail_source(l, r, os);
		stream_give_back(l->s, r);
		piece_put(l, p);
		return false;
	}
	p->sent = stream_now();
	submit_split(l, p);
	return true;
}

/* --- feeding ----------------------------------------------------------------------- */

static bool
can_take(struct lane *l)
{
	if (!l->free || l->in_flight >= l->window.size)
		return false;
	/* what a flush must cover is bounded */
	if (l->flush_in_flight && l->acked.n >= FLUSH_RANGES)
		return false;
	if (!l->ops->is_full(l)) {
		l->unsent = 0;
		return true;
	}
	/* Have one more piece ready, no more: its data
	 * would leave the cache before it leaves the machine.
	 */
	return l->unsent++ == 0;
}

/* False: no more now. */
static bool
feed_once(struct lane *l, uint64_t *later)
{
	struct run run, ahead;
	enum take t;

	if (!can_take(l))
		return false;
	if (!l->spare && own_buffer(l->s)) {
		l->spare = aligned_alloc(4096, l->s->piece);
		xassert_memory(l->spare != NULL);
	}
	if (!l->spare)
		l->spare = buffers_get(&l->s->buffers, &l->waiter);
	if (!l->spare)
		return false;
	t = stream_take(l, &run, &ahead, later);
	l->nothing_left = t == TAKE_NOTHING;
	if (t == TAKE_BROKEN)
		fail_source(l, &(struct run){ .off = 0 }, 0);
	return t == TAKE_WORK && submit_run(l, &run, &ahead);
}

void
lane_feed(struct lane *l, uint64_t *later)
{
	unsigned n = 0;

	l->nothing_left = false;
	while (n < FEED_BUDGET && feed_once(l, later)) {
		n++;
		if (l->ops->immediate)
			(void)lane_reap(l);
	}
	if (l->spare && own_buffer(l->s))
		free(steal(&l->spare));
	else if (l->spare)
		buffers_put(&l->s->buffers, steal(&l->spare));
	if ((n == FEED_BUDGET || l->completed) && !l->again.queued)
		loop_defer(&l->loop, &l->again);
}

/* --- flushing ------------------------------------------------------------------------ */

bool
lane_flush_due(const struct lane *l, uint64_t *later)
{
	uint64_t now;

	if (l->flush_in_flight || l->acked.n == 0)
		return false;
	if (l->in_flight == 0 && l->nothing_left)
		return true;
	if (l->acked_data >= FLUSH_BYTES || l->acked.n >= FLUSH_RANGES)
		return true;
	now = stream_now();
	if (now >= l->next_flush)
		return true;
	if (*later == 0 || *later > l->next_flush)
		*later = l->next_flush;
	return false;
}

void
lane_flush(struct lane *l)
{
	struct ranges empty = l->flushing;

	assert(empty.n == 0);
	l->flushing = l->acked;
	l->acked = empty;
	l->acked_data = 0;
	l->flush_op = (struct op){ .lane = l };
	l->flush_in_flight = true;
	l->flush_sent = stream_now();
	if (l->in_flight == 0)
		l->last_answer = l->flush_sent;
	stream_flush_moves(l->s, +1);
	l->ops->flush(l, &l->flush_op);
	if (l->completed && !l->again.queued)
		loop_defer(&l->loop, &l->again);
}

/* --- completing ------------------------------------------------------------------------ */

/* Errors that mean that the server, not the disk, is in trouble. */
static bool
is_loss(const struct lane *l, int os)
{
	return l->h && (os == ENOTCONN || os == ESHUTDOWN || os == EPIPE ||
			os == ECONNRESET);
}

static void
fail_target(struct lane *l, const struct piece *p, int os)
{
	const char *name = target_address(l->s->o.target);
	uint64_t end = p->run.off + p->run.len;
	struct err e = ERR_INIT;

	if (os == EINVAL && end % info_of(l)->min_block)
		err_set(&e, ERR_GENERIC, os,
			"the target '%s' refuses the end of the disk, which "
			"is not a multiple of its minimum block of %" PRIu32
			" bytes",
			name, info_of(l)->min_block);
	else
		err_set(&e, ERR_GENERIC, os,
			"cannot write to the target '%s' at offset %" PRIu64,
			name, p->run.off);
	(void)stream_error(l->s, STREAM_TARGET, &e);
}

/* A server may refuse to zero more than it takes as data: ask for less. */
static bool
zero_was_too_long(struct lane *l, const struct piece *p, int os)
{
	struct stream *s = l->s;
	uint64_t less = round_down(info_of(l)->max_block, s->plan.align);

	if (!(p->run.flags & RUN_ZERO) || p->run.len <= less || less == 0 ||
	    !info_of(l)->can_zero || (os != EINVAL && os != EOVERFLOW))
		return false;
	mtx_lock(&s->lock);
	s->max_zero = less;
	mtx_unlock(&s->lock);
	return true;
}

static void
piece_completed(struct lane *l, struct piece *p, int *lost)
{
	struct stream *s = l->s;
	struct run done = p->run;

	done.flags |= RUN_COUNTED;
	if (p->error == 0) {
		if (p->buf)
			window_answer(&l->window, l->last_answer,
				      l->last_answer - p->sent, l->in_flight);
		if (info_of(l)->can_flush)
			ranges_add(&l->acked, done.off, done.len, done.flags);
		else
			stream_durable(s, done.len);
		l->acked_data += done.len - p->zeroed;
		stream_acked(s, &p->run, p->nops, p->zeroed);
	} else {
		if (is_loss(l, p->error))
			*lost = p->error;
		else if (!zero_was_too_long(l, p, p->error))
			fail_target(l, p, p->error);
		stream_give_back(s, &p->run);
	}
	piece_put(l, p);
}

/* Rule 1: what was acknowledged before this flush was sent is safe now. */
static void
flush_completed(struct lane *l, int *lost)
{
	uint64_t now = stream_now(), took = now - l->flush_sent;
	struct stream *s = l->s;
	struct err e = ERR_INIT;
	struct run r;
	uint64_t bytes = l->flushing.bytes;

	l->flush_in_flight = false;
	l->next_flush = now + max_u64(FLUSH_INTERVAL_NS, took * FLUSH_REST);
	if (l->flush_op.error == 0) {
		while (ranges_take(&l->flushing, UINT64_MAX, &r))
			stream_release(s, &r);
		stream_durable(s, bytes);
	} else if (is_loss(l, l->flush_op.error)) {
		*lost = l->flush_op.error;
		stream_give_back_ranges(s, &l->flushing);
	} else {
		err_set(&e, ERR_GENERIC, l->flush_op.error,
			"cannot flush the target '%s'",
			target_address(s->o.target));
		(void)stream_error(s, STREAM_TARGET, &e);
		stream_give_back_ranges(s, &l->flushing);
	}
	stream_flush_moves(s, -1);
}

bool
lane_reap(struct lane *l)
{
	int lost = 0;

	if (l->completed)
		l->last_answer = stream_now();
	while (l->completed) {
		struct op *op = l->completed;

		l->completed = op->next;
		if (!l->completed)
			l->completed_tail = &l->completed;
		if (!op->piece) {
			flush_completed(l, &lost);
			continue;
		}
		if (op->error && !op->piece->error)
			op->piece->error = op->error;
		if (--op->piece->pending == 0)
			piece_completed(l, op->piece, &lost);
	}
	if (!lost && l->ops->is_alive(l))
		return true;
	lane_lost(l, ESHUTDOWN);
	return false;
}

void
lane_abandon(struct lane *l)
{
	/* closing may have completed some: they count as lost */
	l->completed = NULL;
	l->completed_tail = &l->completed;
	for (unsigned i = 0; i < LANE_PIECES; i++) {
		struct piece *p = &l->pieces[i];

		if (p->nops == 0)
			continue;
		stream_give_back(l->s, &p->run);
		piece_put(l, p);
	}
	assert(l->in_flight == 0);
	if (l->flush_in_flight) {
		l->flush_in_flight = false;
		stream_flush_moves(l->s, -1);
	}
	stream_give_back_ranges(l->s, &l->flushing);
	stream_give_back_ranges(l->s, &l->acked);
	l->acked_data = 0;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A lane: one thread, one loop, one way to the target, and reads of its own.
 * Here are its life and, for a target on a server, its connection; how its
 * requests get to the target is in lane-nbd.c and lane-block.c.
 *
 * Why not one thread for the sockets and others that read: a piece of data
 * that one thread reads and another sends moves from one core's cache to
 * another's, and every piece needs two wake-ups.  A lane reads a piece and
 * sends it at once while it is in the cache; the kernel's socket buffer keeps
 * the connection busy meanwhile, readahead (block_cache) keeps the disk busy,
 * and several lanes use several cores.
 *
 * A lane loses its connection alone.  Everything that it carried, or had
 * acknowledged since its last flush, goes back to the stream and is sent
 * again by whoever is connected.  That is why each lane flushes its own
 * writes on its own connection: an acknowledged flush speaks of the server
 * that had acknowledged the writes, and not of one that was started since.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/resource.h>

#include "base/bits.h"
#include "base/log.h"
#include "stream/stream-priv.h"

#define MS_NS UINT64_C(1000000)

/* A lane's niceness, where the processors are short. */
#define LANE_NICE 5

/* Between tries to connect. */
#define RETRY_NS (250 * MS_NS)

/* How long the first lane's connection may take to become quiet at the end,
 * so that it can be kept.
 */
#define DRAIN_NS (100 * MS_NS)

static void step(struct lane *l);

/* --- watchers ------------------------------------------------------------------- */

static void
on_io(struct ev_loop *ev, ev_io *w, int revents)
{
	struct lane *l = container_of(w, struct lane, io);
	unsigned dir = nbd_aio_get_direction(l->h);

	(void)ev;
	/* failures show in the state of the handle */
	if (revents & EV_READ && dir & LIBNBD_AIO_DIRECTION_READ)
		(void)nbd_aio_notify_read(l->h);
	else if (revents & EV_WRITE && dir & LIBNBD_AIO_DIRECTION_WRITE)
		(void)nbd_aio_notify_write(l->h);
	step(l);
}

static void
on_timer(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct lane *l = container_of(w, struct lane, timer);

	(void)ev;
	(void)revents;
	l->wake_at = 0;
	step(l);
}

static void
on_kick(struct task *t)
{
	struct lane *l = container_of(t, struct lane, kick);

	atomic_store(&l->kicked, false);
	step(l);
}

static void
on_again(struct task *t)
{
	step(container_of(t, struct lane, again));
}

void
lane_kick(struct lane *l)
{
	if (!atomic_exchange(&l->kicked, true))
		loop_post(&l->loop, &l->kick);
}

static void
on_buffer(struct buffers_waiter *w)
{
	lane_kick(container_of(w, struct lane, waiter));
}

/* Wait for what libnbd wants.  All calls into libnbd happen inside step(), so
 * its end is the moment just before sleeping.
 */
static void
watch(struct lane *l)
{
	unsigned dir = nbd_aio_get_direction(l->h);
	int events = (dir & LIBNBD_AIO_DIRECTION_READ ? EV_READ : 0) |
		     (dir & LIBNBD_AIO_DIRECTION_WRITE ? EV_WRITE : 0);
	int fd = nbd_aio_get_fd(l->h);

	if (events == l->io_events && fd == l->io.fd)
		return;
	ev_io_stop(l->loop.ev, &l->io);
	l->io_events = events;
	ev_io_set(&l->io, fd, events);
	if (events && fd >= 0)
		ev_io_start(l->loop.ev, &l->io);
}

static void
unwatch(struct lane *l)
{
	ev_io_stop(l->loop.ev, &l->io);
	l->io_events = 0;
}

/* Run step() at @at (0: no need).  A timer that runs too early does no harm. */
static void
wake_at(struct lane *l, uint64_t at)
{
	uint64_t now;

	if (at == 0 || (l->wake_at && l->wake_at <= at))
		return;
	now = stream_now();
	ev_timer_stop(l->loop.ev, &l->timer);
	ev_timer_set(&l->timer, at > now ? (double)(at - now) / 1e9 : 0., 0.);
	ev_timer_start(l->loop.ev, &l->timer);
	l->wake_at = at;
}

/* --- leaving -------------------------------------------------------------------------- */

static void
drop_connection(struct lane *l)
{
	struct nbd_handle *h = steal(&l->h);

	(void)stream_usable(l, false);
	if (!h)
		return;
	unwatch(l);
	if (l->in_flight || l->flush_in_flight || nbd_aio_is_ready(h) <= 0)
		nbd_close(h);
	else if (l->number == 0)
		target_give(l->s->o.target, h);
	else
		target_hang_up(h);
}

static void
leave(struct lane *l)
{
	drop_connection(l);
	lane_abandon(l);
	l->state = LANE_LEFT;
	loop_stop(&l->loop);
}

/* --- connecting ----------------------------------------------------------------------- */

/* Without a connection, and with nothing else to wait for. */
static void
give_up(struct lane *l, const struct err *e)
{
	l->state = LANE_RESTING;
	if (stream_went_on(l->s) != l->went_on) /* this failure is an old one */
		wake_at(l, stream_now());
	else if (stream_usable(l, false) > 0)
		log_warn("%s: goes on with a connection less: %s", l->s->o.name,
			 e->msg);
	else if (!stream_error(l->s, STREAM_TARGET, e))
		leave(l);
}

static void
connect_failed(struct lane *l, const struct err *e)
{
	uint64_t now = stream_now();

	drop_connection(l);
	if (l->number > 0 && !l->ever) {
		log_debug("%s: lane %u: %s", l->s->o.name, l->number, e->msg);
		leave(l);
	} else if (now >= l->give_up_at) {
		give_up(l, e);
	} else {
		l->state = LANE_WAITING;
		l->next_try = min_u64(now + RETRY_NS, l->give_up_at);
		wake_at(l, l->next_try);
	}
}

static void
connected(struct lane *l)
{
	l->state = LANE_READY;
	(void)stream_usable(l, true);
	if (l->ever)
		stream_reconnected(l->s);
	l->ever = true;
	l->last_answer = stream_now();
	l->next_flush = l->last_answer + 1000 * MS_NS;
	l->unsent = 0;
	window_init(&l->window, LANE_PIECES);
}

static void
begin_to_connect(struct lane *l)
{
	struct err e = ERR_INIT;

	l->went_on = stream_went_on(l->s);
	if (!remote_connect_begin(l->s->o.target->remote, &l->h, &e)) {
		connect_failed(l, &e);
		return;
	}
	l->state = LANE_CONNECTING;
	l->connect_until = stream_now() + REMOTE_CONNECT_MS * MS_NS;
	if (l->ever && l->s->o.target->reconnect_ns)
		l->connect_until = min_u64(l->connect_until, l->give_up_at);
}

static void
step_start(struct lane *l)
{
	struct target *t = l->s->o.target;

	l->give_up_at = stream_now() + t->reconnect_ns;
	if (l->number == 0 && !t->block)
		l->h = target_take(t);
	if (l->h || t->block)
		connected(l);
	else
		begin_to_connect(l);
}

/* The connection was given up, and the stream rested. */
static void
step_resting(struct lane *l)
{
	if (stream_went_on(l->s) == l->went_on || stream_rests(l->s))
		return;
	l->give_up_at = stream_now() + l->s->o.target->reconnect_ns;
	begin_to_connect(l);
}

static void
step_connecting(struct lane *l)
{
	struct target *t = l->s->o.target;
	struct err e = ERR_INIT;

	if (nbd_aio_is_connecting(l->h) > 0) {
		if (stream_now() < l->connect_until) {
			wake_at(l, l->connect_until);
			return;
		}
		err_set(&e, ERR_GENERIC, ETIMEDOUT, "Failed to connect to '%s'",
			target_address(t));
	} else if (nbd_aio_is_ready(l->h) <= 0) {
		remote_connect_error(t->remote, &e);
	} else if (!target_check(t, l->h, &e)) {
		l->give_up_at = 0; /* waiting will not help */
	} else {
		connected(l);
		return;
	}
	connect_failed(l, &e);
}

void
lane_lost(struct lane *l, int os)
{
	const struct target *t = l->s->o.target;
	struct err e = ERR_INIT;
	bool any_acked;

	unwatch(l);
	nbd_close(steal(&l->h));
	(void)stream_usable(l, false);
	lane_abandon(l);
	if (atomic_load(&l->s->stop)) {
		leave(l);
		return;
	}
	err_set(&e, ERR_GENERIC, 0, "the target '%s' %s", target_address(t),
		os == ETIMEDOUT ? "does not answer" : "closed the connection");
	e.os = os;
	mtx_lock(&l->s->lock);
	any_acked = l->s->any_acked;
	mtx_unlock(&l->s->lock);
	if (any_acked && !t->info.can_flush) {
		/* what a server without flushes had acknowledged and lost
		 * cannot be known
		 */
		stream_fail(l->s, STREAM_TARGET, &e);
		leave(l);
		return;
	}
	l->went_on = stream_went_on(l->s);
	if (stream_rests(l->s)) { /* it is not missed before that is over */
		l->state = LANE_RESTING;
		return;
	}
	if (t->reconnect_ns == 0) {
		give_up(l, &e);
		return;
	}
	log_warn("%s: %s, reconnecting", l->s->o.name, e.msg);
	l->give_up_at = stream_now() + t->reconnect_ns;
	l->state = LANE_WAITING;
	l->next_try = 0;
	wake_at(l, stream_now());
}

/* --- steps ---------------------------------------------------------------------------- */

/* A server that takes requests and never answers. */
static bool
is_silent(const struct lane *l, uint64_t *later)
{
	uint64_t limit = l->last_answer + l->s->o.target->response_timeout_ns;

	if (l->in_flight == 0 && !l->flush_in_flight)
		return false;
	if (stream_now() >= limit)
		return true;
	if (*later == 0 || *later > limit)
		*later = limit;
	return false;
}

static void
step_ready(struct lane *l)
{
	uint64_t later = 0, silent = 0;

	if (!lane_reap(l))
		return;
	if (is_silent(l, &silent)) {
		lane_lost(l, ETIMEDOUT);
		return;
	}
	lane_feed(l, &later);
	if (lane_flush_due(l, &later))
		lane_flush(l);
	if (l->nothing_left && l->in_flight == 0 && !l->flush_in_flight)
		stream_maybe_finish(l->s);
	(void)is_silent(l, &later);
	wake_at(l, later);
}

static void
step_stopping(struct lane *l)
{
	uint64_t now = stream_now();

	if (l->state == LANE_READY && !lane_reap(l))
		return;
	if (l->stop_at == 0)
		l->stop_at = now + DRAIN_NS;
	if (l->number == 0 && l->state == LANE_READY && now < l->stop_at &&
	    (l->in_flight || l->flush_in_flight))
		wake_at(l, l->stop_at);
	else
		leave(l);
}

static void
step(struct lane *l)
{
	if (l->state == LANE_LEFT) {
		loop_stop(&l->loop);
		return;
	}
	if (atomic_load(&l->s->stop))
		step_stopping(l);
	else if (l->state == LANE_START)
		step_start(l);
	else if (l->state == LANE_CONNECTING)
		step_connecting(l);
	else if (l->state == LANE_RESTING)
		step_resting(l);
	else if (l->state == LANE_WAITING && stream_now() >= l->next_try)
		begin_to_connect(l);
	else if (l->state == LANE_WAITING)
		wake_at(l, l->next_try);

	if (l->state == LANE_READY && !atomic_load(&l->s->stop))
		step_ready(l);
	if (l->h)
		watch(l);
}

/* --- the thread ---------------------------------------------------------------------- */

void
lane_init(struct lane *l, struct stream *s, unsigned number)
{
	l->s = s;
	l->ops = s->o.target->block ? &lane_block : &lane_nbd;
	l->number = number;
	l->state = LANE_START;
	l->kick.fn = on_kick;
	l->again.fn = on_again;
	l->waiter.wake = on_buffer;
	l->completed_tail = &l->completed;
	for (unsigned i = 0; i < LANE_PIECES; i++) {
		l->pieces[i].next = l->free;
		l->free = &l->pieces[i];
	}
	ev_io_init(&l->io, on_io, -1, 0);
	ev_timer_init(&l->timer, on_timer, 0., 0.);
}

static void
set_live(struct lane *l, bool live)
{
	mtx_lock(&l->s->lock);
	l->live = live;
	mtx_unlock(&l->s->lock);
}

/* A kick or a turn that was still to come finds a lane that has left. */
static void
run_out(struct lane *l)
{
	set_live(l, false);
	buffers_forget(&l->waiter);
	while (l->again.queued || atomic_load(&l->kicked))
		loop_run(&l->loop);
	ev_timer_stop(l->loop.ev, &l->timer);
	loop_destroy(&l->loop);
	ranges_destroy(&l->acked);
	ranges_destroy(&l->flushing);
}

void *
lane_run(void *arg)
{
	struct lane *l = arg;
	struct stream *s = l->s;
	struct err e = ERR_INIT;

	(void)pthread_setname_np(pthread_self(), "stream");
	/* Guests, and the loop that answers clients, come first. */
	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), LANE_NICE);
	if (loop_init_small(&l->loop)) {
		set_live(l, true);
		if (l->number == 0)
			stream_start_lanes(s);
		loop_defer(&l->loop, &l->again);
		loop_run(&l->loop);
		run_out(l);
	} else if (l->number == 0) {
		err_set(&e, ERR_GENERIC, ENOMEM, "cannot start a loop");
		stream_fail(s, STREAM_NEITHER, &e);
	}
	stream_lane_finished(s);
	return NULL;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/nbd-io.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/mtx.h"

/* Between tries to connect: at first, and at last. */
#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 5000

#define NEVER UINT64_MAX

struct list {
	struct remote_request *head, **tail;
};

enum conn_state { CONN_DOWN, CONN_CONNECTING, CONN_READY };

struct conn {
	enum conn_state state;
	struct nbd_handle *h; /* owned; NULL while down */
	unsigned in_flight; /* requests in @sent */
	struct remote_request *sent;
	uint64_t next_try; /* while down; ms */
	uint64_t until; /* while connecting; ms */
	uint64_t retry_ms; /* how long to wait after the next failure */
	uint64_t connected_at; /* ms */
};

struct remote_io {
	struct remote *remote; /* owned */
	struct remote_info info;
	_Atomic uint64_t delay_ms; /* reconnect delay */
	int wakeup; /* eventfd, owned */
	pthread_t thread;

	struct mtx lock; /* LOCK_REMOTE; guards the next three */
	struct list pending; /* queued by callers */
	bool asleep; /* the thread must be woken */
	bool stop;

	/* the thread's */
	struct list todo; /* to be sent when there is a connection */
	struct list completed; /* libnbd is done with them */
	unsigned nconn, ready;
	uint64_t lost_at; /* when @ready became 0; ms */
	struct conn conn[REMOTE_IO_CONNECTIONS];
};

static uint64_t
now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void
list_init(struct list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

static void
list_append(struct list *l, struct remote_request *rq)
{
	rq->next = NULL;
	*l->tail = rq;
	l->tail = &rq->next;
}

static struct remote_request *
list_pop(struct list *l)
{
	struct remote_request *rq = l->head;

	if (rq) {
		l->head = rq->next;
		if (!l->head)
			l->tail = &l->head;
	}
	return rq;
}

/* What libnbd has of a connection, so that nothing is forgotten when it is
 * closed.
 */
static void
sent_add(struct conn *c, struct remote_request *rq)
{
	rq->answered = false;
	rq->sent_next = c->sent;
	rq->sent_prev = &c->sent;
	if (c->sent)
		c->sent->sent_prev = &rq->sent_next;
	c->sent = rq;
	c->in_flight++;
}

static void
sent_remove(struct conn *c, struct remote_request *rq)
{
	*rq->sent_prev = rq->sent_next;
	if (rq->sent_next)
		rq->sent_next->sent_prev = rq->sent_prev;
	c->in_flight--;
}

/* --- ends of requests ------------------------------------------------------------ */

static void
finish(struct remote_io *io, struct remote_request *rq, int os)
{
	mtx_lock(&io->lock);
	rq->error = os;
	rq->done = true;
	/* under the lock: the request is gone when its caller has seen it */
	(void)pthread_cond_signal(&rq->changed);
	mtx_unlock(&io->lock);
}

/* Its connection was lost before its answer came: send it again, unless it
 * has been at this for too long.
 */
static void
again(struct remote_io *io, struct remote_request *rq)
{
	uint64_t now = now_ms();

	if (rq->give_up_at == 0)
		rq->give_up_at = now + io->delay_ms;
	if (now >= rq->give_up_at)
		finish(io, rq, EIO);
	else
		list_append(&io->todo, rq);
}

static bool
is_loss(int os)
{
	return os == ENOTCONN || os == ESHUTDOWN || os == EPIPE ||
	       os == ECONNRESET;
}

/* Handle what libnbd has completed; on which connections it says that they
 * were lost: a set of bits.
 */
static unsigned
reap(struct remote_io *io)
{
	struct remote_request *rq;
	unsigned lost = 0;

	while ((rq = list_pop(&io->completed))) {
		sent_remove(&io->conn[rq->conn], rq);
		if (is_loss(rq->error)) {
			lost |= 1U << rq->conn;
			again(io, rq);
		} else {
			finish(io, rq, rq->error);
		}
	}
	return lost;
}

/* --- libnbd's callbacks ------------------------------------------------------------- */

static int
on_complete(void *opaque, int *error)
{
	struct remote_request *rq = opaque;

	rq->error = *error;
	rq->answered = true;
	list_append(&rq->io->completed, rq);
	return 1;
}

/* Entries are pairs of a length and flags, from @off on. */
static int
on_extent(void *opaque, const char *context, uint64_t off, uint32_t *entry,
	  size_t n, int *error)
{
	struct remote_request *rq = opaque;

	(void)error;
	if (strcmp(context, remote_context(rq->io->remote)) != 0 ||
	    off != rq->off || n < 2)
		return 0;
	rq->run_len = 0;
	rq->run_flags = entry[1];
	for (size_t i = 0; i + 1 < n && entry[i + 1] == rq->run_flags; i += 2)
		rq->run_len += entry[i];
	return 0;
}

/* --- sending -------------------------------------------------------------------------- */

static int64_t
send_to(struct nbd_handle *h, struct remote_request *rq)
{
	nbd_completion_callback cb = { .callback = on_complete,
				       .user_data = rq };
	nbd_extent_callback ext = { .callback = on_extent, .user_data = rq };

	switch (rq->op) {
	case REMOTE_READ:
		return nbd_aio_pread(h, rq->buf, rq->len, rq->off, cb,
				     rq->flags);
	case REMOTE_WRITE:
		return nbd_aio_pwrite(h, rq->buf, rq->len, rq->off, cb,
				      rq->flags);
	case REMOTE_ZERO:
		return nbd_aio_zero(h, rq->len, rq->off, cb, rq->flags);
	case REMOTE_TRIM:
		return nbd_aio_trim(h, rq->len, rq->off, cb, rq->flags);
	case REMOTE_FLUSH: return nbd_aio_flush(h, cb, rq->flags);
	case REMOTE_CACHE:
		return nbd_aio_cache(h, rq->len, rq->off, cb, rq->flags);
	case REMOTE_STATUS:
		rq->run_len = 0;
		return nbd_aio_block_status(h, rq->len, rq->off, ext, cb,
					    rq->flags);
	}
	assert(!"an operation that does not exist");
	return -1;
}

/* The connection with the least to do; io->nconn when there is none. */
static unsigned
pick(const struct remote_io *io)
{
	unsigned best = io->nconn;

	for (unsigned i = 0; i < io->nconn; i++) {
		if (io->conn[i].state != CONN_READY)
			continue;
		if (best == io->nconn ||
		    io->conn[i].in_flight < io->conn[best].in_flight)
			best = i;
	}
	return best;
}

static void
send_all(struct remote_io *io)
{
	struct remote_request *rq;

	while (io->ready > 0 && (rq = list_pop(&io->todo))) {
		struct conn *c;
		int os;

		rq->conn = pick(io);
		c = &io->conn[rq->conn];
		sent_add(c, rq);
		if (send_to(c->h, rq) != -1 || rq->answered)
			continue;
		/* it was not queued: no completion will come */
		os = nbd_get_errno();
		rq->error = nbd_aio_is_ready(c->h) > 0 ||
					    nbd_aio_is_processing(c->h) > 0
				    ? (os ? os : EINVAL)
				    : ENOTCONN;
		rq->answered = true;
		list_append(&io->completed, rq);
		if (rq->error == ENOTCONN)
			return; /* the caller looks after it */
	}
}

/* Nobody to send to, and none came in time. */
static void
fail_overdue(struct remote_io *io)
{
	struct remote_request *rq;

	if (io->ready > 0 || now_ms() < io->lost_at + io->delay_ms)
		return;
	while ((rq = list_pop(&io->todo)))
		finish(io, rq, EIO);
}

/* --- connections ------------------------------------------------------------------------ */

/* The handle is closed: what it had not answered is lost. */
static void
requeue_sent(struct remote_io *io, struct conn *c)
{
	struct remote_request *rq, *next;

	for (rq = c->sent; rq; rq = next) {
		next = rq->sent_next;
		if (rq->answered)
			continue; /* reap() has it next */
		sent_remove(c, rq);
		again(io, rq);
	}
}

static void
conn_down(struct remote_io *io, struct conn *c, const char *why)
{
	uint64_t now = now_ms();

	nbd_close(steal(&c->h));
	requeue_sent(io, c);
	if (c->state == CONN_READY) {
		log_warn("NBD server '%s': %s", remote_address(io->remote),
			 why);
		if (--io->ready == 0)
			io->lost_at = now;
		if (now - c->connected_at > RETRY_MAX_MS)
			c->retry_ms = 0;
	}
	c->state = CONN_DOWN;
	c->next_try = now + c->retry_ms;
	c->retry_ms = c->retry_ms ? min_u64(c->retry_ms * 2, RETRY_MAX_MS)
				  : RETRY_MIN_MS;
}

static void
conn_ready(struct remote_io *io, struct conn *c)
{
	c->state = CONN_READY;
	c->connected_at = now_ms();
	io->ready++;
}

static void
conn_begin(struct remote_io *io, struct conn *c)
{
	struct err e = ERR_INIT;

	if (!remote_connect_begin(io->remote, &c->h, &e)) {
		log_debug("%s", e.msg);
		c->next_try = now_ms() + RETRY_MAX_MS / 5;
		return;
	}
	c->state = CONN_CONNECTING;
	c->until = now_ms() + REMOTE_CONNECT_MS;
}

/* Is it still the same export?  What was promised to guests must hold. */
static bool
is_same(const struct remote_io *io, struct nbd_handle *h)
{
	const struct remote_info *was = &io->info;
	struct remote_info is;

	return remote_get_info(io->remote, h, &is, NULL) &&
	       is.size == was->size && is.read_only == was->read_only &&
	       is.min_block <= was->min_block &&
	       is.max_block >= was->max_block &&
	       is.can_flush == was->can_flush && is.can_zero >= was->can_zero &&
	       is.can_trim >= was->can_trim &&
	       is.has_allocation >= was->has_allocation;
}

static void
conn_step(struct remote_io *io, struct conn *c)
{
	uint64_t now = now_ms();

	if (c->state == CONN_DOWN) {
		if (now >= c->next_try)
			conn_begin(io, c);
		return;
	}
	if (c->state == CONN_READY) {
		if (nbd_aio_is_dead(c->h) > 0 || nbd_aio_is_closed(c->h) > 0)
			conn_down(io, c, "connection lost, reconnecting");
		return;
	}
	if (nbd_aio_is_connecting(c->h) > 0 && now < c->until)
		return;
	if (nbd_aio_is_ready(c->h) <= 0) {
		conn_down(io, c, "cannot connect");
	} else if (!is_same(io, c->h)) {
		log_warn("NBD server '%s': the export is another one now",
			 remote_address(io->remote));
		c->retry_ms = RETRY_MAX_MS;
		conn_down(io, c, "changed");
	} else {
		conn_ready(io, c);
	}
}

static void
conns_step(struct remote_io *io)
{
	for (;;) {
		unsigned lost = reap(io);

		for (unsigned i = 0; i < io->nconn; i++) {
			struct conn *c = &io->conn[i];

			if (lost & 1U << i && c->state == CONN_READY)
				conn_down(io, c, "connection lost");
			conn_step(io, c);
		}
		send_all(io);
		if (!io->completed.head)
			break;
	}
	fail_overdue(io);
}

/* --- the thread --------------------------------------------------------------------------- */

static int
poll_timeout(const struct remote_io *io)
{
	uint64_t now = now_ms(), at = NEVER;

	for (unsigned i = 0; i < io->nconn; i++) {
		const struct conn *c = &io->conn[i];

		if (c->state == CONN_DOWN)
			at = min_u64(at, c->next_try);
		else if (c->state == CONN_CONNECTING)
			at = min_u64(at, c->until);
	}
	if (io->ready == 0 && io->todo.head)
		at = min_u64(at, io->lost_at + io->delay_ms);
	if (at == NEVER)
		return -1;
	return at <= now ? 0 : (int)min_u64(at - now, 60000);
}

static void
notify(struct conn *c, short revents)
{
	unsigned dir;

	if (!c->h || !revents)
		return;
	dir = nbd_aio_get_direction(c->h);
	/* failures show in the state of the handle */
	if (revents & (POLLIN | POLLHUP | POLLERR) &&
	    dir & LIBNBD_AIO_DIRECTION_READ)
		(void)nbd_aio_notify_read(c->h);
	else if (revents & (POLLOUT | POLLHUP | POLLERR) &&
		 dir & LIBNBD_AIO_DIRECTION_WRITE)
		(void)nbd_aio_notify_write(c->h);
}

static void
wait_and_notify(struct remote_io *io, bool may_sleep)
{
	struct pollfd p[1 + REMOTE_IO_CONNECTIONS];
	uint64_t junk;

	p[0] = (struct pollfd){ .fd = io->wakeup, .events = POLLIN };
	for (unsigned i = 0; i < io->nconn; i++) {
		struct conn *c = &io->conn[i];
		unsigned dir = c->h ? nbd_aio_get_direction(c->h) : 0;

		p[1 + i].fd = dir ? nbd_aio_get_fd(c->h) : -1;
		p[1 + i].events = 0;
		p[1 + i].revents = 0;
		if (dir & LIBNBD_AIO_DIRECTION_READ)
			p[1 + i].events = POLLIN;
		if (dir & LIBNBD_AIO_DIRECTION_WRITE)
			p[1 + i].events |= POLLOUT;
	}
	if (poll(p, 1 + io->nconn, may_sleep ? poll_timeout(io) : 0) <= 0)
		return;
	if (p[0].revents)
		(void)!read(io->wakeup, &junk, sizeof junk);
	for (unsigned i = 0; i < io->nconn; i++)
		notify(&io->conn[i], p[1 + i].revents);
}

/* Take what callers queued.  False: stop. */
static bool
take_pending(struct remote_io *io)
{
	bool stop;

	mtx_lock(&io->lock);
	if (io->pending.head) {
		*io->todo.tail = io->pending.head;
		io->todo.tail = io->pending.tail;
		list_init(&io->pending);
	}
	io->asleep = false;
	stop = io->stop;
	mtx_unlock(&io->lock);
	return !stop;
}

static bool
fall_asleep(struct remote_io *io)
{
	bool asleep;

	mtx_lock(&io->lock);
	asleep = io->asleep = !io->pending.head && !io->stop;
	mtx_unlock(&io->lock);
	return asleep;
}

static void *
io_thread(void *arg)
{
	struct remote_io *io = arg;

	(void)pthread_setname_np(pthread_self(), "nbd-image");
	while (take_pending(io)) {
		conns_step(io);
		wait_and_notify(io, fall_asleep(io));
	}
	return NULL;
}

/* --- for callers --------------------------------------------------------------------------- */

/* The eventfd counts; it can only be full when the thread is being woken. */
static void
wake_locked(struct remote_io *io)
{
	uint64_t one = 1;

	if (io->asleep)
		(void)!write(io->wakeup, &one, sizeof one);
	io->asleep = false;
}

int
remote_io_submit(struct remote_io *io, struct remote_request *rq)
{
	rq->io = io;
	rq->done = false;
	rq->give_up_at = 0;
	(void)pthread_cond_init(&rq->changed, NULL);
	mtx_lock(&io->lock);
	list_append(&io->pending, rq);
	wake_locked(io);
	while (!rq->done)
		mtx_wait(&io->lock, &rq->changed);
	mtx_unlock(&io->lock);
	(void)pthread_cond_destroy(&rq->changed);
	return rq->error;
}

static void
release(struct remote_io *io)
{
	for (unsigned i = 0; i < io->nconn; i++) {
		struct nbd_handle *h = steal(&io->conn[i].h);

		if (h && nbd_aio_is_ready(h) > 0)
			(void)nbd_aio_disconnect(h, 0);
		if (h)
			nbd_close(h);
	}
	if (io->wakeup >= 0)
		(void)close(io->wakeup);
	remote_free(io->remote);
	mtx_destroy(&io->lock);
	free(io);
}

static int
start_thread(struct remote_io *io)
{
	sigset_t all, old;
	int r;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&io->thread, NULL, io_thread, io);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

void
remote_io_set_delay(struct remote_io *io, unsigned seconds)
{
	atomic_store(&io->delay_ms, (uint64_t)seconds * 1000);
}

bool
remote_io_new(struct remote *r, struct nbd_handle *h,
	      const struct remote_info *info, unsigned connections,
	      unsigned reconnect_delay_s, struct remote_io **out, struct err *e)
{
	struct remote_io *io = calloc(1, sizeof *io);
	int os;

	if (!io) {
		nbd_close(h);
		remote_free(r);
		return err_set(e, ERR_GENERIC, ENOMEM, "NBD image");
	}
	io->remote = r;
	io->info = *info;
	io->delay_ms = (uint64_t)reconnect_delay_s * 1000;
	io->nconn = info->can_multi_conn ? connections : 1;
	io->conn[0].h = h;
	conn_ready(io, &io->conn[0]);
	mtx_init(&io->lock, LOCK_REMOTE);
	list_init(&io->pending);
	list_init(&io->todo);
	list_init(&io->completed);
	io->wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	os = io->wakeup < 0 ? errno : start_thread(io);
	if (os) {
		release(io);
		return err_set(e, ERR_GENERIC, os, "NBD image");
	}
	*out = io;
	return true;
}

void
remote_io_free(struct remote_io *io)
{
	mtx_lock(&io->lock);
	io->stop = true;
	wake_locked(io);
	mtx_unlock(&io->lock);
	(void)pthread_join(io->thread, NULL);
	assert(!io->todo.head && !io->pending.head);
	release(io);
}

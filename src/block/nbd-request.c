/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Requests on their way: sent over some connection, answered, lost and sent
 * again, or given up.  The thread of remote_io only.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "block/nbd-io-priv.h"

void
request_list_init(struct request_list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

void
request_list_append(struct request_list *l, struct remote_request *rq)
{
	rq->next = NULL;
	*l->tail = rq;
	l->tail = &rq->next;
}

struct remote_request *
request_list_pop(struct request_list *l)
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
	uint64_t now = remote_now_ms();

	if (rq->give_up_at == 0)
		rq->give_up_at = now + io->delay_ms;
	if (now >= rq->give_up_at)
		finish(io, rq, EIO);
	else
		request_list_append(&io->todo, rq);
}

static bool
is_loss(int os)
{
	return os == ENOTCONN || os == ESHUTDOWN || os == EPIPE ||
	       os == ECONNRESET;
}

unsigned
remote_requests_reap(struct remote_io *io)
{
	struct remote_request *rq;
	unsigned lost = 0;

	while ((rq = request_list_pop(&io->completed))) {
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

void
remote_requests_lost(struct remote_io *io, struct conn *c)
{
	struct remote_request *rq, *next;

	for (rq = c->sent; rq; rq = next) {
		next = rq->sent_next;
		if (rq->answered)
			continue; /* remote_requests_reap() has it next */
		sent_remove(c, rq);
		again(io, rq);
	}
}

/* Nobody to send to, and none came in time. */
void
remote_requests_overdue(struct remote_io *io)
{
	struct remote_request *rq;

	if (io->ready > 0 || remote_now_ms() < io->lost_at + io->delay_ms)
		return;
	while ((rq = request_list_pop(&io->todo)))
		finish(io, rq, EIO);
}

/* --- libnbd's callbacks ------------------------------------------------------------- */

static int
on_complete(void *opaque, int *error)
{
	struct remote_request *rq = opaque;

	rq->error = *error;
	rq->answered = true;
	request_list_append(&rq->io->completed, rq);
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

void
remote_requests_send(struct remote_io *io)
{
	struct remote_request *rq;

	while (io->ready > 0 && (rq = request_list_pop(&io->todo))) {
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
		request_list_append(&io->completed, rq);
		if (rq->error == ENOTCONN)
			return; /* the caller looks after it */
	}
}

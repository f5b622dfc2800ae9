/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Connections to one export: made, watched, and when they are lost made again
 * in the background.  The thread of remote_io only.
 */
#include <poll.h>

#include "base/bits.h"
#include "base/log.h"
#include "block/nbd-io-priv.h"

/* Between tries to connect: at first, and at last. */
#define RETRY_MIN_MS 100
#define RETRY_MAX_MS 5000

#define NEVER UINT64_MAX

static void
conn_down(struct remote_io *io, struct conn *c, const char *why)
{
	uint64_t now = remote_now_ms();

	nbd_close(steal(&c->h));
	remote_requests_lost(io, c);
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

void
remote_conn_ready(struct remote_io *io, struct conn *c)
{
	c->state = CONN_READY;
	c->connected_at = remote_now_ms();
	io->ready++;
}

static void
conn_begin(struct remote_io *io, struct conn *c)
{
	struct err e = ERR_INIT;

	if (!remote_connect_begin(io->remote, &c->h, &e)) {
		log_debug("%s", e.msg);
		c->next_try = remote_now_ms() + RETRY_MAX_MS / 5;
		return;
	}
	c->state = CONN_CONNECTING;
	c->until = remote_now_ms() + REMOTE_CONNECT_MS;
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
	uint64_t now = remote_now_ms();

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
		remote_conn_ready(io, c);
	}
}

void
remote_conns_step(struct remote_io *io)
{
	for (;;) {
		unsigned lost = remote_requests_reap(io);

		for (unsigned i = 0; i < io->nconn; i++) {
			struct conn *c = &io->conn[i];

			if (lost & 1U << i && c->state == CONN_READY)
				conn_down(io, c, "connection lost");
			conn_step(io, c);
		}
		remote_requests_send(io);
		if (!io->completed.head)
			break;
	}
	remote_requests_overdue(io);
}

/* --- waiting ----------------------------------------------------------------------------- */

static int
poll_timeout(const struct remote_io *io)
{
	uint64_t now = remote_now_ms(), at = NEVER;

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

void
remote_conns_wait(struct remote_io *io, bool may_sleep)
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

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The inside of remote_io: requests on their way (nbd-request.c), connections
 * (nbd-conn.c), and the thread and those who wait for it (nbd-io.c).
 *
 * A request is in exactly one place: @pending (its caller queued it), @todo
 * (the thread has it), with a connection (conn->sent, and when libnbd is done
 * with it in @completed as well), or done.
 */
#ifndef BLOCK_NBD_IO_PRIV_H
#define BLOCK_NBD_IO_PRIV_H

#include <stdatomic.h>

#include "base/mtx.h"
#include "block/nbd-io.h"

struct request_list {
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
	struct request_list pending; /* queued by callers */
	bool asleep; /* the thread must be woken */
	bool stop;

	/* the thread's */
	struct request_list todo; /* to be sent when there is a connection */
	struct request_list completed; /* libnbd is done with them */
	unsigned nconn, ready;
	uint64_t lost_at; /* when @ready became 0; ms */
	struct conn conn[REMOTE_IO_CONNECTIONS];
};

/* --- nbd-request.c ------------------------------------------------------------ */

void request_list_init(struct request_list *l);
void request_list_append(struct request_list *l, struct remote_request *rq);
struct remote_request *request_list_pop(struct request_list *l);

/* Handle what libnbd has completed; on which connections it says that they
 * were lost: a set of bits.
 */
unsigned remote_requests_reap(struct remote_io *io);

/* Send what is to be sent, while there is a connection. */
void remote_requests_send(struct remote_io *io);

/* Fail what waits for a connection, if none came in time. */
void remote_requests_overdue(struct remote_io *io);

/* The handle of @c is closed: what it had not answered is lost. */
void remote_requests_lost(struct remote_io *io, struct conn *c);

/* --- nbd-conn.c --------------------------------------------------------------- */

/* Its handle is connected to the export that we know. */
void remote_conn_ready(struct remote_io *io, struct conn *c);

/* Bring all connections as far as they come without waiting. */
void remote_conns_step(struct remote_io *io);

/* Wait, if @may_sleep, until there is something to do, and tell libnbd. */
void remote_conns_wait(struct remote_io *io, bool may_sleep);

#endif

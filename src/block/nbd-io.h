/* SPDX-License-Identifier: BSD-3-Clause
 *
 * remote_io: requests to one export from any number of threads, over several
 * connections that one thread of its own drives.  Only that thread calls
 * libnbd: callers queue a request and sleep until it is done.
 *
 * A connection that is lost is made again in the background.  Requests that
 * were on it are sent again on another one, or when there is one again; for
 * how long they wait for that is the caller's choice (reconnect delay).
 * Every request ends exactly once.
 *
 * Nothing here aborts when memory is gone.
 */
#ifndef BLOCK_NBD_IO_H
#define BLOCK_NBD_IO_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/remote.h"

#define REMOTE_IO_CONNECTIONS 16

enum remote_op {
	REMOTE_READ,
	REMOTE_WRITE,
	REMOTE_ZERO,
	REMOTE_TRIM,
	REMOTE_FLUSH,
	REMOTE_CACHE,
	REMOTE_STATUS,
};

struct remote_io;

/* One request.  Lives on its caller's stack; the caller sets the first
 * members and zeroes the rest.
 */
struct remote_request {
	enum remote_op op;
	void *buf; /* of a read or write; borrowed */
	uint64_t off, len;
	uint32_t flags; /* libnbd's command flags */

	/* of REMOTE_STATUS: the run at @off; 0 bytes: nothing was said */
	uint64_t run_len;
	uint32_t run_flags;

	/* remote_io's */
	struct remote_io *io;
	unsigned conn; /* where it was sent */
	bool answered; /* libnbd is done with it */
	struct remote_request *sent_next, **sent_prev; /* while it is there */
	uint64_t give_up_at; /* set when it was lost for the first time */
	int error;
	bool done;
	pthread_cond_t changed;
	struct remote_request *next;
};

/* Starts the thread.  @r and @h (the first connection) are consumed, also on
 * failure.
 */
bool remote_io_new(struct remote *r, struct nbd_handle *h,
		   const struct remote_info *info, unsigned connections,
		   unsigned reconnect_delay_s, struct remote_io **out,
		   struct err *e) MUST_CHECK;

/* Any thread: another reconnect delay, for requests that are still to come. */
void remote_io_set_delay(struct remote_io *io, unsigned seconds);

/* No request is under way. */
void remote_io_free(struct remote_io *io);

/* Any thread.  Sleeps until the request is done; returns 0 or an errno. */
int remote_io_submit(struct remote_io *io, struct remote_request *rq);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a lane needs to know of a target.
 */
#ifndef STREAM_TARGET_PRIV_H
#define STREAM_TARGET_PRIV_H

#include <libnbd.h>

#include "base/mtx.h"
#include "block/remote.h"
#include "stream/stream.h"

/* The most that one request zeroes.  A connection does something else
 * meanwhile; a lane that calls a driver is not to be stopped until the call
 * returns (rule 3), and a driver may have to write the zeroes.
 */
#define TARGET_MAX_ZERO_REMOTE (UINT64_C(1) << 30)
#define TARGET_MAX_ZERO_BLOCK  (UINT64_C(32) << 20)

struct target {
	struct block *block; /* owned; NULL: an export, @remote */
	char *name; /* owned; of @block */
	struct remote *remote; /* owned; NULL with @block */
	struct remote_info info; /* of @block, too */
	uint64_t max_zero;
	unsigned max_lanes; /* 0: no limit of its own */
	uint64_t response_timeout_ns; /* never 0 */
	uint64_t reconnect_ns; /* 0: do not */
	struct mtx lock; /* LOCK_REMOTE; guards @idle */
	struct nbd_handle *idle; /* owned; NULL while it is borrowed */
};

/* Any thread.  Borrow the connection that is kept open; NULL when there is
 * none that still lives.
 */
struct nbd_handle *target_take(struct target *t);

/* Give a connection (consumed) on which nothing is in flight. */
void target_give(struct target *t, struct nbd_handle *h);

/* Is the export still the one that we opened?  False with an error. */
bool target_check(const struct target *t, struct nbd_handle *h, struct err *e)
	MUST_CHECK;

/* Say good-bye without waiting, and close (consumed). */
void target_hang_up(struct nbd_handle *h);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * remote: how to reach one export of one NBD server, and libnbd handles that
 * are set up for it.  What the nbd driver and the streams' targets have in
 * common; nothing else includes libnbd.h.
 *
 * A struct remote does not change after it was made, so any thread may use
 * it.  A handle belongs to one thread at a time.
 */
#ifndef BLOCK_REMOTE_H
#define BLOCK_REMOTE_H

#include <libnbd.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "block/block.h"

/* What the server said of the export.  Bytes. */
struct remote_info {
	uint64_t size;
	uint32_t min_block; /* 1 or a power of two */
	uint32_t pref_block; /* 0: not said */
	uint32_t max_block; /* most bytes of data in one request */
	bool read_only, rotational;
	bool can_flush, can_zero, can_fast_zero, can_trim, can_cache;
	bool can_multi_conn;
	bool has_allocation; /* remote_context() was agreed upon */
};

struct remote;

/* One try to connect takes no longer than this. */
#define REMOTE_CONNECT_MS 30000

/* Copies all of @o. */
bool remote_new(const struct block_nbd_options *o, struct remote **out,
		struct err *e) MUST_CHECK;
void remote_free(struct remote *r);
DEFINE_CLEANUP(struct remote, remote_free);

/* "host:port" or the path of the socket; borrowed from @r. */
const char *remote_address(const struct remote *r);

/* The metadata context that is asked for; borrowed from @r. */
const char *remote_context(const struct remote *r);

/* Begin to connect without waiting (a host name is resolved at once, which
 * may block).  *out is owned by the caller: nbd_close().  Drive it with
 * nbd_aio_notify_*() until it is neither connecting nor negotiating.
 */
bool remote_connect_begin(const struct remote *r, struct nbd_handle **out,
			  struct err *e) MUST_CHECK;

/* Connect, and try again for as long as open_timeout_s says.  Blocks. */
bool remote_connect(const struct remote *r, struct nbd_handle **out,
		    struct err *e) MUST_CHECK;

/* Fill in an error from what libnbd said last in this thread:
 * "Failed to connect to 'ADDRESS': REASON".  Returns false.
 */
bool remote_connect_error(const struct remote *r, struct err *e);

/* After a connection was made.  A context that was asked for and is not there
 * is QEMU's error, "requested x-dirty-bitmap X not found".
 */
bool remote_get_info(const struct remote *r, struct nbd_handle *h,
		     struct remote_info *info, struct err *e) MUST_CHECK;

/* The clock of what waits for a server: monotonic, milliseconds. */
uint64_t remote_now_ms(void);

#endif

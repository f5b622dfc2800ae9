/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Putting nodes in front of guests and taking them away.  Loop only.
 */
#ifndef DAEMON_EXPORTS_H
#define DAEMON_EXPORTS_H

#include "daemon/graph.h"

/* A new export object for @options (consumed), not in the graph.  Checks the
 * arguments in QEMU's order.  @recalled: it was there before this start, and
 * the server for guests comes later.
 */
bool export_new(struct daemon *d, struct block_export_options *options,
		bool recalled, struct export **out, struct err *e) MUST_CHECK;

/* @options is consumed.  @done is called once, on the loop, not from inside;
 * @e NULL: guests can connect, and the registry knows.
 */
void export_add(struct daemon *d, struct block_export_options *options,
		void (*done)(void *opaque, const struct err *e), void *opaque);

enum export_delete {
	EXPORT_DELETE_SAFE, /* not while a client is connected */
	EXPORT_DELETE_HARD, /* clients are cut off */
	EXPORT_DELETE_ANYHOW, /* nor may the data plane refuse: it ends next */
};

/* BLOCK_EXPORT_DELETED is sent, the node is closed if no other export has it,
 * and the registry is saved; then @done as above.
 */
void export_delete(struct daemon *d, struct export *x, enum export_delete how,
		   void (*done)(void *opaque, const struct err *e),
		   void *opaque);

#endif

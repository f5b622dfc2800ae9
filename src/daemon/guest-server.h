/* SPDX-License-Identifier: BSD-3-Clause
 *
 * guest-server: whether guests can connect, and where (nbd-server-start,
 * nbd-server-stop).  Loop only.
 *
 * Rules:
 * 1. The server runs when there is an address for guests: one of the option
 *    --nbd, or that of nbd-server-start.  It cannot be started twice, and
 *    without it nothing can be exported.
 * 2. Other addresses take another nbdkit (supervisor.h); it is only changed
 *    while there is no export, so no guest loses anything by it.
 * 3. What nbd-server-start was told is in the registry before anybody can
 *    connect there, with the port that was chosen; a daemon without --nbd
 *    listens there again, also one whose predecessor died in between.
 */
#ifndef DAEMON_GUEST_SERVER_H
#define DAEMON_GUEST_SERVER_H

#include "daemon/listen.h"
#include "schema/registry-types.h"

struct daemon;

bool guest_server_check(const struct daemon *d, struct err *e) MUST_CHECK;

/* Before there is a data plane: what @doc (borrowed, or NULL) says, unless
 * --nbd says something.
 */
void guest_server_recall(struct daemon *d, const struct registry_doc *doc);
void guest_server_forget(struct daemon *d);

/* The remembered address, to be destroyed; false: none. */
bool guest_server_remembered(const struct daemon *d, struct address *a,
			     unsigned *max_connections);

#endif

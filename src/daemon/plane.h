/* SPDX-License-Identifier: BSD-3-Clause
 *
 * plane: the data plane (nbdkit with our plugin) as the daemon sees it: it is
 * started or adopted, connected to over the link, and connected to again when
 * it was restarted.  Loop only.
 *
 *   DOWN --(connected, hello answered)--> RESTORING --(plane_restored)--> UP
 *   RESTORING, UP --(connection lost)--> DOWN
 */
#ifndef DAEMON_PLANE_H
#define DAEMON_PLANE_H

#include "daemon/listen.h"
#include "link/client.h"
#include "schema/link-client.h"

struct daemon;
struct plane;

/* A message to the data plane and what to do with its answer. */
struct plane_request {
	struct link_request link;
	/* @ret NULL: @e says why not.  Called exactly once, never from inside
	 * plane_ask.
	 */
	void (*done)(struct plane_request *r, const struct json *ret,
		     struct link_msg *msg, const struct err *e);
};

struct plane *plane_new(struct daemon *d);
void plane_free(struct plane *p);
DEFINE_CLEANUP(struct plane, plane_free);

/* Adopt a running data plane or start one, and bring back what the graph
 * says.  daemon_ready or daemon_fail is called in the end.  Blocks only for
 * the sockets of guests.
 */
bool plane_start(struct plane *p, struct err *e) MUST_CHECK;

/* It has everything that it should have: go on. */
void plane_restored(struct plane *p);

/* It cannot be brought into the right state: kill it and start again. */
void plane_give_up(struct plane *p, const struct err *e);

bool plane_is_up(const struct plane *p);

/* @t is run when the plane is up, or after PLANE_WAIT_SECONDS, or at once
 * (deferred) when it is up already.  Look at plane_is_up then.
 */
#define PLANE_WAIT_SECONDS 10.0
void plane_when_settled(struct plane *p, struct task *t);

/* @o was begun with plane_begin and has the command (link_put_...). */
void plane_begin(struct json_out *o);
void plane_ask(struct plane *p, struct plane_request *r, struct json_out *o,
	       const int *fds, unsigned nfds);

/* For what closes gates: when a write in flight takes longer it fails, rather
 * than hold up the guests of all its disks.
 */
#define PLANE_GATES_MS 2000

/* Do guests have an address to connect to? */
bool plane_is_serving(const struct plane *p);
const struct listeners *plane_listeners(const struct plane *p);

/* Give the data plane @l (consumed after success; empty: none) to listen on.
 * That takes another nbdkit: for when there is no export.  @max_connections: 0
 * for any number.  plane_when_settled tells when it is done.
 */
bool plane_relisten(struct plane *p, struct listeners *l,
		    unsigned max_connections, struct err *e) MUST_CHECK;

/* The daemon is about to end: nobody waits for the plane any more. */
void plane_hurry(struct plane *p);

/* Stop nbdkit, or leave it (@keep); then @done. */
void plane_stop(struct plane *p, bool keep, void (*done)(struct daemon *d));

#endif

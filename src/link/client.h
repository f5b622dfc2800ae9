/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The asking side of the link: requests are queued, sent and answered without
 * ever blocking the loop.  Everything here is for the loop's thread.
 */
#ifndef LINK_CLIENT_H
#define LINK_CLIENT_H

#include "base/loop.h"
#include "link/link.h"
#include "json/json.h"
#include "json/out.h"

struct link_client;

/* Embedded in whatever waits for the answer. */
struct link_request {
	/* Called exactly once for each link_client_ask, never from inside
	 * it.  @ret is the reply's value, or NULL and @e says why not.
	 * Descriptors may be taken out of @msg (NULL on failure).
	 */
	void (*done)(struct link_request *r, const struct json *ret,
		     struct link_msg *msg, const struct err *e);
	struct link_request *next; /* link_client's */
	uint64_t id;
};

struct link_client_options {
	struct loop *loop; /* borrowed */
	int sock; /* connected, consumed */
	void (*on_event)(void *opaque, const char *name,
			 const struct json *data);
	/* The connection is gone; all requests were answered with an error.
	 * The callee may free the client.
	 */
	void (*on_closed)(void *opaque);
	void *opaque;
};

struct link_client *link_client_new(const struct link_client_options *o);

/* False from the moment at which the connection is of no use any more: also
 * while the requests that waited are being answered.
 */
bool link_client_alive(const struct link_client *c);

/* Requests that wait are answered with an error first. */
void link_client_free(struct link_client *c);
DEFINE_CLEANUP(struct link_client, link_client_free);

/* @o holds an open object to which link_put_...() added the command; it is
 * finished and used up here.  @fds are duplicated.
 */
void link_client_ask(struct link_client *c, struct link_request *r,
		     struct json_out *o, const int *fds, unsigned nfds);

#endif

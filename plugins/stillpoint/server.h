/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The link's server inside nbdkit: one thread that listens on a unix socket,
 * serves one stillpointd at a time, and owns the table of nodes and the cut
 * that is being prepared.  A stillpointd that dies, hangs or talks nonsense
 * is dropped; guests do not notice.
 */
#ifndef PLUGIN_SERVER_H
#define PLUGIN_SERVER_H

#include "cut.h"
#include "link/link.h"
#include "table.h"
#include "json/json.h"
#include "json/out.h"

struct server;

struct server_options {
	const char *path; /* of the unix socket; borrowed for good */
	unsigned listen_fds; /* nbdkit's listening sockets: 3, 4, ... */
	struct table *table; /* borrowed for good */
};

/* Starts the thread. */
bool server_start(const struct server_options *o, struct server **out,
		  struct err *e) MUST_CHECK;

/* Ends the thread; nodes and exports stay. */
void server_stop(struct server *s);

/* --- for the handlers of messages (link thread unless said otherwise) ------ */

/* One request, from its message to its answer. */
struct link_call {
	struct server *server;
	unsigned generation; /* of the connection that it came on */
	struct json *id; /* owned */
	struct link_msg msg; /* owned: the request's text and descriptors */
	struct json_out out;
	int fds[LINK_MAX_FDS]; /* to go with the answer; owned */
	unsigned nfds;
	/* asynchronous calls: */
	struct link_call *next;
	void (*run)(struct link_call *call); /* its own thread */
	void (*finish)(struct link_call *call); /* link thread */
	void *state; /* finish's */
};

struct table *server_table(struct server *s);
struct cut *server_cut(struct server *s);
struct cut_stats *server_stats(struct server *s);
unsigned server_listen_fds(const struct server *s);

/* The connection that it came on is still there. */
bool link_call_is_current(const struct link_call *call);

/* @fd is duplicated.  False: no room. */
bool link_call_add_fd(struct link_call *call, int fd);

/* Run @run on a thread of its own and then call->finish on the link thread.
 * False: no thread.
 */
bool server_run(struct link_call *call, void (*run)(struct link_call *call));

/* An image that must not be open twice is being opened or closed, from the one
 * to the other.
 */
void server_image_begin(struct server *s);
void server_image_end(struct server *s);
/* Call @then when there is no such image, perhaps at once. */
void server_after_images(struct link_call *call,
			 void (*then)(struct link_call *call));

/* Any thread: a view broke; look for it and tell stillpointd. */
void server_wake(struct server *s);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the data plane does for each message of schema/link.json.  The functions
 * have the names of the messages (schema/link-commands.h); they stand in
 *
 *   handle-node.c    nodes are opened, flushed, watched and closed
 *   handle-change.c  nodes that stay open become different
 *   handle-reopen.c  and get other options or images
 *   handle-export.c  exports come and go
 *   handle-view.c    views are made, for a node or a cut, and closed
 *   handle-cut.c     cuts
 *   handle-report.c  what there is, and what guests have done
 *
 * and share what is here.  Link thread, except for the functions that say "own
 * thread".
 */
#ifndef PLUGIN_HANDLERS_H
#define PLUGIN_HANDLERS_H

#include "node.h"
#include "schema/link-commands.h"
#include "server.h"

/* A node that is not being closed; borrowed. */
bool handle_find_node(struct link_call *call, const char *name, struct node **n,
		      struct err *e) MUST_CHECK;

/* For notices_watch: @server is to look for what must be told.  Any thread. */
void handle_wake(void *server);

/* Open the epoch that came with a message as descriptor @index. */
bool handle_take_epoch(struct link_msg *m, uint32_t index, struct epoch **out,
		       struct err *e) MUST_CHECK;

/* Make the views of a message ready to be attached to @n: a list in *out
 * (owned), of those that were made also after a failure.
 */
bool handle_make_views(struct link_call *call, struct node *n,
		       const struct link_view_list *l, struct attached **out,
		       struct err *e) MUST_CHECK;

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The messages about one node or export, for block-export-add, -del and the
 * recovery.  Loop only; answers come to plane_request.done.
 */
#ifndef DAEMON_PLANE_NODE_H
#define DAEMON_PLANE_NODE_H

#include "daemon/graph.h"
#include "daemon/plane.h"

/* With its open epoch and the views that jobs read. */
void plane_open_node(struct plane *p, const struct node *n,
		     struct plane_request *r);
/* It is open, and gets the options that it has here: a daemon that was killed
 * in the middle of blockdev-reopen did not write down what it had told.
 */
void plane_reopen_node(struct plane *p, const struct node *n,
		       struct plane_request *r);
void plane_close_node(struct plane *p, const char *name,
		      struct plane_request *r);
void plane_add_export(struct plane *p, const struct export *x,
		      struct plane_request *r);
void plane_del_export(struct plane *p, const char *name, bool hard,
		      struct plane_request *r);

#endif

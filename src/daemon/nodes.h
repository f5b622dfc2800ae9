/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Adding a node and what it stands on, in three steps: plan (loop), open
 * (worker), finish (loop).  blockdev-add and the recovery at the start use it.
 */
#ifndef DAEMON_NODES_H
#define DAEMON_NODES_H

#include "daemon/graph.h"
#include "daemon/identity.h"

/* What a node that is opened along with its parent has from it. */
void node_inherit(struct blockdev_options *o,
		  const struct blockdev_options *parent, enum child_role role);

/* May a node called @parent have @n as a child?  Rule 6 of graph.h; who only
 * reads may share.
 */
bool node_check_child(struct graph *g, const struct node *n, const char *parent,
		      enum child_role role, struct err *e) MUST_CHECK;

/* How many nodes a description of @n names; more than NODE_MAX_LAYERS are not
 * counted to the end.
 */
unsigned node_layers(const struct node *n);

struct node_add {
	struct daemon *d; /* borrowed */
	struct node **v; /* owned: children come before their parents */
	size_t n;
	/* Optional, called on the worker: a descriptor of the file of @n that
	 * somebody has open and locked already (a copy of it, or -1).
	 */
	int (*kept)(void *opaque, const struct node *n);
	/* The bitmaps of the top's image are known (stored.h, rule 2). */
	bool took_bitmaps;
	/* How the top's file looked when it was let go (borrowed, or NULL), and
	 * what is different now, before anything is written to it.
	 */
	const struct registry_identity *then;
	struct identity_leave leave;
	const char *changed;
	void *opaque;
};

/* @o is borrowed for the call.  Nodes that it refers to must stay until
 * node_add_finish.  After a failure, too, node_add_clear.
 */
bool node_add_plan(struct node_add *a, struct daemon *d,
		   const struct blockdev_options *o, struct err *e) MUST_CHECK;
/* The same without a name: the root gets one that is made up. */
bool node_add_plan_anonymous(struct node_add *a, struct daemon *d,
			     const struct blockdev_options *o, struct err *e)
	MUST_CHECK;
bool node_add_open(struct node_add *a, struct err *e) MUST_CHECK;
/* While it opens: a->v[at] has a child besides, which was not in its options;
 * it is opened before.  No node in @o has a name or refers to another.
 */
bool node_add_named(struct node_add *a, size_t at, enum child_role role,
		    const struct blockdev_options *o, struct err *e) MUST_CHECK;
/* Everything is in the graph.  Returns the top. */
struct node *node_add_finish(struct node_add *a);
void node_add_clear(struct node_add *a);

#endif

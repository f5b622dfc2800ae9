/* SPDX-License-Identifier: BSD-3-Clause
 *
 * objects: object-add and its companions.  There is one kind, the throttle
 * group: limits that the throttle nodes which name it share.  Loop only.
 */
#ifndef DAEMON_OBJECTS_H
#define DAEMON_OBJECTS_H

#include "block/throttle.h"
#include "daemon/graph.h"

void objects_free(struct graph *g);

/* Check @o and keep what it says. */
bool objects_add(struct graph *g, const struct object_options *o, struct err *e)
	MUST_CHECK;

/* As object-add would be told. */
struct object_options *objects_describe(const struct object *o);

/* A throttle node has the limits of its group; QEMU's message when there is
 * no such group.  Nothing for other nodes.
 */
bool objects_fill_limits(struct graph *g, struct node *n, struct err *e)
	MUST_CHECK;

/* For the link. */
struct link_throttle_limits *
objects_describe_limits(const struct throttle_config *l);

#endif

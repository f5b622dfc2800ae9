/* SPDX-License-Identifier: BSD-3-Clause
 *
 * From a node, and all that it stands on, to the description by which both
 * processes open it (schema/link.json, LinkImage).
 */
#ifndef DAEMON_DESCRIBE_H
#define DAEMON_DESCRIBE_H

#include "daemon/graph.h"

/* The nodes exist and are held.  Descriptors are appended to fds[*nfds...],
 * borrowed from the nodes; there is room for NODE_MAX_LAYERS of them.  Free
 * the result with link_image_free.
 *
 * What is below a backing image is described as read-only.
 */
struct link_image *describe_node(const struct node *n, int *fds,
				 unsigned *nfds);

/* Of a node that is null-co or null-aio. */
const struct blockdev_options_null *
null_options(const struct blockdev_options *o);

#endif

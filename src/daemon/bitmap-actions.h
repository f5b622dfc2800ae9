/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Finding a bitmap as all commands on bitmaps do.  Loop only.
 */
#ifndef DAEMON_BITMAP_ACTIONS_H
#define DAEMON_BITMAP_ACTIONS_H

#include "daemon/graph.h"

/* @node is a device or a node.  NULL: QEMU's text says which of the two names
 * is wrong.
 */
struct bitmap *bitmap_lookup(struct graph *g, const char *node,
			     const char *name, struct err *e);

#endif

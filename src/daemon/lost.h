/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Nodes of the registry whose images could not be opened at the start (a
 * server that is down, a disk that is not mounted), and their exports.
 *
 * Rules (each has a test of its name in tests/integration/test_lost.py):
 * 1. They are kept as they were, and a data plane that has them open goes on
 *    serving them.
 * 2. A command that names one, or one of its exports, tries it again before it
 *    runs, with its bitmaps and exports and what it stands on; so does the
 *    next start.
 * 3. blockdev-add does not: a node that a client adds under the same name takes
 *    the place for good.  The options --blockdev and --export leave it lost.
 *
 * Loop only.
 */
#ifndef DAEMON_LOST_H
#define DAEMON_LOST_H

#include "schema/registry-types.h"

struct graph;
struct lost;

struct lost *lost_new(void);
void lost_free(struct lost *l);

/* Both are copied. */
void lost_add_node(struct lost *l, const struct registry_node *n);
void lost_add_export(struct lost *l, const struct block_export_options *x);

/* nbd-server-stop ends all exports, those that wait for their node too. */
void lost_forget_exports(struct lost *l);

/* Borrowed; in the order of the registry. */
const struct registry_node_list *lost_nodes(const struct lost *l);
const struct block_export_options_list *lost_exports(const struct lost *l);

/* What is in @g by now is lost no more. */
void lost_forget_found(struct lost *l, struct graph *g);

bool lost_has_node(const struct lost *l, const char *name);
/* @name: what guests ask for. */
bool lost_has_export(const struct lost *l, const char *name);
bool lost_has_epoch(const struct lost *l, uint64_t id);

/* Put what nothing in @g has replaced into the registry. */
void lost_describe(const struct lost *l, struct graph *g,
		   struct registry_doc *doc);

#endif

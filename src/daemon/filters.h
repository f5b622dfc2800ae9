/* SPDX-License-Identifier: BSD-3-Clause
 *
 * filters: the copy-before-write nodes that QEMU inserts above the sources of
 * backups.  Here nothing passes through them, because a guest's write meets
 * the view in the data plane; but while the job runs their names are taken,
 * clients see them, and they are busy.  Loop only.
 */
#ifndef DAEMON_FILTERS_H
#define DAEMON_FILTERS_H

#include "base/err.h"
#include "schema/qmp-types.h"

struct filter;
struct graph;
struct job;
struct node;
struct view_file;

/* The filter of @j above the node of @view (both borrowed), which copies in
 * units of @cluster bytes.  @name NULL: a name of our own; else it was checked
 * (graph_name_check).
 */
struct filter *filter_new(struct graph *g, const char *name, struct job *j,
			  const struct view_file *view, uint64_t cluster);
void filter_free(struct graph *g, struct filter *f);

/* Is there one of that name? */
bool filter_exists(const struct graph *g, const char *name);

/* "Node 'X' is busy: ..." when a filter has that name. */
bool filter_check(const struct graph *g, const char *name, struct err *e)
	MUST_CHECK;

/* "Permission conflict on node 'X': ..." when there is one above @n, which
 * does not let anybody @what ("resize") the node below it.
 */
bool filter_check_source(const struct graph *g, const struct node *n,
			 const char *what, struct err *e) MUST_CHECK;

/* Append those that came after @from and before @to to the answer of
 * query-named-block-nodes, newest first.
 */
bool filters_describe(const struct graph *g, uint64_t from, uint64_t to,
		      struct block_device_info_list *list, struct err *e)
	MUST_CHECK;

#endif

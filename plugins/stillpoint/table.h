/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The data plane's tables: nodes by name, and exports by name.  The link's
 * thread changes them; nbdkit's threads look exports up.
 */
#ifndef PLUGIN_TABLE_H
#define PLUGIN_TABLE_H

#include "node.h"
#include "stats.h"

/* What a guest connects to.  Every request of a guest passes the export's own
 * gate, so that an export can be taken away while clients are connected:
 * behind the closed gate @node becomes NULL, and requests fail from then on.
 */
struct export
{
	struct export *next;
	char *name; /* owned */
	char *description; /* owned, or NULL */
	bool writable;
	bool writethrough; /* every write is synced before it is answered */
	struct gate users;
	struct node *node; /* borrowed; NULL once the export is gone */
	struct stats stats;
	uint64_t told; /* when a failure was told last; link thread */
	_Atomic unsigned refs; /* the table's and one for each connection */
};

struct table {
	struct mtx lock; /* LOCK_DEVICES: the two lists' links, @complete */
	pthread_cond_t changed;
	bool complete; /* stillpointd has put everything in */
	struct node *nodes;
	struct export *exports;
};

void table_init(struct table *t);

/* Link thread.  Everything that guests had before this data plane was started
 * is there again: who asks for another export is told at once that there is
 * none.
 */
void table_complete(struct table *t);

/* --- link thread ------------------------------------------------------------ */

struct node *table_node(struct table *t, const char *name);
/* One that is not being closed; borrowed. */
bool table_find_node(struct table *t, const char *name, struct node **out,
		     struct err *e) MUST_CHECK;
void table_add_node(struct table *t, struct node *n);
void table_remove_node(struct table *t, struct node *n);

enum export_flags { EXPORT_WRITABLE = 1, EXPORT_WRITETHROUGH = 2 };

/* False with *e: such a name exists, or no memory. */
bool table_add_export(struct table *t, const char *name,
		      const char *description, struct node *n, unsigned flags,
		      struct err *e) MUST_CHECK;
struct export *table_export(struct table *t, const char *name);

/* How many clients are connected. */
unsigned export_connections(const struct export *x);

/* Take the export away.  False: its requests did not end within @ms. */
bool table_remove_export(struct table *t, struct export *x, unsigned ms);

/* --- any thread ------------------------------------------------------------- */

/* A reference, or NULL.  A guest whose data plane died connects again before
 * stillpointd has brought its export back: until the table is complete this
 * waits for it, for at most TABLE_WAIT_MS.
 */
#define TABLE_WAIT_MS 10000
struct export *table_connect(struct table *t, const char *name);

/* Wait likewise until the table is complete. */
void table_wait_complete(struct table *t);
void export_unref(struct export *x);

/* Call @each for every export under the table's lock; stops when it returns
 * false.
 */
bool table_each_export(struct table *t,
		       bool (*each)(const struct export *x, void *opaque),
		       void *opaque);

#endif

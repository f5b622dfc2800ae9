/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The inside of a transaction.  Its steps (transaction.h), each of which ends
 * by starting the next:
 *
 *   1, 2  transaction.c: actions are prepared and files are made.  What actions
 *         add to a transaction is in transaction-parts.c.
 *   3, 5  transaction-cut.c: the data plane cuts
 *   4, 6  transaction-publish.c: the registry says so, and readers may read
 */
#ifndef DAEMON_TRANSACTION_PRIV_H
#define DAEMON_TRANSACTION_PRIV_H

#include "base/work.h"
#include "daemon/transaction.h"
#include "link/link.h"

/* A view that begins at the cut, and how its reader opens the image. */
struct new_view {
	struct new_view *next;
	struct view_file *v; /* borrowed */
	struct link_image *image;
	struct link_msg fds;
	struct block *block; /* the reader's */
};

struct transaction {
	struct daemon *d;
	struct transaction_action_list actions; /* owned */
	bool grouped;
	struct job_group *group; /* of grouped jobs */
	struct undo undo;
	struct node_cut *cuts;
	struct new_view *views;
	struct transaction_file *files, **files_tail; /* borrowed */
	uint64_t cut_id;
	void (*done)(void *opaque, const struct err *e);
	void *opaque;
	struct task settled; /* the data plane is up, or will not be */
	struct work work;
	unsigned asked; /* answers of the data plane that are awaited */
	struct err e;
};

/* Undo everything; t->e says why. */
void transaction_fail(struct transaction *t);

/* It is over, with @e, or well; what it has changed stays. */
void transaction_finish(struct transaction *t, const struct err *e);

void transaction_ask_plane(struct transaction *t); /* step 3 */
void transaction_publish(struct transaction *t); /* step 4: it has cut */

#endif

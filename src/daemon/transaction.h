/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Transactions: many changes, one instant.  Loop only; what blocks runs on a
 * worker, what concerns guests runs in the data plane.
 *
 * Steps, in this order (each rule has a test of its name):
 * 1. Every action is prepared in memory, in order, and sees what the ones
 *    before it did.  The first failure undoes them all, in reverse.
 *    Nobody else's registry is written from here to the end (registry_hold).
 * 2. Files are made (epochs, states, stores, targets), images are opened, and
 *    the registry that the transaction leads to is staged.  A failure undoes all.
 * 3. The data plane prepares each node's part, then cuts all of them at one
 *    instant.  A failure undoes all.
 * 4. The registry is published.  Jobs start, in reverse order.
 * 5. When the data plane dies between the order to cut and the answer, nobody
 *    knows whether it cut: the transaction fails, and the epoch that it would
 *    have opened belongs to every bitmap that records.  The registry says so
 *    before the failure is told.
 * 6. Readers open their images in step 2.  After the cut, before a job starts,
 *    an image whose writes others see after a flush only (block->coherent) is
 *    flushed by the data plane, and readers read their tables anew.
 *
 * In memory, a node that takes part has two epochs: the one that the cut
 * closes (node->epoch) and the one that it opens (cut->epoch).  Sets name both
 * as if the cut had taken place.
 */
#ifndef DAEMON_TRANSACTION_H
#define DAEMON_TRANSACTION_H

#include "daemon/graph.h"
#include "daemon/job.h"
#include "daemon/undo.h"
#include "daemon/views.h"

struct qmp_call;
struct transaction;

/* What a node's part in the cut is. */
struct node_cut {
	struct node_cut *next;
	struct node *node;
	struct epoch_file *epoch; /* to open: a reference */
	struct view_file **views; /* to attach: borrowed from their jobs */
	size_t n_views;
};

/* --- for actions, while they are prepared --------------------------------------- */

struct daemon *transaction_daemon(struct transaction *t);
struct undo *transaction_undo(struct transaction *t);

/* The node takes part in the cut from now on. */
struct node_cut *transaction_cut(struct transaction *t, struct node *n);

/* A view that begins at the cut (borrowed until the transaction is over) and
 * where to put the reader's image.
 */
void transaction_add_view(struct transaction *t, struct node *n,
			  struct view_file *v);

/* Something that step 2 makes besides: @make runs once, on the worker, in order
 * of adding and before views are made.  Embedded in what undoes it; borrowed
 * until the transaction is over.
 */
struct transaction_file {
	bool (*make)(struct transaction_file *f, struct err *e);
	struct transaction_file *next;
};
void transaction_add_file(struct transaction *t, struct transaction_file *f);

/* The group that a new job joins; NULL: one of its own. */
struct job_group *transaction_group(struct transaction *t);

/* Save a bitmap's state in memory, to be brought back by an abort. */
void transaction_save_bitmap(struct transaction *t, struct bitmap *b);

/* --- the actions ------------------------------------------------------------------- */

bool action_bitmap_add(struct transaction *t,
		       const struct block_dirty_bitmap_add *a, struct err *e);
bool action_bitmap_remove(struct transaction *t,
			  const struct block_dirty_bitmap *a, struct err *e);
bool action_bitmap_clear(struct transaction *t,
			 const struct block_dirty_bitmap *a, struct err *e);
bool action_bitmap_enable(struct transaction *t,
			  const struct block_dirty_bitmap *a, struct err *e);
bool action_bitmap_disable(struct transaction *t,
			   const struct block_dirty_bitmap *a, struct err *e);
bool action_bitmap_merge(struct transaction *t,
			 const struct block_dirty_bitmap_merge *a,
			 struct err *e);
bool action_blockdev_backup(struct transaction *t,
			    const struct blockdev_backup *a, struct err *e);

bool action_drive_backup(struct transaction *t, const struct drive_backup *a,
			 struct err *e);

/* --- running one -------------------------------------------------------------------- */

/* @actions is consumed.  @done is called once, on the loop, not from inside;
 * @e NULL: it took effect.
 */
void transaction_run(struct daemon *d, struct transaction_action_list *actions,
		     bool grouped,
		     void (*done)(void *opaque, const struct err *e),
		     void *opaque);

#endif

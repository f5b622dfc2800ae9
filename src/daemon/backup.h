/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The parts of a backup: its arguments and their checks (backup-check.c), how
 * its target is opened (backup-target.c), and the job (backup-priv.h).
 */
#ifndef DAEMON_BACKUP_H
#define DAEMON_BACKUP_H

#include "daemon/drive-target.h"
#include "daemon/transaction.h"
#include "link/link.h"
#include "stream/stream.h"

/* --- arguments: loop ------------------------------------------------------------ */

/* With names resolved; borrowed unless it says otherwise. */
struct backup_plan {
	const struct blockdev_backup *a;
	struct node *source, *target;
	struct drive_target *drive; /* owned: what @target is; or NULL */
	struct bitmap *bitmap; /* or NULL */
	enum mirror_sync_mode sync; /* incremental has become bitmap */
	enum bitmap_sync_mode mode;
	uint64_t cluster; /* of the job */
};

/* Find @source by its name in @a. */
bool backup_plan_source(struct backup_plan *p, struct daemon *d, struct err *e)
	MUST_CHECK;

/* Check everything and fill in the rest. */
bool backup_plan_check(struct backup_plan *p, struct daemon *d, struct err *e)
	MUST_CHECK;

/* The job; only its own members are left to fail.  Takes @drive. */
bool backup_create(struct transaction *t, struct backup_plan *p, struct err *e)
	MUST_CHECK;

/* --- the source, when it is discarded behind the copy --------------------------- */

/* An open of the source for writing.  Its node has no export: the daemon is
 * its home, and nobody else writes.
 */
struct backup_discard {
	struct link_image *image; /* owned; NULL: nothing to open */
	struct link_msg fds; /* that @image refers to */
	struct block *block; /* owned; NULL until it is open */
};

void backup_discard_plan(struct backup_discard *d, const struct node *n);
bool backup_discard_open(struct backup_discard *d, struct err *e) MUST_CHECK;
void backup_discard_close(struct backup_discard *d);

/* --- the target ------------------------------------------------------------------ */

/* The daemon is the home of a target: it opens the image for writing when the
 * job is prepared, and closes it when its stream is over.  An nbd node has its
 * connection all the time, and a job borrows that.
 */
struct backup_target {
	struct transaction_file file; /* for its user */
	const char *name; /* borrowed from the node */
	struct link_image *image; /* owned; NULL: nothing to open */
	struct link_msg fds; /* that @image refers to */
	struct target *own; /* owned: opened by us; or NULL */
	struct target *target; /* @own, or borrowed from a node */
	uint64_t at; /* where in it the disk begins */
};

/* Loop.  @t is zeroed. */
void backup_target_plan(struct backup_target *t, const struct node *n);

/* Worker; may block. */
bool backup_target_open(struct backup_target *t, struct err *e) MUST_CHECK;

/* Any thread; may block, except when it was never opened.  May come again. */
void backup_target_close(struct backup_target *t);

/* Loop.  Can clusters be written to @n compressed? */
bool backup_target_can_compress(const struct node *n);

/* Loop.  The cluster of a job that writes to @n. */
uint64_t backup_target_cluster(const struct node *n, uint64_t wanted);

#endif

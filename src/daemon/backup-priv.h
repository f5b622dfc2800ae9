/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The inside of the backup job: how it is made (backup-create.c), how it runs
 * (backup.c) and what it leaves (backup-outcome.c).  Loop only, except where it
 * says worker.
 */
#ifndef DAEMON_BACKUP_PRIV_H
#define DAEMON_BACKUP_PRIV_H

#include "base/work.h"
#include "daemon/backup.h"

struct filter;
struct store;

struct backup {
	struct job job;
	struct node *source, *target; /* borrowed: both are in use by us */
	struct drive_target *drive; /* owned: what @target is; or NULL */
	struct backup_target to;
	bool discards; /* the source */
	struct backup_discard from; /* if it does */
	struct bitmap *bitmap; /* borrowed: it is busy; or NULL */
	enum bitmap_sync_mode mode;
	struct epoch_set taken; /* of the bitmap, up to the cut */
	struct view_file *view; /* owned */
	struct filter *filter; /* owned; NULL when the job has no view */
	struct stream *stream; /* owned; NULL before the start */
	bool follow; /* sync none */
	bool top, compress;
	bool draining; /* it follows, and was cancelled */
	ev_timer patience; /* while draining */
	uint64_t drained; /* of @offset when the timer was set */
	uint64_t cluster, offset, len;
	unsigned max_workers; /* 0: not said */
	uint64_t max_chunk; /* 0: no limit */
	enum blockdev_on_error on_source_error, on_target_error;
	bool error_told; /* the one that ended the stream */
	struct err end_error; /* with which the job completes */
	struct task start_failed;
	struct work closing; /* the target, when the stream is over */
	struct store *store; /* while it closes: of @drive's bitmaps; or NULL */
};

/* A job that has nothing to do yet. */
bool backup_new(struct daemon *d, const char *id, struct job_group *group,
		struct backup **out, struct err *e) MUST_CHECK;

/* The backup that @j is; NULL: it is something else. */
struct backup *backup_of(struct job *j);

/* Of its struct job_ops. */
void backup_settle(struct job *j, bool success);
void backup_free(struct job *j);

#endif

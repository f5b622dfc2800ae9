/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The target of drive-backup: a path or an address instead of a node.  It is
 * planned with the job (loop), made and opened with the job's other files
 * (worker), becomes a node without a name of its own when the job starts, and
 * goes with the job.
 *
 * Rules:
 * 1. Nothing is made, opened or cut before every argument was checked.
 * 2. A file is cut only when we hold its lock.
 * 3. A file that was made is taken back unless the job started; one that was
 *    there stays.
 */
#ifndef DAEMON_DRIVE_TARGET_H
#define DAEMON_DRIVE_TARGET_H

#include "daemon/graph.h"

struct drive_target;

struct drive_options {
	const char *target; /* borrowed for the call */
	/* Borrowed for the call; NULL: raw, and an image that is there must
	 * not look like anything else (formats are never probed).
	 */
	const char *format;
	bool existing; /* as it is; else made, or cut to nothing */
	/* The node whose data a new image stands on; borrowed for the call, or
	 * NULL.
	 */
	const struct node *backing;
	bool live; /* guests write to @backing: it is not opened again */
	uint64_t size; /* of the disk */
};

/* Loop.  Checks what can be known without looking.  Errors are QEMU's:
 * "Unknown file format 'X'", "Unknown driver: 'X'", "Unknown protocol 'X'",
 * "Backing file not supported for file format 'X'", "No valid URL specified".
 */
bool drive_target_plan(struct drive_target **out, struct daemon *d,
		       const struct drive_options *o, struct err *e) MUST_CHECK;

/* The node that it will be; its size is that of the disk until it is opened.
 * Borrowed.
 */
struct node *drive_target_node(const struct drive_target *t);

/* Worker; may block.  Errors, besides those of opening:
 * "Source and target image have different sizes".
 */
bool drive_target_open(struct drive_target *t, struct err *e) MUST_CHECK;

/* Loop.  The job starts: the node is in the graph. */
void drive_target_start(struct drive_target *t);

/* Loop.  Takes the node away, and what was made unless it was started. */
void drive_target_free(struct drive_target *t);
DEFINE_CLEANUP(struct drive_target, drive_target_free);

#endif

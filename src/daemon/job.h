/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Jobs with QEMU's states, verbs and events (QEMU's docs/devel/... call the
 * same machine "Job"), and the groups in which they complete.  Loop only.
 *
 *   created -> running -> waiting -> pending -> concluded -> null
 *                 |  ^        |         |           ^
 *                 v  |        +----+----+           |
 *               paused             v                |
 *                 +------------> aborting ----------+
 *
 * A job belongs to a group (QEMU's JobTxn).  The members of a group succeed
 * together or fail together.  A job that was not started in grouped mode is
 * alone in its group.
 */
#ifndef DAEMON_JOB_H
#define DAEMON_JOB_H

#include "base/loop.h"
#include "schema/qmp-types.h"

struct daemon;
struct job;
struct job_group;

struct job_ops {
	enum job_type type;
	/* All are called on the loop and not from inside one another.
	 *
	 * Begin the work; it ends with exactly one job_completed.
	 */
	void (*start)(struct job *j);
	/* Hurry to job_completed; may come again. */
	void (*cancel)(struct job *j);
	void (*set_speed)(struct job *j);
	void (*progress)(const struct job *j, uint64_t *offset, uint64_t *len);
	/* The outcome is decided: change what the job was for (promote or keep
	 * its bitmap) in memory.  The registry is saved after that, and then
	 * the outcome is told.
	 */
	void (*settle)(struct job *j, bool success);
	void (*free)(struct job *j);
};

struct job {
	struct job *next; /* newest first */
	struct daemon *d; /* borrowed */
	const struct job_ops *ops; /* NULL: a job of an earlier daemon */
	char *id; /* owned */
	enum job_type type;
	enum job_status status;
	struct job_group *group;
	struct job *next_in_group; /* newest first */
	bool auto_finalize, auto_dismiss;
	bool cancelled;
	bool ended; /* job_completed was called */
	uint64_t speed; /* bytes per second, 0: no limit */
	struct err error;
	uint64_t last_offset, last_len; /* when there is nobody to ask */
};

/* The group's members were added; the creator's reference ends with
 * job_group_seal.
 */
struct job_group *job_group_new(struct daemon *d);
void job_group_seal(struct job_group *g);

/* Checks the id.  Tells "created".  @g NULL: the job is alone. */
bool job_create(struct job *j, struct daemon *d, const char *id,
		const struct job_ops *ops, struct job_group *g, struct err *e)
	MUST_CHECK;

/* Its transaction was rolled back: aborting, concluded, null.  Frees it. */
void job_discard(struct job *j);

/* Its transaction took effect. */
void job_start(struct job *j);

/* The driver's work is over; @e: why it failed, or NULL. */
void job_completed(struct job *j, const struct err *e);

/* Names of jobs that an earlier daemon ran: listed as failed until somebody
 * dismisses them or takes the id for a new job.
 */
void job_add_lost(struct daemon *d, const char *id, enum job_type type);

/* Its outcome is decided; a restart cannot make it fail any more. */
bool job_is_settled(const struct job *j);

struct job *job_find(struct daemon *d, const char *id);

/* Cancel everything and call @done when no job is left that is not over. */
void jobs_shutdown(struct daemon *d, void (*done)(struct daemon *d));

struct jobs *jobs_new(void);
void jobs_free(struct jobs *js);
struct job *jobs_first(const struct jobs *js); /* newest */

#endif

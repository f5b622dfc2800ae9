/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Jobs with QEMU's states, verbs and events (QEMU's docs/devel/... call the
 * same machine "Job"), and the groups in which they complete.  Loop only.
 *
 *   created -> running -> waiting -> pending -> concluded -> null
 *      |        ^  |  |       |         |           ^
 *      |        |  v  |       |         |           |
 *      |       paused +-------+----+----+           |
 *      |                           v                |
 *      +-----------------------> aborting ----------+
 *
 * A job belongs to a group (QEMU's JobTxn).  The members of a group succeed
 * together or fail together.  A job that was not started in grouped mode is
 * alone in its group.
 */
#ifndef DAEMON_JOB_H
#define DAEMON_JOB_H

#include "base/loop.h"
#include "schema/qmp-types.h"

/* That are there; one more is refused.  Jobs that are over count until they
 * are dismissed.
 */
#define JOBS_MAX 4096

struct daemon;
struct job;
struct job_group;

struct job_ops {
	enum job_type type;
	/* Clients see "paused" and "running" behind its first "running":
	 * QEMU creates these jobs inside a drained section.
	 */
	bool blinks;
	/* All are called on the loop and not from inside one another.
	 *
	 * Begin the work; it ends with exactly one job_completed.
	 */
	void (*start)(struct job *j);
	/* Hurry to job_completed; may come again. */
	void (*cancel)(struct job *j);
	/* Rest: call job_rests when nothing is in flight any more.  Go on.
	 * Each may come again.  NULL, both: it never rests.
	 */
	void (*pause)(struct job *j);
	void (*resume)(struct job *j);
	/* Finish, from "ready"; NULL: it has no such state. */
	void (*complete)(struct job *j);
	void (*set_speed)(struct job *j); /* NULL: it has no speed */
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
	/* By a client, or by an error policy that stops.  Its status becomes
	 * "paused" when it rests.
	 */
	bool user_paused;
	enum block_device_io_status
		io_status; /* of the error that stopped it */
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
/* Created -> null: its own options were wrong.  Frees it. */
void job_drop(struct job *j);

/* Its transaction took effect. */
void job_start(struct job *j);

/* The driver's work is over; @e: why it failed, or NULL. */
void job_completed(struct job *j, const struct err *e);

/* Clients see "paused" and "running", as after a drain in QEMU; nothing else
 * when it does not run.
 */
void job_blink(struct job *j);

/* Nothing is in flight after job_ops.pause. */
void job_rests(struct job *j);

/* A request of the job failed with errno @os.  Decides what the policy means,
 * tells clients, and pauses the job for BLOCK_ERROR_ACTION_STOP; the driver
 * does the rest: "report" is job_completed, "ignore" tries again.  A cancelled
 * job is not paused, and its clients are not told.
 */
enum block_error_action job_error(struct job *j, enum blockdev_on_error policy,
				  enum io_operation_type operation, int os);

/* Names of jobs that an earlier daemon ran: listed as failed until somebody
 * dismisses them or takes the id for a new job.
 */
void job_add_lost(struct daemon *d, const char *id, enum job_type type);

/* Its outcome is decided; a restart cannot make it fail any more. */
bool job_is_settled(const struct job *j);

struct job *job_find(struct daemon *d, const char *id);

/* --- what clients ask for; the caller has checked that the job's state allows
 * it (job-verbs.c)
 */

void job_cancel(struct job *j);
void job_user_pause(struct job *j);
void job_user_resume(struct job *j);
void job_finalize(struct job *j); /* and its group */
void job_dismiss(struct job *j); /* frees it */

/* Does it work on a block node?  Others have no BLOCK_JOB_ events. */
bool job_is_block(const struct job *j);

/* How much it has done, and how much there is. */
void job_progress(const struct job *j, uint64_t *offset, uint64_t *len);

/* Cancel everything and call @done when no job is left that is not over. */
void jobs_shutdown(struct daemon *d, void (*done)(struct daemon *d));

struct jobs *jobs_new(void);
void jobs_free(struct jobs *js);
struct job *jobs_first(const struct jobs *js); /* newest */

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What clients may ask of jobs, in which state, and what they are told.  The
 * commands come in two families: job-X for every job (a missing one is a
 * GenericError) and block-job-X for those that work on block nodes (a missing
 * one is DeviceNotActive).
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/job.h"
#include "daemon/qmp-server.h"
#include "schema/qmp-commands.h"

/* --- verbs ------------------------------------------------------------------ */

/* clang-format off */
#define WHILE_IT_WORKS \
	[JOB_STATUS_CREATED] = 1, [JOB_STATUS_RUNNING] = 1, \
	[JOB_STATUS_PAUSED] = 1, [JOB_STATUS_READY] = 1, \
	[JOB_STATUS_STANDBY] = 1

static const bool verbs[JOB_VERB_N][JOB_STATUS_N] = {
[JOB_VERB_CANCEL]	= { WHILE_IT_WORKS, [JOB_STATUS_WAITING] = 1,
			    [JOB_STATUS_PENDING] = 1 },
[JOB_VERB_PAUSE]	= { WHILE_IT_WORKS },
[JOB_VERB_RESUME]	= { WHILE_IT_WORKS },
[JOB_VERB_SET_SPEED]	= { WHILE_IT_WORKS },
[JOB_VERB_CHANGE]	= { WHILE_IT_WORKS },
[JOB_VERB_COMPLETE]	= { [JOB_STATUS_READY] = 1, [JOB_STATUS_STANDBY] = 1 },
[JOB_VERB_FINALIZE]	= { [JOB_STATUS_PENDING] = 1 },
[JOB_VERB_DISMISS]	= { [JOB_STATUS_CONCLUDED] = 1 },
};
/* clang-format on */

static bool
check_verb(const struct job *j, enum job_verb v, struct err *e)
{
	/* A job whose outcome is being saved has left "pending" in all but
	 * name.
	 */
	if (verbs[v][j->status] && !(j->group && job_is_settled(j)))
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "Job '%s' in state '%s' cannot accept command verb '%s'",
		       j->id, job_status_str(j->status), job_verb_str(v));
}

static struct job *
find_job(struct qmp_call *call, const char *id, struct err *e)
{
	struct job *j = job_find(qmp_call_opaque(call), id);

	if (!j)
		(void)err_set(e, ERR_GENERIC, 0, "Job not found");
	return j;
}

static struct job *
find_block_job(struct qmp_call *call, const char *id, struct err *e)
{
	struct job *j = job_find(qmp_call_opaque(call), id);

	if (j && job_is_block(j))
		return j;
	(void)err_set(e, ERR_DEVICE_NOT_ACTIVE, 0, "Block job '%s' not found",
		      id);
	return NULL;
}

static bool
cancel(struct job *j, struct err *e)
{
	if (!check_verb(j, JOB_VERB_CANCEL, e))
		return false;
	job_cancel(j);
	return true;
}

static bool
pause_job(struct job *j, struct err *e)
{
	if (!check_verb(j, JOB_VERB_PAUSE, e))
		return false;
	if (j->user_paused)
		return err_set(e, ERR_GENERIC, 0, "Job is already paused");
	job_user_pause(j);
	return true;
}

static bool
resume_job(struct job *j, struct err *e)
{
	if (!j->user_paused)
		return err_set(e, ERR_GENERIC, 0,
			       "Can't resume a job that was not paused");
	if (!check_verb(j, JOB_VERB_RESUME, e))
		return false;
	job_user_resume(j);
	return true;
}

static bool
complete(struct job *j, struct err *e)
{
	if (!check_verb(j, JOB_VERB_COMPLETE, e))
		return false;
	if (j->cancelled || !j->ops->complete)
		return err_set(e, ERR_GENERIC, 0,
			       "The active block job '%s' cannot be completed",
			       j->id);
	j->ops->complete(j);
	return true;
}

static bool
finalize(struct job *j, struct err *e)
{
	if (!check_verb(j, JOB_VERB_FINALIZE, e))
		return false;
	job_finalize(j);
	return true;
}

static bool
dismiss(struct job *j, struct err *e)
{
	if (!check_verb(j, JOB_VERB_DISMISS, e))
		return false;
	job_dismiss(j);
	return true;
}

/* --- commands for every job --------------------------------------------------- */

bool
qmp_job_cancel(struct qmp_call *call, const struct qmp_job_cancel_args *arg,
	       struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	return j && cancel(j, e);
}

bool
qmp_job_pause(struct qmp_call *call, const struct qmp_job_pause_args *arg,
	      struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	return j && pause_job(j, e);
}

bool
qmp_job_resume(struct qmp_call *call, const struct qmp_job_resume_args *arg,
	       struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	return j && resume_job(j, e);
}

bool
qmp_job_complete(struct qmp_call *call, const struct qmp_job_complete_args *arg,
		 struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	return j && complete(j, e);
}

bool
qmp_job_finalize(struct qmp_call *call, const struct qmp_job_finalize_args *arg,
		 struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	return j && finalize(j, e);
}

bool
qmp_job_dismiss(struct qmp_call *call, const struct qmp_job_dismiss_args *arg,
		struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	return j && dismiss(j, e);
}

/* --- commands for jobs on block nodes ------------------------------------------- */

bool
qmp_block_job_cancel(struct qmp_call *call,
		     const struct qmp_block_job_cancel_args *arg, struct err *e)
{
	struct job *j = find_block_job(call, arg->device, e);

	if (!j)
		return false;
	if (j->user_paused && !(arg->has_force && arg->force))
		return err_set(e, ERR_GENERIC, 0,
			       "The block job for device '%s' is currently "
			       "paused",
			       arg->device);
	return cancel(j, e);
}

bool
qmp_block_job_pause(struct qmp_call *call,
		    const struct qmp_block_job_pause_args *arg, struct err *e)
{
	struct job *j = find_block_job(call, arg->device, e);

	return j && pause_job(j, e);
}

bool
qmp_block_job_resume(struct qmp_call *call,
		     const struct qmp_block_job_resume_args *arg, struct err *e)
{
	struct job *j = find_block_job(call, arg->device, e);

	return j && resume_job(j, e);
}

bool
qmp_block_job_complete(struct qmp_call *call,
		       const struct qmp_block_job_complete_args *arg,
		       struct err *e)
{
	struct job *j = find_block_job(call, arg->device, e);

	return j && complete(j, e);
}

bool
qmp_block_job_finalize(struct qmp_call *call,
		       const struct qmp_block_job_finalize_args *arg,
		       struct err *e)
{
	struct job *j = find_block_job(call, arg->id, e);

	return j && finalize(j, e);
}

bool
qmp_block_job_dismiss(struct qmp_call *call,
		      const struct qmp_block_job_dismiss_args *arg,
		      struct err *e)
{
	struct job *j = find_block_job(call, arg->id, e);

	return j && dismiss(j, e);
}

bool
qmp_block_job_set_speed(struct qmp_call *call,
			const struct qmp_block_job_set_speed_args *arg,
			struct err *e)
{
	struct job *j = find_block_job(call, arg->device, e);

	if (!j || !check_verb(j, JOB_VERB_SET_SPEED, e))
		return false;
	if (arg->speed < 0)
		return err_set(e, ERR_GENERIC, 0,
			       "Parameter 'speed' expects a non-negative "
			       "value");
	j->speed = (uint64_t)arg->speed;
	if (j->ops->set_speed)
		j->ops->set_speed(j);
	return true;
}

/* No job of ours has an option that can be changed. */
bool
qmp_block_job_change(struct qmp_call *call,
		     const struct block_job_change_options *arg, struct err *e)
{
	struct job *j = find_block_job(call, arg->id, e);

	return j && check_verb(j, JOB_VERB_CHANGE, e) &&
	       err_set(e, ERR_GENERIC, 0, "Job type does not support change");
}

/* --- queries ----------------------------------------------------------------- */

static struct job_info *
describe(const struct job *j)
{
	struct job_info *i = xzalloc(sizeof *i);
	uint64_t offset, len;

	job_progress(j, &offset, &len);
	i->id = xstrdup(j->id);
	i->type = j->type;
	i->status = j->status;
	i->current_progress = (int64_t)offset;
	i->total_progress = (int64_t)len;
	if (err_is_set(&j->error))
		i->error = xstrdup(j->error.msg);
	return i;
}

bool
qmp_query_jobs(struct qmp_call *call, struct job_info_list *ret, struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);

	for (const struct job *j = jobs_first(d->jobs); j; j = j->next)
		if (!job_info_list_append(ret, describe(j)))
			return err_set(e, ERR_GENERIC, 0, "out of memory");
	return true;
}

static struct block_job_info *
describe_block_job(const struct job *j)
{
	struct block_job_info *i = xzalloc(sizeof *i);
	uint64_t offset, len;

	job_progress(j, &offset, &len);
	i->type = j->type;
	i->device = xstrdup(j->id);
	i->len = (int64_t)len;
	i->offset = (int64_t)offset;
	i->busy = j->status == JOB_STATUS_RUNNING && !j->ended;
	i->paused = j->user_paused;
	i->speed = (int64_t)j->speed;
	i->io_status = j->io_status;
	i->ready = j->status == JOB_STATUS_READY;
	i->status = j->status;
	i->auto_finalize = j->auto_finalize;
	i->auto_dismiss = j->auto_dismiss;
	if (err_is_set(&j->error))
		i->error = xstrdup(j->error.msg);
	return i;
}

bool
qmp_query_block_jobs(struct qmp_call *call, struct block_job_info_list *ret,
		     struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);

	for (const struct job *j = jobs_first(d->jobs); j; j = j->next)
		if (job_is_block(j) &&
		    !block_job_info_list_append(ret, describe_block_job(j)))
			return err_set(e, ERR_GENERIC, 0, "out of memory");
	return true;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/job.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/ids.h"
#include "daemon/merge.h"
#include "daemon/pending.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "schema/qmp-commands.h"

struct jobs {
	struct job *first; /* newest first */
	void (*all_over)(struct daemon *d);
	struct daemon *d;
	struct task over_task;
};

/* Members live in it until they are concluded. */
struct job_group {
	struct daemon *d;
	struct job *members; /* newest first */
	bool sealed; /* no more members come */
	bool aborting; /* one failed: all fail */
	bool settled; /* the outcome was applied; the registry is saved */
};

/* clang-format off */
static const bool moves[JOB_STATUS_N][JOB_STATUS_N] = {
[JOB_STATUS_UNDEFINED]	= { [JOB_STATUS_CREATED] = 1 },
[JOB_STATUS_CREATED]	= { [JOB_STATUS_RUNNING] = 1, [JOB_STATUS_ABORTING] = 1,
			    [JOB_STATUS_NULL] = 1 },
[JOB_STATUS_RUNNING]	= { [JOB_STATUS_PAUSED] = 1, [JOB_STATUS_WAITING] = 1,
			    [JOB_STATUS_ABORTING] = 1 },
[JOB_STATUS_PAUSED]	= { [JOB_STATUS_RUNNING] = 1 },
[JOB_STATUS_WAITING]	= { [JOB_STATUS_PENDING] = 1,
			    [JOB_STATUS_ABORTING] = 1 },
[JOB_STATUS_PENDING]	= { [JOB_STATUS_ABORTING] = 1,
			    [JOB_STATUS_CONCLUDED] = 1 },
[JOB_STATUS_ABORTING]	= { [JOB_STATUS_CONCLUDED] = 1 },
[JOB_STATUS_CONCLUDED]	= { [JOB_STATUS_NULL] = 1 },
};
/* clang-format on */

static struct qmp_events *
events(const struct job *j)
{
	return qmp_server_events(j->d->qmp);
}

/* The only place at which a job's status changes. */
static void
move(struct job *j, enum job_status to)
{
	assert(moves[j->status][to]);
	log_debug("job '%s': %s to %s", j->id, job_status_str(j->status),
		  job_status_str(to));
	j->status = to;
	qmp_event_job_status_change(events(j), j->id, to);
}

/* --- the list --------------------------------------------------------------- */

struct jobs *
jobs_new(void)
{
	return xzalloc(sizeof(struct jobs));
}

struct job *
jobs_first(const struct jobs *js)
{
	return js->first;
}

struct job *
job_find(struct daemon *d, const char *id)
{
	struct job *j = d->jobs->first;

	while (j && strcmp(j->id, id) != 0)
		j = j->next;
	return j;
}

static void
tell_all_over(struct task *t)
{
	struct jobs *js = container_of(t, struct jobs, over_task);
	void (*done)(struct daemon *) = js->all_over;

	js->all_over = NULL;
	done(js->d);
}

static void
check_all_over(struct jobs *js)
{
	if (!js->all_over || js->over_task.queued)
		return;
	for (struct job *j = js->first; j; j = j->next)
		if (j->status != JOB_STATUS_CONCLUDED)
			return;
	js->over_task.fn = tell_all_over;
	loop_defer(&js->d->loop, &js->over_task);
}

static void
leave_list(struct job *j)
{
	struct jobs *js = j->d->jobs;
	struct job **p = &js->first;

	while (*p != j)
		p = &(*p)->next;
	*p = j->next;
	check_all_over(js);
}

static void
job_free(struct job *j)
{
	leave_list(j);
	free(j->id);
	if (j->ops)
		j->ops->free(j);
	else
		free(j);
}

/* concluded -> null: nobody hears of it any more */
void
job_dismiss(struct job *j)
{
	move(j, JOB_STATUS_NULL);
	job_free(j);
}

void
jobs_free(struct jobs *js)
{
	struct job *j;

	while ((j = js->first)) {
		js->first = j->next;
		free(j->id);
		if (j->ops)
			j->ops->free(j);
		else
			free(j);
	}
	free(js);
}

/* --- groups ----------------------------------------------------------------- */

struct job_group *
job_group_new(struct daemon *d)
{
	struct job_group *g = xzalloc(sizeof *g);

	g->d = d;
	return g;
}

static void
group_release(struct job_group *g)
{
	if (g->sealed && !g->members)
		free(g);
}

void
job_group_seal(struct job_group *g)
{
	g->sealed = true;
	group_release(g);
}

static void
join_group(struct job *j, struct job_group *g)
{
	if (!g) {
		g = job_group_new(j->d);
		g->sealed = true;
	}
	j->group = g;
	j->next_in_group = g->members;
	g->members = j;
}

static void
leave_group(struct job *j)
{
	struct job_group *g = j->group;
	struct job **p = &g->members;

	while (*p != j)
		p = &(*p)->next_in_group;
	*p = j->next_in_group;
	j->group = NULL;
	group_release(g);
}

static bool
all_in(const struct job_group *g, enum job_status status)
{
	for (const struct job *j = g->members; j; j = j->next_in_group)
		if (j->status != status)
			return false;
	return true;
}

static void
tell_end(struct job *j)
{
	uint64_t offset, len;

	if (!job_is_block(j))
		return;
	job_progress(j, &offset, &len);
	if (j->cancelled)
		qmp_event_block_job_cancelled(events(j), j->type, j->id,
					      (int64_t)len, (int64_t)offset,
					      (int64_t)j->speed);
	else
		qmp_event_block_job_completed(
			events(j), j->type, j->id, (int64_t)len,
			(int64_t)offset, (int64_t)j->speed,
			err_is_set(&j->error) ? j->error.msg : NULL);
}

/* Tell how @j ended, and conclude it. */
static void
conclude(struct job *j)
{
	tell_end(j);
	if (j->cancelled && !err_is_set(&j->error))
		(void)err_set(&j->error, ERR_GENERIC, 0, "Operation canceled");
	if (err_is_set(&j->error))
		log_warn("job '%s' ended: %s", j->id, j->error.msg);
	else
		log_info("job '%s' is complete", j->id);
	move(j, JOB_STATUS_CONCLUDED);
	leave_group(j);
	if (j->auto_dismiss)
		job_dismiss(j);
	else
		check_all_over(j->d->jobs);
}

static void
on_group_saved(void *opaque, const struct err *e)
{
	struct job_group *g = opaque;
	struct job *j, *next;
	struct merge *m = g->d->merge;

	PARK("job.saved");
	pending_end(g->d);
	/* What was not saved is over-reported after a restart: no lie. */
	if (e)
		log_error("the outcome of a job was not saved: %s", e->msg);
	for (j = g->members; j; j = next) {
		next = j->next_in_group;
		conclude(j); /* the last one frees @g */
	}
	merge_look(m);
}

static void
settle_group(struct job_group *g, bool success)
{
	g->settled = true;
	for (struct job *j = g->members; j; j = j->next_in_group)
		j->ops->settle(j, success);
	PARK("job.settled");
	pending_begin(g->d);
	registry_save(g->d->registry, on_group_saved, g);
}

/* All have done their work. */
static void
group_pending(struct job_group *g)
{
	bool wait = false;

	for (struct job *j = g->members; j; j = j->next_in_group) {
		move(j, JOB_STATUS_PENDING);
		if (j->auto_finalize)
			continue;
		wait = true;
		if (job_is_block(j))
			qmp_event_block_job_pending(events(j), j->type, j->id);
	}
	if (!wait)
		settle_group(g, true);
}

/* It is not paused any more, whatever happens next. */
static void
wake(struct job *j)
{
	j->user_paused = false;
	if (j->status == JOB_STATUS_PAUSED)
		move(j, JOB_STATUS_RUNNING);
}

/* One failed: the others are cancelled; when all have stopped, it is over. */
static void
group_abort(struct job_group *g)
{
	g->aborting = true;
	for (struct job *j = g->members; j; j = j->next_in_group) {
		if (j->status == JOB_STATUS_ABORTING)
			continue;
		j->cancelled = true;
		if (j->ended) {
			move(j, JOB_STATUS_ABORTING);
			continue;
		}
		wake(j);
		j->ops->cancel(j);
	}
	if (all_in(g, JOB_STATUS_ABORTING))
		settle_group(g, false);
}

/* --- a job's life ----------------------------------------------------------- */

static bool
check_room(const struct jobs *js, struct err *e)
{
	unsigned n = 0;

	for (const struct job *j = js->first; j; j = j->next)
		n++;
	return n < JOBS_MAX ||
	       err_set(e, ERR_GENERIC, 0,
		       "There are %u jobs already, and no more are allowed: "
		       "dismiss some that are over",
		       n);
}

bool
job_create(struct job *j, struct daemon *d, const char *id,
	   const struct job_ops *ops, struct job_group *g, struct err *e)
{
	struct job *old;

	if (!id_is_wellformed(id))
		return err_set(e, ERR_GENERIC, 0, "Invalid job ID '%s'", id);
	if (!check_room(d->jobs, e))
		return false;
	old = job_find(d, id);
	if (old && !old->ops)
		job_dismiss(old);
	else if (old)
		return err_set(e, ERR_GENERIC, 0, "Job ID '%s' already in use",
			       id);
	j->d = d;
	j->id = xstrdup(id);
	j->ops = ops;
	j->type = ops->type;
	j->next = d->jobs->first;
	d->jobs->first = j;
	join_group(j, g);
	j->status = JOB_STATUS_UNDEFINED;
	move(j, JOB_STATUS_CREATED);
	return true;
}

void
job_discard(struct job *j)
{
	assert(j->status == JOB_STATUS_CREATED);
	move(j, JOB_STATUS_ABORTING);
	move(j, JOB_STATUS_CONCLUDED);
	leave_group(j);
	job_dismiss(j);
}

void
job_drop(struct job *j)
{
	assert(j->status == JOB_STATUS_CREATED);
	leave_group(j);
	job_dismiss(j);
}

void
job_blink(struct job *j)
{
	if (j->status != JOB_STATUS_RUNNING)
		return;
	move(j, JOB_STATUS_PAUSED);
	move(j, JOB_STATUS_RUNNING);
}

void
job_start(struct job *j)
{
	move(j, JOB_STATUS_RUNNING);
	if (j->ops->blinks)
		job_blink(j);
	j->ops->start(j);
	/* what was asked for before it started */
	if (j->cancelled)
		j->ops->cancel(j);
	else if (j->user_paused && j->ops->pause)
		j->ops->pause(j);
}

void
job_completed(struct job *j, const struct err *e)
{
	struct job_group *g = j->group;

	assert(!j->ended);
	j->ended = true;
	wake(j);
	if (!e && !j->cancelled && !g->aborting) {
		move(j, JOB_STATUS_WAITING);
		if (g->sealed && all_in(g, JOB_STATUS_WAITING))
			group_pending(g);
		return;
	}
	if (e && !j->cancelled)
		(void)err_move(&j->error, e);
	move(j, JOB_STATUS_ABORTING);
	group_abort(g);
}

bool
job_is_settled(const struct job *j)
{
	return !j->group || j->group->settled;
}

/* --- what clients ask for --------------------------------------------------- */

void
job_cancel(struct job *j)
{
	j->cancelled = true;
	wake(j);
	if (j->status == JOB_STATUS_CREATED)
		return; /* its transaction is under way: see job_start */
	if (!j->ended) {
		j->ops->cancel(j);
		return;
	}
	move(j, JOB_STATUS_ABORTING);
	group_abort(j->group);
}

void
job_user_pause(struct job *j)
{
	j->user_paused = true;
	/* one that is about to end does not rest before that */
	if (j->ops->pause && j->status != JOB_STATUS_CREATED && !j->cancelled)
		j->ops->pause(j);
}

void
job_rests(struct job *j)
{
	if (j->user_paused && j->status == JOB_STATUS_RUNNING && !j->cancelled)
		move(j, JOB_STATUS_PAUSED);
}

void
job_user_resume(struct job *j)
{
	j->io_status = BLOCK_DEVICE_IO_STATUS_OK;
	wake(j);
	if (j->ops->resume && j->status != JOB_STATUS_CREATED)
		j->ops->resume(j);
}

void
job_finalize(struct job *j)
{
	settle_group(j->group, true);
}

bool
job_is_block(const struct job *j)
{
	return j->type == JOB_TYPE_BACKUP || j->type == JOB_TYPE_COMMIT ||
	       j->type == JOB_TYPE_STREAM || j->type == JOB_TYPE_MIRROR;
}

void
job_progress(const struct job *j, uint64_t *offset, uint64_t *len)
{
	*offset = j->last_offset;
	*len = j->last_len;
	if (j->ops)
		j->ops->progress(j, offset, len);
}

/* --- errors of requests ------------------------------------------------------- */

static enum block_error_action
choose_action(enum blockdev_on_error policy, int os)
{
	switch (policy) {
	case BLOCKDEV_ON_ERROR_IGNORE: return BLOCK_ERROR_ACTION_IGNORE;
	case BLOCKDEV_ON_ERROR_STOP: return BLOCK_ERROR_ACTION_STOP;
	case BLOCKDEV_ON_ERROR_ENOSPC:
	case BLOCKDEV_ON_ERROR_AUTO:
		return os == ENOSPC ? BLOCK_ERROR_ACTION_STOP
				    : BLOCK_ERROR_ACTION_REPORT;
	case BLOCKDEV_ON_ERROR_REPORT:
	case BLOCKDEV_ON_ERROR_N: break;
	}
	return BLOCK_ERROR_ACTION_REPORT;
}

enum block_error_action
job_error(struct job *j, enum blockdev_on_error policy,
	  enum io_operation_type operation, int os)
{
	enum block_error_action action = choose_action(policy, os);

	if (j->cancelled) /* nobody asks how that goes */
		return action == BLOCK_ERROR_ACTION_IGNORE
			       ? action
			       : BLOCK_ERROR_ACTION_REPORT;
	qmp_event_block_job_error(events(j), j->id, operation, action);
	if (action != BLOCK_ERROR_ACTION_STOP)
		return action;
	if (j->io_status == BLOCK_DEVICE_IO_STATUS_OK)
		j->io_status = os == ENOSPC ? BLOCK_DEVICE_IO_STATUS_NOSPACE
					    : BLOCK_DEVICE_IO_STATUS_FAILED;
	job_user_pause(j);
	return action;
}

/* --- jobs of an earlier daemon; the end of this one ----------------------------- */

void
job_add_lost(struct daemon *d, const char *id, enum job_type type)
{
	struct job *j = xzalloc(sizeof *j);

	j->d = d;
	j->id = xstrdup(id);
	j->type = type;
	j->status = JOB_STATUS_CONCLUDED;
	(void)err_set(&j->error, ERR_GENERIC, 0,
		      "stillpointd ended while the job ran");
	j->next = d->jobs->first;
	d->jobs->first = j;
}

void
jobs_shutdown(struct daemon *d, void (*done)(struct daemon *d))
{
	struct jobs *js = d->jobs;
	struct job *j, *next;

	js->d = d;
	js->all_over = done;
	for (j = js->first; j; j = next) {
		next = j->next;
		if (j->status != JOB_STATUS_CONCLUDED &&
		    j->status != JOB_STATUS_ABORTING &&
		    j->status != JOB_STATUS_CREATED && !j->group->settled)
			job_cancel(j);
	}
	check_all_over(js);
}

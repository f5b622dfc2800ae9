/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/job.h"

#include <assert.h>
#include <inttypes.h>
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
static void
dismiss(struct job *j)
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

/* Tell how @j ended, and conclude it. */
static void
conclude(struct job *j)
{
	uint64_t offset, len;

	j->ops->progress(j, &offset, &len);
	if (j->cancelled)
		qmp_event_block_job_cancelled(events(j), j->type, j->id,
					      (int64_t)len, (int64_t)offset,
					      (int64_t)j->speed);
	else
		qmp_event_block_job_completed(
			events(j), j->type, j->id, (int64_t)len,
			(int64_t)offset, (int64_t)j->speed,
			err_is_set(&j->error) ? j->error.msg : NULL);
	if (j->cancelled && !err_is_set(&j->error))
		(void)err_set(&j->error, ERR_GENERIC, 0, "Operation canceled");
	if (err_is_set(&j->error))
		log_warn("job '%s' ended: %s", j->id, j->error.msg);
	else
		log_info("job '%s' is complete", j->id);
	move(j, JOB_STATUS_CONCLUDED);
	leave_group(j);
	if (j->auto_dismiss)
		dismiss(j);
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
		if (!j->auto_finalize) {
			qmp_event_block_job_pending(events(j), j->type, j->id);
			wait = true;
		}
	}
	if (!wait)
		settle_group(g, true);
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
		if (j->ended)
			move(j, JOB_STATUS_ABORTING);
		else
			j->ops->cancel(j);
	}
	if (all_in(g, JOB_STATUS_ABORTING))
		settle_group(g, false);
}

/* --- a job's life ----------------------------------------------------------- */

bool
job_create(struct job *j, struct daemon *d, const char *id,
	   const struct job_ops *ops, struct job_group *g, struct err *e)
{
	struct job *old;

	if (!id_is_wellformed(id))
		return err_set(e, ERR_GENERIC, 0, "Invalid job ID '%s'", id);
	old = job_find(d, id);
	if (old && !old->ops)
		dismiss(old);
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
	dismiss(j);
}

void
job_start(struct job *j)
{
	move(j, JOB_STATUS_RUNNING);
	/* QEMU creates jobs inside a drained section, which its clients see
	 * as this pair.
	 */
	move(j, JOB_STATUS_PAUSED);
	move(j, JOB_STATUS_RUNNING);
	j->ops->start(j);
}

void
job_completed(struct job *j, const struct err *e)
{
	struct job_group *g = j->group;

	assert(!j->ended);
	j->ended = true;
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

static void
cancel(struct job *j)
{
	j->cancelled = true;
	if (!j->ended) {
		j->ops->cancel(j);
		return;
	}
	move(j, JOB_STATUS_ABORTING);
	group_abort(j->group);
}

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
			cancel(j);
	}
	check_all_over(js);
}

/* --- commands --------------------------------------------------------------- */

enum verb { VERB_CANCEL, VERB_SET_SPEED, VERB_FINALIZE, VERB_DISMISS, VERB_N };

static const char *const verb_names[VERB_N] = {
	[VERB_CANCEL] = "cancel",
	[VERB_SET_SPEED] = "set-speed",
	[VERB_FINALIZE] = "finalize",
	[VERB_DISMISS] = "dismiss",
};

/* clang-format off */
static const bool verbs[VERB_N][JOB_STATUS_N] = {
[VERB_CANCEL]	 = { [JOB_STATUS_CREATED] = 1, [JOB_STATUS_RUNNING] = 1,
		     [JOB_STATUS_PAUSED] = 1, [JOB_STATUS_READY] = 1,
		     [JOB_STATUS_STANDBY] = 1, [JOB_STATUS_WAITING] = 1,
		     [JOB_STATUS_PENDING] = 1 },
[VERB_SET_SPEED] = { [JOB_STATUS_CREATED] = 1, [JOB_STATUS_RUNNING] = 1,
		     [JOB_STATUS_PAUSED] = 1, [JOB_STATUS_READY] = 1,
		     [JOB_STATUS_STANDBY] = 1 },
[VERB_FINALIZE]	 = { [JOB_STATUS_PENDING] = 1 },
[VERB_DISMISS]	 = { [JOB_STATUS_CONCLUDED] = 1 },
};
/* clang-format on */

static bool
check_verb(const struct job *j, enum verb v, struct err *e)
{
	/* A job whose outcome is being saved has left "pending" in all but
	 * name, and one whose transaction is not committed is not a job yet.
	 */
	if (verbs[v][j->status] && !(j->group && j->group->settled) &&
	    j->status != JOB_STATUS_CREATED)
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "Job '%s' in state '%s' cannot accept command verb '%s'",
		       j->id, job_status_str(j->status), verb_names[v]);
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

	if (!j)
		(void)err_set(e, ERR_DEVICE_NOT_ACTIVE, 0,
			      "Block job '%s' not found", id);
	return j;
}

bool
qmp_job_cancel(struct qmp_call *call, const struct qmp_job_cancel_args *arg,
	       struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	if (!j || !check_verb(j, VERB_CANCEL, e))
		return false;
	cancel(j);
	return true;
}

bool
qmp_block_job_cancel(struct qmp_call *call,
		     const struct qmp_block_job_cancel_args *arg, struct err *e)
{
	struct job *j = find_block_job(call, arg->device, e);

	if (!j || !check_verb(j, VERB_CANCEL, e))
		return false;
	cancel(j);
	return true;
}

bool
qmp_block_job_set_speed(struct qmp_call *call,
			const struct qmp_block_job_set_speed_args *arg,
			struct err *e)
{
	struct job *j = find_block_job(call, arg->device, e);

	if (!j || !check_verb(j, VERB_SET_SPEED, e))
		return false;
	if (arg->speed < 0)
		return err_set(e, ERR_GENERIC, 0,
			       "Parameter 'speed' expects a non-negative "
			       "value");
	j->speed = (uint64_t)arg->speed;
	j->ops->set_speed(j);
	return true;
}

bool
qmp_job_finalize(struct qmp_call *call, const struct qmp_job_finalize_args *arg,
		 struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	if (!j || !check_verb(j, VERB_FINALIZE, e))
		return false;
	settle_group(j->group, true);
	return true;
}

bool
qmp_job_dismiss(struct qmp_call *call, const struct qmp_job_dismiss_args *arg,
		struct err *e)
{
	struct job *j = find_job(call, arg->id, e);

	if (!j || !check_verb(j, VERB_DISMISS, e))
		return false;
	dismiss(j);
	return true;
}

/* --- queries ----------------------------------------------------------------- */

static void
progress(const struct job *j, uint64_t *offset, uint64_t *len)
{
	*offset = j->last_offset;
	*len = j->last_len;
	if (j->ops)
		j->ops->progress(j, offset, len);
}

static struct job_info *
describe(const struct job *j)
{
	struct job_info *i = xzalloc(sizeof *i);
	uint64_t offset, len;

	progress(j, &offset, &len);
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

	for (const struct job *j = d->jobs->first; j; j = j->next)
		if (!job_info_list_append(ret, describe(j)))
			return err_set(e, ERR_GENERIC, 0, "out of memory");
	return true;
}

static struct block_job_info *
describe_block_job(const struct job *j)
{
	struct block_job_info *i = xzalloc(sizeof *i);
	uint64_t offset, len;

	progress(j, &offset, &len);
	i->type = j->type;
	i->device = xstrdup(j->id);
	i->len = (int64_t)len;
	i->offset = (int64_t)offset;
	i->busy = j->status == JOB_STATUS_RUNNING && !j->ended;
	i->paused = false;
	i->speed = (int64_t)j->speed;
	i->io_status = err_is_set(&j->error) && !j->cancelled
			       ? BLOCK_DEVICE_IO_STATUS_FAILED
			       : BLOCK_DEVICE_IO_STATUS_OK;
	i->ready = false;
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

	for (const struct job *j = d->jobs->first; j; j = j->next)
		if (!block_job_info_list_append(ret, describe_block_job(j)))
			return err_set(e, ERR_GENERIC, 0, "out of memory");
	return true;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The backup job: a stream from a view to a target, and what becomes of the
 * bitmap.
 */
#include "daemon/backup.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/damage.h"
#include "daemon/filters.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "daemon/stored.h"
#include "schema/qmp-commands.h"

/* A target that acknowledges nothing for so long is not waited for any more
 * when a job with sync none is cancelled.
 */
#define DRAIN_PATIENCE_S 10.

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

static struct backup *
to_backup(const struct job *j)
{
	return container_of(j, struct backup, job);
}

/* --- the job ----------------------------------------------------------------------- */

static enum block_error_action
tell_error(struct backup *b, enum stream_side side, enum blockdev_on_error on,
	   int os)
{
	return job_error(&b->job, on,
			 side == STREAM_SOURCE ? IO_OPERATION_TYPE_READ
					       : IO_OPERATION_TYPE_WRITE,
			 os);
}

/* What failed may have failed because of an image that is damaged. */
static void
look_for_damage(struct backup *b)
{
	damage_look(b->job.d, b->view->image);
	damage_look(b->job.d, target_block(b->to.target));
}

static enum stream_action
on_stream_error(struct stream *s, enum stream_side side, const struct err *e,
		void *opaque)
{
	struct backup *b = opaque;
	enum blockdev_on_error on =
		side == STREAM_SOURCE ? b->on_source_error : b->on_target_error;

	(void)s;
	look_for_damage(b);
	/* it was cancelled: nothing is worth resting or trying for */
	if (b->draining)
		on = BLOCKDEV_ON_ERROR_REPORT;
	switch (tell_error(b, side, on, e->os)) {
	case BLOCK_ERROR_ACTION_IGNORE:
		log_warn("job '%s' tries again: %s", b->job.id, e->msg);
		return STREAM_RETRY;
	case BLOCK_ERROR_ACTION_STOP:
		log_warn("job '%s' is paused: %s", b->job.id, e->msg);
		return STREAM_HOLD;
	case BLOCK_ERROR_ACTION_REPORT:
	case BLOCK_ERROR_ACTION_N: break;
	}
	b->error_told = true;
	return STREAM_FAIL;
}

static void
on_stream_paused(struct stream *s, void *opaque)
{
	struct backup *b = opaque;

	(void)s;
	job_rests(&b->job);
}

static void
closing_run(struct work *w)
{
	struct backup *b = container_of(w, struct backup, closing);

	backup_target_close(&b->to);
	backup_discard_close(&b->from);
	if (b->store)
		store_run(b->store);
}

static void
closing_done(struct work *w)
{
	struct backup *b = container_of(w, struct backup, closing);

	if (b->store)
		store_finish(steal(&b->store));
	pending_end(b->job.d);
	job_completed(&b->job,
		      err_is_set(&b->end_error) ? &b->end_error : NULL);
}

/* Whoever hears that the job is over may open the target. */
static void
end(struct backup *b)
{
	struct daemon *d = b->job.d;

	ev_timer_stop(d->loop.ev, &b->patience);
	pending_begin(d);
	if (b->drive) /* its node goes with the job */
		b->store = store_plan(b->target);
	b->closing = (struct work){ .run = closing_run, .done = closing_done };
	work_submit(d->work, &d->loop, &b->closing);
}

static void
on_stream_done(struct stream *s, void *opaque)
{
	const struct stream_result *r = stream_result(s);
	struct backup *b = opaque;
	struct err *e = &b->end_error;

	stream_progress(s, &b->offset, &b->len);
	look_for_damage(b);
	if (!err_is_set(&r->error)) {
		log_debug("job '%s': %" PRIu64 " bytes sent, %" PRIu64
			  " zeroed, %" PRIu64 " requests, %u lanes",
			  b->job.id, r->bytes_sent, r->bytes_zeroed,
			  r->requests, r->lanes);
		end(b);
		return;
	}
	log_error("job '%s': %s", b->job.id, r->error.msg);
	/* the stream does not ask about what no policy can mend */
	if (!b->error_told)
		(void)tell_error(b, r->side, BLOCKDEV_ON_ERROR_REPORT,
				 r->error.os);
	/* what QEMU's clients know how to tell apart is said in QEMU's words */
	if (r->error.os == EIO || r->error.os == ENOSPC)
		(void)err_set(e, ERR_GENERIC, 0, "%s", strerror(r->error.os));
	else
		*e = r->error;
	end(b);
}

static void
on_start_failed(struct task *t)
{
	end(container_of(t, struct backup, start_failed));
}

static void
backup_start(struct job *j)
{
	struct backup *b = to_backup(j);
	struct stream_options o = {
		.loop = &j->d->loop,
		.reader = &b->view->reader,
		.size = b->source->size,
		.copy = b->view->reader.mask,
		.cluster = b->cluster,
		.follow = b->follow,
		.top = b->top,
		.compress = b->compress,
		.target = b->to.target,
		.discard = b->from.block,
		.at = b->to.at,
		.room = b->target->size,
		.speed = j->speed,
		.max_workers = b->max_workers,
		.max_chunk = b->max_chunk,
		.name = j->id,
		.opaque = b,
		.done = on_stream_done,
		.paused = on_stream_paused,
		.error = on_stream_error,
	};

	if (stream_start(&o, &b->stream, &b->end_error))
		return;
	b->stream = NULL;
	b->start_failed.fn = on_start_failed;
	loop_defer(&j->d->loop, &b->start_failed);
}

static void
set_patience(struct backup *b)
{
	uint64_t len;

	stream_progress(b->stream, &b->drained, &len);
	ev_timer_set(&b->patience, DRAIN_PATIENCE_S, 0.);
	ev_timer_start(b->job.d->loop.ev, &b->patience);
}

static void
on_patience(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct backup *b = container_of(w, struct backup, patience);
	uint64_t before = b->drained;

	(void)ev;
	(void)revents;
	set_patience(b);
	if (b->drained != before)
		return;
	log_warn("job '%s': the target is not brought up to date: it does not "
		 "answer",
		 b->job.id);
	ev_timer_stop(ev, w);
	stream_cancel(b->stream);
}

/* QEMU copies before a guest's write goes on, so what was overwritten before
 * a job with sync none is cancelled is at the target when the job is over.
 * Here guests did not wait, so the end does.
 */
static void
backup_cancel(struct job *j)
{
	struct backup *b = to_backup(j);

	if (!b->stream)
		return;
	if (!b->follow || b->draining) {
		stream_cancel(b->stream);
		return;
	}
	b->draining = true;
	stream_drain(b->stream);
	set_patience(b);
}

static void
backup_pause(struct job *j)
{
	struct backup *b = to_backup(j);

	if (b->stream)
		stream_pause(b->stream);
}

static void
backup_resume(struct job *j)
{
	struct backup *b = to_backup(j);

	if (b->stream)
		stream_resume(b->stream);
}

static void
backup_set_speed(struct job *j)
{
	struct backup *b = to_backup(j);

	if (b->stream)
		stream_set_speed(b->stream, j->speed);
}

static void
backup_progress(const struct job *j, uint64_t *offset, uint64_t *len)
{
	const struct backup *b = to_backup(j);

	*offset = b->offset;
	*len = b->len;
	if (b->stream && !j->ended)
		stream_progress(b->stream, offset, len);
}

/* --- the outcome --------------------------------------------------------------------- */

/* Mark in @to what the consumer of the view does not have. */
static void
mark_missing(const struct view_file *v, struct epoch *to)
{
	const struct dirty *copy = &v->reader.mask;
	uint64_t at = 0, start, end;

	while (dirty_next(copy, at, &start, &end)) {
		for (at = start; at < end;) {
			uint64_t from = view_next_not_done(v->states, at, end);

			at = view_next_done(v->states, from, end);
			epoch_set(to, from, at - from);
		}
		at = end;
	}
}

/* bitmap-mode "always", and the job failed: what was copied is not dirty any
 * more, the rest is.  Without memory for that the bitmap keeps everything.
 */
static void
keep_missing(struct backup *b)
{
	struct daemon *d = b->job.d;
	AUTO(epoch_file_unref)
	struct epoch_file *f =
		epoch_file_new(d->cfg.shm, graph_take_id(d->graph),
			       b->source->size, b->bitmap->granularity);
	struct err e = ERR_INIT;

	if (!b->stream || !epoch_file_make(f, &e)) {
		if (err_is_set(&e))
			log_warn("bitmap '%s' keeps what was copied as well: "
				 "%s",
				 b->bitmap->name, e.msg);
		return;
	}
	mark_missing(b->view, f->map);
	epoch_set_subtract(&b->bitmap->set, &b->taken);
	epoch_set_add(&b->bitmap->set, f);
}

static void
settle_bitmap(struct backup *b, bool success)
{
	bool drops = success && b->mode != BITMAP_SYNC_MODE_NEVER;
	bool keeps = !success && b->mode == BITMAP_SYNC_MODE_ALWAYS;

	if (drops)
		epoch_set_subtract(&b->bitmap->set, &b->taken);
	else if (keeps)
		keep_missing(b);
	bitmap_return(b->bitmap, drops || keeps);
	b->bitmap = NULL;
}

struct closing {
	struct plane_request r;
};

static void
on_view_closed(struct plane_request *r, const struct json *ret,
	       struct link_msg *msg, const struct err *e)
{
	(void)ret;
	(void)msg;
	if (e)
		log_warn("a snapshot was not detached: %s", e->msg);
	free(container_of(r, struct closing, r));
}

/* Nobody reads the view any more.  A broken view costs writers nothing, also
 * when the data plane cannot be told now.
 */
static void
close_view(struct backup *b)
{
	struct link_view_close_args arg = { .node = b->source->name,
					    .view = b->view->id };
	struct closing *c;
	struct json_out o;

	view_break(b->view->states, ECANCELED);
	if (b->source->in_plane && plane_is_up(b->job.d->plane)) {
		c = xzalloc(sizeof *c);
		c->r.done = on_view_closed;
		plane_begin(&o);
		link_put_view_close(&o, &arg);
		plane_ask(b->job.d->plane, &c->r, &o, NULL, 0);
	}
	view_file_detach(b->view);
}

static void
drop_filter(struct backup *b)
{
	if (b->filter)
		filter_free(b->job.d->graph, b->filter);
	b->filter = NULL;
}

static void
let_go(struct backup *b)
{
	if (b->target)
		b->target->target_of = NULL;
	if (b->source && b->discards)
		b->source->target_of = NULL;
}

static void
backup_settle(struct job *j, bool success)
{
	struct backup *b = to_backup(j);

	if (b->bitmap)
		settle_bitmap(b, success);
	drop_filter(b);
	close_view(b);
	let_go(b);
	if (b->drive)
		drive_target_free(steal(&b->drive));
	b->source = b->target = NULL;
}

static void
backup_free(struct job *j)
{
	struct backup *b = to_backup(j);

	if (b->bitmap)
		bitmap_return(b->bitmap, false);
	drop_filter(b);
	let_go(b);
	if (b->stream)
		stream_free(b->stream);
	backup_target_close(&b->to);
	backup_discard_close(&b->from);
	if (b->drive)
		drive_target_free(b->drive);
	loop_cancel(&j->d->loop, &b->start_failed);
	ev_timer_stop(j->d->loop.ev, &b->patience);
	epoch_set_clear(&b->taken);
	if (b->view)
		view_file_free(b->view);
	free(b);
}

static const struct job_ops backup_ops = {
	.type = JOB_TYPE_BACKUP,
	.blinks = true,
	.start = backup_start,
	.cancel = backup_cancel,
	.pause = backup_pause,
	.resume = backup_resume,
	.set_speed = backup_set_speed,
	.progress = backup_progress,
	.settle = backup_settle,
	.free = backup_free,
};

/* --- the action ------------------------------------------------------------------------------ */

struct backup_undo {
	struct undo_entry u;
	struct backup *b;
};

/* What we write there passes no gate: all of it counts as changed. */
static void
all_changes(const struct node *n)
{
	if (n->epoch)
		epoch_set(n->epoch->map, 0, n->size);
}

static void
undo_start(struct undo_entry *u)
{
	struct backup_undo *bu = container_of(u, struct backup_undo, u);

	all_changes(bu->b->target);
	if (bu->b->discards)
		all_changes(bu->b->source);
	if (bu->b->drive)
		drive_target_start(bu->b->drive);
	job_start(&bu->b->job);
	free(bu);
}

static void
undo_discard(struct undo_entry *u)
{
	struct backup_undo *bu = container_of(u, struct backup_undo, u);

	job_discard(&bu->b->job);
	free(bu);
}

/* Which epochs of the bitmap the job takes: all that are closed after the
 * cut.
 */
static bool
take_bitmap(struct transaction *t, struct backup *b, struct backup_plan *p,
	    struct err *e)
{
	struct node_cut *c = transaction_cut(t, p->source);
	struct graph *g = transaction_daemon(t)->graph;

	epoch_set_copy(&b->taken, &p->bitmap->set);
	epoch_set_remove(&b->taken, c->epoch);
	for (struct node *n = g->nodes; n; n = n->next)
		if (n != p->source && n->epoch &&
		    epoch_set_has(&b->taken, n->epoch))
			return err_set(e, ERR_GENERIC, 0,
				       "Bitmap '%s' was merged from node '%s' "
				       "in this transaction: back it up in "
				       "the next one",
				       p->bitmap->name, n->name);
	return true;
}

static void
limit_view(struct backup *b, const struct node *n)
{
	struct view_file *v = b->view;

	v->limited = true;
	epoch_set_copy(&v->closed, &b->taken);
	if (n->epoch && epoch_set_has(&b->taken, n->epoch)) {
		v->open = epoch_file_ref(n->epoch);
		epoch_set_remove(&v->closed, n->epoch);
	}
}

/* Default: the name of the device. */
static const char *
job_id(struct daemon *d, const struct backup_plan *p)
{
	const struct export *x = graph_device(d->graph, p->source);

	if (p->a->job_id)
		return p->a->job_id;
	return x ? x->options->id : "";
}

/* The target's blocks may make the cluster larger than was thought. */
static bool
make_target(struct transaction_file *f, struct err *e)
{
	struct backup *b = container_of(f, struct backup, to.file);

	if (b->drive) {
		if (!drive_target_open(b->drive, e))
			return false;
		backup_target_plan(&b->to, b->target);
	}
	if (!backup_target_open(&b->to, e) || !backup_discard_open(&b->from, e))
		return false;
	b->cluster = stream_cluster(b->to.target, b->cluster);
	b->view->unit = max_u64(b->view->unit, b->cluster);
	return true;
}

/* What the data plane does when a guest's write cannot be saved (in time). */
static void
limit_saves(struct view_file *v, const struct blockdev_backup *a)
{
	uint64_t ms = a->has_cbw_timeout ? a->cbw_timeout * UINT64_C(1000) : 0;

	v->break_guest_write =
		a->has_on_cbw_error &&
		a->on_cbw_error == ON_CBW_ERROR_BREAK_GUEST_WRITE;
	v->timeout_ms = (uint32_t)min_u64(ms, UINT32_MAX);
}

/* A new backup of a node is a drain of those that it has. */
static void
blink_others(const struct backup *b)
{
	struct job *j = jobs_first(b->job.d->jobs);

	for (; j; j = j->next)
		if (j->ops == &backup_ops && to_backup(j)->source == b->source)
			job_blink(j);
}

static void
use_bitmap(struct backup *b, struct bitmap *bm)
{
	b->bitmap = bm;
	bitmap_lend(bm, &b->job, &b->taken);
}

/* All of a dirty granule is copied, though its epochs may know better: a
 * finer bitmap of the node makes them finer.
 */
static uint64_t
copy_unit(const struct backup_plan *p)
{
	if (p->sync != MIRROR_SYNC_MODE_BITMAP)
		return p->cluster;
	return max_u64(p->cluster, p->bitmap->granularity);
}

bool
backup_create(struct transaction *t, struct backup_plan *p, struct err *e)
{
	const struct blockdev_backup *a = p->a;
	struct daemon *d = transaction_daemon(t);
	struct backup *b = xzalloc(sizeof *b);
	struct backup_undo *bu;

	if (!job_create(&b->job, d, job_id(d, p), &backup_ops,
			transaction_group(t), e)) {
		free(b);
		return false;
	}
	ev_timer_init(&b->patience, on_patience, 0., 0.);
	if (a->has_speed && a->speed < 0) {
		job_drop(&b->job);
		return err_set(e, ERR_GENERIC, 0,
			       "Parameter 'speed' expects a non-negative "
			       "value");
	}
	b->drive = steal(&p->drive);
	bu = xzalloc(sizeof *bu);
	bu->u.commit = undo_start;
	bu->u.abort = undo_discard;
	bu->b = b;
	undo_push(transaction_undo(t), &bu->u);
	b->job.auto_finalize = !a->has_auto_finalize || a->auto_finalize;
	b->job.auto_dismiss = !a->has_auto_dismiss || a->auto_dismiss;
	b->job.speed = (uint64_t)a->speed;
	b->on_source_error = a->has_on_source_error ? a->on_source_error
						    : BLOCKDEV_ON_ERROR_REPORT;
	b->on_target_error = a->has_on_target_error ? a->on_target_error
						    : BLOCKDEV_ON_ERROR_REPORT;
	b->cluster = p->cluster;
	b->mode = p->mode;
	b->follow = p->sync == MIRROR_SYNC_MODE_NONE;
	b->top = p->sync == MIRROR_SYNC_MODE_TOP;
	b->compress = a->compress;
	if (a->x_perf && a->x_perf->has_max_workers)
		b->max_workers = (unsigned)a->x_perf->max_workers;
	if (a->x_perf && a->x_perf->has_max_chunk)
		b->max_chunk = (uint64_t)a->x_perf->max_chunk;
	if (p->bitmap && !take_bitmap(t, b, p, e))
		return false;
	b->view = view_file_new(d, p->source, copy_unit(p));
	limit_saves(b->view, a);
	if (p->sync == MIRROR_SYNC_MODE_BITMAP)
		limit_view(b, p->source);
	b->source = p->source;
	b->target = p->target;
	b->target->target_of = &b->job;
	b->discards = a->discard_source;
	if (b->discards) {
		b->source->target_of = &b->job;
		backup_discard_plan(&b->from, b->source);
	}
	if (p->bitmap)
		use_bitmap(b, p->bitmap);
	blink_others(b);
	view_file_attach(b->view, p->source);
	b->filter = filter_new(d->graph, a->filter_node_name, &b->job, b->view,
			       p->cluster);
	transaction_add_view(t, p->source, b->view);
	if (!b->drive)
		backup_target_plan(&b->to, p->target);
	b->to.file.make = make_target;
	transaction_add_file(t, &b->to.file);
	return true;
}

bool
action_blockdev_backup(struct transaction *t, const struct blockdev_backup *a,
		       struct err *e)
{
	struct backup_plan p = { .a = a };

	return backup_plan_source(&p, transaction_daemon(t), e) &&
	       backup_plan_check(&p, transaction_daemon(t), e) &&
	       backup_create(t, &p, e);
}

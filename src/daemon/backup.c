/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The backup job while it runs: a stream from a view to a target.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/backup-priv.h"
#include "daemon/daemon.h"
#include "daemon/damage.h"
#include "daemon/pending.h"
#include "daemon/stored.h"

/* A target that acknowledges nothing for so long is not waited for any more
 * when a job with sync none is cancelled.
 */
#define DRAIN_PATIENCE_S 10.

static struct backup *
to_backup(const struct job *j)
{
	return container_of(j, struct backup, job);
}

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

bool
backup_new(struct daemon *d, const char *id, struct job_group *group,
	   struct backup **out, struct err *e)
{
	struct backup *b = xzalloc(sizeof *b);

	if (!job_create(&b->job, d, id, &backup_ops, group, e)) {
		free(b);
		return false;
	}
	ev_timer_init(&b->patience, on_patience, 0., 0.);
	*out = b;
	return true;
}

struct backup *
backup_of(struct job *j)
{
	return j->ops == &backup_ops ? to_backup(j) : NULL;
}

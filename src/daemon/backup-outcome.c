/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a backup leaves: its bitmap is promoted or keeps what the target does
 * not have, the view is closed, and the nodes are free for others.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "daemon/backup-priv.h"
#include "daemon/daemon.h"
#include "daemon/filters.h"
#include "daemon/plane.h"

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

void
backup_settle(struct job *j, bool success)
{
	struct backup *b = container_of(j, struct backup, job);

	if (b->bitmap)
		settle_bitmap(b, success);
	drop_filter(b);
	close_view(b);
	let_go(b);
	if (b->drive)
		drive_target_free(steal(&b->drive));
	b->source = b->target = NULL;
}

void
backup_free(struct job *j)
{
	struct backup *b = container_of(j, struct backup, job);

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

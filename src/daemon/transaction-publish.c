/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A transaction has cut: memory, readers and the registry follow.  Nothing of
 * it can be taken back any more, and what fails now is told to those whom it
 * concerns (rules 4 and 6).
 */
#include <errno.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/plane.h"
#include "daemon/registry.h"
#include "daemon/transaction-priv.h"

static void
set_epoch(struct node_cut *c)
{
	struct node *n = c->node;

	if (n->epoch)
		epoch_file_unref(n->epoch);
	n->epoch = node_records(n) ? epoch_file_ref(c->epoch) : NULL;
	/* what a job of ours writes passes no gate */
	if (n->epoch && n->target_of)
		epoch_set(n->epoch->map, 0, n->size);
}

static void
published(void *opaque, const struct err *e)
{
	struct transaction *t = opaque;

	/* The cut cannot be taken back.  An older registry over-reports. */
	if (e)
		log_error("%s", e->msg);
	PARK("transaction.published");
	registry_release(t->d->registry);
	undo_commit(&t->undo);
	transaction_finish(t, NULL);
}

/* Readers opened their images before the cut, and space that was given up by
 * then may be in use again.
 */
static void
refresh_run(struct work *w)
{
	struct transaction *t = container_of(w, struct transaction, work);

	PARK("transaction.refreshing");
	for (struct new_view *v = t->views; v; v = v->next) {
		int r = block_refresh(v->v->image);

		if (r)
			view_break(v->v->states, r);
	}
}

static void
refreshed(struct work *w)
{
	struct transaction *t = container_of(w, struct transaction, work);

	registry_publish(t->d->registry, published, t);
}

static void
refresh(struct transaction *t)
{
	t->work = (struct work){ .run = refresh_run, .done = refreshed };
	work_submit(t->d->work, &t->d->loop, &t->work);
}

/* Rule 6: not every server shows to one connection what another has written. */
struct flushing {
	struct plane_request r;
	struct transaction *t;
	struct view_file *v;
};

static void
on_flushed(struct plane_request *r, const struct json *ret,
	   struct link_msg *msg, const struct err *e)
{
	struct flushing *f = container_of(r, struct flushing, r);
	struct transaction *t = f->t;

	(void)ret;
	(void)msg;
	if (e) {
		log_error("%s", e->msg);
		view_break(f->v->states, EIO);
	}
	free(f);
	if (--t->asked == 0)
		refresh(t);
}

static void
ask_flush(struct transaction *t, struct view_file *v)
{
	struct link_node_flush_args arg = { .node = v->node->name };
	struct flushing *f = xzalloc(sizeof *f);
	struct json_out o;

	f->r.done = on_flushed;
	f->t = t;
	f->v = v;
	t->asked++;
	plane_begin(&o);
	link_put_node_flush(&o, &arg);
	plane_ask(t->d->plane, &f->r, &o, NULL, 0);
}

void
transaction_publish(struct transaction *t)
{
	for (struct node_cut *c = t->cuts; c; c = c->next)
		set_epoch(c);
	for (struct new_view *v = t->views; v; v = v->next)
		view_file_ready(v->v, steal(&v->block));
	for (struct new_view *v = t->views; v; v = v->next)
		if (!v->v->image->coherent && v->v->node->in_plane)
			ask_flush(t, v->v);
	if (!t->asked)
		refresh(t);
}

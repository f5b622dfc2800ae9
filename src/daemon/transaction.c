/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/transaction.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/images.h"
#include "daemon/merge.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/registry.h"

/* A view that begins at the cut, and how its reader opens the image. */
struct new_view {
	struct new_view *next;
	struct view_file *v; /* borrowed */
	struct link_image *image;
	struct link_msg fds;
	struct block *block; /* the reader's */
};

struct transaction {
	struct daemon *d;
	struct transaction_action_list actions; /* owned */
	bool grouped;
	struct job_group *group; /* of grouped jobs */
	struct undo undo;
	struct node_cut *cuts;
	struct new_view *views;
	struct transaction_file *files, **files_tail; /* borrowed */
	uint64_t cut_id;
	void (*done)(void *opaque, const struct err *e);
	void *opaque;
	struct task settled; /* the data plane is up, or will not be */
	struct work work;
	unsigned asked; /* answers of the data plane that are awaited */
	bool committing; /* the order to cut was given */
	struct err e;
};

/* --- for actions -------------------------------------------------------------- */

struct daemon *
transaction_daemon(struct transaction *t)
{
	return t->d;
}

struct undo *
transaction_undo(struct transaction *t)
{
	return &t->undo;
}

struct saved_bitmap {
	struct undo_entry u;
	struct bitmap *b;
	struct epoch_set set;
	bool enabled;
};

static void
bitmap_commit(struct undo_entry *u)
{
	struct saved_bitmap *s = container_of(u, struct saved_bitmap, u);

	epoch_set_clear(&s->set);
	free(s);
}

static void
bitmap_abort(struct undo_entry *u)
{
	struct saved_bitmap *s = container_of(u, struct saved_bitmap, u);

	epoch_set_swap(&s->b->set, &s->set);
	s->b->enabled = s->enabled;
	epoch_set_clear(&s->set);
	free(s);
}

void
transaction_save_bitmap(struct transaction *t, struct bitmap *b)
{
	struct saved_bitmap *s = xzalloc(sizeof *s);

	s->u.commit = bitmap_commit;
	s->u.abort = bitmap_abort;
	s->b = b;
	s->enabled = b->enabled;
	epoch_set_copy(&s->set, &b->set);
	undo_push(&t->undo, &s->u);
}

struct node_cut *
transaction_cut(struct transaction *t, struct node *n)
{
	struct node_cut *c = t->cuts;

	while (c && c->node != n)
		c = c->next;
	if (c)
		return c;
	c = xzalloc(sizeof *c);
	c->node = n;
	c->epoch = epoch_file_new(t->d->cfg.shm, graph_take_id(t->d->graph),
				  n->size, EPOCH_MAX_GRANULARITY);
	c->next = t->cuts;
	t->cuts = c;
	for (struct bitmap *b = n->bitmaps; b; b = b->next) {
		if (!b->enabled)
			continue;
		transaction_save_bitmap(t, b);
		epoch_set_add(&b->set, c->epoch);
	}
	return c;
}

void
transaction_add_view(struct transaction *t, struct node *n, struct view_file *v)
{
	struct node_cut *c = transaction_cut(t, n);
	struct new_view *nv = xzalloc(sizeof *nv);

	c->views = xrealloc(c->views, c->n_views + 1, sizeof c->views[0]);
	c->views[c->n_views++] = v;
	nv->v = v;
	nv->image = image_reader_plan(n, &nv->fds);
	nv->next = t->views;
	t->views = nv;
}

void
transaction_add_file(struct transaction *t, struct transaction_file *f)
{
	f->next = NULL;
	*t->files_tail = f;
	t->files_tail = &f->next;
}

struct job_group *
transaction_group(struct transaction *t)
{
	return t->group;
}

/* --- the end ------------------------------------------------------------------- */

static void
free_views(struct transaction *t)
{
	struct new_view *v;

	while ((v = t->views)) {
		t->views = v->next;
		link_image_free(v->image);
		link_msg_clear(&v->fds);
		if (v->block)
			block_free(v->block);
		free(v);
	}
}

static void
finish(struct transaction *t, const struct err *e)
{
	struct node_cut *c;

	if (t->group)
		job_group_seal(t->group);
	while ((c = t->cuts)) {
		t->cuts = c->next;
		epoch_file_unref(c->epoch);
		free(c->views);
		free(c);
	}
	free_views(t);
	transaction_action_list_clear(&t->actions);
	merge_look(t->d->merge);
	pending_end(t->d);
	t->done(t->opaque, e);
	free(t);
}

static void
fail(struct transaction *t)
{
	struct err e = t->e;

	undo_abort(&t->undo);
	registry_release(t->d->registry);
	finish(t, &e);
}

/* Rule 5: writes may have been recorded in the new epoch. */
static void
assume_cut(struct transaction *t)
{
	for (struct node_cut *c = t->cuts; c; c = c->next)
		for (struct bitmap *b = c->node->bitmaps; b; b = b->next)
			if (b->enabled && c->epoch->map)
				epoch_set_add(&b->set, c->epoch);
}

static void
assumption_saved(void *opaque, const struct err *e)
{
	struct transaction *t = opaque;
	struct err why = t->e;

	if (e)
		log_error("%s", e->msg);
	finish(t, &why);
}

/* The order to cut got no answer, or a refusal. */
static void
not_committed(struct transaction *t)
{
	if (plane_is_up(t->d->plane)) {
		fail(t);
		return;
	}
	undo_abort(&t->undo);
	assume_cut(t);
	registry_release(t->d->registry);
	registry_save(t->d->registry, assumption_saved, t);
}

/* --- step 4: publish -------------------------------------------------------------- */

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
	finish(t, NULL);
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

static void
cut_done(struct transaction *t)
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

/* --- step 3: the data plane ---------------------------------------------------------- */

struct asked {
	struct plane_request r;
	struct transaction *t;
};

static struct asked *
ask_new(struct transaction *t,
	void (*done)(struct plane_request *, const struct json *,
		     struct link_msg *, const struct err *))
{
	struct asked *a = xzalloc(sizeof *a);

	a->r.done = done;
	a->t = t;
	t->asked++;
	return a;
}

static struct transaction *
answered(struct plane_request *r, const struct err *e)
{
	struct asked *a = container_of(r, struct asked, r);
	struct transaction *t = a->t;

	free(a);
	t->asked--;
	if (e && !err_is_set(&t->e))
		(void)err_move(&t->e, e);
	return t;
}

static void
on_aborted(struct plane_request *r, const struct json *ret,
	   struct link_msg *msg, const struct err *e)
{
	struct transaction *t = answered(r, NULL);

	(void)ret;
	(void)msg;
	(void)e;
	fail(t);
}

static void
on_committed(struct plane_request *r, const struct json *ret,
	     struct link_msg *msg, const struct err *e)
{
	struct transaction *t = answered(r, e);
	struct link_cut_result *result;
	struct err ignore = ERR_INIT;

	(void)msg;
	if (e) {
		not_committed(t);
		return;
	}
	PARK("transaction.cut");
	if (link_got_cut_commit(ret, &result, &ignore)) {
		log_debug("cut: gates were closed for %.3f ms",
			  (double)result->closed_ns / 1e6);
		link_cut_result_free(result);
	}
	cut_done(t);
}

static void
ask_commit(struct transaction *t)
{
	struct link_cut_commit_args arg = { .cut = t->cut_id,
					    .timeout_ms = PLANE_GATES_MS };
	struct json_out o;

	plane_begin(&o);
	link_put_cut_commit(&o, &arg);
	plane_ask(t->d->plane, &ask_new(t, on_committed)->r, &o, NULL, 0);
}

static void
ask_abort(struct transaction *t)
{
	struct link_cut_abort_args arg = { .cut = t->cut_id };
	struct json_out o;

	plane_begin(&o);
	link_put_cut_abort(&o, &arg);
	plane_ask(t->d->plane, &ask_new(t, on_aborted)->r, &o, NULL, 0);
}

static void
on_prepared(struct plane_request *r, const struct json *ret,
	    struct link_msg *msg, const struct err *e)
{
	struct transaction *t = answered(r, e);

	(void)ret;
	(void)msg;
	if (t->asked)
		return;
	if (err_is_set(&t->e))
		ask_abort(t);
	else
		ask_commit(t);
}

static bool
ask_prepare(struct transaction *t, struct node_cut *c)
{
	struct link_cut_prepare_args arg = { .cut = t->cut_id,
					     .node = c->node->name };
	struct link_epoch epoch = { .id = c->epoch->id };
	struct link_view_list views = { 0 };
	int fds[LINK_MAX_FDS];
	unsigned n = 0;
	struct json_out o;

	if (4 * c->n_views + 1 > LINK_MAX_FDS)
		return err_set(&t->e, ERR_GENERIC, 0,
			       "more than %d backups of node '%s' at once",
			       (LINK_MAX_FDS - 1) / 4, c->node->name);
	if (node_records(c->node)) {
		epoch.fd = n;
		fds[n++] = epoch_fd(c->epoch->map);
		arg.epoch = &epoch;
	} else {
		arg.stop = c->node->epoch != NULL;
	}
	for (size_t i = 0; i < c->n_views; i++)
		view_file_describe(c->views[i], true, &views, fds, &n);
	arg.views = views;
	plane_begin(&o);
	link_put_cut_prepare(&o, &arg);
	link_view_list_clear(&views);
	plane_ask(t->d->plane, &ask_new(t, on_prepared)->r, &o, fds, n);
	return true;
}

/* A node without an export is nobody's to write to: its part takes effect by
 * itself.  One with an export that the data plane does not have (any more, or
 * yet) cannot be cut: it may be on its way there with its old epoch.
 */
static bool
ask_node(struct transaction *t, struct node_cut *c)
{
	if (c->node->exports == 0)
		return true;
	if (!c->node->in_plane || !plane_is_up(t->d->plane))
		return err_set(&t->e, ERR_GENERIC, 0,
			       "the data plane (nbdkit) does not run");
	return ask_prepare(t, c);
}

static void
ask_plane(struct transaction *t)
{
	for (struct node_cut *c = t->cuts; c; c = c->next)
		if (!ask_node(t, c))
			break;
	if (t->asked)
		return;
	if (err_is_set(&t->e))
		fail(t);
	else
		cut_done(t);
}

/* --- step 2: files --------------------------------------------------------------------- */

static bool
make_files(struct transaction *t)
{
	PARK("transaction.making");
	for (struct node_cut *c = t->cuts; c; c = c->next)
		if (node_records(c->node) && !epoch_file_make(c->epoch, &t->e))
			return false;
	for (struct transaction_file *f = t->files; f; f = f->next)
		if (!f->make(f, &t->e))
			return false;
	for (struct new_view *v = t->views; v; v = v->next)
		if (!view_file_make(v->v, &t->e) ||
		    !image_reader_open(v->image, &v->fds, &v->block, &t->e))
			return false;
	return true;
}

static void
make_run(struct work *w)
{
	(void)make_files(container_of(w, struct transaction, work));
}

static void
staged(void *opaque, const struct err *e)
{
	struct transaction *t = opaque;

	if (e) {
		(void)err_move(&t->e, e);
		fail(t);
		return;
	}
	PARK("transaction.staged");
	ask_plane(t);
}

static void
made(struct work *w)
{
	struct transaction *t = container_of(w, struct transaction, work);

	if (err_is_set(&t->e)) {
		fail(t);
		return;
	}
	PARK("transaction.made");
	registry_stage(t->d->registry, staged, t);
}

static void
plan_files(struct transaction *t)
{
	for (struct node_cut *c = t->cuts; c; c = c->next)
		c->epoch->granularity = node_granularity(c->node);
	for (struct new_view *v = t->views; v; v = v->next)
		view_file_plan(v->v, t->d);
	t->cut_id = graph_take_id(t->d->graph);
	t->work = (struct work){ .run = make_run, .done = made };
	work_submit(t->d->work, &t->d->loop, &t->work);
}

/* --- step 1: actions ----------------------------------------------------------------------- */

static bool
prepare(struct transaction *t, const struct transaction_action *a)
{
	struct err *e = &t->e;

	switch (a->type) {
	case TRANSACTION_ACTION_KIND_ABORT:
		return err_set(e, ERR_GENERIC, 0,
			       "Transaction aborted using Abort action");
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ADD:
		return action_bitmap_add(t, a->u.block_dirty_bitmap_add->data,
					 e);
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_REMOVE:
		return action_bitmap_remove(
			t, a->u.block_dirty_bitmap_remove->data, e);
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_CLEAR:
		return action_bitmap_clear(
			t, a->u.block_dirty_bitmap_clear->data, e);
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ENABLE:
		return action_bitmap_enable(
			t, a->u.block_dirty_bitmap_enable->data, e);
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_DISABLE:
		return action_bitmap_disable(
			t, a->u.block_dirty_bitmap_disable->data, e);
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_MERGE:
		return action_bitmap_merge(
			t, a->u.block_dirty_bitmap_merge->data, e);
	case TRANSACTION_ACTION_KIND_BLOCKDEV_BACKUP:
		return action_blockdev_backup(t, a->u.blockdev_backup->data, e);
	case TRANSACTION_ACTION_KIND_DRIVE_BACKUP:
		return action_drive_backup(t, a->u.drive_backup->data, e);
	case TRANSACTION_ACTION_KIND_N: break;
	}
	return err_set(e, ERR_GENERIC, 0, "unknown action");
}

/* Before anything is prepared: only actions that start jobs can be grouped. */
static bool
check_grouped(struct transaction *t)
{
	for (size_t i = 0; t->grouped && i < t->actions.n; i++) {
		enum transaction_action_kind k = t->actions.v[i]->type;

		if (k != TRANSACTION_ACTION_KIND_BLOCKDEV_BACKUP &&
		    k != TRANSACTION_ACTION_KIND_DRIVE_BACKUP)
			return err_set(
				&t->e, ERR_GENERIC, 0,
				"Action '%s' does not support transaction "
				"property completion-mode = grouped",
				transaction_action_kind_str(k));
	}
	return true;
}

static void
begin(struct task *task)
{
	struct transaction *t = container_of(task, struct transaction, settled);

	registry_hold(t->d->registry);
	if (!check_grouped(t)) {
		fail(t);
		return;
	}
	if (t->grouped)
		t->group = job_group_new(t->d);
	for (size_t i = 0; i < t->actions.n; i++)
		if (!prepare(t, t->actions.v[i])) {
			fail(t);
			return;
		}
	if (!t->cuts) { /* nothing to do */
		undo_commit(&t->undo);
		registry_release(t->d->registry);
		finish(t, NULL);
		return;
	}
	plan_files(t);
}

void
transaction_run(struct daemon *d, struct transaction_action_list *actions,
		bool grouped, void (*done)(void *opaque, const struct err *e),
		void *opaque)
{
	struct transaction *t = xzalloc(sizeof *t);

	t->d = d;
	t->actions = *actions;
	*actions = (struct transaction_action_list){ 0 };
	t->grouped = grouped;
	t->done = done;
	t->opaque = opaque;
	t->files_tail = &t->files;
	t->settled.fn = begin;
	pending_begin(d);
	plane_when_settled(d->plane, &t->settled);
}

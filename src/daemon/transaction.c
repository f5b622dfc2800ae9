/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A transaction's steps 1 and 2, and how it ends.
 */
#include <stdlib.h>

#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/images.h"
#include "daemon/merge.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/registry.h"
#include "daemon/transaction-priv.h"

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

void
transaction_finish(struct transaction *t, const struct err *e)
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

void
transaction_fail(struct transaction *t)
{
	struct err e = t->e;

	undo_abort(&t->undo);
	registry_release(t->d->registry);
	transaction_finish(t, &e);
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
		transaction_fail(t);
		return;
	}
	PARK("transaction.staged");
	transaction_ask_plane(t);
}

static void
made(struct work *w)
{
	struct transaction *t = container_of(w, struct transaction, work);

	if (err_is_set(&t->e)) {
		transaction_fail(t);
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
		transaction_fail(t);
		return;
	}
	if (t->grouped)
		t->group = job_group_new(t->d);
	for (size_t i = 0; i < t->actions.n; i++)
		if (!prepare(t, t->actions.v[i])) {
			transaction_fail(t);
			return;
		}
	if (!t->cuts) { /* nothing to do */
		undo_commit(&t->undo);
		registry_release(t->d->registry);
		transaction_finish(t, NULL);
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

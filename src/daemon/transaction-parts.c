/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an action adds to its transaction while it is prepared: parts of the
 * cut, views, files, and what an abort brings back.
 */
#include <stdlib.h>

#include "daemon/daemon.h"
#include "daemon/images.h"
#include "daemon/transaction-priv.h"

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

struct job_group *
transaction_group(struct transaction *t)
{
	return t->group;
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

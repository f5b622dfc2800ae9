/* SPDX-License-Identifier: BSD-3-Clause */
#include "table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/throttle.h"

void
table_init(struct table *t)
{
	mtx_init(&t->lock, LOCK_DEVICES);
	cond_init(&t->changed);
}

struct node *
table_node(struct table *t, const char *name)
{
	struct node *n = t->nodes;

	while (n && strcmp(n->name, name) != 0)
		n = n->next;
	return n;
}

bool
table_find_node(struct table *t, const char *name, struct node **out,
		struct err *e)
{
	*out = table_node(t, name);
	return (*out && !(*out)->closing) ||
	       err_set(e, ERR_GENERIC, 0, "the data plane has no node '%s'",
		       name);
}

void
table_add_node(struct table *t, struct node *n)
{
	n->next = t->nodes;
	t->nodes = n;
}

void
table_remove_node(struct table *t, struct node *n)
{
	struct node **p = &t->nodes;

	while (*p != n)
		p = &(*p)->next;
	*p = n->next;
}

struct export *
table_export(struct table *t, const char *name)
{
	struct export *x = t->exports;

	while (x && strcmp(x->name, name) != 0)
		x = x->next;
	return x;
}

static struct export *
export_new(const char *name, const char *description)
{
	struct export *x = aligned_alloc(_Alignof(struct export), sizeof *x);

	if (!x)
		return NULL;
	memset(x, 0, sizeof *x);
	x->name = strdup(name);
	x->description = description ? strdup(description) : NULL;
	if (!x->name || (description && !x->description)) {
		free(x->name);
		free(x);
		return NULL;
	}
	gate_init(&x->users);
	atomic_init(&x->refs, 1);
	return x;
}

void
export_unref(struct export *x)
{
	if (atomic_fetch_sub(&x->refs, 1) != 1)
		return;
	gate_destroy(&x->users);
	free(x->name);
	free(x->description);
	free(x);
}

bool
table_add_export(struct table *t, const char *name, const char *description,
		 struct node *n, unsigned flags, struct err *e)
{
	struct export *x;

	if (table_export(t, name))
		return err_set(e, ERR_GENERIC, 0,
			       "there is an export named '%s' already", name);
	x = export_new(name, description);
	if (!x)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot export '%s'",
			       name);
	x->node = n;
	x->writable = flags & EXPORT_WRITABLE;
	x->writethrough = flags & EXPORT_WRITETHROUGH;
	n->exports++;
	mtx_lock(&t->lock);
	x->next = t->exports;
	t->exports = x;
	(void)pthread_cond_broadcast(&t->changed);
	mtx_unlock(&t->lock);
	return true;
}

unsigned
export_connections(const struct export *x)
{
	return atomic_load(&x->refs) - 1;
}

bool
table_remove_export(struct table *t, struct export *x, unsigned ms)
{
	struct export **p = &t->exports;
	bool empty;

	gate_close(&x->users);
	block_admit_all(x->node->image, true);
	empty = gate_wait_empty(&x->users, ms);
	block_admit_all(x->node->image, false);
	if (!empty) {
		gate_open(&x->users);
		return false;
	}
	x->node->exports--;
	x->node = NULL;
	gate_open(&x->users);
	mtx_lock(&t->lock);
	while (*p != x)
		p = &(*p)->next;
	*p = x->next;
	mtx_unlock(&t->lock);
	export_unref(x);
	return true;
}

struct export *
table_connect(struct table *t, const char *name)
{
	bool in_time = true;
	struct export *x;

	mtx_lock(&t->lock);
	while (!(x = table_export(t, name)) && !t->complete && in_time)
		in_time = mtx_wait_ms(&t->lock, &t->changed, TABLE_WAIT_MS);
	if (x)
		atomic_fetch_add(&x->refs, 1);
	mtx_unlock(&t->lock);
	return x;
}

void
table_wait_complete(struct table *t)
{
	bool in_time = true;

	mtx_lock(&t->lock);
	while (!t->complete && in_time)
		in_time = mtx_wait_ms(&t->lock, &t->changed, TABLE_WAIT_MS);
	mtx_unlock(&t->lock);
}

void
table_complete(struct table *t)
{
	mtx_lock(&t->lock);
	t->complete = true;
	(void)pthread_cond_broadcast(&t->changed);
	mtx_unlock(&t->lock);
}

bool
table_each_export(struct table *t,
		  bool (*each)(const struct export *x, void *opaque),
		  void *opaque)
{
	bool ok = true;

	mtx_lock(&t->lock);
	for (struct export *x = t->exports; x && ok; x = x->next)
		ok = each(x, opaque);
	mtx_unlock(&t->lock);
	return ok;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/merge.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/graph.h"
#include "daemon/pending.h"
#include "daemon/registry.h"

struct merge {
	struct daemon *d; /* borrowed */
	struct task look;
	bool busy; /* one is being made */
	bool again; /* look again after that */
	struct epoch_file *part[MERGE_MAX]; /* references */
	size_t n;
	struct epoch_file *whole; /* a reference */
	struct work work;
	struct err e;
};

/* --- who uses an epoch ------------------------------------------------------------ */

static struct bitmap *
next_bitmap(const struct graph *g, const struct bitmap *b)
{
	struct node *n = b ? b->node->next : g->nodes;

	if (b && b->next)
		return b->next;
	while (n && !n->bitmaps)
		n = n->next;
	return n ? n->bitmaps : NULL;
}

/* Rule 1: do bitmaps hold all of its references, but @others? */
static bool
is_free(const struct graph *g, const struct epoch_file *f, unsigned others)
{
	unsigned users = 0;

	for (struct bitmap *b = next_bitmap(g, NULL); b; b = next_bitmap(g, b))
		users += epoch_set_has(&b->set, f);
	/* The map comes last: while a transaction makes the file in a worker,
	 * its reference is one more.
	 */
	return users && f->refs == users + others && f->map;
}

static bool
same_users(const struct graph *g, const struct epoch_file *a,
	   const struct epoch_file *b)
{
	for (struct bitmap *u = next_bitmap(g, NULL); u; u = next_bitmap(g, u))
		if (epoch_set_has(&u->set, a) != epoch_set_has(&u->set, b))
			return false;
	return a->size == b->size;
}

/* Collect the epochs from @from on that have the users of that one. */
static void
collect(struct merge *m, const struct epoch_set *s, size_t from)
{
	const struct graph *g = m->d->graph;

	m->n = 0;
	for (size_t i = from; i < s->n && m->n < MERGE_MAX; i++)
		if (is_free(g, s->v[i], 0) &&
		    (m->n == 0 || same_users(g, m->part[0], s->v[i])))
			m->part[m->n++] = s->v[i];
}

static bool
find(struct merge *m)
{
	const struct graph *g = m->d->graph;

	for (struct bitmap *b = next_bitmap(g, NULL); b; b = next_bitmap(g, b))
		for (size_t i = 0; i + MERGE_MIN <= b->set.n; i++) {
			collect(m, &b->set, i);
			if (m->n >= MERGE_MIN)
				return true;
		}
	m->n = 0;
	return false;
}

/* --- the union (worker) ------------------------------------------------------------ */

static uint64_t
count(struct epoch *const *v, size_t n, const struct epoch_file *whole)
{
	struct dirty d = {
		.v = v, .n = n, .size = whole->size, .unit = whole->granularity
	};

	return dirty_count(&d);
}

static void
run(struct work *w)
{
	struct merge *m = container_of(w, struct merge, work);
	struct epoch *parts[MERGE_MAX];

	if (!epoch_file_make(m->whole, &m->e))
		return;
	PARK("merge.making");
	for (size_t i = 0; i < m->n; i++) {
		parts[i] = m->part[i]->map;
		epoch_merge(m->whole->map, parts[i]);
	}
	if (count(&m->whole->map, 1, m->whole) !=
	    count(parts, m->n, m->whole)) /* rule 2 */
		(void)err_set(&m->e, ERR_GENERIC, 0,
			      "no memory for the union of epochs");
	PARK("merge.made");
}

/* --- the sets (loop) ------------------------------------------------------------------ */

/* Rule 4: has nobody else begun to use, or stopped using, one of them? */
static bool
unchanged(const struct merge *m)
{
	const struct graph *g = m->d->graph;

	for (size_t i = 0; i < m->n; i++)
		if (!is_free(g, m->part[i], 1) ||
		    !same_users(g, m->part[0], m->part[i]))
			return false;
	return true;
}

static void
replace(struct merge *m)
{
	const struct graph *g = m->d->graph;

	for (struct bitmap *b = next_bitmap(g, NULL); b;
	     b = next_bitmap(g, b)) {
		if (!epoch_set_has(&b->set, m->part[0]))
			continue;
		epoch_set_add(&b->set, m->whole);
		for (size_t i = 0; i < m->n; i++)
			epoch_set_remove(&b->set, m->part[i]);
	}
}

static void
drop(struct merge *m)
{
	while (m->n)
		epoch_file_unref(m->part[--m->n]);
	epoch_file_unref(steal(&m->whole));
}

static void
on_saved(void *opaque, const struct err *e)
{
	struct merge *m = opaque;

	if (e) /* the files of the parts stay until a save succeeds */
		log_warn("merged epochs were not saved: %s", e->msg);
	PARK("merge.saved");
	m->busy = false;
	if (m->again)
		merge_look(m);
	pending_end(m->d);
}

static void
made(struct work *w)
{
	struct merge *m = container_of(w, struct merge, work);
	bool replaced = !err_is_set(&m->e) && unchanged(m);

	if (err_is_set(&m->e))
		log_debug("%s", m->e.msg);
	err_clear(&m->e);
	if (!replaced) { /* whoever uses them now looks again at his end */
		drop(m);
		m->busy = false;
		if (m->again)
			merge_look(m);
		pending_end(m->d);
		return;
	}
	log_debug("epoch %" PRIu64 " is the union of %zu", m->whole->id, m->n);
	replace(m);
	drop(m);
	m->again = true;
	PARK("merge.replaced");
	registry_save(m->d->registry, on_saved, m);
}

static void
begin(struct merge *m)
{
	uint64_t finest = m->part[0]->granularity;

	for (size_t i = 0; i < m->n; i++) {
		finest = min_u64(finest, m->part[i]->granularity);
		(void)epoch_file_ref(m->part[i]);
	}
	m->whole = epoch_file_new(m->d->cfg.shm, graph_take_id(m->d->graph),
				  m->part[0]->size, finest);
	m->busy = true;
	m->work = (struct work){ .run = run, .done = made };
	pending_begin(m->d);
	work_submit(m->d->work, &m->d->loop, &m->work);
}

static void
on_look(struct task *t)
{
	struct merge *m = container_of(t, struct merge, look);

	m->again = false;
	if (!m->d->ending && find(m))
		begin(m);
}

void
merge_look(struct merge *m)
{
	if (m->busy) {
		m->again = true;
		return;
	}
	if (m->look.queued)
		return;
	m->look.fn = on_look;
	loop_defer(&m->d->loop, &m->look);
}

struct merge *
merge_new(struct daemon *d)
{
	struct merge *m = xzalloc(sizeof *m);

	m->d = d;
	return m;
}

void
merge_free(struct merge *m)
{
	loop_cancel(&m->d->loop, &m->look);
	free(m);
}

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

/* Rule 1: do bitmaps, @users of them, hold all of its references, but @others?
 * The map comes last: while a transaction makes the file in a worker, its
 * reference is one more.
 */
static bool
is_free(const struct epoch_file *f, unsigned users, unsigned others)
{
	return users && f->refs == users + others && f->map;
}

static unsigned
users_of(const struct graph *g, const struct epoch_file *f)
{
	unsigned users = 0;

	for (struct bitmap *b = next_bitmap(g, NULL); b; b = next_bitmap(g, b))
		users += epoch_set_has(&b->set, f);
	return users;
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

/* --- which of them have the same users ---------------------------------------------- */

/* Bitmaps times epochs may be a million: count and compare each once. */
static size_t
count_users(const struct graph *g)
{
	uint64_t number = 0;
	size_t n = 0;

	for (struct bitmap *b = next_bitmap(g, NULL); b; b = next_bitmap(g, b))
		for (size_t i = 0; i < b->set.n; i++)
			b->set.v[i]->users = (struct epoch_users){ 0 };
	for (struct bitmap *b = next_bitmap(g, NULL); b;
	     b = next_bitmap(g, b)) {
		number++;
		for (size_t i = 0; i < b->set.n; i++) {
			struct epoch_users *u = &b->set.v[i]->users;

			n += u->n == 0;
			u->n++;
			u->who = (u->who ^ number) *
				 UINT64_C(0x9e3779b97f4a7c15);
			u->who ^= u->who >> 32;
		}
	}
	return n;
}

/* Each that may be merged, once.  There is room for all. */
static size_t
list_free(const struct graph *g, struct epoch_file **v)
{
	size_t n = 0;

	for (struct bitmap *b = next_bitmap(g, NULL); b; b = next_bitmap(g, b))
		for (size_t i = 0; i < b->set.n; i++) {
			struct epoch_file *f = b->set.v[i];

			if (is_free(f, f->users.n, 0))
				v[n++] = f;
			f->users.n = 0; /* seen */
		}
	return n;
}

static int
compare(const void *x, const void *y)
{
	const struct epoch_file *a = *(struct epoch_file *const *)x;
	const struct epoch_file *b = *(struct epoch_file *const *)y;

	if (a->users.who != b->users.who)
		return a->users.who < b->users.who ? -1 : 1;
	return (a->id > b->id) - (a->id < b->id);
}

/* Those of @v[0..n) that begin the list and have the users of the first. */
static bool
collect(struct merge *m, struct epoch_file *const *v, size_t n)
{
	m->n = 0;
	for (size_t i = 0;
	     i < n && m->n < MERGE_MAX && v[i]->users.who == v[0]->users.who;
	     i++)
		if (same_users(m->d->graph, v[0], v[i]))
			m->part[m->n++] = v[i];
	return m->n >= MERGE_MIN;
}

static bool
find(struct merge *m)
{
	const struct graph *g = m->d->graph;
	AUTO(free)
	struct epoch_file **v = xcalloc(count_users(g), sizeof v[0]);
	size_t n = list_free(g, v);
	bool found = false;

	if (n)
		qsort((void *)v, n, sizeof v[0], compare);
	for (size_t i = 0; i + MERGE_MIN <= n && !found; i++)
		found = v[i]->users.who == v[i + MERGE_MIN - 1]->users.who &&
			collect(m, v + i, n - i);
	if (!found)
		m->n = 0;
	return found;
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
		if (!is_free(m->part[i], users_of(g, m->part[i]), 1) ||
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

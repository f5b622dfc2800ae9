/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bitmap actions of transactions (graph.h has the rules of their sets).
 * The epoch that the cut opens is named by sets that go on recording, and by
 * no other.
 */
#include "daemon/bitmap-actions.h"

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "daemon/daemon.h"
#include "daemon/stored.h"
#include "daemon/transaction.h"

#define NAME_MAX_BYTES      1023
#define DEFAULT_GRANULARITY (64 * KiB)

struct bitmap *
bitmap_lookup(struct graph *g, const char *node, const char *name,
	      struct err *e)
{
	struct node *n = graph_device_or_node(g, node);
	struct bitmap *b = NULL;

	if (!n)
		(void)err_set(e, ERR_GENERIC, 0, "Node '%s' not found", node);
	else if (!name[0])
		(void)err_set(e, ERR_GENERIC, 0, "Bitmap name cannot be empty");
	else if (!(b = node_bitmap(n, name)))
		(void)err_set(e, ERR_GENERIC, 0, "Dirty bitmap '%s' not found",
			      name);
	return b;
}

static struct bitmap *
find_bitmap(struct transaction *t, const char *node, const char *name,
	    struct err *e)
{
	return bitmap_lookup(transaction_daemon(t)->graph, node, name, e);
}

/* --- add ----------------------------------------------------------------------- */

struct added_bitmap {
	struct undo_entry u;
	struct bitmap *b;
};

static void
add_abort(struct undo_entry *u)
{
	struct added_bitmap *a = container_of(u, struct added_bitmap, u);

	bitmap_free(a->b);
	free(a);
}

/* QEMU's: the node's cluster, within limits. */
static uint64_t
default_granularity(const struct node *n)
{
	if (!n->cluster)
		return DEFAULT_GRANULARITY;
	return min_u64(max_u64(n->cluster, 4096), DEFAULT_GRANULARITY);
}

static bool
add_check(struct node *n, const struct block_dirty_bitmap_add *a,
	  uint64_t granularity, struct err *e)
{
	if (!is_pow2(granularity) || granularity < EPOCH_MIN_GRANULARITY)
		return err_set(e, ERR_GENERIC, 0,
			       "Granularity must be power of 2 and at least "
			       "512");
	if (a->persistent && !stored_check(n, a->name, granularity, e))
		return false;
	if (node_bitmap(n, a->name))
		return err_set(e, ERR_GENERIC, 0, "Bitmap already exists: %s",
			       a->name);
	if (strlen(a->name) > NAME_MAX_BYTES)
		return err_set(e, ERR_GENERIC, 0, "Bitmap name too long: %s",
			       a->name);
	if (n->parents)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is part of another node: a bitmap "
			       "belongs on that one",
			       n->name);
	return true;
}

bool
action_bitmap_add(struct transaction *t, const struct block_dirty_bitmap_add *a,
		  struct err *e)
{
	struct daemon *d = transaction_daemon(t);
	struct node *n = graph_device_or_node(d->graph, a->node);
	struct added_bitmap *added;
	struct node_cut *c;
	struct bitmap *b;
	uint64_t granularity;

	if (!a->name[0])
		return err_set(e, ERR_GENERIC, 0,
			       "Bitmap name cannot be empty");
	if (!n)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot find device='%s' nor node-name='%s'",
			       a->node, a->node);
	granularity =
		a->has_granularity ? a->granularity : default_granularity(n);
	if (!add_check(n, a, granularity, e) ||
	    !graph_check_bitmaps(d->graph, e))
		return false;
	c = transaction_cut(t, n);
	b = bitmap_new(n, a->name, granularity, a->persistent);
	added = xzalloc(sizeof *added);
	added->u.abort = add_abort;
	added->b = b;
	undo_push(transaction_undo(t), &added->u);
	b->enabled = !a->disabled;
	if (b->enabled)
		epoch_set_add(&b->set, c->epoch);
	return true;
}

/* --- remove ---------------------------------------------------------------------- */

struct removed_bitmap {
	struct undo_entry u;
	struct bitmap *b;
};

static void
remove_commit(struct undo_entry *u)
{
	struct removed_bitmap *r = container_of(u, struct removed_bitmap, u);

	bitmap_free(r->b);
	free(r);
}

static void
remove_abort(struct undo_entry *u)
{
	struct removed_bitmap *r = container_of(u, struct removed_bitmap, u);

	r->b->removing = false;
	free(r);
}

bool
action_bitmap_remove(struct transaction *t, const struct block_dirty_bitmap *a,
		     struct err *e)
{
	struct bitmap *b = find_bitmap(t, a->node, a->name, e);
	struct removed_bitmap *r;

	if (!b || !bitmap_check(b, BITMAP_BUSY | BITMAP_READONLY, e))
		return false;
	(void)transaction_cut(t, b->node);
	b->removing = true;
	r = xzalloc(sizeof *r);
	r->u.commit = remove_commit;
	r->u.abort = remove_abort;
	r->b = b;
	undo_push(transaction_undo(t), &r->u);
	return true;
}

/* --- clear, enable, disable -------------------------------------------------------- */

bool
action_bitmap_clear(struct transaction *t, const struct block_dirty_bitmap *a,
		    struct err *e)
{
	struct bitmap *b = find_bitmap(t, a->node, a->name, e);
	struct node_cut *c;

	if (!b || !bitmap_check(b, BITMAP_ALL, e))
		return false;
	c = transaction_cut(t, b->node);
	transaction_save_bitmap(t, b);
	epoch_set_clear(&b->set);
	if (b->enabled)
		epoch_set_add(&b->set, c->epoch);
	return true;
}

static bool
switch_recording(struct transaction *t, const struct block_dirty_bitmap *a,
		 bool on, struct err *e)
{
	struct bitmap *b = find_bitmap(t, a->node, a->name, e);
	struct node_cut *c;

	if (!b || !bitmap_check(b, BITMAP_BUSY | BITMAP_INCONSISTENT, e))
		return false;
	c = transaction_cut(t, b->node);
	transaction_save_bitmap(t, b);
	b->enabled = on;
	if (on)
		epoch_set_add(&b->set, c->epoch);
	else
		epoch_set_remove(&b->set, c->epoch);
	return true;
}

bool
action_bitmap_enable(struct transaction *t, const struct block_dirty_bitmap *a,
		     struct err *e)
{
	return switch_recording(t, a, true, e);
}

bool
action_bitmap_disable(struct transaction *t, const struct block_dirty_bitmap *a,
		      struct err *e)
{
	return switch_recording(t, a, false, e);
}

/* --- merge ---------------------------------------------------------------------------- */

/* QEMU looks at the target when it has found a source. */
static struct bitmap *
find_source(struct transaction *t, const struct bitmap *target,
	    const char *target_node,
	    const struct block_dirty_bitmap_or_str *ref, struct err *e)
{
	bool local = ref->type == JSON_STRING;
	struct bitmap *s =
		find_bitmap(t, local ? target_node : ref->u.external->node,
			    local ? ref->u.local : ref->u.external->name, e);

	if (!s || !bitmap_check(target, BITMAP_ALL, e) ||
	    !bitmap_check(s, BITMAP_BUSY | BITMAP_INCONSISTENT, e))
		return NULL;
	if (s->node->size != target->node->size) {
		(void)err_set(e, ERR_GENERIC, 0,
			      "Bitmaps are of different sizes (destination "
			      "size is %llu, source size is %llu) and can't be "
			      "merged",
			      (unsigned long long)target->node->size,
			      (unsigned long long)s->node->size);
		return NULL;
	}
	return s;
}

/* What the source holds up to this cut.  The set of one that records names
 * the epoch that the cut opens as well; that one stays out.
 */
static void
merge_one(struct transaction *t, struct bitmap *target,
	  const struct bitmap *source)
{
	struct node_cut *c = transaction_cut(t, source->node);

	for (size_t i = 0; i < source->set.n; i++)
		if (source->set.v[i] != c->epoch)
			epoch_set_add(&target->set, source->set.v[i]);
}

bool
action_bitmap_merge(struct transaction *t,
		    const struct block_dirty_bitmap_merge *a, struct err *e)
{
	struct bitmap *target = find_bitmap(t, a->node, a->target, e);

	if (!target)
		return false;
	for (size_t i = 0; i < a->bitmaps.n; i++)
		if (!find_source(t, target, a->node, a->bitmaps.v[i], e))
			return false;
	if (!a->bitmaps.n)
		return true;
	(void)transaction_cut(t, target->node);
	transaction_save_bitmap(t, target);
	for (size_t i = 0; i < a->bitmaps.n; i++) {
		struct bitmap *s =
			find_source(t, target, a->node, a->bitmaps.v[i], e);

		if (s && s != target)
			merge_one(t, target, s);
	}
	return true;
}

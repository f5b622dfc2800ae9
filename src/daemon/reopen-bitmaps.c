/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bitmaps in images: what becomes read-only stores them first; what becomes
 * writable says after the exchange that they are in use.  The data plane has
 * none of these nodes.
 */
#include "daemon/daemon.h"
#include "daemon/reopen-priv.h"
#include "daemon/stored.h"

static bool
moves_bitmaps(const struct change *c)
{
	return c->node->qcow2 && c->node->monitor_owned &&
	       c->read_only != c->node->read_only;
}

/* Nobody uses the bitmaps that go into the image or come out of it, and there
 * is nothing to do for the data plane in between.
 */
bool
reopen_check_bitmaps(const struct reopening *r, const struct change *c,
		     struct err *e)
{
	if (c->read_only != c->node->read_only &&
	    stored_is_inside(r->d->graph, c->node))
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is part of a node with bitmaps in "
			       "its image: its 'read-only' cannot change",
			       c->node->name);
	if (!moves_bitmaps(c))
		return true;
	for (const struct bitmap *b = c->node->bitmaps; b; b = b->next)
		if (b->persistent && !bitmap_check(b, BITMAP_BUSY, e))
			return false;
	return !reopen_any_in_plane(r) ||
	       err_set(e, ERR_GENERIC, 0,
		       "Change 'read-only' of node '%s' in a command without "
		       "nodes that guests use",
		       c->node->name);
}

void
reopen_plan_stores(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next)
		if (moves_bitmaps(c) && c->read_only)
			c->store = store_plan(c->node);
}

void
reopen_plan_takes(struct reopening *r)
{
	r->taking = true;
	for (struct change *c = r->changes; c; c = c->next) {
		if (!moves_bitmaps(c) || c->node->read_only)
			continue;
		c->takes = true;
		c->store = store_plan_take(c->node);
	}
}

void
reopen_run_stores(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next) {
		if (!c->store || c->takes != r->taking)
			continue;
		store_run(c->store);
		if (store_error(c->store)) {
			r->e = *store_error(c->store);
			return;
		}
		c->stored = true;
	}
}

void
reopen_finish_stores(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next) {
		struct node *n = c->node;

		if (c->store)
			store_finish(steal(&c->store));
		if (moves_bitmaps(c))
			stored_assume(n);
	}
}

/* What was taken into use is stored once more. */
void
reopen_return_takes(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next) {
		if (!c->store || !c->takes)
			continue;
		store_free(steal(&c->store));
		stored_assume(c->node);
		if (c->stored)
			c->store = store_plan(c->node);
	}
}

void
reopen_assume_again(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next)
		if (c->takes)
			stored_assume(c->node);
}

void
reopen_run_back(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next) {
		if (c->store && c->takes)
			store_run(c->store);
		else if (c->store && c->stored)
			store_again_in_use(c->store);
	}
}

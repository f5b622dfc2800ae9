/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The recovery's second step: what bitmaps are made of.
 */
#include "daemon/recover-priv.h"

#include <inttypes.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/pending.h"
#include "daemon/registry.h"
#include "daemon/saved.h"
#include "daemon/sweep.h"

/* --- what the registry says --------------------------------------------------------------- */

static const char lost[] = "its record of changes was lost with the host's "
			   "memory";

/* A reference; NULL: *e says why not. */
static struct epoch_file *
find_epoch(struct recovery *r, const struct registry_bitmap *b, uint64_t id,
	   const struct node *n, struct err *e)
{
	struct epoch_file *f = epoch_set_find(&r->saved, id);

	if (f && b->saved)
		return epoch_file_ref(f);
	if (!r->rebooted)
		return sweep_find_epoch(r->d, id, n, e);
	(void)err_set(e, ERR_GENERIC, 0, "epoch %" PRIu64 " was not saved", id);
	return NULL;
}

static void
restore_bitmap(struct recovery *r, struct node *n,
	       const struct registry_bitmap *from, const char *changed)
{
	struct err e = ERR_INIT;
	struct bitmap *b;

	if (node_bitmap(n, from->name))
		return; /* somebody has put one of this name into the image */
	b = bitmap_new(n, from->name, from->granularity, from->persistent);

	b->enabled = from->enabled;
	if (from->inconsistent || changed) {
		bitmap_set_inconsistent(
			b, from->inconsistent ? from->inconsistent : changed);
		return;
	}
	for (size_t i = 0; i < from->epochs.n; i++) {
		struct epoch_file *f =
			find_epoch(r, from, from->epochs.v[i], n, &e);

		if (!f) {
			log_error("node '%s', bitmap '%s': %s", n->name,
				  b->name, e.msg);
			bitmap_set_inconsistent(b, lost);
			return;
		}
		epoch_set_add(&b->set, f);
		epoch_file_unref(f);
	}
}

void
recover_bitmaps(struct recovery *r, struct node *n,
		const struct registry_node *from, const char *changed)
{
	bool resized = from->has_next_size && n->size == from->next_size;

	if (n->size != from->size && !resized)
		changed = "the image's size was changed while Stillpoint did "
			  "not run";
	n->resized = from->has_next_size;
	for (size_t i = 0; i < from->bitmaps.n; i++)
		restore_bitmap(r, n, from->bitmaps.v[i], changed);
	log_info("node '%s' is back with %zu bitmaps", n->name,
		 from->bitmaps.n);
}

/* --- what the data plane records ------------------------------------------------------------ */

static void
record_in(struct node *n, struct epoch_file *f)
{
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->enabled)
			epoch_set_add(&b->set, f);
}

static struct epoch_file *
make_epoch(struct recovery *r, struct node *n)
{
	struct epoch_file *f =
		epoch_file_new(r->d->cfg.shm, graph_take_id(r->d->graph),
			       n->size, node_granularity(n));
	struct err e = ERR_INIT;

	if (epoch_file_make(f, &e))
		return f;
	epoch_file_unref(f);
	log_error("node '%s' cannot be recorded: %s", n->name, e.msg);
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->enabled)
			bitmap_set_inconsistent(b, e.msg);
	return NULL;
}

/* The data plane has gone on without us. */
static void
sync_running(struct recovery *r, struct node *n, const struct link_node_info *i)
{
	struct epoch_file *f;
	struct err e = ERR_INIT;

	n->in_plane = true;
	if (i->has_epoch) {
		f = sweep_find_epoch(r->d, i->epoch, n, &e);
		if (f) {
			n->epoch = f;
			record_in(n, f); /* rule 1 */
			return;
		}
		log_error("node '%s': %s", n->name, e.msg);
	}
	if (!node_records(n))
		return;
	/* Rule 2.  The data plane is made to record by closing the node there
	 * and opening it again, which guests notice as a reconnect; it takes a
	 * daemon that died in the middle of a command to get here.
	 */
	f = make_epoch(r, n);
	if (!f)
		return;
	log_warn("node '%s' was not recorded for a while: everything counts "
		 "as changed",
		 n->name);
	epoch_set(f->map, 0, n->size);
	record_in(n, f);
	n->epoch = f;
	n->restart = true;
}

static void
sync_fresh(struct recovery *r, struct node *n)
{
	if (!node_records(n))
		return;
	if (!n->epoch) /* bitmaps of an image bring one */
		n->epoch = make_epoch(r, n);
	if (n->epoch)
		record_in(n, n->epoch);
}

void
recover_node_epochs(struct recovery *r, struct node *n)
{
	const struct link_node_info *i =
		r->hello ? recover_find_info(r, n->name) : NULL;

	if (i)
		sync_running(r, n, i);
	else
		sync_fresh(r, n);
}

static void
on_saved(void *opaque, const struct err *e)
{
	struct recovery *r = opaque;

	pending_end(r->d);
	if (e) {
		daemon_fail(r->d, e);
		return;
	}
	PARK("recover.saved");
	r->stage = STAGE_SAVED;
	registry_doc_free(steal(&r->doc));
	sweep_orphans(r->d);
	saved_sweep(r->d);
	if (r->hello && !r->d->ending)
		recover_plane(r);
}

/* Numbers that a data plane uses are taken, whatever the registry says. */
static void
see_ids(const struct recovery *r)
{
	for (size_t i = 0; i < r->hello->nodes.n; i++) {
		const struct link_node_info *n = r->hello->nodes.v[i];

		if (n->has_epoch)
			graph_see_id(r->d->graph, n->epoch);
		for (size_t k = 0; k < n->views.n; k++)
			graph_see_id(r->d->graph, n->views.v[k]);
	}
}

void
recover_epochs(struct recovery *r)
{
	r->stage = STAGE_SAVING;
	see_ids(r);
	for (struct node *n = r->d->graph->nodes; n; n = n->next)
		recover_node_epochs(r, n);
	PARK("recover.synced");
	pending_begin(r->d);
	registry_save(r->d->registry, on_saved, r); /* rule 4 */
}

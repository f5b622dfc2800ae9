/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/sweep.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/graph.h"
#include "daemon/lost.h"

static struct epoch_file *
in_memory(const struct graph *g, uint64_t id)
{
	struct epoch_file *f;

	for (const struct node *n = g->nodes; n; n = n->next) {
		if (n->epoch && n->epoch->id == id)
			return n->epoch;
		for (const struct bitmap *b = n->bitmaps; b; b = b->next)
			if ((f = epoch_set_find(&b->set, id)))
				return f;
	}
	return NULL;
}

/* @from is consumed. */
static struct epoch_file *
copy_epoch(struct daemon *d, struct epoch_file *from, uint64_t size,
	   struct err *e)
{
	AUTO(epoch_file_unref) struct epoch_file *own = from;
	AUTO(epoch_file_unref)
	struct epoch_file *f = epoch_file_new(
		d->cfg.shm, graph_take_id(d->graph), size, own->granularity);

	if (!epoch_file_make(f, e))
		return NULL;
	epoch_merge(f->map, own->map);
	return steal(&f);
}

struct epoch_file *
sweep_find_epoch(struct daemon *d, uint64_t id, const struct node *n,
		 struct err *e)
{
	struct epoch_file *f = in_memory(d->graph, id);

	if (f && f->size == n->size)
		return epoch_file_ref(f);
	if (!epoch_file_open(d->cfg.shm, id, &f, e))
		return NULL;
	if (f->size == n->size)
		return f;
	if (n->resized)
		return copy_epoch(d, f, n->size, e);
	(void)err_set(e, ERR_GENERIC, 0,
		      "epoch %" PRIu64 " is of a disk of another size", id);
	epoch_file_unref(f);
	return NULL;
}

static bool
wanted(const struct graph *g, const char *name)
{
	uint64_t id;
	int used = 0;

	if (sscanf(name, "epoch-%" SCNu64 "%n", &id, &used) == 1 && !name[used])
		return in_memory(g, id) != NULL ||
		       lost_has_epoch(g->d->lost, id);
	return false;
}

static void
sweep(const struct graph *g, const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *de;

	if (!dir)
		return;
	while ((de = readdir(dir)))
		if ((strncmp(de->d_name, "epoch-", 6) == 0 ||
		     strncmp(de->d_name, "view-", 5) == 0) &&
		    !wanted(g, de->d_name))
			(void)unlinkat(dirfd(dir), de->d_name, 0);
	(void)closedir(dir);
}

void
sweep_orphans(struct daemon *d)
{
	sweep(d->graph, d->cfg.shm);
	sweep(d->graph, d->cfg.store);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/filters.h"

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "daemon/graph.h"
#include "daemon/job.h"
#include "daemon/views.h"

struct filter {
	struct filter *next; /* newest first */
	uint64_t born; /* as node->born */
	char *name; /* owned */
	const struct job *job; /* borrowed */
	const struct view_file *view; /* borrowed */
	uint64_t cluster;
};

struct filter *
filter_new(struct graph *g, const char *name, struct job *j,
	   const struct view_file *view, uint64_t cluster)
{
	struct filter *f = xzalloc(sizeof *f);

	f->name = name ? xstrdup(name) : graph_take_name(g);
	f->job = j;
	f->view = view;
	f->cluster = cluster;
	f->born = ++g->births;
	f->next = g->filters;
	g->filters = f;
	return f;
}

void
filter_free(struct graph *g, struct filter *f)
{
	struct filter **p = &g->filters;

	while (*p != f)
		p = &(*p)->next;
	*p = f->next;
	free(f->name);
	free(f);
}

bool
filter_exists(const struct graph *g, const char *name)
{
	for (const struct filter *f = g->filters; f; f = f->next)
		if (strcmp(f->name, name) == 0)
			return true;
	return false;
}

bool
filter_check_source(const struct graph *g, const struct node *n,
		    const char *what, struct err *e)
{
	const struct filter *f = g->filters;

	while (f && f->view->node != n)
		f = f->next;
	return !f ||
	       err_set(e, ERR_GENERIC, 0,
		       "Permission conflict on node '%s': permissions '%s' "
		       "are both required by an unnamed block device (uses "
		       "node '%s' as 'root' child) and unshared by node '%s' "
		       "(uses node '%s' as 'file' child).",
		       n->name, what, n->name, f->name, n->name);
}

bool
filter_check(const struct graph *g, const char *name, struct err *e)
{
	if (!filter_exists(g, name))
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "Node '%s' is busy: block device is in use by block "
		       "job: backup",
		       name);
}

/* --- queries ------------------------------------------------------------------ */

/* What guests have overwritten and the target does not have yet. */
static uint64_t
saved_bytes(const struct view *v)
{
	uint64_t total = 0, size = view_size(v), n;

	for (uint64_t at = 0; at < size; at += n) {
		bool saved;

		n = view_run(v, at, size - at, &saved);
		if (saved)
			total += n;
	}
	return total;
}

static uint64_t
to_copy(const struct filter *f)
{
	const struct dirty *mask = &f->view->reader.mask;

	if (!f->view->begun)
		return 0;
	return mask->n ? min_u64(dirty_count(mask) * mask->unit,
				 round_up(f->view->size, f->cluster))
		       : round_up(f->view->size, f->cluster);
}

/* QEMU's three bitmaps without names: what may be read through the filter,
 * what was copied before a write, and what is still to be copied.
 */
static bool
describe_bitmaps(const struct filter *f, struct block_dirty_info_list *to)
{
	uint64_t all = round_up(f->view->size, f->cluster), offset, len;
	uint64_t counts[3] = { all };

	job_progress(f->job, &offset, &len);
	if (f->view->begun)
		counts[1] = round_up(saved_bytes(f->view->states), f->cluster);
	if (len == 0) /* the stream has not counted yet */
		len = to_copy(f);
	counts[2] = len > offset ? len - offset : 0;
	for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
		struct block_dirty_info *b = xzalloc(sizeof *b);

		b->count = (int64_t)counts[i];
		b->granularity = (uint32_t)f->cluster;
		if (!block_dirty_info_list_append(to, b))
			return false;
	}
	return true;
}

static struct block_device_info *
describe(const struct filter *f)
{
	AUTO(block_device_info_free)
	struct block_device_info *i = xzalloc(sizeof *i);
	const char *filename = node_filename(f->view->node);

	i->file = xstrdup(filename);
	i->node_name = xstrdup(f->name);
	i->drv = xstrdup("copy-before-write");
	i->active = true;
	i->detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
	i->cache = xzalloc(sizeof *i->cache);
	i->cache->writeback = true;
	i->image = xzalloc(sizeof *i->image);
	i->image->filename = xstrdup(filename);
	i->image->format = xstrdup("copy-before-write");
	i->image->virtual_size = (int64_t)f->view->size;
	i->has_dirty_bitmaps = true;
	return describe_bitmaps(f, &i->dirty_bitmaps) ? steal(&i) : NULL;
}

bool
filters_describe(const struct graph *g, uint64_t from, uint64_t to,
		 struct block_device_info_list *list, struct err *e)
{
	for (const struct filter *f = g->filters; f; f = f->next) {
		struct block_device_info *i;

		if (f->born <= from || f->born >= to)
			continue;
		i = describe(f);
		if (!i || !block_device_info_list_append(list, i))
			return err_set(e, ERR_GENERIC, 0, "out of memory");
	}
	return true;
}

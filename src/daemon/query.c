/* SPDX-License-Identifier: BSD-3-Clause
 *
 * query-block and query-named-block-nodes.
 */
#include <stdlib.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "block/qcow2/format.h"
#include "daemon/chain.h"
#include "daemon/daemon.h"
#include "daemon/filters.h"
#include "daemon/graph.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "schema/qmp-commands.h"

static struct block_dirty_info *
describe_bitmap(const struct bitmap *b)
{
	struct block_dirty_info *i = xzalloc(sizeof *i);

	i->name = xstrdup(b->name);
	i->count = (int64_t)bitmap_count(b);
	i->granularity = (uint32_t)b->granularity;
	i->recording = b->enabled;
	i->busy = b->job || b->removing;
	i->persistent = b->persistent;
	if (b->inconsistent) {
		i->has_inconsistent = true;
		i->inconsistent = true;
		i->x_reason = xstrdup(b->inconsistent);
	}
	return i;
}

/* What is written while a job has the bitmap. */
static struct block_dirty_info *
describe_successor(const struct bitmap *b)
{
	struct block_dirty_info *i = xzalloc(sizeof *i);

	i->count = (int64_t)bitmap_successor_count(b);
	i->granularity = (uint32_t)b->granularity;
	i->recording = b->enabled;
	return i;
}

/* A bitmap, or its successor. */
struct listed {
	const struct bitmap *b;
	bool successor;
};

static uint64_t
born(const struct listed *l)
{
	return l->successor ? l->b->successor : l->b->born;
}

static int
newest_first(const void *a, const void *b)
{
	return born(a) < born(b) ? 1 : -1;
}

static bool
describe_bitmaps(const struct node *n, struct block_device_info *i)
{
	AUTO(free) struct listed *v = NULL;
	size_t count = 0;
	bool ok = true;

	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		count += b->successor ? 2 : 1;
	i->has_dirty_bitmaps = count > 0;
	v = xcalloc(count + 1, sizeof *v);
	count = 0;
	for (const struct bitmap *b = n->bitmaps; b; b = b->next) {
		v[count++] = (struct listed){ .b = b };
		if (b->successor)
			v[count++] = (struct listed){ b, true };
	}
	qsort(v, count, sizeof *v, newest_first);
	for (size_t k = 0; ok && k < count; k++)
		ok = block_dirty_info_list_append(
			&i->dirty_bitmaps, v[k].successor
						   ? describe_successor(v[k].b)
						   : describe_bitmap(v[k].b));
	return ok;
}

static struct image_info_specific *
describe_specific(const struct qcow2_header *h)
{
	struct image_info_specific *s = xzalloc(sizeof *s);
	struct image_info_specific_q_cow2 *q = xzalloc(sizeof *q);
	bool v3 = h->version >= 3;

	s->type = IMAGE_INFO_SPECIFIC_KIND_QCOW2;
	s->u.qcow2 = xzalloc(sizeof *s->u.qcow2);
	s->u.qcow2->data = q;
	q->compat = xstrdup(v3 ? "1.1" : "0.10");
	q->refcount_bits = 1 << h->refcount_order;
	q->compression_type = h->compression == QCOW2_ZSTD
				      ? QCOW2_COMPRESSION_TYPE_ZSTD
				      : QCOW2_COMPRESSION_TYPE_ZLIB;
	q->has_extended_l2 = q->has_lazy_refcounts = q->has_corrupt = v3;
	q->extended_l2 = h->incompat & QCOW2_EXTENDED_L2;
	q->lazy_refcounts = h->compat & QCOW2_LAZY_REFCOUNTS;
	q->corrupt = h->incompat & QCOW2_CORRUPT;
	q->has_data_file_raw = h->incompat & QCOW2_DATA_FILE;
	q->data_file_raw = h->autoclear & QCOW2_AUTO_RAW_DATA;
	if (q->has_data_file_raw && h->has_data_file)
		q->data_file = xstrdup(h->data_file);
	return s;
}

/* What the header said when the node was added. */
static void
describe_qcow2(const struct node *n, struct image_info *i)
{
	const struct qcow2_header *h = n->qcow2;
	struct err e = ERR_INIT;

	i->has_cluster_size = true;
	i->cluster_size = n->cluster;
	i->has_dirty_flag = true;
	i->dirty_flag = h->incompat & QCOW2_DIRTY && n->read_only;
	i->format_specific = describe_specific(h);
	if (!h->has_backing)
		return;
	i->backing_filename = xstrdup(h->backing);
	i->full_backing_filename = chain_filename(n, h->backing, &e);
	if (h->has_backing_format)
		i->backing_filename_format = xstrdup(h->backing_format);
}

/* @flat: without the images below. */
static struct image_info *
describe_image(const struct node *n, bool flat)
{
	const struct node *backing = n->child[CHILD_BACKING];
	struct image_info *i = xzalloc(sizeof *i);
	struct stat st;

	i->filename = xstrdup(node_filename(n));
	i->format = xstrdup(blockdev_driver_str(n->options->driver));
	i->virtual_size = (int64_t)n->size;
	if (n->options->driver == BLOCKDEV_DRIVER_NULL_CO ||
	    n->options->driver == BLOCKDEV_DRIVER_NULL_AIO)
		i->has_actual_size = true; /* nothing at all */
	if (node_fd(n) >= 0 && fstat(node_fd(n), &st) == 0) {
		i->has_dirty_flag = true; /* "dirty-flag": false, as in QEMU */
		i->has_actual_size = true;
		i->actual_size = (int64_t)st.st_blocks * 512;
		/* the file below a format grows as it likes */
		if (n->fd >= 0 && S_ISREG(st.st_mode))
			i->virtual_size =
				(int64_t)round_up((uint64_t)st.st_size, 512);
	}
	if (n->qcow2)
		describe_qcow2(n, i);
	if (backing && !flat)
		i->backing_image = describe_image(backing, false);
	return i;
}

static void
describe_backing(const struct node *n, struct block_device_info *i)
{
	const struct node *b = n->child[CHILD_BACKING];

	if (b)
		i->backing_file = xstrdup(node_filename(b));
	for (; b; b = b->child[CHILD_BACKING])
		i->backing_file_depth++;
}

static struct block_device_info *
describe_node(const struct node *n, bool flat, struct err *e)
{
	AUTO(block_device_info_free)
	struct block_device_info *i = xzalloc(sizeof *i);
	const struct blockdev_options *o = n->options;

	i->file = xstrdup(node_filename(n));
	i->node_name = xstrdup(n->name);
	i->ro = n->read_only && !n->read_only_below;
	i->drv = xstrdup(blockdev_driver_str(o->driver));
	i->active = true;
	i->detect_zeroes = o->has_detect_zeroes
				   ? o->detect_zeroes
				   : BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
	i->image = describe_image(n, flat);
	describe_backing(n, i);
	i->write_threshold = (int64_t)n->write_threshold;
	i->cache = xzalloc(sizeof *i->cache);
	i->cache->writeback = true;
	i->cache->direct = o->cache && o->cache->direct;
	i->cache->no_flush = o->cache && o->cache->no_flush;
	if (!describe_bitmaps(n, i)) {
		(void)err_set(e, ERR_GENERIC, 0, "out of memory");
		return NULL;
	}
	return steal(&i);
}

static int
by_age(const void *a, const void *b)
{
	const struct node *const *x = a, *const *y = b;

	return (*x)->born < (*y)->born ? 1 : -1;
}

/* Newest first.  The caller's; the nodes are borrowed. */
static const struct node **
nodes_by_age(const struct graph *g, size_t *n)
{
	const struct node **v;

	*n = 0;
	for (const struct node *i = g->nodes; i; i = i->next)
		++*n;
	v = xcalloc(*n + 1, sizeof(struct node *));
	*n = 0;
	for (const struct node *i = g->nodes; i; i = i->next)
		v[(*n)++] = i;
	qsort(v, *n, sizeof(struct node *), by_age);
	return v;
}

bool
qmp_query_named_block_nodes(struct qmp_call *call,
			    const struct qmp_query_named_block_nodes_args *arg,
			    struct block_device_info_list *ret, struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);
	bool flat = arg->has_flat && arg->flat;
	uint64_t last = UINT64_MAX;
	size_t n;
	AUTO(free) const struct node **v = nodes_by_age(d->graph, &n);

	for (size_t i = 0; i < n; i++) {
		struct block_device_info *info;

		if (!filters_describe(d->graph, v[i]->born, last, ret, e))
			return false;
		last = v[i]->born;
		info = describe_node(v[i], flat, e);
		if (!info || !block_device_info_list_append(ret, info))
			return false;
	}
	return filters_describe(d->graph, 0, last, ret, e);
}

bool
qmp_query_block(struct qmp_call *call, struct block_info_list *ret,
		struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);

	for (const struct export *x = d->graph->exports; x; x = x->next) {
		struct block_info *i;

		if (!x->options->writable)
			continue;
		i = xzalloc(sizeof *i);
		i->device = xstrdup(x->options->id);
		i->type = xstrdup("unknown");
		i->inserted = describe_node(x->node, false, e);
		if (!block_info_list_append(ret, i))
			return err_set(e, ERR_GENERIC, 0, "out of memory");
		if (!i->inserted)
			return false;
	}
	return true;
}

/* --- x-query-cuts ------------------------------------------------------------------ */

struct cuts_query {
	struct plane_request r;
	struct qmp_call *call;
};

static struct x_cut_stats *
convert(const struct link_cut_stats *from)
{
	struct x_cut_stats *to = xzalloc(sizeof *to);

	to->cuts = from->cuts;
	to->max_closed_ns = from->max_closed_ns;
	for (size_t i = 0; i < from->histogram.n; i++) {
		struct x_cut_bucket *b = xzalloc(sizeof *b);

		b->below_ns = from->histogram.v[i]->below_ns;
		b->count = from->histogram.v[i]->count;
		if (!x_cut_bucket_list_append(&to->histogram, b))
			x_cut_bucket_free(b);
	}
	return to;
}

static void
on_cut_stats(struct plane_request *r, const struct json *ret,
	     struct link_msg *msg, const struct err *e)
{
	struct cuts_query *q = container_of(r, struct cuts_query, r);
	AUTO(link_cut_stats_free) struct link_cut_stats *from = NULL;
	AUTO(x_cut_stats_free) struct x_cut_stats *to = NULL;
	struct err why = ERR_INIT;

	(void)msg;
	if (e) {
		qmp_call_fail(q->call, e);
	} else if (!link_got_cut_stats(ret, &from, &why)) {
		qmp_call_fail(q->call, &why);
	} else {
		to = convert(from);
		qmp_x_query_cuts_return(q->call, to);
	}
	free(q);
}

void
qmp_x_query_cuts(struct qmp_call *call)
{
	struct daemon *d = qmp_call_opaque(call);
	struct cuts_query *q = xzalloc(sizeof *q);
	struct json_out o;

	q->r.done = on_cut_stats;
	q->call = call;
	plane_begin(&o);
	link_put_cut_stats(&o);
	plane_ask(d->plane, &q->r, &o, NULL, 0);
}

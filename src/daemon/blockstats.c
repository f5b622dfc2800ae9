/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/blockstats.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/graph.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "schema/qmp-commands.h"
#include "json/json.h"

/* The order of the link's counts. */
enum { READS, WRITES, FLUSHES, UNMAPS, KINDS };

/* --- query-blockstats -------------------------------------------------------- */

struct asking {
	struct plane_request r;
	struct daemon *d;
	struct qmp_call *call;
	bool nodes;
};

static const struct link_export_stats *
find_export(const struct link_stats *s, const char *name)
{
	for (size_t i = 0; s && i < s->exports.n; i++)
		if (strcmp(s->exports.v[i]->name, name) == 0 &&
		    s->exports.v[i]->counts.n == KINDS)
			return s->exports.v[i];
	return NULL;
}

static void
add_counts(const struct link_export_stats *from, struct block_device_stats *to)
{
	const struct link_count *const *c =
		(const struct link_count *const *)from->counts.v;

	to->rd_operations += (int64_t)c[READS]->ops;
	to->rd_bytes += (int64_t)c[READS]->bytes;
	to->rd_total_time_ns += (int64_t)c[READS]->ns;
	to->failed_rd_operations += (int64_t)c[READS]->failed;
	to->wr_operations += (int64_t)c[WRITES]->ops;
	to->wr_bytes += (int64_t)c[WRITES]->bytes;
	to->wr_total_time_ns += (int64_t)c[WRITES]->ns;
	to->failed_wr_operations += (int64_t)c[WRITES]->failed;
	to->flush_operations += (int64_t)c[FLUSHES]->ops;
	to->flush_total_time_ns += (int64_t)c[FLUSHES]->ns;
	to->failed_flush_operations += (int64_t)c[FLUSHES]->failed;
	to->unmap_operations += (int64_t)c[UNMAPS]->ops;
	to->unmap_bytes += (int64_t)c[UNMAPS]->bytes;
	to->unmap_total_time_ns += (int64_t)c[UNMAPS]->ns;
	to->failed_unmap_operations += (int64_t)c[UNMAPS]->failed;
}

static int64_t
highest(const struct link_stats *s, const struct node *n)
{
	for (size_t i = 0; s && i < s->layers.n; i++)
		if (strcmp(s->layers.v[i]->node, n->name) == 0)
			return (int64_t)s->layers.v[i]->highest;
	return 0;
}

/* @device: of a device, whose backing images are told as well. */
static struct block_stats *
node_stats(const struct link_stats *s, const struct node *n, bool device)
{
	struct block_stats *b = xzalloc(sizeof *b);
	const struct node *file = n->child[CHILD_FILE] ? n->child[CHILD_FILE]
						       : n->child[CHILD_IMAGE];

	b->node_name = xstrdup(n->name);
	b->stats = xzalloc(sizeof *b->stats);
	b->stats->wr_highest_offset = highest(s, n);
	if (file)
		b->parent = node_stats(s, file, device);
	if (device && n->child[CHILD_BACKING])
		b->backing = node_stats(s, n->child[CHILD_BACKING], true);
	return b;
}

static void
add_nodes(struct asking *a, const struct link_stats *s,
	  struct block_stats_list *to)
{
	const struct graph *g = a->d->graph;

	for (const struct node *n = g->nodes; n; n = n->next) {
		struct block_stats *b = node_stats(s, n, false);

		for (const struct export *x = g->exports; x; x = x->next) {
			const struct link_export_stats *e =
				x->node == n ? find_export(s, x->name) : NULL;

			if (e)
				add_counts(e, b->stats);
		}
		xassert_memory(block_stats_list_append(to, b));
	}
}

static void
add_devices(struct asking *a, const struct link_stats *s,
	    struct block_stats_list *to)
{
	for (const struct export *x = a->d->graph->exports; x; x = x->next) {
		const struct link_export_stats *e = find_export(s, x->name);
		struct block_stats *b;

		if (!x->options->writable)
			continue;
		b = node_stats(s, x->node, true);
		b->device = xstrdup(x->options->id);
		if (e)
			add_counts(e, b->stats);
		xassert_memory(block_stats_list_append(to, b));
	}
}

/* We list what came last first; here QEMU does not. */
static void
reverse(struct block_stats_list *l)
{
	for (size_t i = 0, k = l->n; i + 1 < k; i++) {
		struct block_stats *b = l->v[i];

		l->v[i] = l->v[--k];
		l->v[k] = b;
	}
}

/* Without a data plane nobody has done anything. */
static void
on_stats(struct plane_request *r, const struct json *ret, struct link_msg *msg,
	 const struct err *e)
{
	struct asking *a = container_of(r, struct asking, r);
	AUTO(link_stats_free) struct link_stats *s = NULL;
	struct block_stats_list list = { 0 };
	struct err ignore = ERR_INIT;

	(void)msg;
	if (!e && !link_got_stats(ret, &s, &ignore))
		log_warn("%s", ignore.msg);
	if (a->nodes)
		add_nodes(a, s, &list);
	else
		add_devices(a, s, &list);
	reverse(&list);
	qmp_query_blockstats_return(a->call, &list);
	block_stats_list_clear(&list);
	free(a);
}

void
qmp_query_blockstats(struct qmp_call *call,
		     struct qmp_query_blockstats_args *arg)
{
	struct asking *a = xzalloc(sizeof *a);
	struct json_out o;

	a->d = qmp_call_opaque(call);
	a->call = call;
	a->nodes = arg->has_query_nodes && arg->query_nodes;
	a->r.done = on_stats;
	qmp_query_blockstats_args_free(arg);
	plane_begin(&o);
	link_put_stats(&o);
	plane_ask(a->d->plane, &a->r, &o, NULL, 0);
}

/* --- thresholds ---------------------------------------------------------------- */

struct setting {
	struct plane_request r;
	struct daemon *d;
	struct qmp_call *call;
	unsigned asked;
};

static void
one_less(struct setting *s)
{
	if (--s->asked)
		return;
	pending_end(s->d);
	qmp_block_set_write_threshold_return(s->call);
	free(s);
}

struct ask {
	struct plane_request r;
	struct setting *s;
};

static void
on_set(struct plane_request *r, const struct json *ret, struct link_msg *msg,
       const struct err *e)
{
	struct ask *a = container_of(r, struct ask, r);

	(void)ret;
	(void)msg;
	if (e) /* it is told when it opens the node again */
		log_warn("%s", e->msg);
	one_less(a->s);
	free(a);
}

static void
ask_top(struct setting *s, struct node *top, struct node *n)
{
	struct link_node_threshold_args arg = { .node = top->name,
						.layer = n->name,
						.threshold =
							n->write_threshold };
	struct ask *a = xzalloc(sizeof *a);
	struct json_out o;

	a->r.done = on_set;
	a->s = s;
	s->asked++;
	plane_begin(&o);
	link_put_node_threshold(&o, &arg);
	plane_ask(s->d->plane, &a->r, &o, NULL, 0);
}

void
qmp_block_set_write_threshold(struct qmp_call *call,
			      struct qmp_block_set_write_threshold_args *arg)
{
	AUTO(qmp_block_set_write_threshold_args_free)
	struct qmp_block_set_write_threshold_args *own = arg;
	struct daemon *d = qmp_call_opaque(call);
	struct node *n = graph_node(d->graph, own->node_name);
	struct err e = ERR_INIT;
	struct setting *s;

	if (!n) {
		(void)err_set(&e, ERR_GENERIC, 0, "Device '%s' not found",
			      own->node_name);
		qmp_call_fail(call, &e);
		return;
	}
	n->write_threshold = own->write_threshold;
	s = xzalloc(sizeof *s);
	s->d = d;
	s->call = call;
	s->asked = 1;
	pending_begin(d);
	for (struct node *top = d->graph->nodes; top; top = top->next)
		if (top->in_plane && node_stands_on(top, n))
			ask_top(s, top, n);
	one_less(s);
}

/* --- events ----------------------------------------------------------------------- */

static void
threshold_crossed(struct daemon *d, const struct json *data)
{
	AUTO(link_threshold_crossed_data_free)
	struct link_threshold_crossed_data *t = NULL;
	struct err e = ERR_INIT;
	struct node *n;

	if (!link_threshold_crossed_data_decode(data, NULL, &t, &e))
		return;
	n = graph_node(d->graph, t->layer);
	if (!n)
		return;
	if (n->write_threshold == t->threshold)
		n->write_threshold = 0;
	qmp_event_block_write_threshold(qmp_server_events(d->qmp), n->name,
					t->by, t->threshold);
}

static const struct export *
find_by_name(const struct graph *g, const char *name)
{
	const struct export *x = g->exports;

	while (x && strcmp(x->name, name) != 0)
		x = x->next;
	return x;
}

static void
io_failed(struct daemon *d, const struct json *data)
{
	AUTO(link_io_failed_data_free) struct link_io_failed_data *f = NULL;
	const struct export *x;
	struct err e = ERR_INIT;
	bool nospace;

	if (!link_io_failed_data_decode(data, NULL, &f, &e))
		return;
	x = find_by_name(d->graph, f->export);
	if (!x)
		return;
	nospace = f->os == ENOSPC;
	qmp_event_block_io_error(
		qmp_server_events(d->qmp), x->options->id, x->options->id,
		x->node->name,
		f->write ? IO_OPERATION_TYPE_WRITE : IO_OPERATION_TYPE_READ,
		BLOCK_ERROR_ACTION_REPORT, true, nospace, strerror(f->os));
}

bool
blockstats_event(struct daemon *d, const char *name, const struct json *data)
{
	if (!data)
		return false;
	if (strcmp(name, "THRESHOLD_CROSSED") == 0)
		threshold_crossed(d, data);
	else if (strcmp(name, "IO_FAILED") == 0)
		io_failed(d, data);
	else
		return false;
	return true;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The recovery's third step: the data plane gets what it should have.
 */
#include "daemon/recover-priv.h"

#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/lost.h"
#include "daemon/plane-node.h"
#include "daemon/views.h"

#define AGAIN_SECONDS 2.0

static void add_exports(struct recovery *r);
static void try_again_later(struct recovery *r);

struct link_node_info *
recover_find_info(const struct recovery *r, const char *name)
{
	for (size_t i = 0; i < r->hello->nodes.n; i++)
		if (strcmp(r->hello->nodes.v[i]->node, name) == 0)
			return r->hello->nodes.v[i];
	return NULL;
}

static bool
knows_view(const struct graph *g, const struct link_node_info *i, uint64_t id)
{
	for (const struct node *n = g->nodes; n; n = n->next)
		if (strcmp(n->name, i->node) == 0)
			return graph_has_view(n, id);
	return false;
}

/* Points in time that nobody reads any more cost guests time. */
static void
close_views(struct recovery *r, const struct link_node_info *i)
{
	for (size_t k = 0; k < i->views.n; k++) {
		struct link_view_close_args arg = { .node = i->node,
						    .view = i->views.v[k] };
		struct json_out o;

		if (knows_view(r->d->graph, i, arg.view))
			continue;
		plane_begin(&o);
		link_put_view_close(&o, &arg);
		plane_ask(r->d->plane, &recover_ask(r, false)->r, &o, NULL, 0);
	}
}

static bool
wants_export(const struct recovery *r, const struct link_export_info *i)
{
	for (const struct export *x = r->d->graph->exports; x; x = x->next)
		if (strcmp(x->name, i->name) == 0)
			return strcmp(x->node->name, i->node) == 0 &&
			       !x->node->restart;
	return lost_has_export(r->d->lost, i->name);
}

/* Exports and nodes that the registry does not know, and nodes that must be
 * opened anew.
 */
static void
close_unknown(struct recovery *r)
{
	for (size_t k = 0; k < r->hello->exports.n; k++) {
		struct link_export_info *i = r->hello->exports.v[k];

		if (!wants_export(r, i))
			plane_del_export(r->d->plane, i->name, true,
					 &recover_ask(r, false)->r);
	}
	for (size_t k = 0; k < r->hello->nodes.n; k++) {
		struct link_node_info *i = r->hello->nodes.v[k];
		struct node *n = graph_node(r->d->graph, i->node);

		close_views(r, i);
		if (n && n->exports && !n->restart)
			continue;
		if (!n && lost_has_node(r->d->lost, i->node))
			continue; /* its guests go on */
		plane_close_node(r->d->plane, i->node,
				 &recover_ask(r, true)->r);
		if (n)
			n->in_plane = false;
	}
}

void
recover_open_nodes(struct recovery *r)
{
	struct ask *a;

	recover_step(r, add_exports);
	for (struct node *n = r->d->graph->nodes; n; n = n->next) {
		if (!n->exports || n->in_plane)
			continue;
		n->restart = false;
		a = recover_ask(r, false);
		a->node = xstrdup(n->name);
		plane_open_node(r->d->plane, n, &a->r);
	}
	recover_one_less(r);
}

static bool
has_view(const struct link_node_info *i, uint64_t id)
{
	for (size_t k = 0; k < i->views.n; k++)
		if (i->views.v[k] == id)
			return true;
	return false;
}

/* The link was lost and the data plane was not: is the node as we want it? */
static bool
as_we_know_it(const struct node *n, const struct link_node_info *i)
{
	if (i->has_epoch != (n->epoch != NULL) ||
	    (n->epoch && n->epoch->id != i->epoch))
		return false;
	for (const struct view_file *v = n->views; v; v = v->next)
		if (v->begun && !has_view(i, v->id))
			return false;
	return true;
}

bool
recover_has_export(const struct recovery *r, const char *name)
{
	for (size_t i = 0; i < r->hello->exports.n; i++)
		if (strcmp(r->hello->exports.v[i]->name, name) == 0)
			return wants_export(r, r->hello->exports.v[i]);
	return false;
}

void
recover_plane(struct recovery *r)
{
	for (struct node *n = r->d->graph->nodes; n; n = n->next) {
		const struct link_node_info *i = recover_find_info(r, n->name);

		if (i && !n->in_plane) {
			n->in_plane = as_we_know_it(n, i);
			n->restart = !n->in_plane;
		}
	}
	for (struct export *x = r->d->graph->exports; x; x = x->next)
		x->in_plane = recover_has_export(r, x->name);
	PARK("recover.open");
	recover_step(r, recover_open_nodes);
	close_unknown(r);
	for (struct node *n = r->d->graph->nodes; n; n = n->next)
		if (n->in_plane)
			plane_reopen_node(r->d->plane, n,
					  &recover_ask(r, false)->r);
	recover_one_less(r);
}

static void
on_again(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct recovery *r = container_of(w, struct recovery, again);

	(void)ev;
	(void)revents;
	if (r->d->ending || !plane_is_up(r->d->plane))
		return; /* the next recovery looks at all of them */
	if (r->asked || r->d->pending.n)
		try_again_later(r);
	else
		recover_open_nodes(r);
}

static void
try_again_later(struct recovery *r)
{
	ev_timer_stop(r->d->loop.ev, &r->again);
	ev_timer_init(&r->again, on_again, AGAIN_SECONDS, 0);
	ev_timer_start(r->d->loop.ev, &r->again);
}

static void
add_exports(struct recovery *r)
{
	struct ask *a;

	recover_step(r, recover_options);
	for (struct export *x = r->d->graph->exports; x; x = x->next) {
		if (x->in_plane)
			continue;
		if (!x->node->in_plane) {
			/* One image that cannot be opened, say because its
			 * server is down, must not cost the other disks.
			 */
			log_error("export '%s' waits for node '%s'",
				  x->options->id, x->node->name);
			try_again_later(r);
			continue;
		}
		a = recover_ask(r, true);
		a->export = xstrdup(x->options->id);
		plane_add_export(r->d->plane, x, &a->r);
	}
	recover_one_less(r);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bringing back what was lost (lost.h), when a command names it.  The steps
 * are those of the start, for a few nodes: files that the data plane has open,
 * nodes, bitmaps and epochs, the registry, exports, the data plane.  The
 * command waits, and with it all others (qmp-server.h, rule 2), so the graph
 * is ours.  What fails is lost as before.
 */
#include "daemon/recover-priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/children.h"
#include "daemon/daemon.h"
#include "daemon/exports.h"
#include "daemon/lost.h"
#include "daemon/pending.h"
#include "daemon/plane-node.h"
#include "daemon/registry.h"
#include "json/json.h"

struct retry {
	struct recovery *r; /* borrowed */
	bool *wanted; /* owned: of the nodes that are lost */
	size_t n_wanted;
	size_t at; /* the one that is worked on */
	struct node **found; /* owned */
	size_t n_found;
	bool waits; /* for the data plane */
	void (*next)(struct retry *t);
	struct task task;
	void (*then)(void *opaque);
	void *opaque;
};

static void open_next(struct retry *t);

static void
on_task(struct task *task)
{
	struct retry *t = container_of(task, struct retry, task);

	t->next(t);
}

static void
later(struct retry *t, void (*next)(struct retry *t))
{
	t->waits = false;
	t->next = next;
	t->task.fn = on_task;
	loop_defer(&t->r->d->loop, &t->task);
}

static void
finish(struct retry *t)
{
	struct daemon *d = t->r->d;

	t->r->retry = NULL;
	epoch_set_clear(&t->r->saved);
	t->then(t->opaque);
	pending_end(d);
	free(t->wanted);
	free((void *)t->found);
	free(t);
}

void
recover_lost_goes_on(struct recovery *r)
{
	if (r->retry && r->retry->waits)
		later(r->retry, r->retry->next);
}

/* Does the data plane answer, and is nobody else asking it? */
static bool
may_ask(const struct recovery *r)
{
	return r->hello && !r->asked && !r->d->ending &&
	       plane_is_up(r->d->plane);
}

/* --- the data plane, which may have it open already ------------------------------------ */

/* It must be opened anew: see recover-epochs.c, rule 2. */
static void
close_in_plane(struct recovery *r, struct node *n)
{
	for (struct export *x = r->d->graph->exports; x; x = x->next)
		if (x->node == n && x->in_plane) {
			plane_del_export(r->d->plane, x->name, true,
					 &recover_ask(r, false)->r);
			x->in_plane = false;
		}
	plane_close_node(r->d->plane, n->name, &recover_ask(r, false)->r);
	n->in_plane = false;
}

static void
tell_plane(struct retry *t)
{
	struct recovery *r = t->r;

	if (!may_ask(r)) { /* whoever asks it now looks at all nodes */
		finish(t);
		return;
	}
	t->waits = true;
	t->next = finish;
	recover_step(r, recover_open_nodes);
	for (size_t i = 0; i < t->n_found; i++)
		if (t->found[i]->restart)
			close_in_plane(r, t->found[i]);
	recover_one_less(r);
}

/* --- the registry ------------------------------------------------------------------------ */

static void
restore_export(struct recovery *r, const struct block_export_options *o)
{
	struct err e = ERR_INIT;
	struct export *x;

	if (!graph_node(r->d->graph, o->node_name) ||
	    graph_export(r->d->graph, o->id))
		return;
	if (!export_new(r->d, block_export_options_clone(o), true, &x, &e)) {
		log_error("export '%s' is not brought back: %s", o->id, e.msg);
		return;
	}
	graph_add_export(r->d->graph, x);
	x->in_plane =
		x->node->in_plane && r->hello && recover_has_export(r, x->name);
}

/* Their images may be there next time, with all that is known of them. */
static void
lose_again(struct retry *t)
{
	while (t->n_found) {
		struct node *n = t->found[--t->n_found];

		node_keep_epochs(n);
		graph_remove_node(t->r->d->graph, n);
	}
}

static void
on_saved(void *opaque, const struct err *e)
{
	struct retry *t = opaque;
	struct daemon *d = t->r->d;

	if (e) {
		log_error("%s", e->msg);
		lose_again(t);
		finish(t);
		return;
	}
	PARK("recover.found");
	for (size_t i = 0; i < lost_exports(d->lost)->n; i++)
		restore_export(t->r, lost_exports(d->lost)->v[i]);
	lost_forget_found(d->lost, d->graph);
	tell_plane(t);
}

/* --- nodes ------------------------------------------------------------------------------- */

static const struct registry_node *
present(const struct retry *t)
{
	return lost_nodes(t->r->d->lost)->v[t->at];
}

static void
found(struct retry *t, const char *changed)
{
	struct recovery *r = t->r;
	struct node *n = node_add_finish(&r->add);

	recover_bitmaps(r, n, present(t), changed);
	recover_node_epochs(r, n);
	t->found =
		xrealloc((void *)t->found, t->n_found + 1, sizeof t->found[0]);
	t->found[t->n_found++] = n;
}

static void
not_found(struct retry *t)
{
	struct recovery *r = t->r;

	log_warn("node '%s' is still lost: %s", present(t)->options->node_name,
		 r->e.msg);
	err_clear(&r->e);
	node_add_clear(&r->add);
}

static void
opened(struct work *w)
{
	struct recovery *r = container_of(w, struct recovery, work);
	struct retry *t = r->retry;

	if (err_is_set(&r->e))
		not_found(t);
	else
		found(t, r->add.changed);
	t->at++;
	open_next(t);
}

static void
open_run(struct work *w)
{
	struct recovery *r = container_of(w, struct recovery, work);

	recover_open(r, present(r->retry));
}

/* A node that somebody has added under its name has its place. */
static bool
is_wanted(const struct retry *t)
{
	return t->wanted[t->at] &&
	       !graph_node(t->r->d->graph, present(t)->options->node_name);
}

static void
open_next(struct retry *t)
{
	struct recovery *r = t->r;
	const struct registry_node_list *l = lost_nodes(r->d->lost);

	for (; t->at < l->n && !r->d->ending; t->at++) {
		if (!is_wanted(t))
			continue;
		if (recover_plan(r, present(t))) {
			r->work = (struct work){ .run = open_run,
						 .done = opened };
			work_submit(r->d->work, &r->d->loop, &r->work);
			return;
		}
		not_found(t);
	}
	recover_drop_kept(r);
	if (t->n_found)
		registry_save(r->d->registry, on_saved, t);
	else
		finish(t);
}

static void
ask_files(struct retry *t)
{
	struct recovery *r = t->r;
	const struct registry_node_list *l = lost_nodes(r->d->lost);

	if (!may_ask(r)) {
		open_next(t);
		return;
	}
	t->waits = true;
	t->next = open_next;
	recover_step(r, recover_lost_goes_on);
	for (size_t i = 0; i < l->n; i++)
		if (t->wanted[i] &&
		    recover_find_info(r, l->v[i]->options->node_name))
			recover_ask_files(r, l->v[i]->options->node_name,
					  false);
	recover_one_less(r);
}

/* --- which of them ----------------------------------------------------------------------- */

/* The node @name, and what it stands on. */
static void
want(void *opaque, const char *name)
{
	struct retry *t = opaque;
	const struct registry_node_list *l = lost_nodes(t->r->d->lost);
	size_t i = 0;

	while (i < l->n && strcmp(l->v[i]->options->node_name, name) != 0)
		i++;
	if (i == l->n || t->wanted[i])
		return;
	t->wanted[i] = true;
	t->n_wanted++;
	children_references(l->v[i]->options, want, t);
}

/* Strings that stand anywhere in a command's arguments. */
static void
want_named(struct retry *t, const struct json *args)
{
	const struct block_export_options_list *x = lost_exports(t->r->d->lost);
	const char *text;

	switch (json_type(args)) {
	case JSON_STRING:
		text = json_get_string(args, NULL);
		want(t, text);
		for (size_t i = 0; i < x->n; i++)
			if (strcmp(x->v[i]->id, text) == 0)
				want(t, x->v[i]->node_name);
		break;
	case JSON_ARRAY:
	case JSON_OBJECT:
		for (size_t i = 0; i < json_count(args); i++)
			want_named(t, json_at(args, i));
		break;
	default: break;
	}
}

bool
recover_lost(struct daemon *d, const struct json *args,
	     void (*then)(void *opaque), void *opaque)
{
	struct recovery *r = d->recovery;
	size_t n = lost_nodes(d->lost)->n;
	struct retry *t;

	if (!n || !args || !recover_is_loaded(d) || d->ending)
		return false;
	t = xzalloc(sizeof *t);
	t->r = r;
	t->wanted = xcalloc(n, sizeof t->wanted[0]);
	want_named(t, args);
	if (!t->n_wanted) {
		free(t->wanted);
		free(t);
		return false;
	}
	t->then = then;
	t->opaque = opaque;
	r->retry = t;
	pending_begin(d);
	ask_files(t);
	return true;
}

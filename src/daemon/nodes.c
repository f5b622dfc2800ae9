/* SPDX-License-Identifier: BSD-3-Clause
 *
 * blockdev-add and blockdev-del.  Opening happens on a worker; the registry is
 * saved before the answer.
 */
#include "daemon/nodes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/images.h"
#include "daemon/pending.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "schema/qmp-commands.h"

/* A node inside a node inside a node: more than anybody needs. */
#define MAX_DEPTH 8

/* --- planning (loop) ------------------------------------------------------------ */

static struct node *
bare_node(const struct blockdev_options *o, const char *name)
{
	struct node *n = xzalloc(sizeof *n);

	n->options = blockdev_options_clone(o);
	n->name = xstrdup(name);
	n->filename = "";
	return n;
}

/* Names of nodes that have none of their own cannot collide with others. */
static char *
anonymous(struct graph *g)
{
	return xasprintf("#block%03u", g->next_anonymous++);
}

static bool plan(struct graph *g, const struct blockdev_options *o,
		 unsigned depth, struct node_add *a, struct err *e);

static bool
plan_reference(struct graph *g, const char *name, struct node_add *a,
	       struct err *e)
{
	struct node *n = graph_node(g, name);

	if (!n)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot find device='' nor node-name='%s'",
			       name);
	if (!node_check_idle(n, e))
		return false;
	if (n->parent || n->exports || n->bitmaps || n->views)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is in use and cannot be the 'file' "
			       "of another node",
			       name);
	a->reference = n;
	return true;
}

static bool
plan_child(struct graph *g, const struct blockdev_ref *ref, unsigned depth,
	   struct node_add *a, struct err *e)
{
	if (ref->type == JSON_STRING)
		return plan_reference(g, ref->u.reference, a, e);
	return plan(g, ref->u.definition, depth + 1, a, e);
}

/* Children come first in a->v. */
static bool
plan(struct graph *g, const struct blockdev_options *o, unsigned depth,
     struct node_add *a, struct err *e)
{
	AUTO(free)
	char *name = o->node_name ? xstrdup(o->node_name) : anonymous(g);

	if (depth == MAX_DEPTH)
		return err_set(e, ERR_GENERIC, 0,
			       "nodes are nested more than %d deep", MAX_DEPTH);
	if (o->node_name && !graph_name_check(g, name, e))
		return false;
	for (size_t i = 0; i < a->n; i++)
		if (strcmp(a->v[i]->name, name) == 0)
			return err_set(e, ERR_GENERIC, 0,
				       "Duplicate nodes with node-name='%s'",
				       name);
	if (o->driver == BLOCKDEV_DRIVER_RAW &&
	    !plan_child(g, o->u.raw->file, depth, a, e))
		return false;
	a->v = xrealloc(a->v, a->n + 1, sizeof a->v[0]);
	a->v[a->n++] = bare_node(o, name);
	return true;
}

bool
node_add_plan(struct node_add *a, struct daemon *d,
	      const struct blockdev_options *o, struct err *e)
{
	a->d = d;
	if (!o->node_name)
		return err_set(e, ERR_GENERIC, 0,
			       "'node-name' must be specified for the root "
			       "node");
	return plan(d->graph, o, 0, a, e);
}

/* --- opening (worker) -------------------------------------------------------------- */

bool
node_add_open(struct node_add *a, struct err *e)
{
	struct node *below = a->reference;

	for (size_t i = 0; i < a->n; i++) {
		a->v[i]->child = below;
		if (!image_open(a->d, a->v[i], e))
			return false;
		below = a->v[i];
	}
	return true;
}

/* --- the result (loop) --------------------------------------------------------------- */

struct node *
node_add_finish(struct node_add *a)
{
	struct node *top = a->v[a->n - 1];

	for (size_t i = 0; i < a->n; i++)
		graph_add_node(a->d->graph, a->v[i]);
	top->monitor_owned = true;
	a->n = 0;
	node_add_clear(a);
	return top;
}

void
node_add_clear(struct node_add *a)
{
	while (a->n)
		node_free(a->v[--a->n]);
	free(a->v);
	a->v = NULL;
}

/* --- blockdev-add ---------------------------------------------------------------------- */

struct adding {
	struct work work;
	struct qmp_call *call;
	struct blockdev_options *options; /* owned */
	struct node_add add;
	struct node *node; /* once it is in the graph */
	struct err e;
};

static void
adding_fail(struct adding *a, const struct err *e)
{
	node_add_clear(&a->add);
	pending_end(a->add.d);
	qmp_call_fail(a->call, e);
	blockdev_options_free(a->options);
	free(a);
}

static void
add_saved(void *opaque, const struct err *e)
{
	struct adding *a = opaque;

	if (e) {
		graph_remove_node(a->add.d->graph, a->node);
		adding_fail(a, e);
		return;
	}
	pending_end(a->add.d);
	qmp_blockdev_add_return(a->call);
	blockdev_options_free(a->options);
	free(a);
}

static void
add_run(struct work *w)
{
	struct adding *a = container_of(w, struct adding, work);

	(void)!node_add_open(&a->add, &a->e);
}

static void
add_opened(struct work *w)
{
	struct adding *a = container_of(w, struct adding, work);

	if (err_is_set(&a->e)) {
		adding_fail(a, &a->e);
		return;
	}
	a->node = node_add_finish(&a->add);
	registry_save(a->add.d->registry, add_saved, a);
}

void
qmp_blockdev_add(struct qmp_call *call, struct blockdev_options *arg)
{
	struct adding *a = xzalloc(sizeof *a);
	struct daemon *d = qmp_call_opaque(call);

	a->call = call;
	a->options = arg;
	pending_begin(d);
	if (!node_add_plan(&a->add, d, arg, &a->e)) {
		adding_fail(a, &a->e);
		return;
	}
	a->work = (struct work){ .run = add_run, .done = add_opened };
	work_submit(d->work, &d->loop, &a->work);
}

/* --- blockdev-del ------------------------------------------------------------------------ */

static bool
del_check(struct graph *g, const char *name, struct node **out, struct err *e)
{
	struct node *n = *out = graph_node(g, name);

	if (!n)
		return err_set(e, ERR_GENERIC, 0,
			       "Failed to find node with node-name='%s'", name);
	if (n->exports)
		return err_set(e, ERR_GENERIC, 0, "Node %s is in use", name);
	if (!node_check_idle(n, e))
		return false;
	if (!n->monitor_owned)
		return err_set(e, ERR_GENERIC, 0,
			       "Node %s is not owned by the monitor", name);
	if (n->parent || n->views)
		return err_set(e, ERR_GENERIC, 0, "Block device %s is in use",
			       name);
	return true;
}

struct deleting {
	struct daemon *d;
	struct qmp_call *call;
};

static void
del_saved(void *opaque, const struct err *e)
{
	struct deleting *del = opaque;

	/* the node is gone; what was not saved is that it is */
	pending_end(del->d);
	if (e)
		qmp_call_fail(del->call, e);
	else
		qmp_blockdev_del_return(del->call);
	free(del);
}

void
qmp_blockdev_del(struct qmp_call *call, struct qmp_blockdev_del_args *arg)
{
	struct daemon *d = qmp_call_opaque(call);
	struct deleting *del;
	struct err e = ERR_INIT;
	struct node *n;
	bool ok = del_check(d->graph, arg->node_name, &n, &e);

	qmp_blockdev_del_args_free(arg);
	if (!ok) {
		qmp_call_fail(call, &e);
		return;
	}
	graph_remove_node(d->graph, n);
	del = xzalloc(sizeof *del);
	del->d = d;
	del->call = call;
	pending_begin(d);
	registry_save(d->registry, del_saved, del);
}

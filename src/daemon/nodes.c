/* SPDX-License-Identifier: BSD-3-Clause
 *
 * blockdev-add and blockdev-del.  Opening happens on a worker; the registry is
 * saved before the answer.
 */
#include "daemon/nodes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/chain.h"
#include "daemon/daemon.h"
#include "daemon/filters.h"
#include "daemon/images.h"
#include "daemon/lost.h"
#include "daemon/objects.h"
#include "daemon/pending.h"
#include "daemon/plane-node.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "daemon/stored.h"
#include "schema/qmp-commands.h"

/* --- planning (loop) ------------------------------------------------------------ */

static struct node *
bare_node(const struct blockdev_options *o, const char *name)
{
	struct node *n = xzalloc(sizeof *n);

	n->options = blockdev_options_clone(o);
	n->name = xstrdup(name);
	n->fd = -1;
	n->layers = 1;
	return n;
}

void
node_inherit(struct blockdev_options *o, const struct blockdev_options *parent,
	     enum child_role role)
{
	const struct blockdev_cache_options *from = parent->cache;

	if (!o->has_read_only && (role == CHILD_BACKING || parent->read_only)) {
		o->has_read_only = true;
		o->read_only = true;
	}
	/* the parent's "discard" has let the request pass */
	if (!o->has_discard) {
		o->has_discard = true;
		o->discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP;
	}
	if (!from)
		return;
	if (!o->cache)
		o->cache = xzalloc(sizeof *o->cache);
	if (!o->cache->has_direct && from->has_direct) {
		o->cache->has_direct = true;
		o->cache->direct = from->direct;
	}
	if (!o->cache->has_no_flush && from->has_no_flush) {
		o->cache->has_no_flush = true;
		o->cache->no_flush = from->no_flush;
	}
}

/* Nodes that are about to be opened have their names already. */
static bool
name_check(const struct node_add *a, const char *name, struct err *e)
{
	for (size_t i = 0; i < a->n; i++)
		if (strcmp(a->v[i]->name, name) == 0)
			return err_set(e, ERR_GENERIC, 0,
				       "Duplicate nodes with node-name='%s'",
				       name);
	return graph_name_check(a->d->graph, name, e);
}

bool
node_check_child(struct graph *g, const struct node *n, const char *parent,
		 enum child_role role, struct err *e)
{
	const struct permission wanted = { .what = "write",
					   .who = "node",
					   .name = parent,
					   .as = child_role_str(role) };
	enum child_role as;
	const struct node *p = graph_parent(g, n, &as);

	if (!node_check_idle(n, e) || !node_check_closed(n, e))
		return false;
	if (n->exports || (n->bitmaps && role != CHILD_BACKING) || n->views)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is in use and cannot be the '%s' of "
			       "another node",
			       n->name, child_role_str(role));
	if (n->read_only || (p && role == CHILD_BACKING && as == role))
		return true;
	return node_check_permission(g, n, &wanted, e);
}

static struct node *
plan_reference(struct node_add *a, const char *name, const char *parent,
	       enum child_role role, struct err *e)
{
	struct node *n = graph_node(a->d->graph, name);

	if (!n) {
		(void)err_set(e, ERR_GENERIC, 0,
			      "%sCannot find device='%s' nor node-name='%s'",
			      role == CHILD_BACKING
				      ? "Could not open backing file: "
				      : "",
			      name, name);
		return NULL;
	}
	if (!node_check_child(a->d->graph, n, parent, role, e))
		return NULL;
	return n;
}

static struct node *plan(struct node_add *a, const struct blockdev_options *o,
			 const struct node *parent, enum child_role role,
			 unsigned depth, struct err *e);

static bool
plan_children(struct node_add *a, struct node *n, unsigned depth, struct err *e)
{
	for (int i = 0; i < CHILD_ROLES; i++) {
		enum child_role role = (enum child_role)i;
		struct child_option c;

		if (!children_option(n->options, role, &c))
			continue;
		n->child[i] = c.reference ? plan_reference(a, c.reference,
							   n->name, role, e)
					  : plan(a, c.definition, n, role,
						 depth + 1, e);
		if (!n->child[i])
			return false;
	}
	return true;
}

/* @parent NULL: the root.  NULL: it failed, and what was planned is in @a. */
static struct node *
plan(struct node_add *a, const struct blockdev_options *o,
     const struct node *parent, enum child_role role, unsigned depth,
     struct err *e)
{
	AUTO(free)
	char *name = o->node_name ? xstrdup(o->node_name)
				  : graph_take_name(a->d->graph);
	AUTO(node_free) struct node *n = NULL;

	if (depth == NODE_MAX_LAYERS) {
		(void)err_set(e, ERR_GENERIC, 0,
			      "nodes are nested more than %d deep",
			      NODE_MAX_LAYERS);
		return NULL;
	}
	if (!graph_check_nodes(a->d->graph, a->n, e))
		return NULL;
	n = bare_node(o, name);
	if (!objects_fill_limits(a->d->graph, n, e))
		return NULL;
	n->above = parent;
	if (parent)
		node_inherit(n->options, parent->options, role);
	if (!plan_children(a, n, depth, e) ||
	    (o->node_name && !name_check(a, name, e)))
		return NULL;
	a->v = xrealloc(a->v, a->n + 1, sizeof a->v[0]);
	a->v[a->n++] = n;
	return steal(&n);
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
	return plan(a, o, NULL, CHILD_FILE, 0, e) != NULL;
}

bool
node_add_plan_anonymous(struct node_add *a, struct daemon *d,
			const struct blockdev_options *o, struct err *e)
{
	a->d = d;
	return plan(a, o, NULL, CHILD_FILE, 0, e) != NULL;
}

/* --- opening (worker) -------------------------------------------------------------- */

bool
node_add_named(struct node_add *a, size_t at, enum child_role role,
	       const struct blockdev_options *o, struct err *e)
{
	struct node_add sub = { .d = a->d };
	struct node *n = a->v[at];
	bool ok;

	n->child[role] = plan(&sub, o, n, role, 1, e);
	ok = n->child[role] != NULL;
	/* nodes that could not be planned are freed along with the others */
	a->v = xrealloc(a->v, a->n + sub.n, sizeof a->v[0]);
	memmove(a->v + at + sub.n, a->v + at, (a->n - at) * sizeof a->v[0]);
	memcpy(a->v + at, sub.v, sub.n * sizeof a->v[0]);
	a->n += sub.n;
	free(sub.v);
	return ok;
}

unsigned
node_layers(const struct node *n)
{
	unsigned layers = 1;

	for (int i = 0; i < CHILD_ROLES && layers <= NODE_MAX_LAYERS; i++)
		if (n->child[i])
			layers += node_layers(n->child[i]);
	return layers;
}

/* Its children are open. */
static bool
count_layers(struct node *n, struct err *e)
{
	n->layers = 1;
	for (int i = 0; i < CHILD_ROLES; i++)
		if (n->child[i])
			n->layers += n->child[i]->layers;
	return n->layers <= NODE_MAX_LAYERS ||
	       err_set(e, ERR_GENERIC, 0,
		       "Node '%s' has more than %d nodes below it", n->name,
		       NODE_MAX_LAYERS - 1);
}

static bool
is_file(const struct node *n)
{
	return n->options->driver == BLOCKDEV_DRIVER_FILE ||
	       n->options->driver == BLOCKDEV_DRIVER_HOST_DEVICE;
}

/* @elsewhere: the data plane has files open. */
static bool
open_bitmaps(struct node_add *a, bool elsewhere, struct err *e)
{
	struct node *top = a->v[a->n - 1];

	for (size_t i = 0; i + 1 < a->n; i++)
		if (!stored_lose(top, a->v[i], elsewhere, e))
			return false;
	if (!a->took_bitmaps)
		return stored_load(a->d, top, e);
	if (!elsewhere)
		return stored_take_again(top, e);
	stored_assume(top);
	return true;
}

bool
node_add_open(struct node_add *a, struct err *e)
{
	bool elsewhere = false; /* the data plane writes to it */
	size_t i = 0;

	while (i < a->n) {
		struct node *n = a->v[i];
		size_t had = a->n;

		if (!chain_look(a, i, e))
			return false;
		if (a->n > had)
			continue; /* others come before it now */
		if (a->kept && is_file(n))
			n->fd = a->kept(a->opaque, n);
		elsewhere |= n->fd >= 0;
		if (!count_layers(n, e) || !image_open(a->d, n, e))
			return false;
		i++;
	}
	if (a->then)
		a->changed =
			identity_changed(a->v[a->n - 1], &a->leave, a->then);
	return open_bitmaps(a, elsewhere, e);
}

/* --- the result (loop) --------------------------------------------------------------- */

/* As QEMU opens them: a node's file comes before it, all else after it. */
static void
give_births(struct graph *g, struct node *n)
{
	if (!n || n->born)
		return;
	give_births(g, n->child[CHILD_FILE]);
	n->born = ++g->births;
	for (int i = 0; i < CHILD_ROLES; i++)
		give_births(g, n->child[i]);
}

struct node *
node_add_finish(struct node_add *a)
{
	struct node *top = a->v[a->n - 1];

	for (size_t i = 0; i < a->n; i++) {
		a->v[i]->above = NULL;
		graph_add_node(a->d->graph, a->v[i]);
	}
	give_births(a->d->graph, top);
	stored_adopt(top);
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
	lost_forget_found(a->add.d->lost, a->add.d->graph);
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

	if (!filter_check(g, name, e))
		return false;
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
	if (n->parents || n->views)
		return err_set(e, ERR_GENERIC, 0, "Block device %s is in use",
			       name);
	return true;
}

struct deleting {
	struct daemon *d;
	struct qmp_call *call;
	struct node *node; /* hidden, while it is let go */
	struct store *store;
	struct plane_request r;
	struct task settled;
	struct work work;
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

static void
del_drop(struct deleting *del)
{
	graph_drop_node(del->d->graph, del->node);
	registry_save(del->d->registry, del_saved, del);
}

static void
del_store_run(struct work *w)
{
	store_run(container_of(w, struct deleting, work)->store);
}

static void
del_stored(struct work *w)
{
	struct deleting *del = container_of(w, struct deleting, work);

	store_finish(del->store);
	del_drop(del);
}

static void
del_fail(struct deleting *del, const struct err *e)
{
	if (del->store)
		store_free(del->store);
	pending_end(del->d);
	qmp_call_fail(del->call, e);
	free(del);
}

/* Bitmaps are stored here: only when the image is closed in the data plane,
 * which may have been out of sight when it was told to.
 */
static void
del_settled(struct task *t)
{
	struct deleting *del = container_of(t, struct deleting, settled);
	struct err e = ERR_INIT;

	if (!node_check_closed(del->node, &e)) {
		del_fail(del, &e);
		return;
	}
	del->store = store_plan(del->node);
	if (del->store && !plane_is_up(del->d->plane)) {
		(void)err_set(&e, ERR_GENERIC, 0,
			      "the data plane (nbdkit) does not run");
		del_fail(del, &e);
		return;
	}
	graph_hide_node(del->d->graph, del->node);
	if (!del->store) {
		del_drop(del);
		return;
	}
	del->work = (struct work){ .run = del_store_run, .done = del_stored };
	work_submit(del->d->work, &del->d->loop, &del->work);
}

static void
del_begin(struct deleting *del)
{
	struct daemon *d = del->d;

	if (del->node->keeps_bitmaps) {
		plane_when_settled(d->plane, &del->settled);
		return;
	}
	graph_hide_node(d->graph, del->node);
	del_drop(del);
}

static void
del_closed(struct plane_request *r, const struct json *ret,
	   struct link_msg *msg, const struct err *e)
{
	struct deleting *del = container_of(r, struct deleting, r);

	(void)ret;
	(void)msg;
	if (e) {
		del_fail(del, e);
		return;
	}
	del->node->in_plane = false;
	del_begin(del);
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
	del = xzalloc(sizeof *del);
	del->node = n;
	del->d = d;
	del->call = call;
	del->settled.fn = del_settled;
	del->r.done = del_closed;
	pending_begin(d);
	/* it could not be closed after its last export: once more */
	if (n->in_plane)
		plane_close_node(d->plane, n->name, &del->r);
	else
		del_begin(del);
}

/* --- blockdev-set-active -------------------------------------------------------------------- */

bool
qmp_blockdev_set_active(struct qmp_call *call,
			const struct qmp_blockdev_set_active_args *arg,
			struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);

	if (arg->node_name && !graph_node(d->graph, arg->node_name))
		return err_set(e, ERR_GENERIC, 0,
			       "Failed to find node with node-name='%s'",
			       arg->node_name);
	return arg->active ||
	       err_set(e, ERR_GENERIC, 0,
		       "Nodes cannot be inactive: nobody takes images over "
		       "from this process");
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/reopen.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/images.h"
#include "daemon/nodes.h"
#include "daemon/objects.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "daemon/stored.h"
#include "schema/qmp-commands.h"

#define TIMEOUT_MS 2000

/* A node and what it will be; in the end, and after an exchange, what it was. */
struct change {
	struct change *next;
	struct node *node;
	struct blockdev_options *options; /* owned */
	struct throttle_config limits; /* of a throttle node's group */
	struct node *child[CHILD_ROLES]; /* borrowed */
	struct store *store; /* owned: bitmaps of its image; or NULL */
	int fd; /* owned, or -1 */
	uint64_t size;
	uint32_t cluster;
	bool read_only, read_only_below;
	bool takes; /* @store takes bitmaps into use; else stores them */
	bool stored; /* @store was carried out */
};

struct reopening {
	struct daemon *d;
	struct qmp_call *call;
	struct qmp_blockdev_reopen_args *arg; /* owned */
	struct change *changes; /* owned */
	struct task settled;
	struct work work;
	struct plane_request r;
	bool taking; /* the stores that are carried out now are takes */
	bool registered; /* the registry has what the data plane is asked for */
	struct err e;
};

/* --- planning ------------------------------------------------------------------ */

static bool plan(struct reopening *r, struct node *n,
		 const struct blockdev_options *then, struct err *e);

static bool
cannot_change(const char *option, const char *member, struct err *e)
{
	return err_set(e, ERR_GENERIC, 0, "Cannot change the option '%s%s'",
		       option, member);
}

/* @n or what it stands on has tables, which must not be open twice. */
static bool
has_tables(const struct node *n)
{
	bool found = n->qcow2 != NULL;

	for (int i = 0; i < CHILD_ROLES && !found; i++)
		found = n->child[i] && has_tables(n->child[i]);
	return found;
}

/* Nobody has read, or is going to read, what is below @n as it is now. */
static bool
link_check(const struct reopening *r, const struct node *n,
	   enum child_role role, const struct node *to, struct err *e)
{
	const struct node *old = n->child[role];

	for (const struct node *t = r->d->graph->nodes; t; t = t->next) {
		if (!node_stands_on(t, n))
			continue;
		if (t->views || t->target_of)
			return err_set(e, ERR_GENERIC, 0,
				       "Cannot change '%s' link from '%s' to "
				       "'%s'",
				       child_role_str(role), n->name,
				       old ? old->name : to->name);
		if (t->in_plane && (has_tables(t) || (to && has_tables(to))))
			return err_set(e, ERR_GENERIC, 0,
				       "Node '%s' is busy: its %s child can be "
				       "replaced only while no guest uses it, "
				       "or where no image is in qcow2 format",
				       n->name, child_role_str(role));
	}
	return true;
}

/* @c->node will have the node @name as its child, or with NULL none. */
static bool
plan_other(struct reopening *r, struct change *c, enum child_role role,
	   const char *name, struct err *e)
{
	struct node *n = c->node, *to = NULL;

	/* the file is where a qcow2 node's own tables and bitmaps are */
	if ((role != CHILD_FILE && role != CHILD_BACKING) ||
	    (role == CHILD_FILE && n->qcow2))
		return cannot_change(child_role_str(role), "", e);
	if (name && !(to = graph_node(r->d->graph, name)))
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot find device='' nor node-name='%s'",
			       name);
	if (to && node_stands_on(to, n))
		return err_set(e, ERR_GENERIC, 0,
			       "Making '%s' a %s child of '%s' would create a "
			       "cycle",
			       name, child_role_str(role), n->name);
	if (!link_check(r, n, role, to, e) ||
	    (to && !node_check_child(r->d->graph, to, n->name, role, e)))
		return false;
	c->child[role] = to;
	return true;
}

static bool
plan_definition(struct reopening *r, struct change *c, enum child_role role,
		const struct blockdev_options *given, struct err *e)
{
	AUTO(blockdev_options_free) struct blockdev_options *then = NULL;

	if (!c->child[role])
		return cannot_change(child_role_str(role), ".driver", e);
	then = blockdev_options_clone(given);
	node_inherit(then, c->options, role);
	return plan(r, c->child[role], then, e);
}

static bool
plan_child(struct reopening *r, struct change *c, enum child_role role,
	   struct err *e)
{
	const struct node *now = c->node->child[role];
	struct child_option o;

	if (!children_option(c->options, role, &o)) {
		if (!now || role != CHILD_BACKING)
			return true;
		if (children_say_nothing(c->options, role))
			return err_set(e, ERR_GENERIC, 0,
				       "backing is missing for '%s'",
				       c->node->name);
		return plan_other(r, c, role, NULL, e);
	}
	if (o.definition)
		return plan_definition(r, c, role, o.definition, e);
	return (now && strcmp(o.reference, now->name) == 0) ||
	       plan_other(r, c, role, o.reference, e);
}

/* A node that was opened along with its parent and whose name was made up. */
static bool
names_agree(const struct node *n, const struct blockdev_options *then,
	    struct err *e)
{
	return !then->node_name || strcmp(then->node_name, n->name) == 0 ||
	       cannot_change("node-name", "", e);
}

static bool
plan_limits(struct reopening *r, struct change *c, struct err *e)
{
	struct node shadow = *c->node;

	shadow.options = c->options;
	if (!objects_fill_limits(r->d->graph, &shadow, e))
		return false;
	c->limits = shadow.limits;
	return true;
}

static struct change *
change_new(struct reopening *r, struct node *n,
	   const struct blockdev_options *then)
{
	struct change *c = r->changes;

	while (c && c->node != n)
		c = c->next;
	if (c) { /* it is named twice: the last word counts */
		blockdev_options_free(c->options);
	} else {
		c = xzalloc(sizeof *c);
		c->node = n;
		c->fd = -1;
		c->next = r->changes;
		r->changes = c;
	}
	c->options = blockdev_options_clone(then);
	memcpy(c->child, n->child, sizeof c->child);
	return c;
}

static bool
plan(struct reopening *r, struct node *n, const struct blockdev_options *then,
     struct err *e)
{
	struct change *c;

	if (then->driver != n->options->driver)
		return cannot_change("driver", "", e);
	if (!names_agree(n, then, e) || !node_check_idle(n, e) ||
	    !reopen_check(n->options, then, e))
		return false;
	c = change_new(r, n, then);
	for (int i = 0; i < CHILD_ROLES; i++)
		if (!plan_child(r, c, (enum child_role)i, e))
			return false;
	return plan_limits(r, c, e);
}

static bool
plan_all(struct reopening *r, struct err *e)
{
	const struct blockdev_options_list *l = &r->arg->options;

	for (size_t i = 0; i < l->n; i++) {
		struct node *n;

		if (!l->v[i]->node_name)
			return err_set(e, ERR_GENERIC, 0,
				       "node-name not specified");
		n = graph_node(r->d->graph, l->v[i]->node_name);
		if (!n)
			return err_set(e, ERR_GENERIC, 0,
				       "Failed to find node with "
				       "node-name='%s'",
				       l->v[i]->node_name);
		if (!plan(r, n, l->v[i], e))
			return false;
	}
	return true;
}

/* --- the end --------------------------------------------------------------------- */

#define SWAP(a, b)                      \
	do {                            \
		__typeof__(a) c_ = (a); \
		(a) = (b);              \
		(b) = c_;               \
	} while (0)

static void
exchange(struct change *c)
{
	struct node *n = c->node;

	SWAP(n->options, c->options);
	SWAP(n->limits, c->limits);
	SWAP(n->size, c->size);
	SWAP(n->cluster, c->cluster);
	SWAP(n->read_only, c->read_only);
	SWAP(n->read_only_below, c->read_only_below);
	SWAP(n->fd, c->fd);
	for (int i = 0; i < CHILD_ROLES; i++) {
		SWAP(n->child[i], c->child[i]);
		if (n->child[i])
			n->child[i]->parents++;
		if (c->child[i])
			c->child[i]->parents--;
	}
}

/* Children first. */
static void
look_below(struct node *n)
{
	for (int i = 0; i < CHILD_ROLES; i++)
		if (n->child[i])
			look_below(n->child[i]);
	node_look_below(n);
}

static void
exchange_all(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next)
		exchange(c);
	for (struct node *n = r->d->graph->nodes; n; n = n->next) {
		if (!n->parents)
			look_below(n);
		n->layers = node_layers(n);
	}
}

/* One that went with another may be gone. */
static bool
is_there(const struct graph *g, const struct node *n)
{
	const struct node *i = g->nodes;

	while (i && i != n)
		i = i->next;
	return i != NULL;
}

/* Nobody holds them any more. */
static void
drop_old_children(struct reopening *r)
{
	struct graph *g = r->d->graph;

	for (struct change *c = r->changes; c; c = c->next)
		for (int i = 0; i < CHILD_ROLES; i++) {
			struct node *old = c->child[i];

			if (old && is_there(g, old) && !old->parents &&
			    !old->monitor_owned)
				graph_remove_node(g, old);
		}
}

static void
end(struct reopening *r, const struct err *e)
{
	struct change *c;

	while ((c = r->changes)) {
		r->changes = c->next;
		blockdev_options_free(c->options);
		if (c->store)
			store_free(c->store);
		if (c->fd >= 0)
			(void)close(c->fd);
		free(c);
	}
	qmp_blockdev_reopen_args_free(r->arg);
	pending_end(r->d);
	if (e)
		qmp_call_fail(r->call, e);
	else
		qmp_blockdev_reopen_return(r->call);
	free(r);
}

static void
saved(void *opaque, const struct err *e)
{
	struct reopening *r = opaque;

	drop_old_children(r);
	end(r, e);
}

/* --- bitmaps in images ---------------------------------------------------------------- *
 *
 * What becomes read-only stores them first; what becomes writable says after
 * the exchange that they are in use.  The data plane has none of these nodes.
 */

static bool
moves_bitmaps(const struct change *c)
{
	return c->node->qcow2 && c->node->monitor_owned &&
	       c->read_only != c->node->read_only;
}

static void
stores_finish(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next) {
		struct node *n = c->node;

		if (c->store)
			store_finish(steal(&c->store));
		if (moves_bitmaps(c))
			stored_assume(n);
	}
}

static void
run_back(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);

	for (struct change *c = r->changes; c; c = c->next) {
		if (c->store && c->takes)
			store_run(c->store);
		else if (c->store && c->stored)
			store_again_in_use(c->store);
	}
}

static void
unregistered(void *opaque, const struct err *e)
{
	struct reopening *r = opaque;
	struct err why = r->e;

	if (e)
		log_error("blockdev-reopen: %s", e->msg);
	end(r, &why);
}

static void
back_done(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);

	if (r->registered)
		registry_save(r->d->registry, unregistered, r);
	else
		unregistered(r, NULL);
}

/* It failed; nodes are what they were. */
static void
give_up(struct reopening *r)
{
	r->work = (struct work){ .run = run_back, .done = back_done };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

static void
undo(struct reopening *r)
{
	/* what was taken into use is stored once more */
	for (struct change *c = r->changes; c; c = c->next) {
		if (!c->store || !c->takes)
			continue;
		store_free(steal(&c->store));
		stored_assume(c->node);
		if (c->stored)
			c->store = store_plan(c->node);
	}
	exchange_all(r);
	for (struct change *c = r->changes; c; c = c->next)
		if (c->takes)
			stored_assume(c->node);
	give_up(r);
}

static void
run_stores(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);

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

/* --- the data plane ---------------------------------------------------------------- */

static bool
concerned(const struct reopening *r, const struct node *top)
{
	for (const struct change *c = r->changes; c; c = c->next)
		if (node_stands_on(top, c->node))
			return true;
	return false;
}

static void
on_reopened(struct plane_request *pr, const struct json *ret,
	    struct link_msg *msg, const struct err *e)
{
	struct reopening *r = container_of(pr, struct reopening, r);

	(void)ret;
	(void)msg;
	/* one that is gone may have done it, and the next one will */
	if (!e || !plane_is_up(r->d->plane)) {
		stores_finish(r);
		PARK("reopen.done");
		registry_save(r->d->registry, saved, r);
		return;
	}
	r->e = *e;
	undo(r);
}

/* Nodes of exports that stand on something that changes. */
static bool
describe_tops(struct reopening *r, struct link_node_image_list *to, int *fds,
	      unsigned *nfds, struct err *e)
{
	for (struct node *n = r->d->graph->nodes; n; n = n->next) {
		struct link_node_image *i;

		if (!n->in_plane || !concerned(r, n))
			continue;
		if (*nfds + n->layers > LINK_MAX_FDS)
			return err_set(e, ERR_GENERIC, 0,
				       "too many nodes in one command");
		i = xzalloc(sizeof *i);
		i->node = xstrdup(n->name);
		i->image = describe_node(n, fds, nfds);
		xassert_memory(link_node_image_list_append(to, i));
	}
	return true;
}

static void
taken(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);

	if (err_is_set(&r->e)) {
		undo(r);
		return;
	}
	stores_finish(r);
	registry_save(r->d->registry, saved, r);
}

/* After the exchange: @c has what the node was. */
static void
plan_takes(struct reopening *r)
{
	r->taking = true;
	for (struct change *c = r->changes; c; c = c->next) {
		if (!moves_bitmaps(c) || c->node->read_only)
			continue;
		c->takes = true;
		c->store = store_plan_take(c->node);
	}
	r->work = (struct work){ .run = run_stores, .done = taken };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

static bool
layers_check(const struct reopening *r, struct err *e)
{
	for (const struct node *n = r->d->graph->nodes; n; n = n->next)
		if (n->layers > NODE_MAX_LAYERS)
			return err_set(e, ERR_GENERIC, 0,
				       "Node '%s' has more than %d nodes below "
				       "it",
				       n->name, NODE_MAX_LAYERS - 1);
	return true;
}

static bool
any_in_plane(const struct reopening *r)
{
	for (const struct node *n = r->d->graph->nodes; n; n = n->next)
		if (n->in_plane && concerned(r, n))
			return true;
	return false;
}

static void
ask_plane(void *opaque, const struct err *e)
{
	struct link_nodes_reopen_args arg = { .timeout_ms = TIMEOUT_MS };
	struct reopening *r = opaque;
	int fds[LINK_MAX_FDS];
	unsigned nfds = 0;
	struct json_out o;

	PARK("reopen.registered");
	r->registered = !e;
	if (e)
		r->e = *e;
	if (e || !describe_tops(r, &arg.nodes, fds, &nfds, &r->e)) {
		link_node_image_list_clear(&arg.nodes);
		undo(r);
		return;
	}
	r->r.done = on_reopened;
	plane_begin(&o);
	link_put_nodes_reopen(&o, &arg);
	link_node_image_list_clear(&arg.nodes);
	plane_ask(r->d->plane, &r->r, &o, fds, nfds);
}

/* The registry knows of it before the data plane does: what guests write to
 * other images is not lost when stillpointd dies.
 */
static void
carry_out(struct reopening *r)
{
	exchange_all(r);
	if (!layers_check(r, &r->e))
		undo(r);
	else if (any_in_plane(r))
		registry_save(r->d->registry, ask_plane, r);
	else
		plan_takes(r);
}

/* --- checking and opening (worker) ---------------------------------------------------- */

static bool
open_one(struct reopening *r, struct change *c, struct err *e)
{
	struct node shadow = *c->node;

	shadow.options = c->options;
	shadow.limits = c->limits;
	memcpy(shadow.child, c->child, sizeof shadow.child);
	shadow.fd = -1;
	shadow.target = NULL;
	if (!image_reopen(r->d, c->node, &shadow, e)) {
		if (shadow.fd >= 0)
			(void)close(shadow.fd);
		return false;
	}
	c->fd = shadow.fd;
	c->size = shadow.size;
	c->cluster = shadow.cluster;
	c->read_only = shadow.read_only;
	return true;
}

static void
run(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);

	for (struct change *c = r->changes; c; c = c->next)
		if (!open_one(r, c, &r->e))
			return;
}

static bool
is_written(struct graph *g, const struct node *n)
{
	enum child_role role;
	const struct node *p = graph_parent(g, n, &role);

	if (graph_device(g, n))
		return true;
	if (!p || role == CHILD_BACKING || p->read_only)
		return false;
	return !node_filtered(p) || is_written(g, p);
}

static bool
in_plane(const struct graph *g, const struct node *n)
{
	for (const struct node *top = g->nodes; top; top = top->next)
		if (top->in_plane && node_stands_on(top, n))
			return true;
	return false;
}

/* Is the parent changed as well, to one that only reads? */
static bool
parent_follows(const struct reopening *r, const struct node *n)
{
	for (const struct change *c = r->changes; c; c = c->next)
		for (int i = 0; i < CHILD_ROLES; i++)
			if (c->node->child[i] == n)
				return c->read_only;
	return false;
}

static bool
read_only_then(const struct reopening *r, const struct node *n)
{
	for (const struct change *c = r->changes; c; c = c->next)
		if (c->node == n)
			return c->read_only;
	return n->read_only;
}

/* What writes to its children for itself needs them writable, when all is
 * changed.
 */
static bool
children_check(const struct reopening *r, struct change *c, struct err *e)
{
	for (int i = 0; i < CHILD_ROLES && !c->read_only; i++) {
		if (i == CHILD_BACKING || !c->child[i] ||
		    node_filtered(c->node) || !read_only_then(r, c->child[i]))
			continue;
		if (!c->options->auto_read_only)
			return err_set(e, ERR_GENERIC, 0,
				       "Block node is read-only");
		c->read_only = true;
	}
	return true;
}

/* A format makes its file longer as it likes. */
static bool
is_file_of_format(const struct reopening *r, const struct node *n)
{
	enum child_role role;
	const struct node *p = graph_parent(r->d->graph, n, &role);

	return p && p->qcow2 && role != CHILD_BACKING;
}

/* What guests were told of @c->node stays true with its new children. */
static bool
guests_check(const struct reopening *r, const struct change *c, struct err *e)
{
	const struct node *n = c->node;

	if (!in_plane(r->d->graph, n) ||
	    memcmp(c->child, n->child, sizeof c->child) == 0)
		return true;
	if (c->size != n->size)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: its size can be changed "
			       "only while no guest uses it",
			       n->name);
	for (int i = 0; i < CHILD_ROLES; i++)
		if (c->child[i] && read_only_then(r, c->child[i]) &&
		    is_written(r->d->graph, n))
			return err_set(e, ERR_GENERIC, 0,
				       "Block node is read-only");
	return true;
}

static bool
change_check(const struct reopening *r, struct change *c, struct err *e)
{
	const struct node *n = c->node;
	bool moved = (c->size != n->size && !is_file_of_format(r, n)) ||
		     (n->options->driver == BLOCKDEV_DRIVER_RAW &&
		      n->options->u.raw->offset != c->options->u.raw->offset);

	if (!children_check(r, c, e) || !guests_check(r, c, e))
		return false;
	if (c->read_only && !n->read_only && is_written(r->d->graph, n) &&
	    !parent_follows(r, n))
		return err_set(e, ERR_GENERIC, 0, "Block node is read-only");
	/* its tables are in the memory of the data plane */
	if (c->read_only != n->read_only &&
	    n->options->driver == BLOCKDEV_DRIVER_QCOW2 &&
	    in_plane(r->d->graph, n))
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot change the option 'read-only'");
	if (moved && (n->bitmaps || n->views || n->parents))
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: it shows another part of "
			       "its file only without bitmaps, jobs and nodes "
			       "above it",
			       n->name);
	return true;
}

/* Nobody uses the bitmaps that go into the image or come out of it, and there
 * is nothing to do for the data plane in between.
 */
static bool
bitmaps_check(const struct reopening *r, const struct change *c, struct err *e)
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
	return !any_in_plane(r) ||
	       err_set(e, ERR_GENERIC, 0,
		       "Change 'read-only' of node '%s' in a command without "
		       "nodes that guests use",
		       c->node->name);
}

static void
on_stored(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);

	if (err_is_set(&r->e))
		give_up(r);
	else
		carry_out(r);
}

static void
opened(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);
	struct err e = r->e;

	for (struct change *c = r->changes; c; c = c->next)
		if (err_is_set(&e) || !change_check(r, c, &e) ||
		    !bitmaps_check(r, c, &e)) {
			end(r, &e);
			return;
		}
	for (struct change *c = r->changes; c; c = c->next)
		if (moves_bitmaps(c) && c->read_only)
			c->store = store_plan(c->node);
	r->work = (struct work){ .run = run_stores, .done = on_stored };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

static void
begin(struct task *t)
{
	struct reopening *r = container_of(t, struct reopening, settled);
	struct err e = ERR_INIT;

	if (!plan_all(r, &e)) {
		end(r, &e);
		return;
	}
	r->work = (struct work){ .run = run, .done = opened };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

void
qmp_blockdev_reopen(struct qmp_call *call, struct qmp_blockdev_reopen_args *arg)
{
	struct reopening *r = xzalloc(sizeof *r);

	r->d = qmp_call_opaque(call);
	r->call = call;
	r->arg = arg;
	r->settled.fn = begin;
	pending_begin(r->d);
	plane_when_settled(r->d->plane, &r->settled);
}

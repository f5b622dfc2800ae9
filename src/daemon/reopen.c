/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/reopen.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/images.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "schema/qmp-commands.h"

#define TIMEOUT_MS 2000

/* A node and what it will be; in the end, and after an exchange, what it was. */
struct change {
	struct change *next;
	struct node *node;
	struct blockdev_options *options; /* owned */
	int fd; /* owned, or -1 */
	uint64_t size;
	bool read_only;
};

struct reopening {
	struct daemon *d;
	struct qmp_call *call;
	struct qmp_blockdev_reopen_args *arg; /* owned */
	struct change *changes; /* owned */
	struct task settled;
	struct work work;
	struct plane_request r;
	struct err e;
};

/* --- planning ------------------------------------------------------------------ */

static bool plan(struct reopening *r, struct node *n,
		 const struct blockdev_options *then, struct err *e);

static bool
plan_child(struct reopening *r, struct node *n, enum child_role role,
	   const struct blockdev_options *then, struct err *e)
{
	struct child_option c;

	if (!children_option(then, role, &c))
		return true;
	if (c.reference && strcmp(c.reference, n->child[role]->name) != 0)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot change the option '%s'",
			       child_role_str(role));
	return c.reference || plan(r, n->child[role], c.definition, e);
}

/* A node that was opened along with its parent and whose name was made up. */
static bool
names_agree(const struct node *n, const struct blockdev_options *then,
	    struct err *e)
{
	if (!then->node_name || strcmp(then->node_name, n->name) == 0)
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "Cannot change the option 'node-name'");
}

static bool
plan(struct reopening *r, struct node *n, const struct blockdev_options *then,
     struct err *e)
{
	struct change *c;

	if (then->driver != n->options->driver)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot change the option 'driver'");
	if (!names_agree(n, then, e) || !node_check_idle(n, e) ||
	    !reopen_check(n->options, then, e))
		return false;
	for (int i = 0; i < CHILD_ROLES; i++)
		if (!plan_child(r, n, (enum child_role)i, then, e))
			return false;
	c = xzalloc(sizeof *c);
	c->node = n;
	c->options = blockdev_options_clone(then);
	c->fd = -1;
	c->next = r->changes;
	r->changes = c;
	return true;
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

static void
exchange(struct change *c)
{
	struct node *n = c->node;
	struct blockdev_options *options = n->options;
	uint64_t size = n->size;
	bool read_only = n->read_only;
	int fd = n->fd;

	n->options = c->options;
	n->size = c->size;
	n->read_only = c->read_only;
	n->fd = c->fd;
	c->options = options;
	c->size = size;
	c->read_only = read_only;
	c->fd = fd;
}

static void
end(struct reopening *r, const struct err *e)
{
	struct change *c;

	while ((c = r->changes)) {
		r->changes = c->next;
		blockdev_options_free(c->options);
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
	end(opaque, e);
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
	if (!e) {
		PARK("reopen.done");
		registry_save(r->d->registry, saved, r);
		return;
	}
	for (struct change *c = r->changes; c; c = c->next)
		exchange(c);
	r->e = *e;
	end(r, &r->e);
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
ask_plane(struct reopening *r)
{
	struct link_nodes_reopen_args arg = { .timeout_ms = TIMEOUT_MS };
	int fds[LINK_MAX_FDS];
	unsigned nfds = 0;
	struct json_out o;

	for (struct change *c = r->changes; c; c = c->next)
		exchange(c);
	if (!describe_tops(r, &arg.nodes, fds, &nfds, &r->e)) {
		link_node_image_list_clear(&arg.nodes);
		for (struct change *c = r->changes; c; c = c->next)
			exchange(c);
		end(r, &r->e);
		return;
	}
	if (!arg.nodes.n) {
		registry_save(r->d->registry, saved, r);
		return;
	}
	r->r.done = on_reopened;
	plane_begin(&o);
	link_put_nodes_reopen(&o, &arg);
	link_node_image_list_clear(&arg.nodes);
	plane_ask(r->d->plane, &r->r, &o, fds, nfds);
}

/* --- checking and opening (worker) ---------------------------------------------------- */

static bool
open_one(struct reopening *r, struct change *c, struct err *e)
{
	struct node shadow = *c->node;

	shadow.options = c->options;
	shadow.fd = -1;
	shadow.target = NULL;
	if (!image_reopen(r->d, c->node, &shadow, e)) {
		if (shadow.fd >= 0)
			(void)close(shadow.fd);
		return false;
	}
	c->fd = shadow.fd;
	c->size = shadow.size;
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

	return graph_device(g, n) ||
	       (p && role != CHILD_BACKING && !p->read_only);
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
change_check(const struct reopening *r, const struct change *c, struct err *e)
{
	const struct node *n = c->node;
	bool moved = c->size != n->size ||
		     (n->options->driver == BLOCKDEV_DRIVER_RAW &&
		      n->options->u.raw->offset != c->options->u.raw->offset);

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

static void
opened(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);
	struct err e = r->e;

	for (const struct change *c = r->changes; c; c = c->next)
		if (err_is_set(&e) || !change_check(r, c, &e)) {
			end(r, &e);
			return;
		}
	ask_plane(r);
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

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/exports.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/ids.h"
#include "daemon/pending.h"
#include "daemon/plane-node.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "schema/qmp-commands.h"

#define NAME_MAX_BYTES 4096 /* NBD protocol, "Values": names and strings */

/* --- checks ---------------------------------------------------------------------- */

static bool
check_supported(const struct block_export_options *o, struct err *e)
{
	const struct block_export_options_nbd *n = o->u.nbd;

	if (o->iothread)
		return err_set(e, ERR_GENERIC, 0, "iothread \"%s\" not found",
			       o->iothread);
	if (o->writethrough)
		return err_set(e, ERR_GENERIC, 0,
			       "Parameter 'writethrough' is not supported: "
			       "guests decide with flush and FUA");
	if (n->bitmaps.n || n->allocation_depth)
		return err_set(e, ERR_GENERIC, 0,
			       "Export '%s' is for guests: it has no metadata "
			       "context but base:allocation",
			       o->id);
	if (n->description && strlen(n->description) > NAME_MAX_BYTES)
		return err_set(e, ERR_GENERIC, 0, "description '%s' too long",
			       n->description);
	return true;
}

static bool
check_node(struct graph *g, const struct block_export_options *o,
	   struct node **out, struct err *e)
{
	struct node *n = *out = graph_node(g, o->node_name);

	if (!n)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot find device='' nor node-name='%s'",
			       o->node_name);
	if (!node_check_idle(n, e))
		return false;
	if (!node_check_top(g, n, e))
		return false;
	if (o->writable && n->read_only)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot export read-only node as writable");
	return true;
}

static bool
check_name(struct graph *g, const char *name, struct err *e)
{
	if (strlen(name) > NAME_MAX_BYTES)
		return err_set(e, ERR_GENERIC, 0, "export name '%s' too long",
			       name);
	for (const struct export *x = g->exports; x; x = x->next)
		if (strcmp(x->name, name) == 0)
			return err_set(e, ERR_GENERIC, 0,
				       "NBD server already has export named "
				       "'%s'",
				       name);
	return true;
}

static bool
check_id(struct graph *g, const struct block_export_options *o, struct err *e)
{
	if (!id_is_wellformed(o->id))
		return err_set(e, ERR_GENERIC, 0, "Invalid block export id");
	if (graph_export(g, o->id))
		return err_set(e, ERR_GENERIC, 0,
			       "Block export id '%s' is already in use", o->id);
	/* the id of a writable export is a device name */
	if (o->writable && graph_node(g, o->id) &&
	    strcmp(o->id, o->node_name) != 0)
		return err_set(e, ERR_GENERIC, 0,
			       "id '%s' is conflicting with a node-name",
			       o->id);
	return true;
}

bool
export_new(struct daemon *d, struct block_export_options *options,
	   struct export **out, struct err *e)
{
	AUTO(block_export_options_free)
	struct block_export_options *o = options;
	const char *name = o->u.nbd->name ? o->u.nbd->name : o->node_name;
	struct node *n;
	struct export *x;

	if (!check_id(d->graph, o, e) || !check_node(d->graph, o, &n, e) ||
	    !check_supported(o, e) || !check_name(d->graph, name, e))
		return false;
	x = *out = xzalloc(sizeof *x);
	x->options = steal(&o);
	x->node = n;
	x->name = name;
	return true;
}

/* --- block-export-add ------------------------------------------------------------- */

struct adding {
	struct daemon *d;
	struct block_export_options *options; /* until @x has them */
	struct export *x;
	struct task settled;
	struct plane_request r;
	bool opened; /* we opened the node in the data plane */
	void (*done)(void *opaque, const struct err *e);
	void *opaque;
	struct err e;
};

static void
add_end(struct adding *a, const struct err *e)
{
	pending_end(a->d);
	a->done(a->opaque, e);
	free(a);
}

/* The node goes back, and what was wrong is told. */
static void
add_closed(struct plane_request *r, const struct json *ret,
	   struct link_msg *msg, const struct err *e)
{
	struct adding *a = container_of(r, struct adding, r);

	(void)ret;
	(void)msg;
	if (e)
		log_warn("%s", e->msg);
	add_end(a, &a->e);
}

static void
add_undo(struct adding *a, const struct err *e)
{
	struct node *n = a->x->node;

	a->e = *e;
	if (a->x->in_plane || graph_export(a->d->graph, a->x->options->id)) {
		graph_remove_export(a->d->graph, a->x);
	} else {
		block_export_options_free(a->x->options);
		free(a->x);
	}
	if (!a->opened) {
		add_end(a, &a->e);
		return;
	}
	n->in_plane = false;
	a->r.done = add_closed;
	plane_close_node(a->d->plane, n->name, &a->r);
}

static void
add_withdrawn(struct plane_request *r, const struct json *ret,
	      struct link_msg *msg, const struct err *e)
{
	struct adding *a = container_of(r, struct adding, r);
	struct err why = a->e;

	(void)ret;
	(void)msg;
	(void)e;
	add_undo(a, &why);
}

static void
add_saved(void *opaque, const struct err *e)
{
	struct adding *a = opaque;

	if (!e) {
		add_end(a, NULL);
		return;
	}
	a->e = *e;
	a->r.done = add_withdrawn;
	plane_del_export(a->d->plane, a->x->name, true, &a->r);
}

static void
add_exported(struct plane_request *r, const struct json *ret,
	     struct link_msg *msg, const struct err *e)
{
	struct adding *a = container_of(r, struct adding, r);

	(void)ret;
	(void)msg;
	if (e) {
		add_undo(a, e);
		return;
	}
	a->x->in_plane = true;
	graph_add_export(a->d->graph, a->x);
	registry_save(a->d->registry, add_saved, a);
}

static void
add_export(struct adding *a)
{
	a->r.done = add_exported;
	plane_add_export(a->d->plane, a->x, &a->r);
}

static void
add_opened(struct plane_request *r, const struct json *ret,
	   struct link_msg *msg, const struct err *e)
{
	struct adding *a = container_of(r, struct adding, r);

	(void)ret;
	(void)msg;
	if (e) {
		add_undo(a, e);
		return;
	}
	a->opened = true;
	a->x->node->in_plane = true;
	add_export(a);
}

static void
add_begin(struct task *t)
{
	struct adding *a = container_of(t, struct adding, settled);
	struct block_export_options *o = steal(&a->options);

	if (!export_new(a->d, o, &a->x, &a->e)) {
		add_end(a, &a->e);
		return;
	}
	if (a->x->node->in_plane) {
		add_export(a);
		return;
	}
	a->r.done = add_opened;
	plane_open_node(a->d->plane, a->x->node, &a->r);
}

void
export_add(struct daemon *d, struct block_export_options *options,
	   void (*done)(void *opaque, const struct err *e), void *opaque)
{
	struct adding *a = xzalloc(sizeof *a);

	a->d = d;
	a->options = options;
	a->done = done;
	a->opaque = opaque;
	a->settled.fn = add_begin;
	pending_begin(d);
	plane_when_settled(d->plane, &a->settled);
}

static void
add_command_done(void *opaque, const struct err *e)
{
	if (e)
		qmp_call_fail(opaque, e);
	else
		qmp_block_export_add_return(opaque);
}

void
qmp_block_export_add(struct qmp_call *call, struct block_export_options *arg)
{
	export_add(qmp_call_opaque(call), arg, add_command_done, call);
}

/* --- block-export-del --------------------------------------------------------------- */

struct deleting {
	struct daemon *d;
	struct qmp_call *call;
	struct export *x;
	char *node; /* owned: to be closed */
	bool hard;
	struct task settled;
	struct plane_request r;
};

static void
del_end(struct deleting *del, const struct err *e)
{
	pending_end(del->d);
	if (e)
		qmp_call_fail(del->call, e);
	else
		qmp_block_export_del_return(del->call);
	free(del->node);
	free(del);
}

static void
del_saved(void *opaque, const struct err *e)
{
	del_end(opaque, e);
}

static void
del_closed(struct plane_request *r, const struct json *ret,
	   struct link_msg *msg, const struct err *e)
{
	struct deleting *del = container_of(r, struct deleting, r);

	(void)ret;
	(void)msg;
	if (e)
		log_warn("%s", e->msg);
	registry_save(del->d->registry, del_saved, del);
}

static void
del_gone(struct deleting *del)
{
	struct node *n = del->x->node;

	qmp_event_block_export_deleted(qmp_server_events(del->d->qmp),
				       del->x->options->id);
	graph_remove_export(del->d->graph, del->x);
	if (n->exports) {
		registry_save(del->d->registry, del_saved, del);
		return;
	}
	n->in_plane = false;
	del->node = xstrdup(n->name);
	del->r.done = del_closed;
	plane_close_node(del->d->plane, del->node, &del->r);
}

static void
del_withdrawn(struct plane_request *r, const struct json *ret,
	      struct link_msg *msg, const struct err *e)
{
	struct deleting *del = container_of(r, struct deleting, r);
	struct err busy = ERR_INIT;

	(void)ret;
	(void)msg;
	if (!e) {
		del_gone(del);
		return;
	}
	del->x->shutting_down = false;
	if (strstr(e->msg, "still in use"))
		(void)err_set(&busy, ERR_GENERIC, 0, "export '%s' still in use",
			      del->x->options->id);
	else
		busy = *e;
	del_end(del, &busy);
}

static void
del_begin(struct task *t)
{
	struct deleting *del = container_of(t, struct deleting, settled);

	if (!del->x->in_plane && plane_is_up(del->d->plane)) {
		del_gone(del); /* it waits for its node */
		return;
	}
	del->r.done = del_withdrawn;
	plane_del_export(del->d->plane, del->x->name, del->hard, &del->r);
}

void
qmp_block_export_del(struct qmp_call *call,
		     struct qmp_block_export_del_args *arg)
{
	AUTO(qmp_block_export_del_args_free)
	struct qmp_block_export_del_args *own = arg;
	struct daemon *d = qmp_call_opaque(call);
	struct export *x = graph_export(d->graph, arg->id);
	struct deleting *del;
	struct err e = ERR_INIT;

	if (!x) {
		(void)err_set(&e, ERR_GENERIC, 0, "Export '%s' is not found",
			      arg->id);
		qmp_call_fail(call, &e);
		return;
	}
	if (x->shutting_down) {
		(void)err_set(&e, ERR_GENERIC, 0,
			      "Export '%s' is already shutting down", arg->id);
		qmp_call_fail(call, &e);
		return;
	}
	del = xzalloc(sizeof *del);
	del->d = d;
	del->call = call;
	del->x = x;
	del->hard = arg->has_mode && arg->mode == BLOCK_EXPORT_REMOVE_MODE_HARD;
	x->shutting_down = true;
	del->settled.fn = del_begin;
	pending_begin(d);
	plane_when_settled(d->plane, &del->settled);
}

bool
qmp_query_block_exports(struct qmp_call *call,
			struct block_export_info_list *ret, struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);

	for (const struct export *x = d->graph->exports; x; x = x->next) {
		struct block_export_info *i = xzalloc(sizeof *i);

		i->id = xstrdup(x->options->id);
		i->type = x->options->type;
		i->node_name = xstrdup(x->node->name);
		i->shutting_down = x->shutting_down;
		if (!block_export_info_list_append(ret, i))
			return err_set(e, ERR_GENERIC, 0, "out of memory");
	}
	return true;
}

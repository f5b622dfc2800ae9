/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/exports.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/bitmap-actions.h"
#include "daemon/daemon.h"
#include "daemon/filters.h"
#include "daemon/guest-server.h"
#include "daemon/ids.h"
#include "daemon/pending.h"
#include "daemon/plane-node.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "schema/qmp-commands.h"

#define NAME_MAX_BYTES 4096 /* NBD protocol, "Values": names and strings */

/* --- checks ---------------------------------------------------------------------- */

static bool
check_lengths(const struct block_export_options *o, const char *name,
	      struct err *e)
{
	const char *text = o->u.nbd->description;

	if (strlen(name) > NAME_MAX_BYTES)
		return err_set(e, ERR_GENERIC, 0, "export name '%s' too long",
			       name);
	if (text && strlen(text) > NAME_MAX_BYTES)
		return err_set(e, ERR_GENERIC, 0, "description '%s' too long",
			       text);
	return true;
}

/* A name alone is looked for on @n and on what it filters or overlays. */
static const struct bitmap *
find_bitmap(const struct node *n, const char *name)
{
	const struct bitmap *b = NULL;

	for (; n && !b;
	     n = node_filtered(n) ? node_filtered(n) : n->child[CHILD_BACKING])
		b = node_bitmap(n, name);
	return b;
}

/* QEMU's checks of one bitmap. */
static bool
check_bitmap(struct graph *g, const struct export *x,
	     const struct block_dirty_bitmap_or_str *ref, struct err *e)
{
	bool local = ref->type == JSON_STRING;
	const char *name = local ? ref->u.local : ref->u.external->name;
	const struct bitmap *b =
		local ? find_bitmap(x->node, name)
		      : bitmap_lookup(g, ref->u.external->node, name, e);

	if (local && !b)
		return err_set(e, ERR_GENERIC, 0, "Bitmap '%s' is not found",
			       name);
	if (!b)
		return false;
	if (!bitmap_check(b, BITMAP_BUSY | BITMAP_INCONSISTENT, e))
		return false;
	if (local && !x->options->writable && !b->node->read_only && b->enabled)
		return err_set(e, ERR_GENERIC, 0,
			       "Enabled bitmap '%s' incompatible with readonly "
			       "export",
			       name);
	return true;
}

/* The last checks: what QEMU can do and a server for guests cannot. */
static bool
check_contexts(struct graph *g, const struct export *x, struct err *e)
{
	const struct block_export_options_nbd *n = x->options->u.nbd;

	for (size_t i = 0; i < n->bitmaps.n; i++)
		if (!check_bitmap(g, x, n->bitmaps.v[i], e))
			return false;
	if (n->bitmaps.n || n->allocation_depth)
		return err_set(e, ERR_GENERIC, 0,
			       "Export '%s' is for guests: it has no metadata "
			       "context but base:allocation",
			       x->options->id);
	return true;
}

static bool
check_node(struct graph *g, const struct block_export_options *o,
	   struct node **out, struct err *e)
{
	static const struct permission wanted = {
		.what = "write", .who = "an unnamed block device", .as = "root"
	};
	struct node *n = *out = graph_node(g, o->node_name);

	if (!filter_check(g, o->node_name, e))
		return false;
	if (!n)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot find device='' nor node-name='%s'",
			       o->node_name);
	if (o->writable &&
	    !node_check_writable(n, "Cannot export read-only node as writable",
				 e))
		return false;
	if (o->iothread)
		return err_set(e, ERR_GENERIC, 0, "iothread \"%s\" not found",
			       o->iothread);
	return node_check_idle(n, e) && node_check_permission(g, n, &wanted, e);
}

static bool
check_name(struct graph *g, const char *name, struct err *e)
{
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

static void
export_free(struct export *x)
{
	block_export_options_free(x->options);
	free(x);
}
DEFINE_CLEANUP(struct export, export_free);

bool
export_new(struct daemon *d, struct block_export_options *options,
	   bool recalled, struct export **out, struct err *e)
{
	AUTO(export_free) struct export *x = xzalloc(sizeof *x);
	const struct block_export_options *o = x->options = options;

	x->name = o->u.nbd->name ? o->u.nbd->name : o->node_name;
	if (!check_id(d->graph, o, e) || !graph_check_exports(d->graph, e) ||
	    !check_node(d->graph, o, &x->node, e) ||
	    (!recalled && !guest_server_check(d, e)) ||
	    !check_lengths(o, x->name, e) ||
	    !check_name(d->graph, x->name, e) ||
	    !check_contexts(d->graph, x, e))
		return false;
	*out = steal(&x);
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
	struct node *node; /* borrowed: it is closed again */
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
	else
		a->node->in_plane = false;
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
		export_free(a->x);
	}
	if (!a->opened) {
		add_end(a, &a->e);
		return;
	}
	a->node = n;
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

	if (!export_new(a->d, o, false, &a->x, &a->e)) {
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

/* QEMU's older form of it. */
void
qmp_nbd_server_add(struct qmp_call *call, struct qmp_nbd_server_add_args *arg)
{
	AUTO(qmp_nbd_server_add_args_free)
	struct qmp_nbd_server_add_args *own = arg;
	struct daemon *d = qmp_call_opaque(call);
	struct node *n = graph_device_or_node(d->graph, arg->device);
	struct block_export_options *o;
	struct err e = ERR_INIT;

	if (!n) {
		(void)err_set(&e, ERR_GENERIC, 0,
			      "Cannot find device='%s' nor node-name='%s'",
			      arg->device, arg->device);
		qmp_call_fail(call, &e);
		return;
	}
	o = xzalloc(sizeof *o);
	o->type = BLOCK_EXPORT_TYPE_NBD;
	o->id = xstrdup(arg->name ? arg->name : arg->device);
	o->node_name = xstrdup(n->name);
	o->has_writable = true;
	o->writable = arg->has_writable && arg->writable &&
		      (!n->read_only || n->read_only_below);
	o->u.nbd = xzalloc(sizeof *o->u.nbd);
	o->u.nbd->name = xstrdup(o->id);
	o->u.nbd->description = steal(&arg->description);
	if (arg->bitmap) {
		struct block_dirty_bitmap_or_str *ref = xzalloc(sizeof *ref);

		ref->type = JSON_STRING;
		ref->u.local = steal(&arg->bitmap);
		o->u.nbd->has_bitmaps = true;
		xassert_memory(block_dirty_bitmap_or_str_list_append(
			&o->u.nbd->bitmaps, ref));
	}
	export_add(d, o, add_command_done, call);
}

/* --- block-export-del --------------------------------------------------------------- */

struct deleting {
	struct daemon *d;
	struct export *x;
	struct node *node; /* borrowed: it is being closed */
	enum export_delete how;
	struct task settled;
	struct plane_request r;
	void (*done)(void *opaque, const struct err *e);
	void *opaque;
};

static void
del_end(struct deleting *del, const struct err *e)
{
	pending_end(del->d);
	del->done(del->opaque, e);
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
	/* what is still open there is opened nowhere else */
	if (e)
		log_warn("%s", e->msg);
	else
		del->node->in_plane = false;
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
	del->node = n;
	del->r.done = del_closed;
	plane_close_node(del->d->plane, n->name, &del->r);
}

static void
del_withdrawn(struct plane_request *r, const struct json *ret,
	      struct link_msg *msg, const struct err *e)
{
	struct deleting *del = container_of(r, struct deleting, r);
	struct err busy = ERR_INIT;

	(void)ret;
	(void)msg;
	if (!e || del->how == EXPORT_DELETE_ANYHOW) {
		if (e)
			log_warn("%s", e->msg);
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
	plane_del_export(del->d->plane, del->x->name,
			 del->how != EXPORT_DELETE_SAFE, &del->r);
}

void
export_delete(struct daemon *d, struct export *x, enum export_delete how,
	      void (*done)(void *opaque, const struct err *e), void *opaque)
{
	struct deleting *del = xzalloc(sizeof *del);

	del->d = d;
	del->x = x;
	del->how = how;
	del->done = done;
	del->opaque = opaque;
	x->shutting_down = true;
	del->settled.fn = del_begin;
	pending_begin(d);
	plane_when_settled(d->plane, &del->settled);
}

static struct export *
find_to_delete(struct daemon *d, const char *id, struct err *e)
{
	struct export *x = graph_export(d->graph, id);

	if (!x)
		(void)err_set(e, ERR_GENERIC, 0, "Export '%s' is not found",
			      id);
	else if (x->shutting_down)
		(void)err_set(e, ERR_GENERIC, 0,
			      "Export '%s' is already shutting down", id);
	return err_is_set(e) ? NULL : x;
}

/* block-export-del and nbd-server-remove are answered alike: with nothing. */
static void
del_command_done(void *opaque, const struct err *e)
{
	if (e)
		qmp_call_fail(opaque, e);
	else
		qmp_block_export_del_return(opaque);
}

static void
del_command(struct qmp_call *call, const char *id, bool hard)
{
	struct daemon *d = qmp_call_opaque(call);
	struct err e = ERR_INIT;
	struct export *x = find_to_delete(d, id, &e);

	if (x)
		export_delete(d, x,
			      hard ? EXPORT_DELETE_HARD : EXPORT_DELETE_SAFE,
			      del_command_done, call);
	else
		qmp_call_fail(call, &e);
}

void
qmp_block_export_del(struct qmp_call *call,
		     struct qmp_block_export_del_args *arg)
{
	del_command(call, arg->id,
		    arg->has_mode &&
			    arg->mode == BLOCK_EXPORT_REMOVE_MODE_HARD);
	qmp_block_export_del_args_free(arg);
}

void
qmp_nbd_server_remove(struct qmp_call *call,
		      struct qmp_nbd_server_remove_args *arg)
{
	del_command(call, arg->name,
		    arg->has_mode &&
			    arg->mode == BLOCK_EXPORT_REMOVE_MODE_HARD);
	qmp_nbd_server_remove_args_free(arg);
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

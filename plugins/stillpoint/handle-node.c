/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Nodes are opened, flushed, watched and closed.  What may take its time runs
 * on a thread of its own.
 */
#include "handlers.h"

#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "link/image.h"
#include "notices.h"

bool
handle_find_node(struct link_call *call, const char *name, struct node **n,
		 struct err *e)
{
	return table_find_node(server_table(call->server), name, n, e);
}

void
handle_wake(void *server)
{
	server_wake(server);
}

/* --- opening ------------------------------------------------------------------- */

struct node_open {
	struct link_node_open_args *arg; /* owned */
	bool alone; /* see struct node */
	struct block *image; /* owned, or NULL: @e */
	struct err e;
};

/* Own thread: an NBD server may take its time. */
static void
open_image(struct link_call *call)
{
	struct node_open *op = call->state;

	PARK("node.opening");
	if (!link_image_open(op->arg->image, &call->msg, &op->image, &op->e))
		op->image = NULL;
}

static bool
make_node(struct link_call *call, struct node_open *op, struct node **out,
	  struct err *e)
{
	const struct link_node_open_args *arg = op->arg;
	AUTO(node_free) struct node *n = node_new(arg->node, op->image);
	struct attached *views = NULL;
	bool ok;

	if (!n)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open '%s'",
			       arg->node);
	op->image = NULL;
	if (arg->epoch) {
		if (!handle_take_epoch(&call->msg, arg->epoch->fd, &n->epoch,
				       e))
			return false;
		n->epoch_id = arg->epoch->id;
		if (epoch_size(n->epoch) != n->image->size)
			return err_set(e, ERR_GENERIC, 0,
				       "epoch and node '%s' have different "
				       "sizes",
				       arg->node);
	}
	ok = handle_make_views(call, n, &arg->views, &views, e);
	node_attach(n, views);
	if (!ok)
		return false;
	*out = steal(&n);
	return true;
}

/* What was opened becomes a node of the table. */
static bool
add_node(struct link_call *call, struct node_open *op,
	 struct link_node_opened *ret)
{
	struct table *t = server_table(call->server);
	struct node *n = NULL;

	if (!op->image)
		return false;
	/* Who asked for it is gone.  His successor was not told of it, and opens
	 * it anew.
	 */
	if (!link_call_is_current(call))
		return err_set(&op->e, ERR_GENERIC, 0, "nobody waits for '%s'",
			       op->arg->node);
	if (table_node(t, op->arg->node))
		return err_set(&op->e, ERR_GENERIC, 0,
			       "the data plane has a node '%s' already",
			       op->arg->node);
	if (!make_node(call, op, &n, &op->e))
		return false;
	n->alone = op->alone;
	table_add_node(t, n);
	notices_watch_all(n, handle_wake, call->server);
	ret->size = n->image->size;
	return true;
}

static void
node_opened(struct link_call *call)
{
	struct node_open *op = call->state;
	struct link_node_opened ret = { 0 };
	struct server *s = call->server;
	bool alone = op->alone;

	if (add_node(call, op, &ret))
		link_node_open_return(call, &ret);
	else
		link_call_fail(call, &op->e);
	if (op->image)
		block_free(op->image);
	link_node_open_args_free(op->arg);
	free(op);
	if (alone)
		server_image_end(s);
}

void
link_node_open(struct link_call *call, struct link_node_open_args *arg)
{
	struct node_open *op = calloc(1, sizeof *op);
	struct err e = ERR_INIT;

	if (op) {
		op->arg = arg;
		op->alone = link_image_has_tables(arg->image);
		call->state = op;
		call->finish = node_opened;
		if (server_run(call, open_image)) {
			if (op->alone)
				server_image_begin(call->server);
			return;
		}
	}
	(void)err_set(&e, ERR_GENERIC, ENOMEM, "cannot open '%s'", arg->node);
	link_call_fail(call, &e);
	link_node_open_args_free(arg);
	free(op);
}

/* --- closing -------------------------------------------------------------------- */

/* Own thread: closing flushes. */
static void
close_image(struct link_call *call)
{
	struct node *n = call->state;

	(void)node_flush(n);
	PARK("node.closing");
	node_free(n);
}

static void
node_closed(struct link_call *call)
{
	link_node_close_return(call);
}

static void
alone_closed(struct link_call *call)
{
	struct server *s = call->server;

	node_closed(call);
	server_image_end(s);
}

/* Nobody is inside.  Without a thread to do it, it is done here: whoever asks
 * for it opens the image next.
 */
static void
close_node(struct link_call *call, struct node *n)
{
	table_remove_node(server_table(call->server), n);
	call->state = n;
	call->finish = n->alone ? alone_closed : node_closed;
	if (server_run(call, close_image))
		return;
	close_image(call);
	call->finish(call);
}

void
link_node_close(struct link_call *call, struct link_node_close_args *arg)
{
	AUTO(link_node_close_args_free) struct link_node_close_args *own = arg;
	struct err e = ERR_INIT;
	struct node *n = NULL;

	if (!table_node(server_table(call->server), arg->node)) {
		/* asked again: an answer was lost, or it takes its time */
		server_after_images(call, node_closed);
		return;
	}
	if (!handle_find_node(call, arg->node, &n, &e)) {
		link_call_fail(call, &e);
		return;
	}
	/* an older cut was given up, see link_cut_prepare */
	if (cut_has(server_cut(call->server), n))
		cut_clear(server_cut(call->server));
	if (n->exports) {
		(void)err_set(&e, ERR_GENERIC, 0, "node '%s' is in use",
			      arg->node);
		link_call_fail(call, &e);
		return;
	}
	if (n->alone)
		server_image_begin(call->server);
	if (n->flushing)
		n->closing = call;
	else
		close_node(call, n);
}

/* --- flushing ------------------------------------------------------------------ */

struct flush {
	struct node *node; /* borrowed: it is not closed meanwhile */
	int os;
};

/* Own thread: an NBD server may take its time. */
static void
flush_image(struct link_call *call)
{
	struct flush *f = call->state;

	PARK("node.flushing");
	f->os = node_flush(f->node);
}

static void
node_flushed(struct link_call *call)
{
	struct flush *f = call->state;
	struct node *n = f->node;
	struct err e = ERR_INIT;
	int os = f->os;

	free(f);
	if (os) {
		(void)err_set(&e, ERR_GENERIC, os, "cannot flush '%s'",
			      n->name);
		link_call_fail(call, &e);
	} else {
		link_node_flush_return(call);
	}
	n->flushing--;
	if (!n->flushing && n->closing)
		close_node(steal(&n->closing), n);
}

void
link_node_flush(struct link_call *call, struct link_node_flush_args *arg)
{
	AUTO(link_node_flush_args_free) struct link_node_flush_args *own = arg;
	AUTO(free) struct flush *f = calloc(1, sizeof *f);
	struct err e = ERR_INIT;
	struct node *n = NULL;

	if (!handle_find_node(call, arg->node, &n, &e)) {
		link_call_fail(call, &e);
		return;
	}
	if (f) {
		f->node = n;
		call->state = f;
		call->finish = node_flushed;
		n->flushing++;
		if (server_run(call, flush_image)) {
			(void)steal(&f);
			return;
		}
		n->flushing--;
	}
	(void)err_set(&e, ERR_GENERIC, ENOMEM, "cannot flush '%s'", arg->node);
	link_call_fail(call, &e);
}

/* --- watching -------------------------------------------------------------------- */

bool
link_node_threshold(struct link_call *call,
		    const struct link_node_threshold_args *arg, struct err *e)
{
	struct node *n = NULL;

	if (!handle_find_node(call, arg->node, &n, e))
		return false;
	return notices_watch(n, arg->layer, arg->threshold, handle_wake,
			     call->server) ||
	       err_set(e, ERR_GENERIC, 0, "node '%s' has no layer '%s'",
		       arg->node, arg->layer);
}

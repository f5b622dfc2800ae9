/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Views: from what a message says of one to what writers go through.
 */
#include "handlers.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

static void
on_view_broken(void *opaque, int os)
{
	struct attached *a = opaque;

	atomic_store(&a->broken, os);
	server_wake(a->server);
}

bool
handle_take_epoch(struct link_msg *m, uint32_t index, struct epoch **out,
		  struct err *e)
{
	int fd;

	return link_msg_take_fd(m, index, &fd, e) && epoch_open(fd, out, e);
}

static bool
take_view(struct link_msg *m, uint32_t index, struct view **out, struct err *e)
{
	int fd;

	return link_msg_take_fd(m, index, &fd, e) && view_open(fd, out, e);
}

/* The epochs that limit a view.  On failure those in @o are the caller's to
 * give back.
 */
static bool
take_masks(struct link_call *call, struct node *n, const struct link_view *v,
	   struct cbw_options *o, struct err *e)
{
	if (v->masks.n + v->mask_open > ARRAY_SIZE(o->mask))
		return err_set(e, ERR_GENERIC, 0, "a view has too many masks");
	if (v->mask_open && !n->epoch)
		return err_set(e, ERR_GENERIC, 0, "node '%s' has no open epoch",
			       n->name);
	for (size_t i = 0; i < v->masks.n; i++) {
		if (!handle_take_epoch(&call->msg, v->masks.v[i],
				       &o->mask[o->n], e))
			return false;
		if (epoch_size(o->mask[o->n++]) != n->image->size)
			return err_set(e, ERR_GENERIC, 0,
				       "mask and node '%s' have different "
				       "sizes",
				       n->name);
	}
	if (v->mask_open)
		o->mask[o->n++] = epoch_ref(n->epoch);
	return true;
}

static bool
geometry_ok(const struct node *n, const struct view *v, uint64_t unit,
	    struct err *e)
{
	if (view_size(v) != n->image->size)
		return err_set(e, ERR_GENERIC, 0,
			       "view and node '%s' have different sizes",
			       n->name);
	if (unit < 512 || (unit & (unit - 1)))
		return err_set(e, ERR_GENERIC, 0,
			       "a view cannot have this unit");
	return true;
}

/* Make a view ready to be attached. */
static bool
make_view(struct link_call *call, struct node *n, const struct link_view *v,
	  struct attached **out, struct err *e)
{
	AUTO(attached_free) struct attached *a = calloc(1, sizeof *a);
	AUTO(view_unref) struct view *states = NULL;
	AUTO(close) int store = -1;
	struct cbw_options o = { 0 };

	if (!a)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot attach a view");
	if (!take_view(&call->msg, v->states, &states, e) ||
	    !link_msg_take_fd(&call->msg, v->store, &store, e) ||
	    !geometry_ok(n, states, v->unit, e))
		return false;
	if (!take_masks(call, n, v, &o, e)) {
		while (o.n)
			epoch_unref(o.mask[--o.n]);
		return false;
	}
	a->id = v->id;
	a->server = call->server;
	o.view = steal(&states);
	o.store = steal_fd(&store);
	o.image = n->image;
	o.unit = v->unit;
	o.policy = v->break_guest_write ? CBW_BREAK_GUEST_WRITE
					: CBW_BREAK_SNAPSHOT;
	o.timeout_ms = v->timeout_ms;
	o.broken = on_view_broken;
	o.opaque = a;
	if (!cbw_new(&o, &a->cbw, e))
		return false;
	*out = steal(&a);
	return true;
}

bool
handle_make_views(struct link_call *call, struct node *n,
		  const struct link_view_list *l, struct attached **out,
		  struct err *e)
{
	for (size_t i = 0; i < l->n; i++) {
		if (!make_view(call, n, l->v[i], out, e))
			return false;
		out = &(*out)->next;
	}
	return true;
}

bool
link_view_close(struct link_call *call, const struct link_view_close_args *arg,
		struct err *e)
{
	struct attached *a;
	struct node *n = NULL;

	if (!handle_find_node(call, arg->node, &n, e))
		return false;
	for (a = n->views; a && a->id != arg->view; a = a->next)
		;
	if (!a)
		return err_set(e, ERR_GENERIC, 0,
			       "node '%s' has no view %" PRIu64, arg->node,
			       arg->view);
	node_give_up(n, a);
	return true;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The steps of reopen-priv.h, one after the other.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/images.h"
#include "daemon/pending.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "daemon/reopen-priv.h"
#include "daemon/stored.h"

/* @run is a worker's, and then @done the loop's. */
static void
submit(struct reopening *r, void (*run)(struct work *),
       void (*done)(struct work *))
{
	r->work = (struct work){ .run = run, .done = done };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

/* --- the end ----------------------------------------------------------------- */

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

	reopen_drop_old_children(r);
	end(r, e);
}

/* It is done, but for the registry. */
static void
save(struct reopening *r)
{
	reopen_finish_stores(r);
	registry_save(r->d->registry, saved, r);
}

static void
back_run(struct work *w)
{
	reopen_run_back(container_of(w, struct reopening, work));
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
	submit(r, back_run, back_done);
}

static void
undo(struct reopening *r)
{
	reopen_return_takes(r);
	reopen_exchange(r);
	reopen_assume_again(r);
	give_up(r);
}

/* --- what the nodes will be, and who must know ------------------------------- */

static void
stores_run(struct work *w)
{
	reopen_run_stores(container_of(w, struct reopening, work));
}

static void
taken(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);

	if (err_is_set(&r->e))
		undo(r);
	else
		save(r);
}

/* Nothing of it is in the data plane. */
static void
take(struct reopening *r)
{
	reopen_plan_takes(r);
	submit(r, stores_run, taken);
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
		PARK("reopen.done");
		save(r);
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

		if (!n->in_plane || !reopen_concerns(r, n))
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
ask_plane(void *opaque, const struct err *e)
{
	struct link_nodes_reopen_args arg = { .timeout_ms = PLANE_GATES_MS };
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
	reopen_exchange(r);
	if (!reopen_check_layers(r, &r->e))
		undo(r);
	else if (reopen_any_in_plane(r))
		registry_save(r->d->registry, ask_plane, r);
	else
		take(r);
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

/* --- opening and checking ---------------------------------------------------- */

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

/* Worker. */
static void
open_run(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);

	for (struct change *c = r->changes; c; c = c->next)
		if (!open_one(r, c, &r->e))
			return;
}

static void
opened(struct work *w)
{
	struct reopening *r = container_of(w, struct reopening, work);
	struct err e = r->e;

	for (struct change *c = r->changes; c; c = c->next)
		if (err_is_set(&e) || !reopen_check_change(r, c, &e) ||
		    !reopen_check_bitmaps(r, c, &e)) {
			end(r, &e);
			return;
		}
	reopen_plan_stores(r);
	submit(r, stores_run, on_stored);
}

static void
begin(struct task *t)
{
	struct reopening *r = container_of(t, struct reopening, settled);
	struct err e = ERR_INIT;

	if (!reopen_plan(r, &e)) {
		end(r, &e);
		return;
	}
	submit(r, open_run, opened);
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

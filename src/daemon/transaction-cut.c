/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The data plane prepares its part of a transaction and cuts (rule 3), or dies
 * at the moment when nobody can know (rule 5).
 */
#include <stdlib.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/plane.h"
#include "daemon/registry.h"
#include "daemon/transaction-priv.h"

struct asked {
	struct plane_request r;
	struct transaction *t;
};

static struct asked *
ask_new(struct transaction *t,
	void (*done)(struct plane_request *, const struct json *,
		     struct link_msg *, const struct err *))
{
	struct asked *a = xzalloc(sizeof *a);

	a->r.done = done;
	a->t = t;
	t->asked++;
	return a;
}

static struct transaction *
answered(struct plane_request *r, const struct err *e)
{
	struct asked *a = container_of(r, struct asked, r);
	struct transaction *t = a->t;

	free(a);
	t->asked--;
	if (e && !err_is_set(&t->e))
		(void)err_move(&t->e, e);
	return t;
}

/* --- the end of the order ---------------------------------------------------- */

/* Rule 5: writes may have been recorded in the new epoch. */
static void
assume_cut(struct transaction *t)
{
	for (struct node_cut *c = t->cuts; c; c = c->next)
		for (struct bitmap *b = c->node->bitmaps; b; b = b->next)
			if (b->enabled && c->epoch->map)
				epoch_set_add(&b->set, c->epoch);
}

static void
assumption_saved(void *opaque, const struct err *e)
{
	struct transaction *t = opaque;
	struct err why = t->e;

	if (e)
		log_error("%s", e->msg);
	transaction_finish(t, &why);
}

/* The order to cut got no answer, or a refusal. */
static void
not_committed(struct transaction *t)
{
	if (plane_is_up(t->d->plane)) {
		transaction_fail(t);
		return;
	}
	undo_abort(&t->undo);
	assume_cut(t);
	registry_release(t->d->registry);
	registry_save(t->d->registry, assumption_saved, t);
}

static void
on_aborted(struct plane_request *r, const struct json *ret,
	   struct link_msg *msg, const struct err *e)
{
	struct transaction *t = answered(r, NULL);

	(void)ret;
	(void)msg;
	(void)e;
	transaction_fail(t);
}

static void
on_committed(struct plane_request *r, const struct json *ret,
	     struct link_msg *msg, const struct err *e)
{
	struct transaction *t = answered(r, e);
	struct link_cut_result *result;
	struct err ignore = ERR_INIT;

	(void)msg;
	if (e) {
		not_committed(t);
		return;
	}
	PARK("transaction.cut");
	if (link_got_cut_commit(ret, &result, &ignore)) {
		log_debug("cut: gates were closed for %.3f ms",
			  (double)result->closed_ns / 1e6);
		link_cut_result_free(result);
	}
	transaction_publish(t);
}

/* --- the orders --------------------------------------------------------------- */

static void
ask_commit(struct transaction *t)
{
	struct link_cut_commit_args arg = { .cut = t->cut_id,
					    .timeout_ms = PLANE_GATES_MS };
	struct json_out o;

	plane_begin(&o);
	link_put_cut_commit(&o, &arg);
	plane_ask(t->d->plane, &ask_new(t, on_committed)->r, &o, NULL, 0);
}

static void
ask_abort(struct transaction *t)
{
	struct link_cut_abort_args arg = { .cut = t->cut_id };
	struct json_out o;

	plane_begin(&o);
	link_put_cut_abort(&o, &arg);
	plane_ask(t->d->plane, &ask_new(t, on_aborted)->r, &o, NULL, 0);
}

static void
on_prepared(struct plane_request *r, const struct json *ret,
	    struct link_msg *msg, const struct err *e)
{
	struct transaction *t = answered(r, e);

	(void)ret;
	(void)msg;
	if (t->asked)
		return;
	if (err_is_set(&t->e))
		ask_abort(t);
	else
		ask_commit(t);
}

static bool
ask_prepare(struct transaction *t, struct node_cut *c)
{
	struct link_cut_prepare_args arg = { .cut = t->cut_id,
					     .node = c->node->name };
	struct link_epoch epoch = { .id = c->epoch->id };
	struct link_view_list views = { 0 };
	int fds[LINK_MAX_FDS];
	unsigned n = 0;
	struct json_out o;

	if (4 * c->n_views + 1 > LINK_MAX_FDS)
		return err_set(&t->e, ERR_GENERIC, 0,
			       "more than %d backups of node '%s' at once",
			       (LINK_MAX_FDS - 1) / 4, c->node->name);
	if (node_records(c->node)) {
		epoch.fd = n;
		fds[n++] = epoch_fd(c->epoch->map);
		arg.epoch = &epoch;
	} else {
		arg.stop = c->node->epoch != NULL;
	}
	for (size_t i = 0; i < c->n_views; i++)
		view_file_describe(c->views[i], true, &views, fds, &n);
	arg.views = views;
	plane_begin(&o);
	link_put_cut_prepare(&o, &arg);
	link_view_list_clear(&views);
	plane_ask(t->d->plane, &ask_new(t, on_prepared)->r, &o, fds, n);
	return true;
}

/* A node without an export is nobody's to write to: its part takes effect by
 * itself.  One with an export that the data plane does not have (any more, or
 * yet) cannot be cut: it may be on its way there with its old epoch.
 */
static bool
ask_node(struct transaction *t, struct node_cut *c)
{
	if (c->node->exports == 0)
		return true;
	if (!c->node->in_plane || !plane_is_up(t->d->plane))
		return err_set(&t->e, ERR_GENERIC, 0,
			       "the data plane (nbdkit) does not run");
	return ask_prepare(t, c);
}

void
transaction_ask_plane(struct transaction *t)
{
	for (struct node_cut *c = t->cuts; c; c = c->next)
		if (!ask_node(t, c))
			break;
	if (t->asked)
		return;
	if (err_is_set(&t->e))
		transaction_fail(t);
	else
		transaction_publish(t);
}

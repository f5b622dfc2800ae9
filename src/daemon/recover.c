/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The life of a recovery, and how its steps ask the data plane.
 */
#include "daemon/recover.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/graph.h"
#include "daemon/identity.h"
#include "daemon/plane-node.h"
#include "daemon/recover-priv.h"

/* --- asking the data plane --------------------------------------------------------- */

void
recover_one_less(struct recovery *r)
{
	void (*next)(struct recovery *) = r->next;

	if (--r->asked)
		return;
	if (err_is_set(&r->failed)) {
		plane_give_up(r->d->plane, &r->failed);
		return;
	}
	next(r);
}

static void
succeeded(struct recovery *r, const struct ask *a, const struct json *ret,
	  struct link_msg *msg)
{
	struct node *n = a->node ? graph_node(r->d->graph, a->node) : NULL;
	struct export *x =
		a->export ? graph_export(r->d->graph, a->export) : NULL;

	if (a->got)
		a->got(r, ret, msg);
	if (n && n->exports)
		n->in_plane = true;
	else if (a->node) /* its last export was deleted meanwhile */
		plane_close_node(r->d->plane, a->node,
				 &recover_ask(r, false)->r);
	if (x)
		x->in_plane = true;
}

static void
on_answer(struct plane_request *pr, const struct json *ret,
	  struct link_msg *msg, const struct err *e)
{
	struct ask *a = container_of(pr, struct ask, r);
	struct recovery *r = a->rec;
	bool stale = a->round != r->round;

	if (!stale && e) {
		if (a->fatal && !err_is_set(&r->failed))
			(void)err_move(&r->failed, e);
		else
			log_warn("recovery: %s", e->msg);
	}
	if (!stale && !e)
		succeeded(r, a, ret, msg);
	free(a->node);
	free(a->export);
	free(a);
	if (!stale)
		recover_one_less(r);
}

struct ask *
recover_ask(struct recovery *r, bool fatal)
{
	struct ask *a = xzalloc(sizeof *a);

	a->r.done = on_answer;
	a->rec = r;
	a->round = r->round;
	a->fatal = fatal;
	r->asked++;
	return a;
}

/* The step holds one place itself, so that answers cannot end it early. */
void
recover_step(struct recovery *r, void (*next)(struct recovery *))
{
	assert(r->asked == 0);
	r->asked = 1;
	r->next = next;
}

/* --- beginning and end ----------------------------------------------------------------------------- */

void
recover_set_registry(struct daemon *d, struct registry_doc *doc)
{
	struct recovery *r = xzalloc(sizeof *r);

	r->d = d;
	r->doc = doc;
	if (doc) {
		AUTO(free) char *now = boot_id();

		r->rebooted = strcmp(doc->boot_id, now) != 0;
		graph_see_id(d->graph, doc->next_id);
	}
	d->recovery = r;
}

void
recover_begin(struct daemon *d, struct link_hello *hello)
{
	struct recovery *r = d->recovery;

	r->round++;
	r->asked = 0;
	err_clear(&r->failed);
	link_hello_free(r->hello);
	r->hello = hello;
	switch (r->stage) {
	case STAGE_NOTHING: recover_load(r); break;
	case STAGE_LOADED: recover_epochs(r); break;
	case STAGE_SAVED: recover_plane(r); break;
	case STAGE_LOADING:
	case STAGE_SAVING: break; /* goes on with the new one */
	}
}

bool
recover_is_loaded(const struct daemon *d)
{
	return d->recovery && d->recovery->stage == STAGE_SAVED;
}

void
recover_interrupted(struct daemon *d)
{
	struct recovery *r = d->recovery;

	r->round++; /* answers that still come are of the past */
	r->asked = 0;
	link_hello_free(steal(&r->hello));
	for (struct node *n = d->graph->nodes; n; n = n->next)
		n->in_plane = false;
	for (struct export *x = d->graph->exports; x; x = x->next)
		x->in_plane = false;
	recover_lost_goes_on(r);
}

void
recover_free(struct daemon *d)
{
	struct recovery *r = d->recovery;

	if (!r)
		return;
	ev_timer_stop(d->loop.ev, &r->again);
	link_hello_free(r->hello);
	registry_doc_free(r->doc);
	node_add_clear(&r->add);
	recover_drop_kept(r);
	epoch_set_clear(&r->saved);
	free(r);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The recovery's last step: --blockdev and --export of things that are not
 * there yet.
 */
#include "daemon/recover-priv.h"

#include <stdlib.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/exports.h"
#include "daemon/lost.h"
#include "daemon/pending.h"
#include "schema/config-types.h"

static void
option_failed(struct recovery *r, const char *option, const struct err *e)
{
	struct err why = *e;

	(void)err_prefix(&why, "%s: ", option);
	daemon_fail(r->d, &why);
}

static void add_option_exports(struct recovery *r);

static void
on_option_export(void *opaque, const struct err *e)
{
	struct recovery *r = opaque;

	if (e) {
		option_failed(r, "--export", e);
		return;
	}
	r->at++;
	add_option_exports(r);
}

static void
add_option_exports(struct recovery *r)
{
	const struct block_export_options_list *l = r->d->cfg.exports;

	for (; l && r->at < l->n && !r->d->ending; r->at++) {
		if (graph_export(r->d->graph, l->v[r->at]->id) ||
		    lost_has_node(r->d->lost, l->v[r->at]->node_name))
			continue;
		export_add(r->d, block_export_options_clone(l->v[r->at]),
			   on_option_export, r);
		return;
	}
	daemon_ready(r->d);
}

static void add_option_nodes(struct recovery *r);

/* One that is lost has bitmaps, and other disks have guests: it must neither
 * be replaced nor end the daemon.
 */
static bool
is_known(const struct recovery *r, const char *name)
{
	return graph_node(r->d->graph, name) || lost_has_node(r->d->lost, name);
}

static void
option_opened(struct work *w)
{
	struct recovery *r = container_of(w, struct recovery, work);

	pending_end(r->d);
	if (err_is_set(&r->e)) {
		node_add_clear(&r->add);
		option_failed(r, "--blockdev", &r->e);
		return;
	}
	(void)node_add_finish(&r->add);
	r->at++;
	add_option_nodes(r);
}

static void
add_option_nodes(struct recovery *r)
{
	const struct blockdev_options_list *l = r->d->cfg.blockdev;

	for (; l && r->at < l->n && !r->d->ending; r->at++) {
		const struct blockdev_options *o = l->v[r->at];

		if (o->node_name && is_known(r, o->node_name))
			continue;
		r->add = (struct node_add){ 0 };
		if (!node_add_plan(&r->add, r->d, o, &r->e)) {
			node_add_clear(&r->add);
			option_failed(r, "--blockdev", &r->e);
			return;
		}
		r->work = (struct work){ .run = recover_open_run,
					 .done = option_opened };
		pending_begin(r->d);
		work_submit(r->d->work, &r->d->loop, &r->work);
		return;
	}
	r->at = 0;
	add_option_exports(r);
}

static void
on_told(struct plane_request *pr, const struct json *ret, struct link_msg *msg,
	const struct err *e)
{
	(void)ret;
	(void)msg;
	if (e)
		log_warn("recovery: %s", e->msg);
	free(pr);
}

/* Guests that ask for an export which is not there need not wait any more. */
static void
tell_complete(struct recovery *r)
{
	struct plane_request *pr = xzalloc(sizeof *pr);
	struct json_out o;

	pr->done = on_told;
	plane_begin(&o);
	link_put_exports_complete(&o);
	plane_ask(r->d->plane, pr, &o, NULL, 0);
}

void
recover_options(struct recovery *r)
{
	PARK("recover.restored");
	if (plane_is_up(r->d->plane)) { /* nodes had to wait, or were lost */
		recover_lost_goes_on(r);
		return;
	}
	plane_restored(r->d->plane);
	tell_complete(r);
	if (r->options_begun) {
		log_info("the data plane is back");
		return;
	}
	r->options_begun = true;
	r->at = 0;
	add_option_nodes(r);
}

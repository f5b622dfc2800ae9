/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/core.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/graph.h"
#include "daemon/guest-server.h"
#include "daemon/job.h"
#include "daemon/lost.h"
#include "daemon/merge.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "daemon/recover.h"
#include "daemon/registry.h"
#include "daemon/saved.h"
#include "daemon/stored.h"

/* Rules 2 and 3 of lost.h. */
static bool
before_command(void *opaque, const char *name, const struct json *args,
	       void (*go)(void *call), void *call)
{
	return strcmp(name, "blockdev-add") != 0 &&
	       recover_lost(opaque, args, go, call);
}

bool
core_init(struct daemon *d, struct err *e)
{
	struct registry_doc *doc;

	d->graph = graph_new(d);
	d->lost = lost_new();
	d->jobs = jobs_new();
	d->registry = registry_new(d);
	if (!registry_load(d, &doc, e))
		return false;
	guest_server_recall(d, doc);
	recover_set_registry(d, doc);
	d->merge = merge_new(d);
	d->plane = plane_new(d);
	qmp_server_set_before(d->qmp, before_command);
	return true;
}

void
core_start(struct daemon *d)
{
	struct err e = ERR_INIT;

	if (!plane_start(d->plane, &e))
		daemon_fail(d, &e);
}

/* --- shutting down: what is in progress, jobs, then the data plane, then the registry -------------------- */

static void
on_saved(void *opaque, const struct err *e)
{
	struct daemon *d = opaque;

	if (e)
		log_error("%s", e->msg);
	else
		d->all_saved = true;
	d->core_down(d);
}

/* Nobody writes to any image now: bitmaps go where they live, and where they
 * outlive the host's memory.
 */
struct letting_go {
	struct daemon *d;
	struct work work;
	struct store **stores; /* owned */
	size_t n_stores;
	struct saving **savings; /* owned */
	size_t n_savings;
};

static void
let_go_run(struct work *w)
{
	struct letting_go *l = container_of(w, struct letting_go, work);

	for (size_t i = 0; i < l->n_stores; i++)
		store_run(l->stores[i]);
	for (size_t i = 0; i < l->n_savings; i++)
		saved_run(l->savings[i]);
}

static void
let_go_done(struct work *w)
{
	struct letting_go *l = container_of(w, struct letting_go, work);
	struct daemon *d = l->d;

	for (size_t i = 0; i < l->n_stores; i++)
		store_finish(l->stores[i]);
	for (size_t i = 0; i < l->n_savings; i++)
		saved_finish(l->savings[i]);
	for (struct node *n = d->graph->nodes; n; n = n->next)
		n->released = true;
	registry_save(d->registry, on_saved, d);
	free(l->stores);
	free(l->savings);
	free(l);
}

static void
plan_to_let_go(struct letting_go *l, struct node *n)
{
	struct store *store = store_plan(n);
	struct saving *saving = saved_plan(l->d, n);

	if (store) {
		l->stores = xrealloc(l->stores, l->n_stores + 1,
				     sizeof l->stores[0]);
		l->stores[l->n_stores++] = store;
	}
	if (saving) {
		l->savings = xrealloc(l->savings, l->n_savings + 1,
				      sizeof l->savings[0]);
		l->savings[l->n_savings++] = saving;
	}
}

static void
let_go(struct daemon *d)
{
	struct letting_go *l = xzalloc(sizeof *l);

	l->d = d;
	for (struct node *n = d->graph->nodes; n; n = n->next)
		plan_to_let_go(l, n);
	l->work = (struct work){ .run = let_go_run, .done = let_go_done };
	work_submit(d->work, &d->loop, &l->work);
}

static void
on_plane_stopped(struct daemon *d)
{
	for (struct node *n = d->graph->nodes; n; n = n->next)
		node_keep_epochs(n);
	if (!recover_is_loaded(d)) {
		/* What is in memory is not all that the registry says. */
		d->core_down(d);
		return;
	}
	if (d->cfg.keep_nbdkit)
		registry_save(d->registry, on_saved, d);
	else
		let_go(d);
}

static void
on_jobs_over(struct daemon *d)
{
	plane_stop(d->plane, d->cfg.keep_nbdkit, on_plane_stopped);
}

static void
on_nothing_pending(struct daemon *d)
{
	jobs_shutdown(d, on_jobs_over);
}

void
core_shutdown(struct daemon *d, void (*done)(struct daemon *d))
{
	d->core_down = done;
	plane_hurry(d->plane);
	pending_wait(d, on_nothing_pending);
}

void
core_free(struct daemon *d)
{
	if (d->recovery)
		recover_interrupted(d); /* nobody waits for answers now */
	if (d->merge)
		merge_free(d->merge);
	if (d->jobs)
		jobs_free(d->jobs);
	if (d->plane)
		plane_free(d->plane);
	recover_free(d);
	if (d->registry)
		registry_free(d->registry);
	if (d->graph)
		graph_free(d->graph);
	if (d->lost)
		lost_free(d->lost);
	guest_server_forget(d);
	/* goes when no epoch is left in it */
	if (d->cfg.shm)
		(void)rmdir(d->cfg.shm);
	epochs_end(d->all_saved);
}

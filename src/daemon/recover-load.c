/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The recovery's first step: from the registry to memory.
 */
#include "daemon/recover-priv.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/exports.h"
#include "daemon/job.h"
#include "daemon/lost.h"
#include "daemon/objects.h"
#include "daemon/pending.h"
#include "daemon/saved.h"

static void begin_loading(struct recovery *r);
static void open_next_node(struct recovery *r);
static void end_loading(struct recovery *r);

/* --- files that the data plane has open ---------------------------------------------- */

static void
keep_files(struct recovery *r, const struct json *ret, struct link_msg *msg)
{
	AUTO(link_files_free) struct link_files *files = NULL;
	struct err e = ERR_INIT;

	if (!link_got_node_files(ret, &files, &e)) {
		log_error("recovery: %s", e.msg);
		return;
	}
	for (unsigned i = 0; i < msg->nfds && i < files->names.n; i++) {
		r->kept = xrealloc(r->kept, r->n_kept + 1, sizeof r->kept[0]);
		r->kept[r->n_kept].name = xstrdup(files->names.v[i]);
		r->kept[r->n_kept].fd = steal_fd(&msg->fds[i]);
		r->n_kept++;
	}
}

void
recover_ask_files(struct recovery *r, const char *name, bool fatal)
{
	struct link_node_files_args arg = { .node = (char *)name };
	struct ask *a = recover_ask(r, fatal);
	struct json_out o;

	a->got = keep_files;
	plane_begin(&o);
	link_put_node_files(&o, &arg);
	plane_ask(r->d->plane, &a->r, &o, NULL, 0);
}

static void
ask_files(struct recovery *r)
{
	recover_step(r, begin_loading);
	for (size_t i = 0; i < r->hello->nodes.n; i++)
		recover_ask_files(r, r->hello->nodes.v[i]->node, true);
	recover_one_less(r);
}

/* Is this open file what a node with these options would have opened? */
static bool
kept_suits(const struct kept *k, const struct node *n)
{
	const struct blockdev_options *o = n->options;
	int flags = fcntl(k->fd, F_GETFL);
	bool reads = (flags & O_ACCMODE) == O_RDONLY;

	return k->fd >= 0 && strcmp(k->name, node_filename(n)) == 0 &&
	       (reads == o->read_only || (reads && o->auto_read_only)) &&
	       !(flags & O_DIRECT) == !(o->cache && o->cache->direct);
}

/* Worker, one node at a time: the file of @n, if it was kept. */
static int
take_kept(void *opaque, const struct node *n)
{
	struct recovery *r = opaque;

	for (size_t i = 0; i < r->n_kept; i++)
		if (kept_suits(&r->kept[i], n))
			return steal_fd(&r->kept[i].fd);
	return -1;
}

void
recover_drop_kept(struct recovery *r)
{
	for (size_t i = 0; i < r->n_kept; i++) {
		if (r->kept[i].fd >= 0)
			(void)close(r->kept[i].fd);
		free(r->kept[i].name);
	}
	free(r->kept);
	r->kept = NULL;
	r->n_kept = 0;
}

/* --- nodes ------------------------------------------------------------------------------- */

static void
node_lost(struct recovery *r, const struct registry_node *n,
	  const struct err *e)
{
	log_error("node '%s' with its %zu bitmaps is lost until a command "
		  "names it, or the next start: %s",
		  n->options->node_name, n->bitmaps.n, e->msg);
	lost_add_node(r->d->lost, n);
}

void
recover_open_run(struct work *w)
{
	struct recovery *r = container_of(w, struct recovery, work);

	PARK("recover.opening");
	(void)!node_add_open(&r->add, &r->e);
}

void
recover_open(struct recovery *r, const struct registry_node *from)
{
	recover_open_run(&r->work);
	if (!err_is_set(&r->e) && !r->add.changed)
		saved_load(r->d, from, r->rebooted, &r->saved);
}

static void
open_run(struct work *w)
{
	struct recovery *r = container_of(w, struct recovery, work);

	recover_open(r, r->doc->nodes.v[r->at]);
}

static void
node_opened(struct work *w)
{
	struct recovery *r = container_of(w, struct recovery, work);
	const struct registry_node *from = r->doc->nodes.v[r->at++];

	pending_end(r->d);
	if (err_is_set(&r->e)) {
		node_lost(r, from, &r->e);
		node_add_clear(&r->add);
	} else {
		const char *changed = r->add.changed;

		recover_bitmaps(r, node_add_finish(&r->add), from, changed);
	}
	err_clear(&r->e);
	open_next_node(r);
}

bool
recover_plan(struct recovery *r, const struct registry_node *from)
{
	r->add = (struct node_add){ .kept = take_kept, .opaque = r };
	r->add.then = from->identity;
	r->add.leave.size = from->has_next_size;
	r->add.leave.device = r->rebooted;
	r->add.took_bitmaps = from->has_took_bitmaps && from->took_bitmaps;
	return node_add_plan(&r->add, r->d, from->options, &r->e);
}

static void
open_next_node(struct recovery *r)
{
	const struct registry_node *from;

	PARK("recover.node");
	while (r->doc && r->at < r->doc->nodes.n && !r->d->ending) {
		from = r->doc->nodes.v[r->at];
		if (!recover_plan(r, from)) {
			node_lost(r, from, &r->e);
			err_clear(&r->e);
			node_add_clear(&r->add);
			r->at++;
			continue;
		}
		r->work = (struct work){ .run = open_run, .done = node_opened };
		pending_begin(r->d);
		work_submit(r->d->work, &r->d->loop, &r->work);
		return;
	}
	if (!r->d->ending)
		end_loading(r);
}

/* --- everything else --------------------------------------------------------------------- */

static void
restore_objects(struct recovery *r)
{
	struct err e = ERR_INIT;

	for (size_t i = 0; i < r->doc->objects.n; i++)
		if (!objects_add(r->d->graph, r->doc->objects.v[i], &e)) {
			log_error("object '%s' is not brought back: %s",
				  r->doc->objects.v[i]->id, e.msg);
			err_clear(&e);
		}
}

static void
restore_exports(struct recovery *r)
{
	struct err e = ERR_INIT;
	struct export *x;

	for (size_t i = 0; i < r->doc->exports.n; i++) {
		struct block_export_options *o =
			block_export_options_clone(r->doc->exports.v[i]);

		if (lost_has_node(r->d->lost, o->node_name)) {
			lost_add_export(r->d->lost, o);
			block_export_options_free(o);
			continue;
		}
		if (export_new(r->d, o, true, &x, &e)) {
			graph_add_export(r->d->graph, x);
			continue;
		}
		log_error("export '%s' is not brought back: %s",
			  r->doc->exports.v[i]->id, e.msg);
		err_clear(&e);
	}
}

static void
restore_jobs(struct recovery *r)
{
	for (size_t i = 0; i < r->doc->jobs.n; i++) {
		const struct registry_job *j = r->doc->jobs.v[i];

		log_error("job '%s' failed: stillpointd ended while it ran",
			  j->id);
		job_add_lost(r->d, j->id, j->type);
	}
}

static void
begin_loading(struct recovery *r)
{
	r->stage = STAGE_LOADING;
	if (r->doc)
		restore_objects(r);
	open_next_node(r);
}

static void
end_loading(struct recovery *r)
{
	if (r->doc) {
		restore_exports(r);
		restore_jobs(r);
	}
	recover_drop_kept(r);
	epoch_set_clear(&r->saved);
	r->stage = STAGE_LOADED;
	if (r->hello)
		recover_epochs(r);
}

void
recover_load(struct recovery *r)
{
	if (r->doc)
		ask_files(r);
	else
		begin_loading(r);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The steps of recovery, each of which ends by starting the next:
 *
 *   files        the data plane hands out the files that it has open
 *   nodes        every node of the registry is opened (worker, one by one)
 *   bitmaps      epochs are mapped, exports are put in front
 *   epochs       nodes and bitmaps agree with what the data plane records
 *   save         rule 4
 *   open         the data plane opens what it should have
 *   exports      and offers it; what nobody knows is closed
 *   options      --blockdev and --export of things that are not there yet
 *
 * After a death of the data plane only the steps from "open" on are needed.
 * The data plane may die (again) at every step: what is between the registry
 * and our memory goes on, what concerns the data plane begins anew with the
 * next one.
 */
#include "daemon/recover.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/exports.h"
#include "daemon/graph.h"
#include "daemon/identity.h"
#include "daemon/job.h"
#include "daemon/lost.h"
#include "daemon/nodes.h"
#include "daemon/objects.h"
#include "daemon/pending.h"
#include "daemon/plane-node.h"
#include "daemon/registry.h"
#include "daemon/sweep.h"
#include "daemon/views.h"
#include "schema/config-types.h"

/* A file that the data plane kept. */
struct kept {
	char *name; /* owned: its name when it was opened */
	int fd; /* owned */
};

#define AGAIN_SECONDS 2.0

/* How much of the registry is in memory. */
enum stage {
	STAGE_NOTHING,
	STAGE_LOADING, /* nodes are being opened */
	STAGE_LOADED, /* waits for what a data plane records */
	STAGE_SAVING,
	STAGE_SAVED, /* all that is left concerns the data plane */
};

struct recovery {
	struct daemon *d;
	enum stage stage;
	bool options_begun; /* --blockdev and --export */
	bool rebooted; /* the registry is of another boot */
	struct registry_doc *doc; /* owned, or NULL */
	struct link_hello *hello; /* owned; of the data plane that runs */
	unsigned asked; /* answers that are awaited */
	unsigned round; /* of which recovery they are */
	void (*next)(struct recovery *r);
	struct kept *kept; /* owned */
	size_t n_kept;
	size_t at; /* node or option that is worked on */
	struct node_add add;
	struct work work;
	struct err e; /* the worker's */
	struct err failed; /* what the data plane could not do */
	ev_timer again; /* for nodes that it could not open */
};

static void begin_loading(struct recovery *r);
static void open_next_node(struct recovery *r);
static void sync_epochs(struct recovery *r);
static void open_in_plane(struct recovery *r);
static void add_exports(struct recovery *r);
static void add_options(struct recovery *r);
static void try_again_later(struct recovery *r);

/* --- asking the data plane --------------------------------------------------------- */

struct ask {
	struct plane_request r;
	struct recovery *rec;
	unsigned round;
	/* Of what it is about; owned, or NULL.  Names, because a command may
	 * take the thing itself away.
	 */
	char *node, *export;
	bool files; /* it is about the files of a node */
	bool fatal; /* a failure ends the data plane */
};

static void
one_less(struct recovery *r)
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

static void
succeeded(struct recovery *r, const struct ask *a, const struct json *ret,
	  struct link_msg *msg)
{
	struct node *n = a->node ? graph_node(r->d->graph, a->node) : NULL;
	struct export *x =
		a->export ? graph_export(r->d->graph, a->export) : NULL;

	if (a->files)
		keep_files(r, ret, msg);
	if (n)
		n->in_plane = true;
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
		one_less(r);
}

static struct ask *
ask_new(struct recovery *r, bool fatal)
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
static void
step_begin(struct recovery *r, void (*next)(struct recovery *))
{
	assert(r->asked == 0);
	r->asked = 1;
	r->next = next;
}

/* --- files ---------------------------------------------------------------------- */

static void
ask_files(struct recovery *r)
{
	step_begin(r, begin_loading);
	for (size_t i = 0; i < r->hello->nodes.n; i++) {
		struct link_node_files_args arg = {
			.node = r->hello->nodes.v[i]->node
		};
		struct ask *a = ask_new(r, true);
		struct json_out o;

		a->files = true;
		plane_begin(&o);
		link_put_node_files(&o, &arg);
		plane_ask(r->d->plane, &a->r, &o, NULL, 0);
	}
	one_less(r);
}

/* Is this open file what a node with these options would have opened? */
static bool
kept_suits(const struct kept *k, const struct node *n)
{
	const struct blockdev_options *o = n->options;
	int flags = fcntl(k->fd, F_GETFL);
	bool reads = (flags & O_ACCMODE) == O_RDONLY;

	return strcmp(k->name, node_filename(n)) == 0 &&
	       (reads == o->read_only || (reads && o->auto_read_only)) &&
	       !(flags & O_DIRECT) == !(o->cache && o->cache->direct);
}

/* The kept descriptor for the file of @n, or -1. */
static int
find_kept(const struct recovery *r, const struct node *n)
{
	for (size_t i = 0; i < r->n_kept; i++)
		if (kept_suits(&r->kept[i], n))
			return r->kept[i].fd;
	return -1;
}

/* --- nodes ------------------------------------------------------------------------------- */

static void restore_exports(struct recovery *r);

static void
node_lost(struct recovery *r, const struct registry_node *n,
	  const struct err *e)
{
	log_error("node '%s' with its %zu bitmaps is kept for the next start: "
		  "%s",
		  n->options->node_name, n->bitmaps.n, e->msg);
	lost_add_node(r->d->lost, n);
}

static const char lost[] = "its record of changes was lost with the host's "
			   "memory";

static void
restore_bitmap(struct recovery *r, struct node *n,
	       const struct registry_bitmap *from, const char *changed)
{
	struct err e = ERR_INIT;
	struct bitmap *b;

	if (node_bitmap(n, from->name))
		return; /* somebody has put one of this name into the image */
	b = bitmap_new(n, from->name, from->granularity, from->persistent);

	b->enabled = from->enabled;
	if (from->inconsistent || changed) {
		bitmap_set_inconsistent(
			b, from->inconsistent ? from->inconsistent : changed);
		return;
	}
	if (r->rebooted && from->epochs.n) {
		bitmap_set_inconsistent(b, lost);
		return;
	}
	for (size_t i = 0; i < from->epochs.n; i++) {
		struct epoch_file *f =
			sweep_find_epoch(r->d, from->epochs.v[i], n, &e);

		if (!f) {
			log_error("node '%s', bitmap '%s': %s", n->name,
				  b->name, e.msg);
			bitmap_set_inconsistent(b, lost);
			return;
		}
		epoch_set_add(&b->set, f);
		epoch_file_unref(f);
	}
}

static void
node_restored(struct recovery *r, struct node *n,
	      const struct registry_node *from, const char *changed)
{
	bool resized = from->has_next_size && n->size == from->next_size;

	if (n->size != from->size && !resized)
		changed = "the image's size was changed while Stillpoint did "
			  "not run";
	n->resized = from->has_next_size;
	for (size_t i = 0; i < from->bitmaps.n; i++)
		restore_bitmap(r, n, from->bitmaps.v[i], changed);
	log_info("node '%s' is back with %zu bitmaps", n->name,
		 from->bitmaps.n);
}

static void
node_run(struct work *w)
{
	struct recovery *r = container_of(w, struct recovery, work);

	PARK("recover.opening");
	(void)!node_add_open(&r->add, &r->e);
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

		node_restored(r, node_add_finish(&r->add), from, changed);
	}
	err_clear(&r->e);
	open_next_node(r);
}

/* Worker; what was kept does not change meanwhile. */
static int
take_kept(void *opaque, const struct node *n)
{
	int fd = find_kept(opaque, n);

	return fd >= 0 ? dup_cloexec(fd) : -1;
}

static void
open_next_node(struct recovery *r)
{
	const struct registry_node *from;

	PARK("recover.node");
	while (r->doc && r->at < r->doc->nodes.n && !r->d->ending) {
		from = r->doc->nodes.v[r->at];
		r->add = (struct node_add){ .kept = take_kept, .opaque = r };
		r->add.then = from->identity;
		r->add.resizing = from->has_next_size;
		r->add.took_bitmaps =
			from->has_took_bitmaps && from->took_bitmaps;
		if (!node_add_plan(&r->add, r->d, from->options, &r->e)) {
			node_lost(r, from, &r->e);
			err_clear(&r->e);
			node_add_clear(&r->add);
			r->at++;
			continue;
		}
		r->work = (struct work){ .run = node_run, .done = node_opened };
		pending_begin(r->d);
		work_submit(r->d->work, &r->d->loop, &r->work);
		return;
	}
	if (!r->d->ending)
		restore_exports(r);
}

static void
begin_loading(struct recovery *r)
{
	struct err e = ERR_INIT;

	r->stage = STAGE_LOADING;
	for (size_t i = 0; r->doc && i < r->doc->objects.n; i++)
		if (!objects_add(r->d->graph, r->doc->objects.v[i], &e)) {
			log_error("object '%s' is not brought back: %s",
				  r->doc->objects.v[i]->id, e.msg);
			err_clear(&e);
		}
	open_next_node(r);
}

static void
drop_kept(struct recovery *r)
{
	for (size_t i = 0; i < r->n_kept; i++) {
		(void)close(r->kept[i].fd);
		free(r->kept[i].name);
	}
	free(r->kept);
	r->kept = NULL;
	r->n_kept = 0;
}

static void
restore_exports(struct recovery *r)
{
	struct err e = ERR_INIT;
	struct export *x;

	for (size_t i = 0; r->doc && i < r->doc->exports.n; i++) {
		struct block_export_options *o =
			block_export_options_clone(r->doc->exports.v[i]);

		if (lost_has_node(r->d->lost, o->node_name)) {
			lost_add_export(r->d->lost, o);
			block_export_options_free(o);
			continue;
		}
		if (export_new(r->d, o, &x, &e)) {
			graph_add_export(r->d->graph, x);
			continue;
		}
		log_error("export '%s' is not brought back: %s",
			  r->doc->exports.v[i]->id, e.msg);
		err_clear(&e);
	}
	for (size_t i = 0; r->doc && i < r->doc->jobs.n; i++) {
		const struct registry_job *j = r->doc->jobs.v[i];

		log_error("job '%s' failed: stillpointd ended while it ran",
			  j->id);
		job_add_lost(r->d, j->id, j->type);
	}
	drop_kept(r);
	r->stage = STAGE_LOADED;
	if (r->hello)
		sync_epochs(r);
}

/* --- epochs -------------------------------------------------------------------------------- */

static struct link_node_info *
find_info(const struct recovery *r, const char *name)
{
	for (size_t i = 0; i < r->hello->nodes.n; i++)
		if (strcmp(r->hello->nodes.v[i]->node, name) == 0)
			return r->hello->nodes.v[i];
	return NULL;
}

static void
record_in(struct node *n, struct epoch_file *f)
{
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->enabled)
			epoch_set_add(&b->set, f);
}

static struct epoch_file *
make_epoch(struct recovery *r, struct node *n)
{
	struct epoch_file *f =
		epoch_file_new(r->d->cfg.shm, graph_take_id(r->d->graph),
			       n->size, node_granularity(n));
	struct err e = ERR_INIT;

	if (epoch_file_make(f, &e))
		return f;
	epoch_file_unref(f);
	log_error("node '%s' cannot be recorded: %s", n->name, e.msg);
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->enabled)
			bitmap_set_inconsistent(b, e.msg);
	return NULL;
}

/* The data plane has gone on without us. */
static void
sync_running(struct recovery *r, struct node *n, const struct link_node_info *i)
{
	struct epoch_file *f;
	struct err e = ERR_INIT;

	n->in_plane = true;
	if (i->has_epoch) {
		f = sweep_find_epoch(r->d, i->epoch, n, &e);
		if (f) {
			n->epoch = f;
			record_in(n, f); /* rule 1 */
			return;
		}
		log_error("node '%s': %s", n->name, e.msg);
	}
	if (!node_records(n))
		return;
	/* Rule 2.  The data plane is made to record by closing the node there
	 * and opening it again, which guests notice as a reconnect; it takes a
	 * daemon that died in the middle of a command to get here.
	 */
	f = make_epoch(r, n);
	if (!f)
		return;
	log_warn("node '%s' was not recorded for a while: everything counts "
		 "as changed",
		 n->name);
	epoch_set(f->map, 0, n->size);
	record_in(n, f);
	n->epoch = f;
	n->restart = true;
}

static void
sync_fresh(struct recovery *r, struct node *n)
{
	if (!node_records(n))
		return;
	if (!n->epoch) /* bitmaps of an image bring one */
		n->epoch = make_epoch(r, n);
	if (n->epoch)
		record_in(n, n->epoch);
}

static void
on_saved(void *opaque, const struct err *e)
{
	struct recovery *r = opaque;

	pending_end(r->d);
	if (e) {
		daemon_fail(r->d, e);
		return;
	}
	PARK("recover.saved");
	r->stage = STAGE_SAVED;
	registry_doc_free(steal(&r->doc));
	sweep_orphans(r->d);
	if (r->hello && !r->d->ending)
		open_in_plane(r);
}

/* Numbers that a data plane uses are taken, whatever the registry says. */
static void
see_ids(const struct recovery *r)
{
	for (size_t i = 0; i < r->hello->nodes.n; i++) {
		const struct link_node_info *n = r->hello->nodes.v[i];

		if (n->has_epoch)
			graph_see_id(r->d->graph, n->epoch);
		for (size_t k = 0; k < n->views.n; k++)
			graph_see_id(r->d->graph, n->views.v[k]);
	}
}

static void
sync_epochs(struct recovery *r)
{
	r->stage = STAGE_SAVING;
	see_ids(r);
	for (struct node *n = r->d->graph->nodes; n; n = n->next) {
		const struct link_node_info *i = find_info(r, n->name);

		if (i)
			sync_running(r, n, i);
		else
			sync_fresh(r, n);
	}
	PARK("recover.synced");
	pending_begin(r->d);
	registry_save(r->d->registry, on_saved, r); /* rule 4 */
}

/* --- the data plane gets what it should have --------------------------------------------------- */

static bool
knows_view(const struct graph *g, const struct link_node_info *i, uint64_t id)
{
	for (const struct node *n = g->nodes; n; n = n->next)
		if (strcmp(n->name, i->node) == 0)
			return graph_has_view(n, id);
	return false;
}

/* Points in time that nobody reads any more cost guests time. */
static void
close_views(struct recovery *r, const struct link_node_info *i)
{
	for (size_t k = 0; k < i->views.n; k++) {
		struct link_view_close_args arg = { .node = i->node,
						    .view = i->views.v[k] };
		struct json_out o;

		if (knows_view(r->d->graph, i, arg.view))
			continue;
		plane_begin(&o);
		link_put_view_close(&o, &arg);
		plane_ask(r->d->plane, &ask_new(r, false)->r, &o, NULL, 0);
	}
}

static bool
wants_export(const struct recovery *r, const struct link_export_info *i)
{
	for (const struct export *x = r->d->graph->exports; x; x = x->next)
		if (strcmp(x->name, i->name) == 0)
			return strcmp(x->node->name, i->node) == 0 &&
			       !x->node->restart;
	return lost_has_export(r->d->lost, i->name);
}

/* Exports and nodes that the registry does not know, and nodes that must be
 * opened anew.
 */
static void
close_unknown(struct recovery *r)
{
	for (size_t k = 0; k < r->hello->exports.n; k++) {
		struct link_export_info *i = r->hello->exports.v[k];

		if (!wants_export(r, i))
			plane_del_export(r->d->plane, i->name, true,
					 &ask_new(r, false)->r);
	}
	for (size_t k = 0; k < r->hello->nodes.n; k++) {
		struct link_node_info *i = r->hello->nodes.v[k];
		struct node *n = graph_node(r->d->graph, i->node);

		close_views(r, i);
		if (n && n->exports && !n->restart)
			continue;
		if (!n && lost_has_node(r->d->lost, i->node))
			continue; /* its guests go on */
		plane_close_node(r->d->plane, i->node, &ask_new(r, true)->r);
		if (n)
			n->in_plane = false;
	}
}

static void
open_nodes(struct recovery *r)
{
	struct ask *a;

	step_begin(r, add_exports);
	for (struct node *n = r->d->graph->nodes; n; n = n->next) {
		if (!n->exports || n->in_plane)
			continue;
		n->restart = false;
		a = ask_new(r, false);
		a->node = xstrdup(n->name);
		plane_open_node(r->d->plane, n, &a->r);
	}
	one_less(r);
}

static bool
has_view(const struct link_node_info *i, uint64_t id)
{
	for (size_t k = 0; k < i->views.n; k++)
		if (i->views.v[k] == id)
			return true;
	return false;
}

/* The link was lost and the data plane was not: is the node as we want it? */
static bool
as_we_know_it(const struct node *n, const struct link_node_info *i)
{
	if (i->has_epoch != (n->epoch != NULL) ||
	    (n->epoch && n->epoch->id != i->epoch))
		return false;
	for (const struct view_file *v = n->views; v; v = v->next)
		if (v->begun && !has_view(i, v->id))
			return false;
	return true;
}

static bool
has_export(const struct recovery *r, const char *name)
{
	for (size_t i = 0; i < r->hello->exports.n; i++)
		if (strcmp(r->hello->exports.v[i]->name, name) == 0)
			return wants_export(r, r->hello->exports.v[i]);
	return false;
}

static void
open_in_plane(struct recovery *r)
{
	for (struct node *n = r->d->graph->nodes; n; n = n->next) {
		const struct link_node_info *i = find_info(r, n->name);

		if (i && !n->in_plane) {
			n->in_plane = as_we_know_it(n, i);
			n->restart = !n->in_plane;
		}
	}
	for (struct export *x = r->d->graph->exports; x; x = x->next)
		x->in_plane = has_export(r, x->name);
	PARK("recover.open");
	step_begin(r, open_nodes);
	close_unknown(r);
	for (struct node *n = r->d->graph->nodes; n; n = n->next)
		if (n->in_plane)
			plane_reopen_node(r->d->plane, n,
					  &ask_new(r, false)->r);
	one_less(r);
}

static void
on_again(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct recovery *r = container_of(w, struct recovery, again);

	(void)ev;
	(void)revents;
	if (r->d->ending || !plane_is_up(r->d->plane))
		return; /* the next recovery looks at all of them */
	if (r->asked || r->d->pending.n)
		try_again_later(r);
	else
		open_nodes(r);
}

static void
try_again_later(struct recovery *r)
{
	ev_timer_stop(r->d->loop.ev, &r->again);
	ev_timer_init(&r->again, on_again, AGAIN_SECONDS, 0);
	ev_timer_start(r->d->loop.ev, &r->again);
}

static void
add_exports(struct recovery *r)
{
	struct ask *a;

	step_begin(r, add_options);
	for (struct export *x = r->d->graph->exports; x; x = x->next) {
		if (x->in_plane)
			continue;
		if (!x->node->in_plane) {
			/* One image that cannot be opened, say because its
			 * server is down, must not cost the other disks.
			 */
			log_error("export '%s' waits for node '%s'",
				  x->options->id, x->node->name);
			try_again_later(r);
			continue;
		}
		a = ask_new(r, true);
		a->export = xstrdup(x->options->id);
		plane_add_export(r->d->plane, x, &a->r);
	}
	one_less(r);
}

/* --- --blockdev and --export ---------------------------------------------------------------- */

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
		if (graph_export(r->d->graph, l->v[r->at]->id))
			continue;
		export_add(r->d, block_export_options_clone(l->v[r->at]),
			   on_option_export, r);
		return;
	}
	daemon_ready(r->d);
}

static void add_option_nodes(struct recovery *r);

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

		if (o->node_name && graph_node(r->d->graph, o->node_name))
			continue;
		r->add = (struct node_add){ 0 };
		if (!node_add_plan(&r->add, r->d, o, &r->e)) {
			node_add_clear(&r->add);
			option_failed(r, "--blockdev", &r->e);
			return;
		}
		r->work =
			(struct work){ .run = node_run, .done = option_opened };
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

static void
add_options(struct recovery *r)
{
	PARK("recover.restored");
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

/* --- beginning and end ----------------------------------------------------------------------------- */

void
recover_set_registry(struct daemon *d, struct registry_doc *doc)
{
	struct recovery *r = xzalloc(sizeof *r);

	ev_init(&r->again, on_again);
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
	case STAGE_NOTHING:
		if (r->doc)
			ask_files(r);
		else
			begin_loading(r);
		break;
	case STAGE_LOADED: sync_epochs(r); break;
	case STAGE_SAVED: open_in_plane(r); break;
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
	drop_kept(r);
	free(r);
}

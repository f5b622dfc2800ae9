/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The action that starts a backup: from its plan to a job that begins at the
 * cut, or is taken back.
 */
#include <stdlib.h>

#include "base/bits.h"
#include "daemon/backup-priv.h"
#include "daemon/daemon.h"
#include "daemon/filters.h"

/* --- starting it, or not -------------------------------------------------------- */

struct backup_undo {
	struct undo_entry u;
	struct backup *b;
};

/* What we write there passes no gate: all of it counts as changed. */
static void
all_changes(const struct node *n)
{
	if (n->epoch)
		epoch_set(n->epoch->map, 0, n->size);
}

static void
start(struct undo_entry *u)
{
	struct backup_undo *bu = container_of(u, struct backup_undo, u);

	all_changes(bu->b->target);
	if (bu->b->discards)
		all_changes(bu->b->source);
	if (bu->b->drive)
		drive_target_start(bu->b->drive);
	job_start(&bu->b->job);
	free(bu);
}

static void
discard(struct undo_entry *u)
{
	struct backup_undo *bu = container_of(u, struct backup_undo, u);

	job_discard(&bu->b->job);
	free(bu);
}

/* The transaction has the job from now on. */
static void
hand_over(struct transaction *t, struct backup *b)
{
	struct backup_undo *bu = xzalloc(sizeof *bu);

	bu->u.commit = start;
	bu->u.abort = discard;
	bu->b = b;
	undo_push(transaction_undo(t), &bu->u);
}

/* --- its parts -------------------------------------------------------------------- */

/* Default: the name of the device. */
static const char *
job_id(struct daemon *d, const struct backup_plan *p)
{
	const struct export *x = graph_device(d->graph, p->source);

	if (p->a->job_id)
		return p->a->job_id;
	return x ? x->options->id : "";
}

static void
set_options(struct backup *b, const struct backup_plan *p)
{
	const struct blockdev_backup *a = p->a;

	b->job.auto_finalize = !a->has_auto_finalize || a->auto_finalize;
	b->job.auto_dismiss = !a->has_auto_dismiss || a->auto_dismiss;
	b->job.speed = (uint64_t)a->speed;
	b->on_source_error = a->has_on_source_error ? a->on_source_error
						    : BLOCKDEV_ON_ERROR_REPORT;
	b->on_target_error = a->has_on_target_error ? a->on_target_error
						    : BLOCKDEV_ON_ERROR_REPORT;
	b->cluster = p->cluster;
	b->mode = p->mode;
	b->follow = p->sync == MIRROR_SYNC_MODE_NONE;
	b->top = p->sync == MIRROR_SYNC_MODE_TOP;
	b->compress = a->compress;
	if (a->x_perf && a->x_perf->has_max_workers)
		b->max_workers = (unsigned)a->x_perf->max_workers;
	if (a->x_perf && a->x_perf->has_max_chunk)
		b->max_chunk = (uint64_t)a->x_perf->max_chunk;
}

/* Which epochs of the bitmap the job takes: all that are closed after the
 * cut.
 */
static bool
take_bitmap(struct transaction *t, struct backup *b, struct backup_plan *p,
	    struct err *e)
{
	struct node_cut *c = transaction_cut(t, p->source);
	struct graph *g = transaction_daemon(t)->graph;

	epoch_set_copy(&b->taken, &p->bitmap->set);
	epoch_set_remove(&b->taken, c->epoch);
	for (struct node *n = g->nodes; n; n = n->next)
		if (n != p->source && n->epoch &&
		    epoch_set_has(&b->taken, n->epoch))
			return err_set(e, ERR_GENERIC, 0,
				       "Bitmap '%s' was merged from node '%s' "
				       "in this transaction: back it up in "
				       "the next one",
				       p->bitmap->name, n->name);
	return true;
}

static void
limit_view(struct backup *b, const struct node *n)
{
	struct view_file *v = b->view;

	v->limited = true;
	epoch_set_copy(&v->closed, &b->taken);
	if (n->epoch && epoch_set_has(&b->taken, n->epoch)) {
		v->open = epoch_file_ref(n->epoch);
		epoch_set_remove(&v->closed, n->epoch);
	}
}

/* What the data plane does when a guest's write cannot be saved (in time). */
static void
limit_saves(struct view_file *v, const struct blockdev_backup *a)
{
	uint64_t ms = a->has_cbw_timeout ? a->cbw_timeout * UINT64_C(1000) : 0;

	v->break_guest_write =
		a->has_on_cbw_error &&
		a->on_cbw_error == ON_CBW_ERROR_BREAK_GUEST_WRITE;
	v->timeout_ms = (uint32_t)min_u64(ms, UINT32_MAX);
}

/* All of a dirty granule is copied, though its epochs may know better: a
 * finer bitmap of the node makes them finer.
 */
static uint64_t
copy_unit(const struct backup_plan *p)
{
	if (p->sync != MIRROR_SYNC_MODE_BITMAP)
		return p->cluster;
	return max_u64(p->cluster, p->bitmap->granularity);
}

static void
make_view(struct backup *b, const struct backup_plan *p)
{
	b->view = view_file_new(b->job.d, p->source, copy_unit(p));
	limit_saves(b->view, p->a);
	if (p->sync == MIRROR_SYNC_MODE_BITMAP)
		limit_view(b, p->source);
}

/* From now on they are in use. */
static void
use_nodes(struct backup *b, const struct backup_plan *p)
{
	b->source = p->source;
	b->target = p->target;
	b->target->target_of = &b->job;
	b->discards = p->a->discard_source;
	if (b->discards) {
		b->source->target_of = &b->job;
		backup_discard_plan(&b->from, b->source);
	}
	if (p->bitmap) {
		b->bitmap = p->bitmap;
		bitmap_lend(p->bitmap, &b->job, &b->taken);
	}
}

/* A new backup of a node is a drain of those that it has. */
static void
blink_others(const struct backup *b)
{
	struct job *j = jobs_first(b->job.d->jobs);

	for (; j; j = j->next) {
		const struct backup *other = backup_of(j);

		if (other && other->source == b->source)
			job_blink(j);
	}
}

/* The target's blocks may make the cluster larger than was thought. */
static bool
make_target(struct transaction_file *f, struct err *e)
{
	struct backup *b = container_of(f, struct backup, to.file);

	if (b->drive) {
		if (!drive_target_open(b->drive, e))
			return false;
		backup_target_plan(&b->to, b->target);
	}
	if (!backup_target_open(&b->to, e) || !backup_discard_open(&b->from, e))
		return false;
	b->cluster = stream_cluster(b->to.target, b->cluster);
	b->view->unit = max_u64(b->view->unit, b->cluster);
	return true;
}

/* What the cut attaches, and what is opened for it. */
static void
join(struct transaction *t, struct backup *b, const struct backup_plan *p)
{
	view_file_attach(b->view, p->source);
	b->filter = filter_new(b->job.d->graph, p->a->filter_node_name, &b->job,
			       b->view, p->cluster);
	transaction_add_view(t, p->source, b->view);
	if (!b->drive)
		backup_target_plan(&b->to, p->target);
	b->to.file.make = make_target;
	transaction_add_file(t, &b->to.file);
}

/* --- the action ------------------------------------------------------------------- */

bool
backup_create(struct transaction *t, struct backup_plan *p, struct err *e)
{
	struct daemon *d = transaction_daemon(t);
	struct backup *b;

	if (!backup_new(d, job_id(d, p), transaction_group(t), &b, e))
		return false;
	if (p->a->has_speed && p->a->speed < 0) {
		job_drop(&b->job);
		return err_set(e, ERR_GENERIC, 0,
			       "Parameter 'speed' expects a non-negative "
			       "value");
	}
	b->drive = steal(&p->drive);
	hand_over(t, b);
	set_options(b, p);
	if (p->bitmap && !take_bitmap(t, b, p, e))
		return false;
	make_view(b, p);
	use_nodes(b, p);
	blink_others(b);
	join(t, b, p);
	return true;
}

bool
action_blockdev_backup(struct transaction *t, const struct blockdev_backup *a,
		       struct err *e)
{
	struct backup_plan p = { .a = a };

	return backup_plan_source(&p, transaction_daemon(t), e) &&
	       backup_plan_check(&p, transaction_daemon(t), e) &&
	       backup_create(t, &p, e);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * block_resize.  Steps, so that a crash between any two of them leaves bitmaps
 * that are right (recover.c does what is left):
 *
 * 1. Epochs for disks of the new size are made: one to be opened, and a copy
 *    of each that is closed.
 * 2. The registry says which size is coming, and names the epoch that will be
 *    open with it.
 * 3. The image gets its size: in the data plane behind closed gates, together
 *    with the new epoch, or here when no guest has it.
 * 4. The epoch that was open is copied; the copies take their places, and the
 *    registry says so.
 *
 * Loop only, except where it says worker.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/filters.h"
#include "daemon/graph.h"
#include "daemon/images.h"
#include "daemon/merge.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "link/image.h"
#include "schema/qmp-commands.h"

struct copy {
	struct copy *next;
	struct epoch_file *old, *now; /* references */
};

struct resizing {
	struct daemon *d;
	struct qmp_call *call;
	struct qmp_block_resize_args *arg; /* owned */
	struct node *node;
	uint64_t size;
	struct epoch_file *open; /* the new one: a reference, or NULL */
	struct copy *copies; /* owned */
	struct task settled;
	struct work work;
	struct plane_request r;
	struct link_image *image; /* owned: for opening it here */
	struct link_msg fds;
	uint64_t actual; /* the size that the image was found to have */
	struct err e;
};

/* --- checks ------------------------------------------------------------------ */

static bool
drivers_check(const struct node *n, uint64_t size, uint64_t asked,
	      struct err *e)
{
	for (; n; n = node_filtered(n)) {
		const struct blockdev_options *o = n->options;

		if (o->driver == BLOCKDEV_DRIVER_QCOW2 && asked % 512)
			return err_set(e, ERR_GENERIC, 0,
				       "The new size must be a multiple of "
				       "512");
		if (o->driver == BLOCKDEV_DRIVER_RAW && o->u.raw->has_size)
			return err_set(e, ERR_GENERIC, 0,
				       "Cannot resize fixed-size raw disks");
		if (o->driver == BLOCKDEV_DRIVER_NBD && size != n->size)
			return err_set(e, ERR_GENERIC, 0,
				       "Cannot resize NBD nodes");
		if (o->driver == BLOCKDEV_DRIVER_HOST_DEVICE && size != n->size)
			return err_set(e, ERR_GENERIC, 0,
				       size > n->size
					       ? "Cannot grow device files"
					       : "Cannot resize device files");
	}
	return true;
}

static bool
bitmaps_check(const struct node *n, struct err *e)
{
	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		if (!bitmap_check(b, BITMAP_BUSY | BITMAP_INCONSISTENT, e))
			return false;
	return true;
}

static bool
find(struct resizing *r, struct err *e)
{
	const struct qmp_block_resize_args *a = r->arg;
	struct graph *g = r->d->graph;
	struct node *n = NULL;

	if (a->device)
		n = graph_device_or_node(g, a->device);
	if (!n && a->node_name)
		n = graph_node(g, a->node_name);
	r->node = n;
	return n || err_set(e, ERR_GENERIC, 0,
			    "Cannot find device='%s' nor node-name='%s'",
			    a->device ? a->device : "",
			    a->node_name ? a->node_name : "");
}

static bool
check(struct resizing *r, struct err *e)
{
	static const struct permission wanted = {
		.what = "resize", .who = "an unnamed block device", .as = "root"
	};
	struct node *n;

	if (!find(r, e))
		return false;
	n = r->node;
	if (r->arg->size < 0)
		return err_set(e, ERR_GENERIC, 0,
			       "Parameter 'size' expects a >0 size");
	if (r->arg->size > INT64_MAX - 511)
		return err_set(e, ERR_GENERIC, EFBIG, "Failed to resize '%s'",
			       n->name);
	r->size = round_up((uint64_t)r->arg->size, 512);
	if (!node_check_idle(n, e) || !node_check_closed(n, e) ||
	    !node_check_permission(r->d->graph, n, &wanted, e) ||
	    !filter_check_source(r->d->graph, n, wanted.what, e))
		return false;
	if (n->views)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: block device is in use by "
			       "block job: backup",
			       n->name);
	if (n->read_only)
		return err_set(e, ERR_GENERIC, 0, "Image is read-only");
	if (!drivers_check(n, r->size, (uint64_t)r->arg->size, e) ||
	    !bitmaps_check(n, e))
		return false;
	if (n->exports && (!n->in_plane || !plane_is_up(r->d->plane)))
		return err_set(e, ERR_GENERIC, 0,
			       "the data plane (nbdkit) does not run");
	return true;
}

/* --- the end ----------------------------------------------------------------- */

static void
end(struct resizing *r, const struct err *e)
{
	struct copy *c;

	if (r->open)
		epoch_file_unref(r->open);
	while ((c = r->copies)) {
		r->copies = c->next;
		epoch_file_unref(c->old);
		epoch_file_unref(c->now);
		free(c);
	}
	link_image_free(r->image);
	link_msg_clear(&r->fds);
	qmp_block_resize_args_free(r->arg);
	merge_look(r->d->merge);
	pending_end(r->d);
	if (e)
		qmp_call_fail(r->call, e);
	else
		qmp_block_resize_return(r->call);
	free(r);
}

static void
failure_saved(void *opaque, const struct err *e)
{
	struct resizing *r = opaque;
	struct err why = r->e;

	if (e)
		log_error("%s", e->msg);
	end(r, &why);
}

/* The image has the size that it had. */
static void
fail(struct resizing *r)
{
	r->node->next_size = 0;
	r->node->next_epoch = NULL;
	registry_save(r->d->registry, failure_saved, r);
}

static void
success_saved(void *opaque, const struct err *e)
{
	end(opaque, e);
}

/* --- step 4 -------------------------------------------------------------------- */

static void
replace(struct resizing *r, struct bitmap *b)
{
	for (const struct copy *c = r->copies; c; c = c->next) {
		if (!epoch_set_has(&b->set, c->old))
			continue;
		epoch_set_remove(&b->set, c->old);
		epoch_set_add(&b->set, c->now);
	}
	if (b->enabled && r->open)
		epoch_set_add(&b->set, r->open);
}

/* Files below grow with what stands on them. */
static void
set_size(struct node *n, uint64_t size)
{
	for (; n; n = (struct node *)node_filtered(n)) {
		n->size = size;
		if (n->options->driver == BLOCKDEV_DRIVER_RAW)
			size += (uint64_t)n->options->u.raw->offset;
	}
}

static void
adopted(struct work *w)
{
	struct resizing *r = container_of(w, struct resizing, work);
	struct node *n = r->node;

	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		replace(r, b);
	if (n->epoch)
		epoch_file_unref(n->epoch);
	n->epoch = r->open ? epoch_file_ref(r->open) : NULL;
	set_size(n, r->size);
	n->next_size = 0;
	n->next_epoch = NULL;
	PARK("resize.adopted");
	registry_save(r->d->registry, success_saved, r);
}

/* Worker.  The epoch that was open does not change any more. */
static void
adopt_run(struct work *w)
{
	struct resizing *r = container_of(w, struct resizing, work);

	for (struct copy *c = r->copies; c; c = c->next)
		if (c->old == r->node->epoch)
			epoch_merge(c->now->map, c->old->map);
}

static void
adopt(struct resizing *r)
{
	PARK("resize.resized");
	r->work = (struct work){ .run = adopt_run, .done = adopted };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

/* --- step 3 -------------------------------------------------------------------- */

/* Worker.  Resize it, or look at the size that it has (after a failure of the
 * data plane, which may have done it).
 */
static void
open_run(struct work *w)
{
	struct resizing *r = container_of(w, struct resizing, work);
	struct err ignore = ERR_INIT;
	struct block *b;
	int os = 0;

	if (!link_image_open(r->image, &r->fds, &b,
			     err_is_set(&r->e) ? &ignore : &r->e))
		return;
	if (!err_is_set(&r->e))
		os = block_truncate(b, r->size);
	if (os)
		(void)err_set(&r->e, ERR_GENERIC, os, "Failed to resize '%s'",
			      r->node->name);
	r->actual = b->size;
	block_free(b);
}

static void
opened(struct work *w)
{
	struct resizing *r = container_of(w, struct resizing, work);

	if (r->actual == r->size && r->size != r->node->size)
		adopt(r);
	else if (err_is_set(&r->e))
		fail(r);
	else
		adopt(r);
}

/* After a failure it is looked at only: another data plane may have it. */
static void
open_here(struct resizing *r)
{
	r->image = err_is_set(&r->e) ? image_reader_plan(r->node, &r->fds)
				     : image_plan(r->node, &r->fds);
	r->work = (struct work){ .run = open_run, .done = opened };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

static void
on_resized(struct plane_request *pr, const struct json *ret,
	   struct link_msg *msg, const struct err *e)
{
	struct resizing *r = container_of(pr, struct resizing, r);

	(void)ret;
	(void)msg;
	if (!e) {
		adopt(r);
		return;
	}
	r->e = *e;
	if (plane_is_up(r->d->plane))
		fail(r);
	else
		open_here(r); /* who knows */
}

static void
ask_plane(struct resizing *r)
{
	struct link_node_resize_args arg = { .node = r->node->name,
					     .size = r->size,
					     .timeout_ms = PLANE_GATES_MS };
	struct link_epoch epoch = { 0 };
	struct json_out o;
	int fd = -1;

	if (r->open) {
		epoch.id = r->open->id;
		arg.epoch = &epoch;
		fd = epoch_fd(r->open->map);
	}
	r->r.done = on_resized;
	plane_begin(&o);
	link_put_node_resize(&o, &arg);
	plane_ask(r->d->plane, &r->r, &o, &fd, r->open ? 1 : 0);
}

static void
intent_saved(void *opaque, const struct err *e)
{
	struct resizing *r = opaque;

	if (e) {
		r->e = *e;
		fail(r);
		return;
	}
	PARK("resize.intent");
	if (r->node->exports)
		ask_plane(r);
	else
		open_here(r);
}

/* --- steps 1 and 2 ---------------------------------------------------------------- */

static void
made(struct work *w)
{
	struct resizing *r = container_of(w, struct resizing, work);
	struct err e = r->e;

	if (err_is_set(&e)) {
		end(r, &e);
		return;
	}
	r->node->next_size = r->size;
	r->node->next_epoch = r->open;
	registry_save(r->d->registry, intent_saved, r);
}

/* Worker. */
static void
make_run(struct work *w)
{
	struct resizing *r = container_of(w, struct resizing, work);
	bool ok = !r->open || epoch_file_make(r->open, &r->e);

	for (struct copy *c = r->copies; ok && c; c = c->next) {
		ok = epoch_file_make(c->now, &r->e);
		if (ok && c->old->map && c->old != r->node->epoch)
			epoch_merge(c->now->map, c->old->map);
	}
}

static struct epoch_file *
new_epoch(struct resizing *r, uint64_t granularity)
{
	return epoch_file_new(r->d->cfg.shm, graph_take_id(r->d->graph),
			      r->size, granularity);
}

static void
plan_copy(struct resizing *r, struct epoch_file *f)
{
	struct copy *c;

	for (c = r->copies; c; c = c->next)
		if (c->old == f)
			return;
	c = xzalloc(sizeof *c);
	c->old = epoch_file_ref(f);
	c->now = new_epoch(r, f->granularity);
	c->next = r->copies;
	r->copies = c;
}

static void
begin(struct task *t)
{
	struct resizing *r = container_of(t, struct resizing, settled);
	struct node *n;

	if (!check(r, &r->e)) {
		struct err e = r->e;

		end(r, &e);
		return;
	}
	n = r->node;
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		for (size_t i = 0; i < b->set.n; i++)
			plan_copy(r, b->set.v[i]);
	if (node_records(n))
		r->open = new_epoch(r, node_granularity(n));
	r->work = (struct work){ .run = make_run, .done = made };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

void
qmp_block_resize(struct qmp_call *call, struct qmp_block_resize_args *arg)
{
	struct resizing *r = xzalloc(sizeof *r);

	r->d = qmp_call_opaque(call);
	r->call = call;
	r->arg = arg;
	r->settled.fn = begin;
	pending_begin(r->d);
	plane_when_settled(r->d->plane, &r->settled);
}

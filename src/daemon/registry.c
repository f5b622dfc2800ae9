/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/registry.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/graph.h"
#include "daemon/identity.h"
#include "daemon/job.h"
#include "daemon/lost.h"
#include "daemon/objects.h"
#include "daemon/registry-files.h"
#include "json/json.h"
#include "json/out.h"

enum op_kind { SAVE, STAGE, PUBLISH };

/* Somebody who waits. */
struct op {
	struct op *next;
	enum op_kind kind;
	registry_done *done;
	void *opaque;
};

struct registry {
	struct daemon *d; /* borrowed */
	bool held;
	struct op *queue, **tail;
	/* What the worker does now: */
	struct work work;
	bool busy;
	enum op_kind kind;
	struct op *batch; /* who waits for it */
	struct json_out text;
	uint64_t mark; /* epochs that were not in use when it was written */
	struct err e;
	struct task pump_task;
};

/* --- encoding ---------------------------------------------------------------- */

static struct registry_bitmap *
describe_bitmap(const struct bitmap *b)
{
	struct registry_bitmap *r = xzalloc(sizeof *r);

	r->name = xstrdup(b->name);
	r->granularity = b->granularity;
	r->persistent = b->persistent;
	r->enabled = b->enabled;
	r->has_saved = r->saved = b->saved;
	r->inconsistent = b->inconsistent ? xstrdup(b->inconsistent) : NULL;
	r->epochs.v = xcalloc(b->set.n + 1, sizeof r->epochs.v[0]);
	r->epochs.n = b->set.n;
	for (size_t i = 0; i < b->set.n; i++)
		r->epochs.v[i] = b->set.v[i]->id;
	if (b->enabled && b->node->next_epoch)
		r->epochs.v[r->epochs.n++] = b->node->next_epoch->id;
	return r;
}

/* Lists are kept newest first and written oldest first. */
static void
describe_bitmaps(const struct bitmap *b, struct registry_bitmap_list *to)
{
	if (!b)
		return;
	describe_bitmaps(b->next, to);
	if (!b->removing && !b->in_image)
		xassert_memory(
			registry_bitmap_list_append(to, describe_bitmap(b)));
}

/* With the options that nodes which go with @n have by now. */
static struct blockdev_options *
whole_options(const struct node *n)
{
	struct blockdev_options *o = blockdev_options_clone(n->options);

	for (int i = 0; i < CHILD_ROLES; i++) {
		enum child_role role = (enum child_role)i;
		struct child_option said;

		if (n->child[i] && !n->child[i]->monitor_owned &&
		    children_option(o, role, &said))
			children_define(o, role, whole_options(n->child[i]));
	}
	return o;
}

static struct registry_node *
describe_node(const struct node *n)
{
	struct registry_node *r = xzalloc(sizeof *r);

	r->options = whole_options(n);
	r->size = n->size;
	r->identity = identity_of(n);
	r->has_next_size = n->next_size != 0;
	r->next_size = n->next_size;
	r->has_took_bitmaps = n->keeps_bitmaps;
	r->took_bitmaps = n->keeps_bitmaps;
	describe_bitmaps(n->bitmaps, &r->bitmaps);
	return r;
}

static bool
is_listed(const struct registry_node_list *l, const struct node *n)
{
	for (size_t i = 0; i < l->n; i++)
		if (strcmp(l->v[i]->options->node_name, n->name) == 0)
			return true;
	return false;
}

/* A child is written before its parent, though blockdev-reopen may have made a
 * younger node a child.
 */
static void
describe_with_younger(const struct node *n, uint64_t born,
		      struct registry_node_list *to)
{
	for (int i = 0; i < CHILD_ROLES; i++)
		if (n->child[i])
			describe_with_younger(n->child[i], born, to);
	if (n->monitor_owned && n->born >= born && !is_listed(to, n))
		xassert_memory(registry_node_list_append(to, describe_node(n)));
}

static void
describe_nodes(const struct node *n, struct registry_node_list *to)
{
	if (!n)
		return;
	describe_nodes(n->next, to);
	if (n->monitor_owned)
		describe_with_younger(n, n->born, to);
}

static void
describe_exports(const struct export *x, struct block_export_options_list *to)
{
	if (!x)
		return;
	describe_exports(x->next, to);
	xassert_memory(block_export_options_list_append(
		to, block_export_options_clone(x->options)));
}

static void
describe_jobs(const struct job *j, struct registry_job_list *to)
{
	struct registry_job *r;

	for (; j; j = j->next) {
		if (job_is_settled(j))
			continue;
		r = xzalloc(sizeof *r);
		r->id = xstrdup(j->id);
		r->type = j->type;
		r->device = xstrdup("");
		xassert_memory(registry_job_list_append(to, r));
	}
}

static void
describe_objects(const struct object *o, struct registry_doc *doc)
{
	if (!o)
		return;
	describe_objects(o->next, doc);
	doc->has_objects = true;
	xassert_memory(
		object_options_list_append(&doc->objects, objects_describe(o)));
}

static void
encode(struct registry *r)
{
	AUTO(registry_doc_free) struct registry_doc *doc = xzalloc(sizeof *doc);

	doc->version = REGISTRY_VERSION;
	doc->next_id = r->d->graph->next_id;
	doc->boot_id = boot_id();
	describe_nodes(r->d->graph->nodes, &doc->nodes);
	describe_exports(r->d->graph->exports, &doc->exports);
	lost_describe(r->d->lost, r->d->graph, doc);
	describe_jobs(jobs_first(r->d->jobs), &doc->jobs);
	if (r->d->guests)
		doc->server = guest_server_options_clone(r->d->guests);
	describe_objects(r->d->graph->objects, doc);
	r->mark = epochs_mark();
	json_out_init(&r->text, REGISTRY_MAX_TEXT);
	registry_doc_encode(&r->text, doc);
	json_out_bytes(&r->text, "\n", 1);
}

/* --- writing (worker) ---------------------------------------------------------- */

static bool
write_new(struct registry *r, struct err *e)
{
	AUTO(close)
	int fd = openat(r->d->state.fd, REGISTRY_NEW,
			O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	const char *p = r->text.text;
	size_t left = r->text.len;

	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot write the registry in '%s'",
			       r->d->state.path);
	while (left) {
		ssize_t n = write(fd, p, left);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_set(e, ERR_GENERIC, errno,
				       "cannot write the registry in '%s'",
				       r->d->state.path);
		p += n;
		left -= (size_t)n;
	}
	PARK("registry.written");
	if (fsync(fd) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot sync the registry in '%s'",
			       r->d->state.path);
	return true;
}

static bool
publish(struct registry *r, struct err *e)
{
	int dir = r->d->state.fd;

	PARK("registry.publish");
	if (renameat(dir, REGISTRY_NEW, dir, REGISTRY_FILE) < 0 ||
	    fsync(dir) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot replace the registry in '%s'",
			       r->d->state.path);
	(void)unlinkat(dir, REGISTRY_STAGED, 0); /* it is counted in now */
	PARK("registry.published");
	return true;
}

static void
run(struct work *w)
{
	struct registry *r = container_of(w, struct registry, work);

	switch (r->kind) {
	case SAVE:
		if (json_out_check(&r->text, &r->e) && write_new(r, &r->e))
			(void)publish(r, &r->e);
		break;
	case STAGE:
		if (json_out_check(&r->text, &r->e))
			(void)write_new(r, &r->e);
		break;
	case PUBLISH: (void)publish(r, &r->e); break;
	}
}

/* --- the queue (loop) ----------------------------------------------------------- */

static void pump(struct registry *r);

static void
done(struct work *w)
{
	struct registry *r = container_of(w, struct registry, work);
	struct op *op = r->batch, *next;
	struct err e = r->e;

	r->batch = NULL;
	r->busy = false;
	if (r->kind != PUBLISH)
		json_out_destroy(&r->text);
	if (r->kind != STAGE && !err_is_set(&e))
		epochs_forget(r->mark);
	for (; op; op = next) {
		next = op->next;
		op->done(op->opaque, err_is_set(&e) ? &e : NULL);
		free(op);
	}
	pump(r);
}

static bool
may_run(const struct registry *r, const struct op *op)
{
	return r->held ? op->kind != SAVE : true;
}

/* Take the first operation that may run; with a save, all of them: one file
 * serves everybody who waits.
 */
static bool
take_batch(struct registry *r)
{
	struct op **p = &r->queue, **tail = &r->batch;

	while (*p && !may_run(r, *p))
		p = &(*p)->next;
	if (!*p)
		return false;
	r->kind = (*p)->kind;
	while (*p) {
		struct op *op = *p;

		if (op->kind != r->kind || (r->kind != SAVE && r->batch)) {
			p = &op->next;
			continue;
		}
		*p = op->next;
		op->next = NULL;
		*tail = op;
		tail = &op->next;
	}
	r->tail = &r->queue;
	while (*r->tail)
		r->tail = &(*r->tail)->next;
	return true;
}

static void
pump(struct registry *r)
{
	if (r->busy || !take_batch(r))
		return;
	r->busy = true;
	r->e = (struct err)ERR_INIT;
	if (r->kind != PUBLISH)
		encode(r);
	r->work = (struct work){ .run = run, .done = done };
	work_submit(r->d->work, &r->d->loop, &r->work);
}

static void
on_pump(struct task *t)
{
	pump(container_of(t, struct registry, pump_task));
}

static void
submit(struct registry *r, enum op_kind kind, registry_done *fn, void *opaque)
{
	struct op *op = xzalloc(sizeof *op);

	op->kind = kind;
	op->done = fn;
	op->opaque = opaque;
	*r->tail = op;
	r->tail = &op->next;
	/* deferred, so that what happens in this turn shares one file */
	if (!r->pump_task.queued)
		loop_defer(&r->d->loop, &r->pump_task);
}

void
registry_save(struct registry *r, registry_done *fn, void *opaque)
{
	submit(r, SAVE, fn, opaque);
}

void
registry_hold(struct registry *r)
{
	assert(!r->held);
	r->held = true;
}

void
registry_stage(struct registry *r, registry_done *fn, void *opaque)
{
	assert(r->held);
	submit(r, STAGE, fn, opaque);
}

void
registry_publish(struct registry *r, registry_done *fn, void *opaque)
{
	assert(r->held);
	submit(r, PUBLISH, fn, opaque);
}

void
registry_release(struct registry *r)
{
	assert(r->held);
	r->held = false;
	if (!r->pump_task.queued)
		loop_defer(&r->d->loop, &r->pump_task);
}

struct registry *
registry_new(struct daemon *d)
{
	struct registry *r = xzalloc(sizeof *r);

	r->d = d;
	r->tail = &r->queue;
	r->pump_task.fn = on_pump;
	return r;
}

void
registry_free(struct registry *r)
{
	struct op *op;

	while ((op = r->queue)) {
		r->queue = op->next;
		free(op);
	}
	loop_cancel(&r->d->loop, &r->pump_task);
	free(r);
}

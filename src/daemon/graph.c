/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/graph.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "daemon/daemon.h"
#include "daemon/filters.h"
#include "daemon/ids.h"
#include "daemon/job.h"
#include "daemon/objects.h"
#include "daemon/stored.h"
#include "daemon/views.h"
#include "stream/stream.h"

struct graph *
graph_new(struct daemon *d)
{
	struct graph *g = xzalloc(sizeof *g);

	g->d = d;
	g->next_id = 1;
	return g;
}

void
graph_free(struct graph *g)
{
	while (g->exports)
		graph_remove_export(g, g->exports);
	while (g->nodes) {
		struct node *n = g->nodes;

		while (n->parents)
			n = n->next;
		graph_remove_node(g, n);
	}
	objects_free(g);
	free(g);
}

uint64_t
graph_take_id(struct graph *g)
{
	return g->next_id++;
}

char *
graph_take_name(struct graph *g)
{
	return xasprintf("#block%03u", g->next_anonymous++);
}

void
graph_see_id(struct graph *g, uint64_t id)
{
	uint64_t next = atomic_load(&g->next_id);

	while (next <= id &&
	       !atomic_compare_exchange_weak(&g->next_id, &next, id + 1))
		;
}

/* --- limits ----------------------------------------------------------------- */

static bool
check_room(size_t n, size_t max, const char *what, struct err *e)
{
	return n < max ||
	       err_set(e, ERR_GENERIC, 0,
		       "There are %zu %s already, and no more are allowed", n,
		       what);
}

bool
graph_check_nodes(const struct graph *g, size_t coming, struct err *e)
{
	size_t n = coming;

	for (const struct node *i = g->nodes; i; i = i->next)
		n++;
	return check_room(n, GRAPH_MAX_NODES, "nodes", e);
}

bool
graph_check_exports(const struct graph *g, struct err *e)
{
	size_t n = 0;

	for (const struct export *x = g->exports; x; x = x->next)
		n++;
	return check_room(n, GRAPH_MAX_EXPORTS, "exports", e);
}

bool
graph_check_bitmaps(const struct graph *g, struct err *e)
{
	size_t n = 0;

	for (const struct node *i = g->nodes; i; i = i->next)
		for (const struct bitmap *b = i->bitmaps; b; b = b->next)
			n++;
	return check_room(n, GRAPH_MAX_BITMAPS, "bitmaps", e);
}

bool
graph_check_objects(const struct graph *g, struct err *e)
{
	size_t n = 0;

	for (const struct object *o = g->objects; o; o = o->next)
		n++;
	return check_room(n, GRAPH_MAX_OBJECTS, "objects", e);
}

bool
graph_has_view(const struct node *n, uint64_t id)
{
	for (const struct view_file *v = n->views; v; v = v->next)
		if (v->id == id)
			return true;
	return false;
}

/* --- nodes ------------------------------------------------------------------ */

struct node *
graph_node(struct graph *g, const char *name)
{
	struct node *n = g->nodes;

	while (n && strcmp(n->name, name) != 0)
		n = n->next;
	return n;
}

struct node *
graph_device_or_node(struct graph *g, const char *name)
{
	struct export *x = graph_export(g, name);

	if (x && x->options->writable)
		return x->node;
	return graph_node(g, name);
}

struct export *
graph_device(struct graph *g, const struct node *n)
{
	struct export *found = NULL;

	/* the oldest one: the list begins with the newest */
	for (struct export *x = g->exports; x; x = x->next)
		if (x->node == n && x->options->writable)
			found = x;
	return found;
}

bool
graph_name_check(struct graph *g, const char *node_name, struct err *e)
{
	struct export *x;

	if (!id_is_wellformed(node_name))
		return err_set(e, ERR_GENERIC, 0, "Invalid node-name: '%s'",
			       node_name);
	if (strlen(node_name) > 31)
		return err_set(e, ERR_GENERIC, 0, "Node name too long");
	x = graph_export(g, node_name);
	if (x && x->options->writable)
		return err_set(e, ERR_GENERIC, 0,
			       "node-name=%s is conflicting with a device id",
			       node_name);
	if (graph_node(g, node_name) || filter_exists(g, node_name))
		return err_set(e, ERR_GENERIC, 0,
			       "Duplicate nodes with node-name='%s'",
			       node_name);
	return true;
}

void
graph_add_node(struct graph *g, struct node *n)
{
	n->next = g->nodes;
	g->nodes = n;
	for (int i = 0; i < CHILD_ROLES; i++)
		if (n->child[i])
			n->child[i]->parents++;
}

void
node_free(struct node *n)
{
	while (n->bitmaps)
		bitmap_free(n->bitmaps);
	if (n->epoch)
		epoch_file_unref(n->epoch);
	if (n->fd >= 0)
		(void)close(n->fd);
	if (n->target)
		target_free(n->target);
	blockdev_options_free(n->options);
	if (n->stored)
		stored_free(n->stored);
	free(n->qcow2);
	free(n->name);
	free(n);
}

void
graph_hide_node(struct graph *g, struct node *n)
{
	struct node **p = &g->nodes;

	assert(n->parents == 0);
	while (*p != n)
		p = &(*p)->next;
	*p = n->next;
}

void
graph_drop_node(struct graph *g, struct node *n)
{
	struct node *child[CHILD_ROLES];

	memcpy(child, n->child, sizeof child);
	node_free(n);
	for (int i = 0; i < CHILD_ROLES; i++)
		if (child[i] && --child[i]->parents == 0 &&
		    !child[i]->monitor_owned)
			graph_remove_node(g, child[i]);
}

void
graph_remove_node(struct graph *g, struct node *n)
{
	graph_hide_node(g, n);
	graph_drop_node(g, n);
}

struct node *
graph_parent(struct graph *g, const struct node *n, enum child_role *role)
{
	if (!n->parents)
		return NULL;
	for (struct node *p = g->nodes; p; p = p->next)
		for (int i = 0; i < CHILD_ROLES; i++)
			if (p->child[i] == n) {
				*role = (enum child_role)i;
				return p;
			}
	return NULL;
}

bool
node_stands_on(const struct node *top, const struct node *n)
{
	bool found = top == n;

	for (int i = 0; i < CHILD_ROLES && !found; i++)
		found = top->child[i] && node_stands_on(top->child[i], n);
	return found;
}

/* The child that holds the node's data, or a part of it. */
static const struct node *
storage(const struct node *n)
{
	return n->child[CHILD_FILE] ? n->child[CHILD_FILE]
				    : n->child[CHILD_IMAGE];
}

const struct node *
node_filtered(const struct node *n)
{
	switch (n->options->driver) {
	case BLOCKDEV_DRIVER_RAW:
	case BLOCKDEV_DRIVER_THROTTLE: return n->child[CHILD_FILE];
	case BLOCKDEV_DRIVER_BLKDEBUG: return n->child[CHILD_IMAGE];
	default: return NULL;
	}
}

bool
node_check_writable(const struct node *n, const char *text, struct err *e)
{
	return !n->read_only ||
	       err_set(e, ERR_GENERIC, 0, "%s",
		       n->read_only_below ? "Block node is read-only" : text);
}

void
node_look_below(struct node *n)
{
	const struct node *below = node_filtered(n);

	if (!below)
		return;
	if (below->read_only && !n->read_only)
		n->read_only = n->read_only_below = true;
	else if (!below->read_only && n->read_only_below)
		n->read_only = n->read_only_below = false;
}

int
node_fd(const struct node *n)
{
	for (; n; n = storage(n))
		if (n->fd >= 0)
			return n->fd;
	return -1;
}

const char *
node_filename(const struct node *n)
{
	while (storage(n))
		n = storage(n);
	switch (n->options->driver) {
	case BLOCKDEV_DRIVER_FILE: return n->options->u.file->filename;
	case BLOCKDEV_DRIVER_HOST_DEVICE:
		return n->options->u.host_device->filename;
	case BLOCKDEV_DRIVER_NBD:
		return n->target ? target_address(n->target) : "";
	case BLOCKDEV_DRIVER_NULL_AIO: return "null-aio://";
	case BLOCKDEV_DRIVER_NULL_CO: return "null-co://";
	default: return "";
	}
}

bool
node_check_closed(const struct node *n, struct err *e)
{
	return !n->in_plane || n->exports ||
	       err_set(e, ERR_GENERIC, 0,
		       "Node '%s' is busy: the data plane still has it open",
		       n->name);
}

bool
node_check_idle(const struct node *n, struct err *e)
{
	if (n->target_of)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: block device is in use by "
			       "block job: backup",
			       n->name);
	return true;
}

bool
node_check_permission(struct graph *g, const struct node *n,
		      const struct permission *wanted, struct err *e)
{
	bool named = wanted->name != NULL;
	enum child_role role;
	const struct node *p = graph_parent(g, n, &role);

	if (!p)
		return true;
	if (role == CHILD_BACKING)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: node is used as backing hd "
			       "of '%s'",
			       n->name, p->name);
	return err_set(e, ERR_GENERIC, 0,
		       "Permission conflict on node '%s': permissions '%s' are "
		       "both required by %s%s%s%s (uses node '%s' as '%s' "
		       "child) and unshared by node '%s' (uses node '%s' as "
		       "'%s' child).",
		       n->name, wanted->what, wanted->who, named ? " '" : "",
		       named ? wanted->name : "", named ? "'" : "", n->name,
		       wanted->as, p->name, n->name, child_role_str(role));
}

/* --- bitmaps ---------------------------------------------------------------- */

struct bitmap *
node_bitmap(const struct node *n, const char *name)
{
	struct bitmap *b = n->bitmaps;

	while (b && strcmp(b->name, name) != 0)
		b = b->next;
	return b;
}

bool
bitmap_check(const struct bitmap *b, unsigned what, struct err *e)
{
	if (what & BITMAP_BUSY && (b->job || b->removing))
		return err_set(e, ERR_GENERIC, 0,
			       "Bitmap '%s' is currently in use by another "
			       "operation and cannot be used",
			       b->name);
	if (what & BITMAP_READONLY && b->persistent && b->node->read_only)
		return err_set(e, ERR_GENERIC, 0,
			       "Bitmap '%s' is readonly and cannot be modified",
			       b->name);
	if (what & BITMAP_INCONSISTENT && b->inconsistent)
		return err_set(e, ERR_GENERIC, 0,
			       "Bitmap '%s' is inconsistent and cannot be used",
			       b->name);
	return true;
}

struct bitmap *
bitmap_new(struct node *n, const char *name, uint64_t granularity,
	   bool persistent)
{
	struct bitmap *b = xzalloc(sizeof *b);

	b->node = n;
	b->name = xstrdup(name);
	b->granularity = granularity;
	b->persistent = persistent;
	b->born = ++n->bitmap_births;
	b->next = n->bitmaps;
	n->bitmaps = b;
	return b;
}

static void
unlist(struct bitmap *b)
{
	struct bitmap **p = &b->node->bitmaps;

	while (*p != b)
		p = &(*p)->next;
	*p = b->next;
}

void
bitmap_lend(struct bitmap *b, struct job *j, const struct epoch_set *taken)
{
	b->job = j;
	b->taken = taken;
	b->successor = ++b->node->bitmap_births;
}

void
bitmap_return(struct bitmap *b, bool successor)
{
	struct bitmap **p = &b->node->bitmaps;

	b->job = NULL;
	b->taken = NULL;
	if (successor) {
		unlist(b);
		b->born = b->successor;
		while (*p && (*p)->born > b->born)
			p = &(*p)->next;
		b->next = *p;
		*p = b;
	}
	b->successor = 0;
}

void
bitmap_free(struct bitmap *b)
{
	unlist(b);
	epoch_set_clear(&b->set);
	free(b->inconsistent);
	free(b->name);
	free(b);
}

void
bitmap_set_inconsistent(struct bitmap *b, const char *why)
{
	if (b->inconsistent)
		return;
	b->inconsistent = xstrdup(why);
	b->enabled = false;
	epoch_set_clear(&b->set);
}

uint64_t
bitmap_count(const struct bitmap *b)
{
	return epoch_set_count(b->taken ? b->taken : &b->set, b->node->size,
			       b->granularity);
}

uint64_t
bitmap_successor_count(const struct bitmap *b)
{
	struct epoch_set since = { 0 };
	uint64_t n;

	epoch_set_copy(&since, &b->set);
	epoch_set_subtract(&since, b->taken);
	n = epoch_set_count(&since, b->node->size, b->granularity);
	epoch_set_clear(&since);
	return n;
}

void
node_keep_epochs(struct node *n)
{
	if (n->epoch)
		n->epoch->keep = true;
	for (struct bitmap *b = n->bitmaps; b; b = b->next)
		for (size_t i = 0; i < b->set.n; i++)
			b->set.v[i]->keep = true;
}

bool
node_records(const struct node *n)
{
	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->enabled && !b->removing)
			return true;
	return false;
}

uint64_t
node_granularity(const struct node *n)
{
	uint64_t finest = EPOCH_MAX_GRANULARITY;

	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->enabled && !b->removing)
			finest = min_u64(finest, b->granularity);
	return finest;
}

/* --- exports ---------------------------------------------------------------- */

struct export *
graph_export(struct graph *g, const char *id)
{
	struct export *x = g->exports;

	while (x && strcmp(x->options->id, id) != 0)
		x = x->next;
	return x;
}

void
graph_add_export(struct graph *g, struct export *x)
{
	x->next = g->exports;
	g->exports = x;
	x->node->exports++;
}

void
graph_remove_export(struct graph *g, struct export *x)
{
	struct export **p = &g->exports;

	while (*p != x)
		p = &(*p)->next;
	*p = x->next;
	x->node->exports--;
	block_export_options_free(x->options);
	free(x);
}

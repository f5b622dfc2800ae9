/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/stored.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/park.h"
#include "block/qcow2/bitmap-format.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/qcow2.h"
#include "daemon/daemon.h"
#include "daemon/images.h"
#include "link/image.h"

/* --- whose image it is ------------------------------------------------------------- */

/* Rule 5: the node whose image has the bitmaps of @n, or NULL.  One that the
 * monitor owns may be without @n tomorrow.
 */
static struct node *
keeper(const struct node *n)
{
	while (n && !n->qcow2) {
		const struct node *below = node_filtered(n);

		if (below && (below->monitor_owned || below->size != n->size))
			return NULL;
		n = below;
	}
	return (struct node *)n;
}

static bool
can_have(const struct node *n)
{
	return n->qcow2 && n->qcow2->version >= 3;
}

/* Nobody writes to it, whatever its own options say. */
static bool
is_backing(const struct node *n)
{
	for (; n->above; n = n->above)
		if (n->above->child[CHILD_BACKING] == n)
			return true;
	return false;
}

bool
stored_is_inside(struct graph *g, const struct node *n)
{
	enum child_role role = CHILD_FILE;
	const struct node *top = n, *p;

	while (!top->monitor_owned && (p = graph_parent(g, top, &role))) {
		if (role == CHILD_BACKING)
			return false;
		top = p;
	}
	if (top == n || !can_have(n))
		return false;
	for (const struct bitmap *b = top->bitmaps; b; b = b->next)
		if (b->persistent)
			return true;
	return n->qcow2->has_bitmaps;
}

/* --- reading ----------------------------------------------------------------------- */

struct stored_bitmap {
	char *name; /* owned */
	uint64_t granularity;
	bool enabled, inconsistent;
	struct epoch_file *bits; /* a reference, or NULL: nothing is dirty */
};

struct stored {
	struct stored_bitmap *v; /* owned */
	size_t n;
	struct epoch_file *open; /* where enabled ones go on; or NULL */
};

void
stored_free(struct stored *s)
{
	for (size_t i = 0; i < s->n; i++) {
		free(s->v[i].name);
		if (s->v[i].bits)
			epoch_file_unref(s->v[i].bits);
	}
	if (s->open)
		epoch_file_unref(s->open);
	free(s->v);
	free(s);
}

static int
add_range(void *opaque, uint64_t off, uint64_t len)
{
	epoch_set(opaque, off, len);
	return 0;
}

static bool
load_one(struct daemon *d, struct node *n, struct block *b,
	 const struct qcow2_bitmaps *l, size_t i, struct err *e)
{
	struct stored *s = n->stored;
	struct stored_bitmap *to = &s->v[s->n++];
	struct qcow2_bitmap_info info;

	qcow2_bitmaps_get(l, i, &info);
	*to = (struct stored_bitmap){ .name = xstrdup(info.name),
				      .granularity = info.granularity,
				      .enabled = info.enabled,
				      .inconsistent = info.inconsistent };
	if (info.inconsistent)
		return true;
	to->bits = epoch_file_new(d->cfg.shm, graph_take_id(d->graph), n->size,
				  info.granularity);
	return epoch_file_make(to->bits, e) &&
	       qcow2_bitmap_ranges(b, l, i, add_range, to->bits->map, e);
}

/* Writes are recorded from the beginning. */
static bool
make_open(struct daemon *d, struct node *n, struct err *e)
{
	struct stored *s = n->stored;
	uint64_t finest = EPOCH_MAX_GRANULARITY;
	bool any = false;

	for (size_t i = 0; i < s->n; i++)
		if (s->v[i].enabled && !s->v[i].inconsistent) {
			finest = min_u64(finest, s->v[i].granularity);
			any = true;
		}
	if (!any)
		return true;
	s->open = epoch_file_new(d->cfg.shm, graph_take_id(d->graph), n->size,
				 finest);
	return epoch_file_make(s->open, e);
}

/* How we open an image to look at its bitmaps: by itself. */
static bool
open_image(struct link_image *i, struct link_msg *fds, struct block **out,
	   struct err *e)
{
	link_image_free(steal(&i->u.qcow2->backing));
	i->u.qcow2->keep_bitmaps = true;
	return link_image_open(i, fds, out, e);
}

static bool
load(struct daemon *d, struct node *n, struct block *b, struct err *e)
{
	AUTO(qcow2_bitmaps_free) struct qcow2_bitmaps *l = NULL;
	size_t count;

	if (!qcow2_bitmaps_load(b, &l, e))
		return false;
	count = qcow2_bitmaps_count(l);
	n->stored = xzalloc(sizeof *n->stored);
	n->stored->v = xcalloc(count, sizeof n->stored->v[0]);
	for (size_t i = 0; i < count; i++)
		if (!load_one(d, n, b, l, i, e))
			return false;
	PARK("stored.taking");
	return make_open(d, n, e) &&
	       (!n->keeps_bitmaps || qcow2_bitmaps_take(b, l, e));
}

static bool
take(struct block *b, struct err *e)
{
	AUTO(qcow2_bitmaps_free) struct qcow2_bitmaps *l = NULL;

	return qcow2_bitmaps_load(b, &l, e) && qcow2_bitmaps_take(b, l, e);
}

/* The bitmaps of @n are in use, and its image will say so. */
static bool
take_image(const struct node *n, struct err *e)
{
	struct link_msg fds = { 0 };
	AUTO(link_image_free) struct link_image *i = image_plan(n, &fds);
	struct block *b;
	bool ok = open_image(i, &fds, &b, e);

	link_msg_clear(&fds);
	if (ok) {
		ok = take(b, e);
		block_free(b);
	}
	return ok || err_prefix(e, "Could not open '%s': ", node_filename(n));
}

bool
stored_load(struct daemon *d, struct node *n, struct err *e)
{
	struct link_msg fds = { 0 };
	AUTO(link_image_free) struct link_image *i = NULL;
	struct node *k = keeper(n);
	struct block *b;
	bool ok;

	stored_assume(n);
	/* without any, there is no need to open it for writing */
	if (!k || !can_have(k) || !k->qcow2->has_bitmaps)
		return true;
	i = image_plan(k, &fds);
	ok = open_image(i, &fds, &b, e);
	link_msg_clear(&fds);
	if (!ok)
		return false;
	ok = load(d, n, b, e);
	block_free(b);
	return ok || err_prefix(e, "Could not open '%s': ", node_filename(n));
}

void
stored_assume(struct node *n)
{
	struct node *k = keeper(n);

	if (k)
		n->keeps_bitmaps = k->keeps_bitmaps =
			can_have(k) && !k->read_only;
}

bool
stored_take_again(struct node *n, struct err *e)
{
	stored_assume(n);
	return !n->keeps_bitmaps || !keeper(n)->qcow2->has_bitmaps ||
	       take_image(keeper(n), e);
}

bool
stored_lose(const struct node *top, struct node *n, bool elsewhere,
	    struct err *e)
{
	if (n == keeper(top) || n->read_only || !can_have(n) || is_backing(n))
		return true;
	n->keeps_bitmaps = true;
	if (elsewhere || !n->qcow2->has_bitmaps)
		return true;
	log_warn("the bitmaps in '%s' are inconsistent from now on: node '%s' "
		 "does not show the whole image",
		 node_filename(n), top->name);
	return take_image(n, e);
}

/* --- on the node --------------------------------------------------------------------- */

static void
adopt(struct node *n, struct stored_bitmap *s, struct epoch_file *open)
{
	struct bitmap *b;

	if (node_bitmap(n, s->name))
		return; /* not twice, whatever the image says */
	b = bitmap_new(n, s->name, s->granularity, true);
	b->in_image = !n->keeps_bitmaps;
	if (s->inconsistent) {
		bitmap_set_inconsistent(b, "the image was not closed in order "
					   "by whoever had it");
		return;
	}
	b->enabled = s->enabled;
	epoch_set_add(&b->set, s->bits);
	if (b->enabled)
		epoch_set_add(&b->set, open);
}

void
stored_adopt(struct node *n)
{
	struct stored *s = steal(&n->stored);

	if (!s)
		return;
	for (size_t i = 0; i < s->n; i++)
		adopt(n, &s->v[i], s->open);
	if (s->open)
		n->epoch = epoch_file_ref(s->open);
	stored_free(s);
}

bool
stored_check(const struct node *n, const char *name, uint64_t granularity,
	     struct err *e)
{
	const struct node *k = keeper(n);
	const char *why = NULL;

	if (!k)
		return true; /* the state directory has it */
	if (k->qcow2->version < 3)
		why = "Cannot store dirty bitmaps in qcow2 v2 files";
	else if (strlen(name) > QCOW2_BITMAP_NAME_MAX)
		why = "Name length exceeds maximum (1023 characters)";
	else if (div_up(div_up(n->size, granularity), 8) >
		 QCOW2_BITMAP_BYTES_MAX)
		why = "Too much space will be occupied by the bitmap. Use "
		      "larger granularity";
	return !why || err_set(e, ERR_GENERIC, 0,
			       "Can't make bitmap '%s' persistent in '%s': %s",
			       name, n->name, why);
}

/* --- writing -------------------------------------------------------------------------- */

struct store_bitmap {
	char *name; /* owned */
	uint64_t granularity;
	bool enabled, inconsistent;
	struct epoch_set set;
	struct epoch **maps; /* owned; of @set */
	struct dirty dirty;
};

struct store {
	struct node *node; /* borrowed */
	struct node *keeper; /* borrowed: whose image it is */
	struct store_bitmap *v; /* owned */
	size_t n;
	struct link_image *image; /* owned */
	struct link_msg fds;
	bool take; /* nothing is stored: they are in use from now on */
	struct err e;
};

static void
plan_bitmap(struct store_bitmap *to, const struct bitmap *b)
{
	to->name = xstrdup(b->name);
	to->granularity = b->granularity;
	to->enabled = b->enabled;
	to->inconsistent = b->inconsistent;
	epoch_set_copy(&to->set, &b->set);
	to->maps = xcalloc(to->set.n, sizeof to->maps[0]);
	to->dirty = (struct dirty){ .v = to->maps,
				    .size = b->node->size,
				    .unit = b->granularity };
	for (size_t i = 0; i < to->set.n; i++)
		if (to->set.v[i]->map)
			to->maps[to->dirty.n++] = to->set.v[i]->map;
}

struct store *
store_plan(struct node *n)
{
	struct node *k = keeper(n);
	struct store *s;
	size_t count = 0;

	/* a node inside another one leaves that to it */
	if (!n->keeps_bitmaps || !k || (n->parents && !n->monitor_owned))
		return NULL;
	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		count += b->persistent;
	if (!count && !k->qcow2->has_bitmaps)
		return NULL; /* none were there and none are now */
	s = xzalloc(sizeof *s);
	s->node = n;
	s->keeper = k;
	s->v = xcalloc(count, sizeof s->v[0]);
	s->n = count;
	/* the list begins with the newest */
	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		if (b->persistent)
			plan_bitmap(&s->v[--count], b);
	s->image = image_plan(k, &s->fds);
	return s;
}

struct store *
store_plan_take(struct node *n)
{
	struct store *s;

	if (!can_have(n) || !n->qcow2->has_bitmaps)
		return NULL;
	s = xzalloc(sizeof *s);
	s->node = s->keeper = n;
	s->take = true;
	s->image = image_plan(n, &s->fds);
	return s;
}

static bool
next_range(void *opaque, uint64_t from, uint64_t *start, uint64_t *end)
{
	const struct store_bitmap *b = opaque;

	/* no epoch at all would mean "everything" */
	return b->dirty.n && dirty_next(&b->dirty, from, start, end);
}

static bool
has_name(const struct qcow2_bitmaps *l, const char *name)
{
	struct qcow2_bitmap_info info;

	for (size_t i = 0; i < qcow2_bitmaps_count(l); i++) {
		qcow2_bitmaps_get(l, i, &info);
		if (strcmp(info.name, name) == 0)
			return true;
	}
	return false;
}

static bool
store(struct store *s, struct block *b, struct err *e)
{
	AUTO(free)
	struct qcow2_bitmap_source *v = xcalloc(s->n, sizeof v[0]);
	AUTO(qcow2_bitmaps_free) struct qcow2_bitmaps *l = NULL;
	size_t n = 0;

	if (!qcow2_bitmaps_load(b, &l, e) || !qcow2_bitmaps_take(b, l, e))
		return false;
	PARK("stored.storing");
	for (size_t i = 0; i < s->n; i++) {
		struct store_bitmap *m = &s->v[i];

		/* what we cannot vouch for is in the image as it was */
		if (m->inconsistent && !has_name(l, m->name))
			continue;
		v[n++] = (struct qcow2_bitmap_source){
			.name = m->name,
			.keep = m->inconsistent,
			.granularity = m->granularity,
			.enabled = m->enabled,
			.next = next_range,
			.opaque = m,
		};
	}
	return qcow2_bitmaps_store(b, l, v, n, e);
}

/* Descriptors are used up by opening an image. */
static bool
open_again(const struct store *s, struct block **out, struct err *e)
{
	struct link_msg fds = { .nfds = s->fds.nfds };
	bool ok;

	for (unsigned i = 0; i < fds.nfds; i++)
		fds.fds[i] = fcntl(s->fds.fds[i], F_DUPFD_CLOEXEC, 0);
	ok = open_image(s->image, &fds, out, e);
	link_msg_clear(&fds);
	return ok;
}

void
store_run(struct store *s)
{
	struct block *b;

	if (!open_again(s, &b, &s->e))
		return;
	(void)!(s->take ? take(b, &s->e) : store(s, b, &s->e));
	block_free(b);
	PARK("stored.stored");
}

const struct err *
store_error(const struct store *s)
{
	return err_is_set(&s->e) ? &s->e : NULL;
}

void
store_again_in_use(struct store *s)
{
	struct err e = ERR_INIT;
	struct block *b;

	if (open_again(s, &b, &e)) {
		(void)!take(b, &e);
		block_free(b);
	}
	if (err_is_set(&e))
		log_error("node '%s': its image does not say that its bitmaps "
			  "are in use: %s",
			  s->node->name, e.msg);
}

void
store_free(struct store *s)
{
	for (size_t i = 0; i < s->n; i++) {
		free(s->v[i].name);
		free(s->v[i].maps);
		epoch_set_clear(&s->v[i].set);
	}
	link_image_free(s->image);
	link_msg_clear(&s->fds);
	free(s->v);
	free(s);
}

void
store_finish(struct store *s)
{
	struct node *n = s->node;

	if (err_is_set(&s->e)) {
		log_error("node '%s': its bitmaps cannot be stored: %s",
			  n->name, s->e.msg);
	} else {
		n->keeps_bitmaps = s->keeper->keeps_bitmaps = s->take;
		s->keeper->qcow2->has_bitmaps = s->take || s->n > 0;
		for (struct bitmap *b = n->bitmaps; b; b = b->next)
			b->in_image = b->persistent && !s->take;
	}
	store_free(s);
}

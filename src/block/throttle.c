/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/throttle.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bits.h"
#include "base/mtx.h"
#include "base/park.h"

struct throttle;

struct group {
	struct group *next;
	char *name; /* owned */
	unsigned refs; /* the images; table.lock */
	struct mtx lock; /* LOCK_THROTTLE: all below */
	pthread_cond_t changed;
	struct buckets buckets;
	struct throttle *members; /* borrowed */
	struct throttle *turn[2]; /* who goes next; NULL: whoever comes */
};

struct waiter {
	struct waiter *next;
};

struct throttle {
	struct block block;
	struct block *file; /* owned */
	struct group *group; /* a reference */
	struct group *next_group; /* block_throttle_prepare: one, or NULL */
	bool outside;
	struct throttle *next; /* in the group; group->lock */
	unsigned all; /* nobody waits; group->lock */
	struct waiter *queue[2]; /* of readers and writers; group->lock */
};

static struct {
	pthread_mutex_t lock; /* the list and refs; nothing is locked inside */
	struct group *groups;
} table = { .lock = PTHREAD_MUTEX_INITIALIZER };

static struct throttle *
to_throttle(struct block *b)
{
	return container_of(b, struct throttle, block);
}

/* --- limits ------------------------------------------------------------------- */

static bool
exclusive(const struct throttle_limit *l)
{
	return (l[0].avg && (l[1].avg || l[2].avg)) ||
	       (l[0].max && (l[1].max || l[2].max));
}

static bool
limit_check(const struct throttle_limit *l, struct err *e)
{
	if (l->avg > THROTTLE_MAX_VALUE || l->max > THROTTLE_MAX_VALUE)
		return err_set(e, ERR_GENERIC, 0,
			       "bps/iops/max values must be within [0, "
			       "%" PRIu64 "]",
			       THROTTLE_MAX_VALUE);
	if (!l->length)
		return err_set(e, ERR_GENERIC, 0,
			       "the burst length cannot be 0");
	if (l->length > 1 && !l->max)
		return err_set(e, ERR_GENERIC, 0,
			       "burst length set without burst rate");
	if (l->max && l->length > THROTTLE_MAX_VALUE / l->max)
		return err_set(e, ERR_GENERIC, 0,
			       "burst length too high for this burst rate");
	if (l->max && !l->avg)
		return err_set(e, ERR_GENERIC, 0,
			       "bps_max/iops_max require corresponding "
			       "bps/iops values");
	if (l->max && l->max < l->avg)
		return err_set(e, ERR_GENERIC, 0,
			       "bps_max/iops_max cannot be lower than "
			       "bps/iops");
	return true;
}

bool
throttle_config_check(const struct throttle_config *l, struct err *e)
{
	const struct throttle_limit *ops = &l->of[THROTTLE_OPS_TOTAL];

	if (exclusive(&l->of[THROTTLE_BPS_TOTAL]) || exclusive(ops))
		return err_set(e, ERR_GENERIC, 0,
			       "bps/iops/max total values and read/write "
			       "values cannot be used at the same time");
	if (l->ops_size && !ops[0].avg && !ops[1].avg && !ops[2].avg)
		return err_set(e, ERR_GENERIC, 0,
			       "iops size requires an iops value to be set");
	for (int i = 0; i < THROTTLE_BUCKETS; i++)
		if (!limit_check(&l->of[i], e))
			return false;
	return true;
}

static uint64_t
now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* --- waiting ---------------------------------------------------------------------- */

/* Rule 3: the next image with somebody who waits. */
static void
pass_turn(struct group *g, const struct throttle *from, bool write)
	NEEDS(g->lock)
{
	struct throttle *t = from->next ? from->next : g->members;

	while (t != from && !t->queue[write])
		t = t->next ? t->next : g->members;
	g->turn[write] = t->queue[write] ? t : NULL;
	(void)pthread_cond_broadcast(&g->changed);
}

/* Seconds to wait for; 0: go; negative: until something changes. */
static double
must_wait(struct group *g, struct throttle *t, const struct waiter *w,
	  bool write) NEEDS(g->lock)
{
	if (t->all)
		return 0;
	if (t->queue[write] != w)
		return -1;
	if (!g->turn[write])
		g->turn[write] = t;
	return g->turn[write] == t ? buckets_wait(&g->buckets, now_ns(), write)
				   : -1;
}

static void
wait_turn(struct throttle *t, bool write, uint64_t len)
{
	struct group *g = t->group;
	struct waiter w = { 0 }, **p = &t->queue[write];
	double s;

	mtx_lock(&g->lock);
	while (*p)
		p = &(*p)->next;
	*p = &w;
	PARK("throttle.queued");
	while ((s = must_wait(g, t, &w, write)) != 0) {
		if (s < 0)
			mtx_wait(&g->lock, &g->changed);
		else
			(void)mtx_wait_ms(&g->lock, &g->changed,
					  (unsigned)(s > 1 ? 1000 : s * 1e3) +
						  1);
	}
	buckets_pour(&g->buckets, write, len);
	for (p = &t->queue[write]; *p != &w; p = &(*p)->next)
		;
	*p = w.next;
	PARK("throttle.admitted");
	if (g->turn[write] == t || !g->turn[write])
		pass_turn(g, t, write);
	mtx_unlock(&g->lock);
}

bool
block_admit_outside(struct block *b)
{
	struct block *c;
	bool any = false;

	if (b->ops->admit) {
		to_throttle(b)->outside = true;
		any = true;
	}
	for (unsigned i = 0; (c = block_child(b, i)); i++)
		any |= block_admit_outside(c);
	return any;
}

/* The first child is the one that requests go on to. */
void
block_admit(struct block *b, bool write, uint64_t len)
{
	for (; b; b = block_child(b, 0))
		if (b->ops->admit)
			b->ops->admit(b, write, len);
}

void
block_admit_all(struct block *b, bool all)
{
	struct block *c;

	if (b->ops->admit) {
		struct throttle *t = to_throttle(b);

		mtx_lock(&t->group->lock);
		t->all += all ? 1 : -1u;
		(void)pthread_cond_broadcast(&t->group->changed);
		mtx_unlock(&t->group->lock);
	}
	for (unsigned i = 0; (c = block_child(b, i)); i++)
		block_admit_all(c, all);
}

static void
throttle_admit(struct block *b, bool write, uint64_t len)
{
	wait_turn(to_throttle(b), write, len);
}

/* --- requests ----------------------------------------------------------------------- */

static struct block *
admitted(struct block *b, bool write, uint64_t len)
{
	struct throttle *t = to_throttle(b);

	if (!t->outside)
		wait_turn(t, write, len);
	return t->file;
}

static int
throttle_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	return block_pread(admitted(b, false, len), buf, len, off);
}

static int
throttle_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	return block_pwrite(admitted(b, true, len), buf, len, off);
}

static int
throttle_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	return block_zero(admitted(b, true, len), off, len, flags);
}

static int
throttle_discard(struct block *b, uint64_t off, uint64_t len)
{
	return block_discard(admitted(b, true, len), off, len);
}

static int
throttle_flush(struct block *b)
{
	return block_flush(to_throttle(b)->file);
}

static int
throttle_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
		unsigned *flags)
{
	return block_extent(to_throttle(b)->file, off, len, n, flags);
}

static int
throttle_cache(struct block *b, uint64_t off, uint64_t len)
{
	return block_cache(to_throttle(b)->file, off, len);
}

static struct block *
throttle_child(const struct block *b, unsigned i)
{
	return i ? NULL : container_of(b, const struct throttle, block)->file;
}

static void
throttle_look(struct block *b)
{
	block_size_set(b, block_look(to_throttle(b)->file));
}

static int
throttle_truncate(struct block *b, uint64_t size)
{
	int r = block_truncate(to_throttle(b)->file, size);

	if (!r)
		b->size = size;
	return r;
}

static int
throttle_depth(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	       unsigned *depth)
{
	return block_depth(to_throttle(b)->file, off, len, n, depth);
}

static int
throttle_compress(struct block *b, const void *buf, size_t len, uint64_t off)
{
	return block_compress(admitted(b, true, len), buf, len, off);
}

/* --- groups --------------------------------------------------------------------------- */

static struct group *
group_new(const char *name)
{
	struct group *g = calloc(1, sizeof *g);

	if (!g)
		return NULL;
	g->name = strdup(name);
	if (!g->name) {
		free(g);
		return NULL;
	}
	mtx_init(&g->lock, LOCK_THROTTLE);
	cond_init(&g->changed);
	g->buckets.now = now_ns();
	return g;
}

static struct group *
group_get(const char *name)
{
	struct group *g;

	(void)pthread_mutex_lock(&table.lock);
	for (g = table.groups; g && strcmp(g->name, name) != 0;)
		g = g->next;
	if (!g && (g = group_new(name))) {
		g->next = table.groups;
		table.groups = g;
	}
	if (g)
		g->refs++;
	(void)pthread_mutex_unlock(&table.lock);
	return g;
}

static void
group_put(struct group *g)
{
	struct group **p = &table.groups;

	(void)pthread_mutex_lock(&table.lock);
	if (--g->refs == 0) {
		while (*p != g)
			p = &(*p)->next;
		*p = g->next;
	} else {
		g = NULL;
	}
	(void)pthread_mutex_unlock(&table.lock);
	if (!g)
		return;
	(void)pthread_cond_destroy(&g->changed);
	mtx_destroy(&g->lock);
	free(g->name);
	free(g);
}

static void
group_limit(struct group *g, const struct throttle_config *l)
{
	mtx_lock(&g->lock);
	buckets_set(&g->buckets, now_ns(), l);
	(void)pthread_cond_broadcast(&g->changed);
	mtx_unlock(&g->lock);
}

void
throttle_group_set(const char *name, const struct throttle_config *l)
{
	struct group *g;

	(void)pthread_mutex_lock(&table.lock);
	for (g = table.groups; g && strcmp(g->name, name) != 0;)
		g = g->next;
	if (g)
		g->refs++;
	(void)pthread_mutex_unlock(&table.lock);
	if (!g)
		return;
	group_limit(g, l);
	group_put(g);
}

/* --- membership ----------------------------------------------------------------------- */

static void
join(struct throttle *t, struct group *g)
{
	t->group = g;
	mtx_lock(&g->lock);
	t->next = g->members;
	g->members = t;
	mtx_unlock(&g->lock);
}

static void
leave(struct throttle *t)
{
	struct group *g = t->group;
	struct throttle **p;

	mtx_lock(&g->lock);
	for (p = &g->members; *p != t; p = &(*p)->next)
		;
	*p = t->next;
	for (int i = 0; i < 2; i++)
		if (g->turn[i] == t)
			g->turn[i] = NULL;
	(void)pthread_cond_broadcast(&g->changed);
	mtx_unlock(&g->lock);
	group_put(g);
}

bool
block_throttle_prepare(struct block *b, const char *group, struct err *e)
{
	struct throttle *t = to_throttle(b);
	struct group *g = group_get(group);

	if (!g)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot join throttle group '%s'", group);
	if (t->next_group)
		group_put(t->next_group);
	t->next_group = g;
	return true;
}

void
block_throttle_regroup(struct block *b, const struct throttle_config *l)
{
	struct throttle *t = to_throttle(b);
	struct group *g = steal(&t->next_group);

	group_limit(g, l);
	if (g == t->group) {
		group_put(g);
		return;
	}
	leave(t);
	join(t, g);
}

static void
throttle_free(struct block *b)
{
	struct throttle *t = to_throttle(b);

	if (t->next_group)
		group_put(t->next_group);
	leave(t);
	block_free(t->file);
	free(t);
}

static const struct block_ops throttle_ops = {
	.name = "throttle",
	.free = throttle_free,
	.pread = throttle_pread,
	.pwrite = throttle_pwrite,
	.zero = throttle_zero,
	.discard = throttle_discard,
	.flush = throttle_flush,
	.extent = throttle_extent,
	.cache = throttle_cache,
	.child = throttle_child,
	.truncate = throttle_truncate,
	.look = throttle_look,
	.depth = throttle_depth,
	.compress = throttle_compress,
	.admit = throttle_admit,
};

bool
block_throttle_open(struct block *file, const char *group,
		    const struct throttle_config *l, struct block **out,
		    struct err *e)
{
	AUTO(block_free) struct block *below = file;
	AUTO(free) struct throttle *t = calloc(1, sizeof *t);
	struct group *g;

	if (!throttle_config_check(l, e))
		return false;
	if (!t || !(g = group_get(group)))
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open throttle");
	group_limit(g, l);
	block_inherit(&t->block, below);
	t->block.ops = &throttle_ops;
	t->block.cluster = below->cluster;
	t->file = steal(&below);
	join(t, g);
	*out = &steal(&t)->block;
	return true;
}

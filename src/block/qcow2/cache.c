/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A cache of parts ("slices") of L2 tables and refcount blocks, by their
 * offset in the image file.  Nothing in it is dirty: a change is written to
 * the file first and then to the slice, if there is one.  So a slice can be
 * dropped at any time, and what a caller gets is a copy.
 *
 * A slice is entered into its chain before it is read and loaded without the
 * lock.  Who wants it, or changed bytes of it in the file, waits until it is
 * loaded: a change can therefore not fall between a load's read and its
 * publication.
 *
 * Which slice goes when there is no room is a clock's choice: the hand passes
 * over slices that were used since it came by last.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

#define SLICE_SIZE 4096u
#define SHARDS_MAX 64u
#define SHARD_FEW  8u /* slices in a shard, before there is a second one */
#define NO_OFFSET  UINT64_MAX /* a slice that nobody may find any more */

enum slice_state { LOADING, LOADED, FAILED };

struct qcow2_slice {
	struct qcow2_slice *chain; /* of its bucket; borrowed */
	struct qcow2_slice *next, *prev; /* the clock's ring; borrowed */
	uint64_t off;
	enum slice_state state;
	bool used;
	uint32_t waiters; /* threads that wait for it to be loaded */
	uint8_t data[];
};

static bool
shard_init(struct qcow2_cache_shard *s, uint32_t max)
{
	s->max = max;
	s->buckets = 1;
	while (s->buckets < max)
		s->buckets *= 2;
	s->bucket = calloc(s->buckets, sizeof(struct qcow2_slice *));
	mtx_init(&s->lock, LOCK_QCOW2_CACHE);
	cond_init(&s->loaded);
	return s->bucket;
}

/* What the tables of the whole disk need, with refcount blocks. */
static uint64_t
bytes_of_tables(const struct qcow2 *q)
{
	uint64_t l2 = (uint64_t)q->l1_max << q->g.cluster_bits;
	uint64_t refs = (uint64_t)q->reftable_n << q->g.cluster_bits;

	return l2 + refs + MiB;
}

bool
qcow2_cache_init(struct qcow2 *q, uint64_t bytes)
{
	struct qcow2_cache *c = &q->cache;
	uint64_t slices;

	c->bytes = bytes;
	c->slice_size = (uint32_t)min_u64(q->g.cluster_size, SLICE_SIZE);
	slices = max_u64(min_u64(bytes, bytes_of_tables(q)) / c->slice_size,
			 SHARD_FEW);
	c->shards = 1;
	while (c->shards < SHARDS_MAX && c->shards * 2 * SHARD_FEW <= slices)
		c->shards *= 2;
	c->shard = calloc(c->shards, sizeof *c->shard);
	if (!c->shard)
		return false;
	for (uint32_t i = 0; i < c->shards; i++)
		if (!shard_init(&c->shard[i],
				(uint32_t)min_u64(slices / c->shards,
						  UINT32_MAX / 2)))
			return false;
	return true;
}

static uint64_t
hash_of(const struct qcow2_cache *c, uint64_t off)
{
	return off / c->slice_size * UINT64_C(0x9e3779b97f4a7c15);
}

static struct qcow2_cache_shard *
shard_of(const struct qcow2_cache *c, uint64_t hash)
{
	return &c->shard[hash >> 40 & (c->shards - 1)];
}

static struct qcow2_slice **
bucket_of(const struct qcow2_cache *c, struct qcow2_cache_shard *s,
	  uint64_t off)
{
	return &s->bucket[hash_of(c, off) >> 16 & (s->buckets - 1)];
}

static struct qcow2_slice *
find(const struct qcow2_cache *c, struct qcow2_cache_shard *s, uint64_t off)
{
	struct qcow2_slice *p = *bucket_of(c, s, off);

	while (p && p->off != off)
		p = p->chain;
	return p;
}

/* Nobody will find it; off is NO_OFFSET from now on. */
static void
unchain(const struct qcow2_cache *c, struct qcow2_cache_shard *s,
	struct qcow2_slice *p)
{
	struct qcow2_slice **at;

	if (p->off == NO_OFFSET)
		return;
	at = bucket_of(c, s, p->off);
	while (*at != p)
		at = &(*at)->chain;
	*at = p->chain;
	p->off = NO_OFFSET;
}

static void
drop(const struct qcow2_cache *c, struct qcow2_cache_shard *s,
     struct qcow2_slice *p)
{
	unchain(c, s, p);
	if (s->hand == p)
		s->hand = p->next == p ? NULL : p->next;
	p->next->prev = p->prev;
	p->prev->next = p->next;
	s->count--;
	free(p);
}

/* Make room for one more.  Slices that are being loaded stay; they are as
 * many as there are threads, at most.
 */
static void
make_room(const struct qcow2_cache *c, struct qcow2_cache_shard *s)
{
	uint32_t steps = 2 * s->count + 1;

	while (s->count >= s->max && steps--) {
		struct qcow2_slice *p = s->hand;

		s->hand = p->next;
		if (p->state == LOADING || p->waiters)
			continue;
		if (p->used)
			p->used = false;
		else
			drop(c, s, p);
	}
}

static struct qcow2_slice *
enter(const struct qcow2_cache *c, struct qcow2_cache_shard *s, uint64_t off)
{
	struct qcow2_slice *p = malloc(sizeof *p + c->slice_size), **at;

	if (!p)
		return NULL;
	make_room(c, s);
	p->off = off;
	p->state = LOADING;
	p->used = true;
	p->waiters = 0;
	at = bucket_of(c, s, off);
	p->chain = *at;
	*at = p;
	if (!s->hand) {
		s->hand = p->next = p->prev = p;
	} else {
		p->next = s->hand;
		p->prev = s->hand->prev;
		p->prev->next = p->next->prev = p;
	}
	s->count++;
	return p;
}

static void
await(struct qcow2_cache_shard *s, struct qcow2_slice *p) NEEDS(s->lock)
{
	p->waiters++;
	while (p->state == LOADING)
		mtx_wait(&s->lock, &s->loaded);
	p->waiters--;
}

/* With the lock held, which is given up meanwhile. */
static int
load(struct qcow2 *q, struct qcow2_cache_shard *s, struct qcow2_slice *p)
	NEEDS(s->lock)
{
	uint64_t off = p->off;
	int r;

	mtx_unlock(&s->lock);
	r = qcow2_child_read(q->file, p->data, q->cache.slice_size, off);
	PARK("qcow2.slice-read");
	mtx_lock(&s->lock);
	p->state = r ? FAILED : LOADED;
	(void)pthread_cond_broadcast(&s->loaded);
	if (r)
		unchain(&q->cache, s, p);
	return r;
}

/* Copy from the slice at @off. */
static int
read_slice(struct qcow2 *q, uint8_t *to, size_t skip, size_t n, uint64_t off)
{
	struct qcow2_cache *c = &q->cache;
	struct qcow2_cache_shard *s = shard_of(c, hash_of(c, off));
	struct qcow2_slice *p;
	int r = 0;

	mtx_lock(&s->lock);
	p = find(c, s, off);
	if (likely(p != NULL)) {
		p->used = true;
		if (unlikely(p->state == LOADING))
			await(s, p);
		if (unlikely(p->state == FAILED))
			r = EIO;
	} else {
		p = enter(c, s, off);
		r = p ? load(q, s, p) : ENOMEM;
	}
	if (likely(!r))
		memcpy(to, p->data + skip, n);
	mtx_unlock(&s->lock);
	return r;
}

int
qcow2_table_read(struct qcow2 *q, void *buf, size_t len, uint64_t off)
{
	uint32_t size = q->cache.slice_size;
	uint8_t *to = buf;
	int r = 0;

	while (len && !r) {
		size_t skip = (size_t)(off & (size - 1));
		size_t n = (size_t)min_u64(len, size - skip);

		r = read_slice(q, to, skip, n, off - skip);
		to += n;
		off += n;
		len -= n;
	}
	return r;
}

/* Put into the slice at @off what is in the file already. */
static void
patch_slice(struct qcow2 *q, const uint8_t *from, size_t skip, size_t n,
	    uint64_t off)
{
	struct qcow2_cache *c = &q->cache;
	struct qcow2_cache_shard *s = shard_of(c, hash_of(c, off));
	struct qcow2_slice *p;

	mtx_lock(&s->lock);
	p = find(c, s, off);
	if (p && p->state == LOADING)
		await(s, p);
	if (p && p->state == LOADED)
		memcpy(p->data + skip, from, n);
	mtx_unlock(&s->lock);
}

int
qcow2_table_write(struct qcow2 *q, const void *buf, size_t len, uint64_t off)
{
	uint32_t size = q->cache.slice_size;
	const uint8_t *from = buf;
	int r = qcow2_meta_write(q, buf, len, off);

	if (r) {
		/* some of it may be in the file */
		qcow2_cache_forget(q, off, len);
		return r;
	}
	while (len) {
		size_t skip = (size_t)(off & (size - 1));
		size_t n = (size_t)min_u64(len, size - skip);

		patch_slice(q, from, skip, n, off - skip);
		from += n;
		off += n;
		len -= n;
	}
	return 0;
}

void
qcow2_cache_forget(struct qcow2 *q, uint64_t off, uint64_t len)
{
	struct qcow2_cache *c = &q->cache;

	for (uint64_t at = round_down(off, c->slice_size); at < off + len;
	     at += c->slice_size) {
		struct qcow2_cache_shard *s = shard_of(c, hash_of(c, at));
		struct qcow2_slice *p;

		mtx_lock(&s->lock);
		p = find(c, s, at);
		if (p && p->state == LOADING)
			await(s, p);
		if (p)
			unchain(c, s, p);
		mtx_unlock(&s->lock);
	}
}

void
qcow2_cache_forget_all(struct qcow2 *q)
{
	for (uint32_t i = 0; i < q->cache.shards; i++) {
		struct qcow2_cache_shard *s = &q->cache.shard[i];

		mtx_lock(&s->lock);
		for (uint32_t n = s->count; n; n--) {
			struct qcow2_slice *p = s->hand;

			s->hand = p->next;
			if (p->state == LOADING || p->waiters)
				unchain(&q->cache, s, p);
			else
				drop(&q->cache, s, p);
		}
		mtx_unlock(&s->lock);
	}
}

static void
cache_destroy(struct qcow2_cache *c)
{
	if (!c->shard)
		return;
	for (uint32_t i = 0; i < c->shards && c->shard[i].bucket; i++) {
		struct qcow2_cache_shard *s = &c->shard[i];

		while (s->count)
			drop(c, s, s->hand);
		free(s->bucket);
		(void)pthread_cond_destroy(&s->loaded);
		mtx_destroy(&s->lock);
	}
	free(c->shard);
}

void
qcow2_cache_destroy(struct qcow2 *q)
{
	cache_destroy(&q->cache);
}

void
qcow2_cache_resize(struct qcow2 *q, uint64_t bytes)
{
	struct qcow2_cache old = q->cache;

	if (bytes == old.bytes)
		return;
	q->cache = (struct qcow2_cache){ 0 };
	if (qcow2_cache_init(q, bytes)) {
		cache_destroy(&old);
	} else {
		cache_destroy(&q->cache);
		q->cache = old;
	}
}

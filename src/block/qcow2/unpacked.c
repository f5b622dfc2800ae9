/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The clusters that were decompressed last, so that many small reads of one
 * do not decompress it each time.  A read of a whole cluster passes by.
 *
 *  1. What is kept is what the file has: who writes compressed bytes over old
 *     ones says so before they are mapped (qcow2_unpacked_forget).  A reader
 *     holds the shard lock of what it reads, so the old bytes have none then.
 *  2. Who wants a cluster that is being decompressed waits for it.
 *  3. There are QCOW2_UNPACKED of them at most; who finds all in use
 *     decompresses for itself.
 *
 * The least recently used one makes room.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

void
qcow2_unpacked_init(struct qcow2 *q)
{
	mtx_init(&q->unpacked.lock, LOCK_QCOW2_UNPACKED);
	cond_init(&q->unpacked.loaded);
}

void
qcow2_unpacked_destroy(struct qcow2 *q)
{
	for (unsigned i = 0; i < QCOW2_UNPACKED; i++)
		free(q->unpacked.v[i].data);
	(void)pthread_cond_destroy(&q->unpacked.loaded);
	mtx_destroy(&q->unpacked.lock);
}

static struct qcow2_unpacked_cluster *
find(struct qcow2_unpacked *u, uint64_t entry)
{
	for (unsigned i = 0; i < QCOW2_UNPACKED; i++)
		if (u->v[i].entry == entry)
			return &u->v[i];
	return NULL;
}

/* The one to be replaced; NULL: all are in use. */
static struct qcow2_unpacked_cluster *
oldest(struct qcow2_unpacked *u)
{
	struct qcow2_unpacked_cluster *best = NULL;

	for (unsigned i = 0; i < QCOW2_UNPACKED; i++) {
		struct qcow2_unpacked_cluster *c = &u->v[i];

		if (!c->users && (!best || c->used < best->used))
			best = c;
	}
	return best;
}

/* Decompress into @c, which is ours alone until it is loaded; with the lock,
 * which is given up meanwhile.
 */
static int
load(struct qcow2 *q, struct qcow2_unpacked_cluster *c, uint64_t entry)
	NEEDS(q->unpacked.lock)
{
	int r = 0;

	c->entry = entry;
	c->loading = true;
	mtx_unlock(&q->unpacked.lock);
	if (!c->data)
		c->data = malloc(q->g.cluster_size);
	r = c->data ? qcow2_unpack(q, entry, c->data) : ENOMEM;
	mtx_lock(&q->unpacked.lock);
	c->loading = false;
	if (r)
		c->entry = 0;
	(void)pthread_cond_broadcast(&q->unpacked.loaded);
	return r;
}

/* Copy from @c; with the lock, which is given up meanwhile. */
static int
use(struct qcow2 *q, struct qcow2_unpacked_cluster *c, uint64_t entry,
    bool is_new, const struct qcow2_part *p) NEEDS(q->unpacked.lock)
{
	int r = 0;

	c->users++;
	c->used = ++q->unpacked.clock;
	if (is_new)
		r = load(q, c, entry);
	while (c->loading)
		mtx_wait(&q->unpacked.lock, &q->unpacked.loaded);
	if (!r && c->entry != entry)
		r = EIO; /* who decompressed it failed */
	if (!r) {
		mtx_unlock(&q->unpacked.lock);
		memcpy(p->to, c->data + p->skip, p->len);
		mtx_lock(&q->unpacked.lock);
	}
	c->users--;
	return r;
}

/* Without the list. */
static int
read_alone(struct qcow2 *q, uint64_t entry, const struct qcow2_part *p)
{
	AUTO(free) uint8_t *cluster = NULL;
	int r;

	if (p->len == q->g.cluster_size)
		return qcow2_unpack(q, entry, p->to);
	cluster = malloc(q->g.cluster_size);
	r = cluster ? qcow2_unpack(q, entry, cluster) : ENOMEM;
	if (!r)
		memcpy(p->to, cluster + p->skip, p->len);
	return r;
}

int
qcow2_unpacked_read(struct qcow2 *q, uint64_t entry, const struct qcow2_part *p)
{
	struct qcow2_unpacked *u = &q->unpacked;
	struct qcow2_unpacked_cluster *c;
	bool is_new;
	int r = 0;

	if (p->len == q->g.cluster_size)
		return read_alone(q, entry, p);
	mtx_lock(&q->unpacked.lock);
	c = find(u, entry);
	is_new = !c;
	if (is_new)
		c = oldest(u);
	if (c)
		r = use(q, c, entry, is_new, p);
	mtx_unlock(&q->unpacked.lock);
	return c ? r : read_alone(q, entry, p);
}

void
qcow2_unpacked_forget(struct qcow2 *q, uint64_t off, uint64_t bytes)
{
	struct qcow2_unpacked *u = &q->unpacked;

	mtx_lock(&u->lock);
	for (unsigned i = 0; i < QCOW2_UNPACKED; i++) {
		uint64_t at, n;

		if (!u->v[i].entry)
			continue;
		qcow2_compressed_place(&q->g, u->v[i].entry, &at, &n);
		if (at < off + bytes && off < at + n)
			u->v[i].entry = 0;
	}
	mtx_unlock(&u->lock);
}

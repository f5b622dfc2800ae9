/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Resizing.  Nobody else is inside while an image is resized (block.h), but
 * the plugin's own reads may be: the L1 table is exchanged with all shards
 * locked.
 *
 * Growing: the L1 table first, then what is new is made to read as zeroes (a
 * backing file that is longer, the rest of the last cluster), then the size.
 * Shrinking: what is cut off loses its mappings, then the size.  A death in
 * between leaves an image of the old size, whole; when it was to be shorter
 * its end may be empty already.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

/* --- the header -------------------------------------------------------------------- */

/* Size and L1 table are neighbours: they change together or not at all. */
static int
write_layout(struct qcow2 *q, uint64_t size, uint64_t l1_offset,
	     uint32_t l1_size)
{
	uint8_t raw[24];
	int r;

	be64_put(raw, size);
	be32_put(raw + 8, 0); /* no encryption */
	be32_put(raw + 12, l1_size);
	be64_put(raw + 16, l1_offset);
	r = qcow2_meta_write(q, raw, sizeof raw, QCOW2_AT_SIZE);
	return r ? r : qcow2_barrier(q);
}

static int
write_size(struct qcow2 *q, uint64_t size)
{
	int r = qcow2_barrier(q);

	if (!r)
		r = write_layout(q, size, q->h.l1_offset, q->h.l1_size);
	if (r)
		return r;
	q->h.size = size;
	q->block.size = size;
	return 0;
}

/* --- a longer L1 table ---------------------------------------------------------------- */

static int
write_l1(struct qcow2 *q, uint64_t off, uint64_t bytes,
	 const _Atomic uint64_t *l1)
{
	AUTO(free) uint8_t *raw = calloc(1, (size_t)bytes);
	int r;

	if (!raw)
		return ENOMEM;
	for (uint32_t i = 0; i < q->h.l1_size; i++)
		be64_put(raw + (size_t)i * 8, atomic_load(&l1[i]));
	r = qcow2_meta_write(q, raw, (size_t)bytes, off);
	return r ? r : qcow2_barrier(q);
}

static void
use_l1(struct qcow2 *q, _Atomic uint64_t *l1, uint64_t off, uint32_t n)
{
	uint64_t old = q->h.l1_offset, bytes = (uint64_t)q->h.l1_size * 8;

	qcow2_lock_all(q);
	for (uint32_t i = 0; i < q->h.l1_size; i++)
		atomic_store(&l1[i], atomic_load(&q->l1[i]));
	free(q->l1);
	q->l1 = l1;
	q->l1_max = n;
	q->h.l1_offset = off;
	q->h.l1_size = n;
	qcow2_unlock_all(q);
	if (!bytes)
		return;
	(void)pthread_mutex_lock(&q->space_lock);
	qcow2_unclaim(q, old, bytes);
	(void)pthread_mutex_unlock(&q->space_lock);
	qcow2_give_up(q, old >> q->g.cluster_bits, qcow2_clusters(q, bytes));
}

static int
grow_l1(struct qcow2 *q, uint64_t need)
{
	uint64_t clusters = qcow2_clusters(q, need * 8), first;
	uint64_t bytes = clusters << q->g.cluster_bits;
	AUTO(free) uint64_t *room = NULL;
	_Atomic uint64_t *l1;
	int r;

	if (need <= q->h.l1_size)
		return 0;
	if (bytes > QCOW2_L1_BYTES_MAX)
		return EFBIG;
	room = calloc(need + 1, sizeof *room);
	if (!room)
		return ENOMEM;
	r = qcow2_alloc_table(q, clusters, &first);
	if (!r)
		r = write_l1(q, first << q->g.cluster_bits, bytes, q->l1);
	PARK("qcow2.l1-written");
	if (!r)
		r = write_layout(q, q->h.size, first << q->g.cluster_bits,
				 (uint32_t)need);
	if (r)
		return r;
	l1 = (_Atomic uint64_t *)steal(&room);
	use_l1(q, l1, first << q->g.cluster_bits, (uint32_t)need);
	return 0;
}

/* What is new must read as zeroes: nothing of a longer backing file, nor of
 * mappings that somebody left behind the end, may come to light.
 */
static int
clear_new(struct qcow2 *q, uint64_t from, uint64_t to, uint64_t mapped)
{
	uint64_t end = max_u64(mapped, round_up(from, q->g.cluster_size));

	if (q->backing)
		end = max_u64(end, q->backing->size);
	end = min_u64(round_up(end, q->g.cluster_size),
		      round_up(to, q->g.cluster_size));
	if (end <= from)
		return 0;
	return qcow2_zero(&q->block, from, end - from, BLOCK_ZERO_MAY_UNMAP);
}

static int
grow(struct qcow2 *q, uint64_t size)
{
	unsigned bits = q->g.cluster_bits + q->g.l2_bits;
	uint64_t mapped = min_u64((uint64_t)q->h.l1_size << bits, INT64_MAX);
	int r = 0;

	if (q->external && q->data->size < size)
		r = block_truncate(q->data, size);
	if (!r)
		r = grow_l1(q, qcow2_l1_entries(&q->g, size));
	if (!r)
		r = clear_new(q, q->block.size, size, mapped);
	return r ? r : write_size(q, size);
}

/* --- shorter -------------------------------------------------------------------------- */

/* Take away the mappings of [from, to), which one L2 table has. */
static int
drop_clusters(struct qcow2 *q, uint64_t from, uint64_t to)
{
	static const struct qcow2_entry none[QCOW2_BATCH];
	int r = qcow2_map_own(q, from);

	while (from < to && !r) {
		struct qcow2_entry x[QCOW2_BATCH];
		uint32_t n;
		bool own;

		r = qcow2_map_get(q, from,
				  (uint32_t)min_u64(to - from, QCOW2_BATCH), x,
				  &n, &own);
		if (!r)
			r = qcow2_map_set(q, from, n, none);
		for (uint32_t i = 0; i < n && !r; i++)
			if (x[i].e)
				qcow2_give_up_entry(q, x[i].e);
		from += n;
	}
	return r;
}

static int
drop_table(struct qcow2 *q, uint64_t i)
{
	static const uint8_t none[8];
	uint64_t table = atomic_load(&q->l1[i]) & QCOW2_L1_OFFSET;
	int r = qcow2_meta_write(q, none, sizeof none, q->h.l1_offset + i * 8);

	if (r)
		return r;
	atomic_store(&q->l1[i], 0);
	(void)pthread_mutex_lock(&q->space_lock);
	qcow2_unclaim(q, table, 1);
	(void)pthread_mutex_unlock(&q->space_lock);
	qcow2_give_up(q, table >> q->g.cluster_bits, 1);
	return 0;
}

static int
shrink(struct qcow2 *q, uint64_t size)
{
	uint64_t first = qcow2_clusters(q, size);
	uint64_t per_table = UINT64_C(1) << q->g.l2_bits;
	int r = 0;

	qcow2_lock_all(q);
	for (uint64_t i = first >> q->g.l2_bits; i < q->h.l1_size && !r; i++) {
		if (!(atomic_load(&q->l1[i]) & QCOW2_L1_OFFSET))
			continue;
		r = drop_clusters(q, max_u64(first, i * per_table),
				  (i + 1) * per_table);
		PARK("qcow2.shrinking");
		if (!r && i * per_table >= first)
			r = drop_table(q, i);
	}
	qcow2_unlock_all(q);
	if (!r)
		r = write_size(q, size);
	if (!r && q->external)
		r = block_truncate(q->data, size);
	return r ? r : qcow2_held_free(q);
}

int
qcow2_truncate(struct block *b, uint64_t size)
{
	struct qcow2 *q = to_qcow2(b);
	int r = qcow2_may_write(q);

	if (r)
		return r;
	if (size % 512 || size > INT64_MAX - GiB)
		return EINVAL;
	/* a snapshot of version 2 does not say how long its disk is */
	if (q->h.snapshots && !q->v3)
		return ENOTSUP;
	if (size == b->size)
		return 0;
	return size > b->size ? grow(q, size) : shrink(q, size);
}

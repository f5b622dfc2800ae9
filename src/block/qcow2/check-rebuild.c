/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A new refcount structure, for when the old one is damaged or has no block
 * for a cluster in use.  It lies behind everything that is in use, the old one
 * included, so that the image is as it was until the header, in one write
 * within its first sector, names the new one.
 *
 *   1. Which blocks are needed: those that cover a cluster with a user, and
 *      those that cover the new structure itself.
 *   2. Blocks, then the table; a flush.
 *   3. The header; a flush.
 *
 * The clusters of the old structure have no user any more and are free.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/park.h"
#include "block/qcow2/check-priv.h"

#define TABLE_MAX (QCOW2_REFTABLE_BYTES_MAX / 8) /* entries */

struct rebuild {
	uint8_t *used; /* TABLE_MAX flags: is this block needed? owned */
	uint64_t n; /* of the table's entries */
	uint64_t blocks; /* that are needed */
	uint64_t tail; /* cluster: the first block */
	uint64_t table; /* cluster */
	uint64_t table_n; /* clusters */
};

static int
mark_used(struct qcow2_checker *c, void *opaque)
{
	struct rebuild *b = opaque;

	for (size_t n = 0; n < c->counts.n; n++) {
		const struct qcow2_chunk *k = c->counts.chunks[n];

		for (unsigned at = 0; at < QCOW2_CHUNK; at++) {
			uint64_t i = (k->number * QCOW2_CHUNK + at) >>
				     c->g.refblock_bits;

			if (!k->cell[at])
				continue;
			if (i >= TABLE_MAX)
				return EFBIG;
			b->used[i] = 1;
		}
	}
	return 0;
}

/* Blocks that are needed, and the table's length. */
static void
measure(const struct qcow2_checker *c, struct rebuild *b)
{
	b->blocks = 0;
	b->n = 0;
	for (uint64_t i = 0; i < TABLE_MAX; i++) {
		if (!b->used[i])
			continue;
		b->blocks++;
		b->n = i + 1;
	}
	b->table_n = div_up(b->n * 8, c->g.cluster_size);
}

/* The structure counts itself: grow it until it covers all. */
static int
lay_out(struct qcow2_checker *c, struct rebuild *b)
{
	uint64_t end, covered = c->end;

	b->tail = c->end;
	for (;;) {
		measure(c, b);
		end = b->tail + b->blocks + b->table_n;
		if ((end - 1) >> c->g.refblock_bits >= TABLE_MAX ||
		    end >> (63 - c->g.cluster_bits))
			return EFBIG;
		if (end == covered)
			break;
		covered = end;
		for (uint64_t i = b->tail >> c->g.refblock_bits;
		     i <= (end - 1) >> c->g.refblock_bits; i++)
			b->used[i] = 1;
	}
	b->table = b->tail + b->blocks;
	return 0;
}

static uint64_t
users_of(struct qcow2_checker *c, const struct rebuild *b, uint64_t cluster)
{
	if (cluster >= b->tail && cluster < b->table + b->table_n)
		return 1;
	return min_u64(qcow2_counts_get(&c->counts, cluster) & QCOW2_USERS_MAX,
		       c->g.refcount_max);
}

/* Block @i, at @at: what this pass knows about it. */
static int
write_block(struct qcow2_checker *c, const struct rebuild *b, uint64_t i,
	    uint64_t at)
{
	uint64_t begin = i << c->g.refblock_bits, cluster = begin;
	uint64_t end = min_u64((i + 1) << c->g.refblock_bits, c->counts.limit);
	int r = 0;

	memset(c->block, 0, c->g.cluster_size);
	if (begin < c->counts.first) {
		/* the pass before wrote its beginning */
		r = block_pread(c->file, c->block, c->g.cluster_size, at);
		cluster = c->counts.first;
	}
	for (; !r && cluster < end; cluster++)
		qcow2_refcount_set(c->block, c->g.refcount_order,
				   cluster - begin, users_of(c, b, cluster));
	return r ? r : block_pwrite(c->file, c->block, c->g.cluster_size, at);
}

static int
write_blocks(struct qcow2_checker *c, void *opaque)
{
	const struct rebuild *b = opaque;
	uint64_t i, at = b->tail;
	int r = 0;

	for (i = 0; !r && i < b->n; i++) {
		if (!b->used[i])
			continue;
		if ((i + 1) << c->g.refblock_bits > c->counts.first &&
		    i << c->g.refblock_bits < c->counts.limit)
			r = write_block(c, b, i, at << c->g.cluster_bits);
		at++;
	}
	return r;
}

static int
write_table(struct qcow2_checker *c, const struct rebuild *b)
{
	uint64_t per_cluster = c->g.cluster_size / 8, i, k;
	uint64_t at = b->tail;
	int r = 0;

	for (i = 0; !r && i < b->table_n; i++) {
		memset(c->block, 0, c->g.cluster_size);
		for (k = 0; k < per_cluster && i * per_cluster + k < b->n; k++)
			if (b->used[i * per_cluster + k])
				be64_put((char *)c->block + k * 8,
					 at++ << c->g.cluster_bits);
		r = block_pwrite(c->file, c->block, c->g.cluster_size,
				 (b->table + i) << c->g.cluster_bits);
	}
	return r ? r : block_flush(c->file);
}

static int
write_header(const struct qcow2_checker *c, const struct rebuild *b)
{
	uint8_t field[12];
	int r;

	be64_put(field, b->table << c->g.cluster_bits);
	be32_put(field + 8, (uint32_t)b->table_n);
	r = block_pwrite(c->file, field, sizeof field, QCOW2_AT_REFTABLE);
	return r ? r : block_flush(c->file);
}

int
qcow2_rebuild(struct qcow2_checker *c)
{
	struct rebuild b = { 0 };
	AUTO(free) uint8_t *used = calloc(TABLE_MAX, 1);
	uint64_t end;
	int r;

	if (!used)
		return ENOMEM;
	b.used = used;
	c->no_refcounts = true;
	r = qcow2_passes(c, mark_used, &b);
	if (!r)
		r = lay_out(c, &b);
	end = r ? 0 : (b.table + b.table_n) << c->g.cluster_bits;
	if (!r && c->file->size < end)
		r = block_truncate(c->file, end);
	if (!r)
		r = qcow2_passes(c, write_blocks, &b);
	if (!r)
		r = write_table(c, &b);
	PARK("qcow2.rebuilt");
	if (!r)
		r = write_header(c, &b);
	c->no_refcounts = false;
	return r;
}

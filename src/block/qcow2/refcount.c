/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reference counts of host clusters: the refcount table and its blocks ("Host
 * cluster management" of the specification).  Everything here is called with
 * the space lock held.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

#define PART 4096u /* bytes of a refcount block that are looked at at once */

static uint64_t
block_entries(const struct qcow2 *q)
{
	return UINT64_C(1) << q->g.refblock_bits;
}

/* Where the block for @cluster is in the image file; 0: there is none. */
static int
block_place(struct qcow2 *q, uint64_t cluster, uint64_t *off)
{
	uint64_t i = cluster >> q->g.refblock_bits;

	*off = i < q->reftable_n ? q->reftable[i] & QCOW2_REFTABLE_OFFSET : 0;
	if (*off & (q->g.cluster_size - 1))
		return qcow2_corrupt(q, "a refcount block is not aligned",
				     *off);
	return 0;
}

/* A piece of one refcount block in memory. */
struct part {
	uint8_t raw[PART];
	uint64_t off; /* of raw[0] in the file; 0: no block, all counts are 0 */
	size_t bytes;
	uint64_t first, n; /* host clusters that it counts */
};

/* Load the part that counts @cluster. */
static int
part_load(struct qcow2 *q, struct part *p, uint64_t cluster)
{
	unsigned order = q->g.refcount_order;
	uint64_t in_part, index = cluster & (block_entries(q) - 1);
	uint64_t block;
	int r = block_place(q, cluster, &block);

	p->bytes = (size_t)min_u64(PART, q->g.cluster_size);
	in_part = (uint64_t)p->bytes * 8 >> order;
	p->first = cluster - index % in_part;
	p->n = in_part;
	p->off = 0;
	if (r)
		return r;
	if (!block) {
		memset(p->raw, 0, p->bytes);
		return 0;
	}
	p->off = block + (index / in_part) * p->bytes;
	return qcow2_table_read(q, p->raw, p->bytes, p->off);
}

/* Write the counts of [first, first + n), which the part has. */
static int
part_store(struct qcow2 *q, const struct part *p, uint64_t first, uint64_t n)
{
	unsigned order = q->g.refcount_order;
	uint64_t from = ((first - p->first) << order) / 8;
	uint64_t to = (((first + n - p->first) << order) + 7) / 8;

	return qcow2_table_write(q, p->raw + from, (size_t)(to - from),
				 p->off + from);
}

static uint64_t
part_get(const struct qcow2 *q, const struct part *p, uint64_t cluster)
{
	return qcow2_refcount_get(p->raw, q->g.refcount_order,
				  cluster - p->first);
}

int
qcow2_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *count)
{
	struct part p;
	int r = part_load(q, &p, cluster);

	*count = r ? 0 : part_get(q, &p, cluster);
	return r;
}

/* The run in one part; true when it ends there for good. */
static bool
find_in_part(const struct qcow2 *q, const struct part *p, uint64_t *at,
	     uint64_t to, uint64_t max, struct qcow2_run *run)
{
	uint64_t end = min_u64(p->first + p->n, to);

	for (; *at < end; ++*at) {
		bool is_free = p->off && part_get(q, p, *at) == 0;

		if (!is_free && run->n)
			return true;
		if (!is_free)
			continue;
		if (!run->n)
			run->first = *at;
		if (++run->n == max) {
			++*at;
			return true;
		}
	}
	return false;
}

int
qcow2_refcount_find(struct qcow2 *q, uint64_t *from, uint64_t to, uint64_t max,
		    unsigned *budget, struct qcow2_run *run)
{
	int r = 0;

	memset(run, 0, sizeof *run);
	while (*from < to && *budget) {
		struct part p;

		--*budget;
		r = part_load(q, &p, *from);
		if (r || find_in_part(q, &p, from, to, max, run))
			return r;
	}
	return r;
}

/* --- adding ------------------------------------------------------------------------ */

/* Tell of the runs that are 0 now. */
static void
tell_freed(struct qcow2 *q, const struct part *p, uint64_t first, uint64_t n,
	   qcow2_freed_fn *freed)
{
	uint64_t run = 0;

	for (uint64_t c = first; c < first + n; c++) {
		if (part_get(q, p, c) == 0) {
			run++;
			continue;
		}
		if (run)
			freed(q, c - run, run);
		run = 0;
	}
	if (run)
		freed(q, first + n - run, run);
}

static int
add_in_part(struct qcow2 *q, struct part *p, uint64_t first, uint64_t n,
	    int64_t delta)
{
	for (uint64_t c = first; c < first + n; c++) {
		uint64_t was = part_get(q, p, c);

		if (delta < 0 && was < (uint64_t)-delta)
			return qcow2_corrupt(q, "a refcount is too low",
					     c << q->g.cluster_bits);
		if (delta > 0 && (uint64_t)delta > q->g.refcount_max - was)
			return EOVERFLOW;
		qcow2_refcount_set(p->raw, q->g.refcount_order, c - p->first,
				   was + (uint64_t)delta);
	}
	return part_store(q, p, first, n);
}

/* As many of [first, first + n) as one part has: *here. */
static int
add_some(struct qcow2 *q, uint64_t first, uint64_t n, int64_t delta,
	 qcow2_freed_fn *freed, uint64_t *here)
{
	struct part p;
	int r = part_load(q, &p, first);

	if (r)
		return r;
	if (!p.off)
		return qcow2_corrupt(q, "a refcount block is missing",
				     first << q->g.cluster_bits);
	*here = min_u64(n, p.first + p.n - first);
	r = add_in_part(q, &p, first, *here, delta);
	if (!r && freed)
		tell_freed(q, &p, first, *here, freed);
	return r;
}

int
qcow2_refcount_add(struct qcow2 *q, uint64_t first, uint64_t n, int64_t delta,
		   qcow2_freed_fn *freed)
{
	uint64_t done = 0, here = 0;
	int r = 0;

	for (; done < n && !r; done += r ? 0 : here)
		r = add_some(q, first + done, n - done, delta, freed, &here);
	if (r && delta > 0 && done)
		(void)qcow2_refcount_add(q, first, done, -delta, NULL);
	return r;
}

/* --- growing ------------------------------------------------------------------------ */

/* What is taken at the tail: @n clusters for the caller, then perhaps a new
 * refcount table, then the refcount blocks that are missing for all of them.
 */
struct region {
	uint64_t first, n; /* for the caller */
	uint64_t table; /* clusters of a new refcount table */
	uint64_t blocks; /* clusters of new refcount blocks */
	uint64_t table_entries; /* of the table that will be in use */
	uint64_t counted; /* blocks below this one are written */
	bool table_claimed;
	bool named; /* something in the file refers to it */
};

static uint64_t
region_end(const struct region *g)
{
	return g->first + g->n + g->table + g->blocks;
}

/* How many blocks are missing for the region as it is. */
static uint64_t
missing_blocks(const struct qcow2 *q, const struct region *g)
{
	uint64_t last = (region_end(g) - 1) >> q->g.refblock_bits, n = 0;

	for (uint64_t i = g->first >> q->g.refblock_bits; i <= last; i++)
		n += i >= q->reftable_n || !q->reftable[i];
	return n;
}

static int
region_plan(const struct qcow2 *q, struct region *g)
{
	for (;;) {
		uint64_t missing = missing_blocks(q, g);
		uint64_t need = ((region_end(g) - 1) >> q->g.refblock_bits) + 1;

		if (missing > g->blocks) {
			g->blocks = missing;
			continue;
		}
		if (need <= g->table_entries)
			return 0;
		/* larger by half, so that this is rare */
		need += need / 2 + 1;
		g->table = qcow2_clusters(q, need * 8);
		g->table_entries = (g->table << q->g.cluster_bits) / 8;
		if (g->table << q->g.cluster_bits > QCOW2_REFTABLE_BYTES_MAX)
			return EFBIG;
	}
}

/* Count the part of the region that block @i covers, in a block that exists
 * (@at is 0) or in a new one.
 */
static int
count_region(struct qcow2 *q, const struct region *g, uint64_t i, uint64_t at)
{
	uint64_t from = max_u64(g->first, i << q->g.refblock_bits);
	uint64_t to = min_u64(region_end(g), (i + 1) << q->g.refblock_bits);
	AUTO(free) uint8_t *block = NULL;

	if (!at)
		return qcow2_refcount_add(q, from, to - from, 1, NULL);
	block = calloc(1, q->g.cluster_size);
	if (!block)
		return ENOMEM;
	for (uint64_t c = from; c < to; c++)
		qcow2_refcount_set(block, q->g.refcount_order,
				   c & (block_entries(q) - 1), 1);
	qcow2_cache_forget(q, at, q->g.cluster_size);
	return qcow2_meta_write(q, block, q->g.cluster_size, at);
}

static bool
has_block(const struct qcow2 *q, uint64_t i)
{
	return i < q->reftable_n && q->reftable[i];
}

/* Rule 8. */
static int
claim_new(struct qcow2 *q, uint64_t at, uint64_t bytes)
{
	int r = qcow2_claim(q, at, bytes);

	return r == EEXIST ? qcow2_corrupt(q, "metadata in a free cluster", at)
			   : r;
}

/* Block @i is new and will be at @at. */
static int
write_block(struct qcow2 *q, const struct region *g, uint64_t i, uint64_t at)
{
	int r = claim_new(q, at, 1);

	if (r)
		return r;
	r = count_region(q, g, i, at);
	if (r)
		qcow2_unclaim(q, at, 1);
	return r;
}

/* Write counts; @table has the new blocks' places when it is done. */
static int
write_blocks(struct qcow2 *q, struct region *g, uint64_t *table)
{
	unsigned bits = q->g.refblock_bits;
	uint64_t last = (region_end(g) - 1) >> bits;
	uint64_t at = (g->first + g->n + g->table) << q->g.cluster_bits;
	int r = 0;

	for (uint64_t i = g->first >> bits; i <= last && !r; i++) {
		if (has_block(q, i)) {
			r = count_region(q, g, i, 0);
		} else {
			r = write_block(q, g, i, at);
			table[i] = at;
			at += q->g.cluster_size;
		}
		if (!r)
			g->counted = i + 1;
	}
	return r;
}

/* The region could not be made, for want of space perhaps, and nothing refers
 * to it: take the counts back.  False: not all of them.
 */
static bool
region_undo(struct qcow2 *q, const struct region *g)
{
	unsigned bits = q->g.refblock_bits;
	uint64_t table = (g->first + g->n) << q->g.cluster_bits;
	uint64_t at = table + (g->table << q->g.cluster_bits);
	int r = 0;

	for (uint64_t i = g->first >> bits; i < g->counted && !r; i++) {
		uint64_t from = max_u64(g->first, i << bits);
		uint64_t to = min_u64(region_end(g), (i + 1) << bits);

		if (has_block(q, i)) {
			r = qcow2_refcount_add(q, from, to - from, -1, NULL);
			continue;
		}
		qcow2_unclaim(q, at, 1);
		at += q->g.cluster_size;
	}
	if (g->table_claimed)
		qcow2_unclaim(q, table, g->table << q->g.cluster_bits);
	return r == 0;
}

/* Rule 2: the blocks are durable; name them.  The last ones count the clusters
 * of all of them (see struct region), so they are named first: a block that is
 * named is counted.  Entries of one sector are written in this order; between
 * sectors there is a barrier.
 */
static int
name_blocks(struct qcow2 *q, struct region *g, const uint64_t *table)
{
	uint64_t first = g->first >> q->g.refblock_bits;
	uint64_t last = (region_end(g) - 1) >> q->g.refblock_bits;
	uint64_t sector = UINT64_MAX;
	int r = 0;

	for (uint64_t i = last + 1; i > first && !r; i--) {
		uint64_t at = q->h.reftable_offset + (i - 1) * 8;
		uint8_t raw[8];

		if (q->reftable[i - 1] == table[i - 1])
			continue;
		if (sector != UINT64_MAX && sector != at / 512)
			r = qcow2_barrier(q);
		sector = at / 512;
		be64_put(raw, table[i - 1]);
		if (!r)
			r = qcow2_meta_write(q, raw, sizeof raw, at);
		if (r)
			break; /* the file does not name it, nor may we */
		q->reftable[i - 1] = table[i - 1];
		g->named = true;
	}
	return r;
}

static int
write_table(struct qcow2 *q, struct region *g, const uint64_t *table)
{
	size_t bytes = (size_t)(g->table << q->g.cluster_bits);
	AUTO(free) uint8_t *raw = malloc(bytes);
	uint64_t at = (g->first + g->n) << q->g.cluster_bits;
	int r;

	if (!raw)
		return ENOMEM;
	for (uint64_t i = 0; i < g->table_entries; i++)
		be64_put(raw + i * 8, table[i]);
	r = claim_new(q, at, bytes);
	g->table_claimed = !r;
	return r ? r : qcow2_meta_write(q, raw, bytes, at);
}

/* The new table is durable; make it the image's.  @table is consumed on
 * success.
 */
static int
switch_table(struct qcow2 *q, struct region *g, uint64_t *table)
{
	uint64_t old = q->h.reftable_offset;
	uint64_t old_clusters = q->h.reftable_clusters;
	uint64_t now = (g->first + g->n) << q->g.cluster_bits;
	uint8_t raw[12];
	int r;

	be64_put(raw, now);
	be32_put(raw + 8, (uint32_t)g->table);
	r = qcow2_meta_write(q, raw, sizeof raw, QCOW2_AT_REFTABLE);
	if (r)
		return r;
	g->named = true;
	free(q->reftable);
	q->reftable = table;
	q->reftable_n = (uint32_t)g->table_entries;
	q->h.reftable_offset = now;
	q->h.reftable_clusters = (uint32_t)g->table;
	qcow2_unclaim(q, old, old_clusters << q->g.cluster_bits);
	qcow2_give_up(q, old >> q->g.cluster_bits, old_clusters);
	return 0;
}

static int
region_write(struct qcow2 *q, struct region *g)
{
	AUTO(free) uint64_t *table = calloc(g->table_entries, sizeof *table);
	int r;

	if (!table)
		return ENOMEM;
	memcpy(table, q->reftable, q->reftable_n * sizeof *table);
	r = write_blocks(q, g, table);
	if (!r && g->table)
		r = write_table(q, g, table);
	PARK("qcow2.refcount-grown");
	if (!r && g->blocks)
		r = qcow2_barrier(q);
	if (r)
		return r;
	if (!g->table)
		return name_blocks(q, g, table);
	r = switch_table(q, g, table);
	if (!r)
		(void)steal(&table);
	return r;
}

int
qcow2_refcount_grow(struct qcow2 *q, uint64_t n, uint64_t *first)
{
	struct region g = { .first = q->space.tail,
			    .n = n,
			    .table_entries = q->reftable_n };
	int r = region_plan(q, &g);
	uint64_t end;

	if (r)
		return r;
	end = region_end(&g);
	if (end > UINT64_C(1) << (QCOW2_OFFSET_BITS - q->g.cluster_bits))
		return EFBIG;
	r = qcow2_extend(q, end << q->g.cluster_bits);
	if (r)
		return r;
	/* whatever happens, these are not taken twice */
	q->space.tail = end;
	*first = g.first;
	r = region_write(q, &g);
	/* or a guest that tries again and again on a full disk would make the
	 * file longer each time
	 */
	if (r && !g.named && !atomic_load(&q->failed) && region_undo(q, &g))
		q->space.tail = g.first;
	return r;
}

/* The last cluster with a count in one block. */
static int
last_in_block(struct qcow2 *q, uint64_t i, uint64_t *tail)
{
	uint64_t end = (i + 1) << q->g.refblock_bits;

	while (end > i << q->g.refblock_bits) {
		struct part p;
		int r = part_load(q, &p, end - 1);

		if (r)
			return r;
		for (uint64_t c = end; c > p.first; c--)
			if (part_get(q, &p, c - 1)) {
				*tail = c;
				return 0;
			}
		end = p.first;
	}
	return 0;
}

int
qcow2_refcount_tail(struct qcow2 *q, uint64_t *tail)
{
	int r = 0;

	*tail = 0;
	for (uint64_t i = q->reftable_n; i && !*tail && !r; i--)
		if (q->reftable[i - 1])
			r = last_in_block(q, i - 1, tail);
	return r;
}

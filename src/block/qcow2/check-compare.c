/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Refcounts in the file against the counters of one pass, block by block.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bits.h"
#include "block/qcow2/check-priv.h"

/* The clusters of refcount block @i that this pass covers: [*from, *to).
 * Refcounts behind the end of the file are of no use and do no harm.
 */
static bool
covered(const struct qcow2_checker *c, uint64_t i, uint64_t *from, uint64_t *to)
{
	uint64_t file_end = div_up(c->file->size, c->g.cluster_size);
	uint64_t end = min_u64(c->counts.limit, max_u64(file_end, c->end));

	*from = max_u64(i << c->g.refblock_bits, c->counts.first);
	*to = min_u64((i + 1) << c->g.refblock_bits, end);
	return *from < *to;
}

static bool
is_shared(uint32_t cell)
{
	uint32_t uses = cell & QCOW2_USES;

	if (uses & (QCOW2_USE_META | QCOW2_USE_REFCOUNT) &&
	    (cell & QCOW2_USERS_MAX) > 1)
		return true;
	return uses && !is_pow2(uses);
}

/* One cluster with refcount @stored and the users in @cell. */
static void
judge(struct qcow2_checker *c, uint64_t cluster, uint64_t stored, uint32_t cell)
{
	uint32_t users = cell & QCOW2_USERS_MAX;

	if (stored || users)
		c->res->image_end = max_u64(c->res->image_end,
					    (cluster + 1) << c->g.cluster_bits);
	if (is_shared(cell) && cell & QCOW2_USE_REFCOUNT)
		c->rebuild = true;
	if (stored > users) {
		qcow2_found(c, &c->res->leaks,
			    "cluster %" PRIu64 " is leaked: refcount %" PRIu64
			    ", %" PRIu32 " users",
			    cluster, stored, users);
	} else if (stored < users) {
		qcow2_found(c, &c->res->corruptions,
			    "cluster %" PRIu64 " has refcount %" PRIu64
			    " and %" PRIu32 " users",
			    cluster, stored, users);
	} else if (is_shared(cell)) {
		qcow2_found(c, &c->res->corruptions,
			    "cluster %" PRIu64 " is used for several purposes",
			    cluster);
	}
}

/* Users of clusters that no refcount block covers. */
static void
compare_missing(struct qcow2_checker *c)
{
	uint64_t cluster, i;

	for (size_t n = 0; n < c->counts.n; n++) {
		const struct qcow2_chunk *k = c->counts.chunks[n];

		for (unsigned at = 0; at < QCOW2_CHUNK; at++) {
			cluster = k->number * QCOW2_CHUNK + at;
			i = cluster >> c->g.refblock_bits;
			if (!k->cell[at] ||
			    (i < c->reftable_n && qcow2_refblock_usable(c, i)))
				continue;
			c->rebuild = true;
			judge(c, cluster, 0, k->cell[at]);
		}
	}
}

/* Call @each for every refcount block that the pass covers; it is in
 * c->block.
 */
static int
for_blocks(struct qcow2_checker *c,
	   int (*each)(struct qcow2_checker *c, uint64_t i, uint64_t from,
		       uint64_t to))
{
	uint64_t i, from, to;
	int r = 0;

	i = c->counts.first >> c->g.refblock_bits;
	for (; !r && i < c->reftable_n && covered(c, i, &from, &to); i++) {
		if (!qcow2_refblock_usable(c, i))
			continue;
		r = qcow2_check_go_on(c);
		if (!r && qcow2_check_read(c, c->block, c->g.cluster_size,
					   c->reftable[i]))
			r = each(c, i, from, to);
	}
	return r;
}

static uint64_t
stored_at(const struct qcow2_checker *c, uint64_t cluster)
{
	uint64_t mask = (UINT64_C(1) << c->g.refblock_bits) - 1;

	return qcow2_refcount_get(c->block, c->g.refcount_order,
				  cluster & mask);
}

static int
compare_block(struct qcow2_checker *c, uint64_t i, uint64_t from, uint64_t to)
{
	(void)i;
	if (!qcow2_counts_any(&c->counts, from, to - from) &&
	    buf_is_zero(c->block, c->g.cluster_size))
		return 0;
	for (; from < to; from++)
		judge(c, from, stored_at(c, from),
		      qcow2_counts_get(&c->counts, from));
	return 0;
}

int
qcow2_compare(struct qcow2_checker *c, void *unused)
{
	(void)unused;
	compare_missing(c);
	return for_blocks(c, compare_block);
}

static int
repair_block(struct qcow2_checker *c, uint64_t i, uint64_t from, uint64_t to)
{
	uint64_t mask = (UINT64_C(1) << c->g.refblock_bits) - 1;
	bool changed = false;

	for (; from < to; from++) {
		uint64_t stored = stored_at(c, from);
		uint64_t users =
			qcow2_counts_get(&c->counts, from) & QCOW2_USERS_MAX;

		if (stored == users || users > c->g.refcount_max ||
		    !(c->o->fix &
		      (stored > users ? QCOW2_FIX_LEAKS : QCOW2_FIX_ERRORS)))
			continue;
		qcow2_refcount_set(c->block, c->g.refcount_order, from & mask,
				   users);
		changed = true;
	}
	return changed ? block_pwrite(c->file, c->block, c->g.cluster_size,
				      c->reftable[i])
		       : 0;
}

int
qcow2_repair_refcounts(struct qcow2_checker *c, void *unused)
{
	(void)unused;
	return for_blocks(c, repair_block);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Every user of every cluster: the header, the refcount structure, the L1
 * tables of the active image and of the snapshots, the L2 tables and what they
 * map, the snapshot table, the bitmaps.
 *
 * L2 tables are collected first and read when the list is full or all L1
 * tables have been seen, sorted by their place, each once with the number of
 * times that it was named.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bits.h"
#include "block/qcow2/bitmap-format.h"
#include "block/qcow2/check-priv.h"

#define found(c, ...)                                \
	do {                                         \
		if ((c)->first_pass)                 \
			qcow2_found(c, __VA_ARGS__); \
	} while (0)

/* The last cluster of a file may be there in part, but not more than that may
 * be missing.
 */
static bool
reaches(const struct qcow2_checker *c, uint64_t off, uint64_t len)
{
	return off <= INT64_MAX && len <= INT64_MAX &&
	       (off + len <= c->file->size ||
		off + len - c->file->size < c->g.cluster_size);
}

/* Count users of the clusters of [off, off + len). */
static int
use(struct qcow2_checker *c, uint64_t off, uint64_t len, uint32_t what,
    uint32_t times)
{
	uint64_t first = off >> c->g.cluster_bits, last;

	if (!len)
		return 0;
	if (!reaches(c, off, len)) {
		found(c, &c->res->corruptions,
		      "a reference to %#" PRIx64 "+%#" PRIx64
		      " is behind the end of the file",
		      off, len);
		return 0;
	}
	last = (off + len - 1) >> c->g.cluster_bits;
	c->end = max_u64(c->end, last + 1);
	return qcow2_counts_add(&c->counts, first, last - first + 1, what,
				times);
}

/* --- L2 tables ------------------------------------------------------------- */

static int
walk_compressed(struct qcow2_checker *c, const struct qcow2_l2_ref *ref,
		uint64_t entry)
{
	uint64_t off, len;

	if (entry & QCOW2_COPIED)
		found(c, &c->res->corruptions,
		      "a compressed cluster has the copied flag "
		      "(%#" PRIx64 ")",
		      entry);
	if (c->h.incompat & QCOW2_DATA_FILE) {
		found(c, &c->res->corruptions,
		      "a compressed cluster in an image with a data "
		      "file");
		return 0;
	}
	if (ref->active && c->first_pass) {
		c->res->allocated_clusters++;
		c->res->compressed_clusters++;
		c->res->fragmented_clusters++; /* by nature */
	}
	qcow2_compressed_place(&c->g, entry, &off, &len);
	return use(c, off, len, QCOW2_USE_DATA, ref->times);
}

/* The subclusters of a standard cluster. */
static bool
walk_subclusters(struct qcow2_checker *c, uint64_t entry, uint64_t bits)
{
	uint32_t allocated = (uint32_t)bits, zero = (uint32_t)(bits >> 32);
	bool mapped = entry & (QCOW2_L2_OFFSET | QCOW2_COPIED);

	if (!(allocated & zero) && (mapped || !allocated))
		return true;
	found(c, &c->res->corruptions,
	      "a subcluster bitmap makes no sense (%#" PRIx64
	      " of entry %#" PRIx64 ")",
	      bits, entry);
	return false;
}

/* Where the next cluster of a run would be; for the fragmentation. */
static void
note_place(struct qcow2_checker *c, const struct qcow2_l2_ref *ref,
	   uint64_t off, uint64_t *next)
{
	if (!ref->active || !c->first_pass)
		return;
	c->res->allocated_clusters++;
	if (*next && off != *next)
		c->res->fragmented_clusters++;
	*next = off + c->g.cluster_size;
}

static int
walk_standard(struct qcow2_checker *c, const struct qcow2_l2_ref *ref,
	      uint64_t entry, uint64_t *next)
{
	uint64_t off = entry & QCOW2_L2_OFFSET;
	uint64_t reserved = QCOW2_L2_RESERVED;
	bool in_data_file = c->h.incompat & QCOW2_DATA_FILE;

	/* with a data file, offset 0 is a place like any other; but a cluster
	 * of zeroes there counts as one without a place, as in QEMU
	 */
	if (!off && (!in_data_file || !(entry & QCOW2_COPIED) ||
		     (entry & QCOW2_ZERO && !c->g.extended))) {
		if (entry & reserved)
			found(c, &c->res->corruptions,
			      "an L2 entry has reserved bits (%#" PRIx64 ")",
			      entry);
		return 0;
	}
	if (c->g.extended || c->h.version < 3)
		reserved |= QCOW2_ZERO;
	if (entry & reserved)
		found(c, &c->res->corruptions,
		      "an L2 entry has reserved bits (%#" PRIx64 ")", entry);
	note_place(c, ref, off, next);
	if (off & (c->g.cluster_size - 1)) {
		found(c, &c->res->corruptions,
		      "a cluster is not aligned (%#" PRIx64 ")", off);
		return 0;
	}
	if (in_data_file)
		return 0;
	return use(c, off, c->g.cluster_size, QCOW2_USE_DATA, ref->times);
}

static int
walk_l2(struct qcow2_checker *c, const struct qcow2_l2_ref *ref)
{
	const char *p = c->table;
	uint64_t entry, bits, next = 0;
	uint32_t at;
	int r = qcow2_check_go_on(c);

	if (r || !qcow2_check_read(c, c->table, c->g.cluster_size, ref->offset))
		return r;
	for (at = 0; !r && at < c->g.cluster_size; at += c->g.entry_size) {
		entry = be64_get(p + at);
		bits = c->g.extended ? be64_get(p + at + 8) : 0;
		if (!entry && !bits)
			continue;
		if (entry & QCOW2_COMPRESSED) {
			if (bits)
				found(c, &c->res->corruptions,
				      "a compressed cluster has a "
				      "subcluster bitmap");
			r = walk_compressed(c, ref, entry);
		} else {
			(void)walk_subclusters(c, entry, bits);
			r = walk_standard(c, ref, entry, &next);
		}
	}
	return r;
}

static int
by_offset(const void *a, const void *b)
{
	const struct qcow2_l2_ref *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Sort what is collected and make one of those that are the same. */
static void
merge_refs(struct qcow2_checker *c)
{
	struct qcow2_l2_ref *refs = c->refs;
	size_t i, n = 0;

	qsort(refs, c->refs_n, sizeof *refs, by_offset);
	for (i = 0; i < c->refs_n; i++) {
		if (n && refs[n - 1].offset == refs[i].offset) {
			if (refs[n - 1].times < QCOW2_USERS_MAX)
				refs[n - 1].times += refs[i].times;
			refs[n - 1].active |= refs[i].active;
		} else {
			refs[n++] = refs[i];
		}
	}
	c->refs_n = n;
}

static int
walk_refs(struct qcow2_checker *c)
{
	int r = 0;

	merge_refs(c);
	for (size_t i = 0; !r && i < c->refs_n; i++)
		r = walk_l2(c, &c->refs[i]);
	c->refs_n = 0;
	return r;
}

/* --- L1 tables ------------------------------------------------------------- */

static int
walk_l1_entry(struct qcow2_checker *c, uint64_t entry, bool active)
{
	uint64_t off = entry & QCOW2_L1_OFFSET;
	int r;

	if (!entry)
		return 0;
	if (entry & QCOW2_L1_RESERVED)
		found(c, &c->res->corruptions,
		      "an L1 entry has reserved bits (%#" PRIx64 ")", entry);
	if (!off)
		return 0;
	if (off & (c->g.cluster_size - 1)) {
		found(c, &c->res->corruptions,
		      "an L2 table is not aligned (%#" PRIx64 ")", off);
		return 0;
	}
	r = use(c, off, c->g.cluster_size, QCOW2_USE_L2, 1);
	if (r || !reaches(c, off, c->g.cluster_size))
		return r;
	if (c->refs_n == QCOW2_L2_REFS) {
		merge_refs(c);
		if (c->refs_n > QCOW2_L2_REFS / 2)
			r = walk_refs(c);
	}
	c->refs[c->refs_n++] = (struct qcow2_l2_ref){ off, 1, active };
	return r;
}

static int
walk_l1(struct qcow2_checker *c, uint64_t off, uint64_t entries, bool active)
{
	uint64_t i, k, n;
	int r = use(c, off, entries * 8, QCOW2_USE_META, 1);

	if (!reaches(c, off, entries * 8))
		return r; /* found; of what is not there nothing is read */
	for (i = 0; !r && i < entries; i += n) {
		n = min_u64(entries - i, QCOW2_PIECE / 8);
		r = qcow2_check_go_on(c);
		if (r ||
		    !qcow2_check_read(c, c->piece, (size_t)n * 8, off + i * 8))
			return r;
		for (k = 0; !r && k < n; k++)
			r = walk_l1_entry(c, be64_get((char *)c->piece + k * 8),
					  active);
	}
	return r;
}

/* --- snapshots -------------------------------------------------------------- */

/* One entry of the snapshot table at *@at, which moves behind it. */
static int
walk_snapshot(struct qcow2_checker *c, uint64_t *at)
{
	struct qcow2_snapshot s;
	struct err e = ERR_INIT;
	size_t used = 0, len;
	int r;

	if (!qcow2_check_read(c, c->piece, QCOW2_SNAPSHOT_FIXED, *at))
		return EIO;
	len = (size_t)min_u64(qcow2_snapshot_bytes(c->piece),
			      QCOW2_SNAPSHOT_MAX);
	if (!qcow2_check_read(c, c->piece, len, *at))
		return EIO;
	if (!qcow2_snapshot_parse(&s, &c->g, c->piece, len, c->h.size, &used,
				  &e)) {
		found(c, &c->res->check_errors, "the snapshot table: %s",
		      e.msg);
		return EIO;
	}
	*at += used;
	r = walk_l1(c, s.l1_offset, s.l1_size, false);
	qcow2_snapshot_clear(&s);
	return r;
}

static int
walk_snapshots(struct qcow2_checker *c)
{
	uint64_t at = c->h.snapshots_offset;
	uint32_t i;
	int r = 0;

	if (!c->h.snapshots)
		return 0;
	if (c->h.incompat & QCOW2_DATA_FILE)
		found(c, &c->res->corruptions,
		      "an image with a data file has snapshots");
	for (i = 0; !r && i < c->h.snapshots; i++) {
		r = walk_snapshot(c, &at);
		if (at - c->h.snapshots_offset > QCOW2_SNAPSHOT_TABLE_MAX) {
			found(c, &c->res->check_errors,
			      "the snapshot table is too large");
			r = EIO;
		}
	}
	/* what cannot be read is a finding; the check goes on */
	if (r == EIO)
		r = 0;
	return r ? r
		 : use(c, c->h.snapshots_offset, at - c->h.snapshots_offset,
		       QCOW2_USE_META, 1);
}

/* --- bitmaps ----------------------------------------------------------------- */

static int
walk_bitmap_table(struct qcow2_checker *c, const struct qcow2_bitmap_entry *b)
{
	uint64_t i, k, n, entry, at;
	int r = use(c, b->table_offset, (uint64_t)b->table_size * 8,
		    QCOW2_USE_META, 1);

	if (!reaches(c, b->table_offset, (uint64_t)b->table_size * 8))
		return r;
	for (i = 0; !r && i < b->table_size; i += n) {
		n = min_u64(b->table_size - i, QCOW2_PIECE / 8);
		r = qcow2_check_go_on(c);
		if (r || !qcow2_check_read(c, c->piece, (size_t)n * 8,
					   b->table_offset + i * 8))
			return r;
		for (k = 0; !r && k < n; k++) {
			entry = be64_get((char *)c->piece + k * 8);
			at = entry & QCOW2_BITMAP_OFFSET;
			if (!qcow2_bitmap_table_entry_valid(&c->g, entry))
				found(c, &c->res->corruptions,
				      "an entry of a bitmap table is "
				      "invalid (%#" PRIx64 ")",
				      entry);
			else if (at)
				r = use(c, at, c->g.cluster_size,
					QCOW2_USE_META, 1);
		}
	}
	return r;
}

static int
walk_bitmaps(struct qcow2_checker *c)
{
	uint64_t left = c->h.bitmaps.directory_size, used = 0;
	uint64_t at = c->h.bitmaps.directory_offset;
	struct qcow2_bitmap_entry b;
	struct err e = ERR_INIT;
	uint8_t fixed[QCOW2_BITMAP_FIXED];
	uint32_t i;
	int r;

	/* without the flag the extension is stale, and its clusters are free */
	if (!c->h.has_bitmaps || !(c->h.autoclear & QCOW2_AUTO_BITMAPS))
		return 0;
	r = use(c, at, left, QCOW2_USE_META, 1);
	for (i = 0; !r && i < c->h.bitmaps.count; i++) {
		if (!qcow2_check_read(c, fixed, sizeof fixed, at))
			return 0;
		if (!qcow2_bitmap_entry_parse(&b, &c->g, fixed, left, &used,
					      &e)) {
			found(c, &c->res->check_errors, "%s", e.msg);
			return 0;
		}
		at += used;
		left -= used;
		r = walk_bitmap_table(c, &b);
	}
	if (!r && left)
		found(c, &c->res->corruptions,
		      "the bitmap directory is larger than its entries");
	return r;
}

/* --- the refcount structure --------------------------------------------------- */

static int
walk_refcounts(struct qcow2_checker *c)
{
	uint64_t i, at;
	int r;

	if (c->no_refcounts)
		return 0;
	r = use(c, c->h.reftable_offset, c->reftable_n * 8, QCOW2_USE_REFCOUNT,
		1);
	for (i = 0; !r && i < c->reftable_n; i++) {
		at = c->reftable[i];
		if (!at)
			continue;
		if (qcow2_refblock_usable(c, i)) {
			r = use(c, at, c->g.cluster_size, QCOW2_USE_REFCOUNT,
				1);
			continue;
		}
		c->rebuild = true;
		found(c, &c->res->corruptions,
		      "refcount block %" PRIu64 " is not aligned, is "
		      "behind the end of the file or has reserved bits "
		      "(%#" PRIx64 ")",
		      i, at);
	}
	return r;
}

int
qcow2_walk(struct qcow2_checker *c)
{
	int r = use(c, 0, c->g.cluster_size, QCOW2_USE_META, 1);

	c->refs_n = 0;
	if (!r)
		r = walk_l1(c, c->h.l1_offset, c->h.l1_size, true);
	if (!r)
		r = walk_snapshots(c);
	if (!r)
		r = walk_refs(c);
	if (!r)
		r = walk_bitmaps(c);
	if (!r)
		r = walk_refcounts(c);
	return r;
}

int
qcow2_passes(struct qcow2_checker *c,
	     int (*visit)(struct qcow2_checker *c, void *opaque), void *opaque)
{
	uint64_t first = 0;
	int r;

	do {
		qcow2_counts_begin(&c->counts, first);
		r = qcow2_walk(c);
		if (!r)
			r = visit(c, opaque);
		c->first_pass = false;
		first = c->counts.limit;
	} while (!r && first != UINT64_MAX);
	return r;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The "copied" flag of each entry of the active L1 and L2 tables says that the
 * refcount is exactly one, so that a writer need not look ("Cluster mapping" of
 * the specification).  Wrongly set it makes a writer change what a snapshot
 * holds.  In snapshots' tables the flag means nothing.
 *
 * With @fix also entries are repaired that can mean one thing only.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bits.h"
#include "block/qcow2/check-priv.h"

/* A table of which c->table or c->piece holds @n entries of @size bytes. */
struct part {
	void *buf;
	uint64_t at; /* bytes: where it is in the file */
	size_t n, size;
	size_t first, last; /* entries that were changed: [first, last) */
};

static uint64_t
entry_get(const struct part *p, size_t i)
{
	return be64_get((char *)p->buf + i * p->size);
}

static void
entry_put(struct part *p, size_t i, uint64_t entry)
{
	be64_put((char *)p->buf + i * p->size, entry);
	if (p->last == 0 || i < p->first)
		p->first = i;
	if (i + 1 > p->last)
		p->last = i + 1;
}

static int
write_back(const struct qcow2_checker *c, const struct part *p)
{
	size_t at = p->first * p->size;

	if (!p->last)
		return 0;
	return block_pwrite(c->file, (char *)p->buf + at,
			    p->last * p->size - at, p->at + at);
}

/* Entry @i is wrong in its flags; with @fix it becomes @right. */
static void
wrong(struct qcow2_checker *c, struct part *p, size_t i, uint64_t right,
      bool fix)
{
	if (fix) {
		entry_put(p, i, right);
		return;
	}
	qcow2_found(c, &c->res->corruptions,
		    "the copied flag of a table's entry is wrong (%#" PRIx64
		    ")",
		    entry_get(p, i));
}

static void
check_copied(struct qcow2_checker *c, struct part *p, size_t i, bool fix)
{
	uint64_t entry = entry_get(p, i), refcount;
	bool copied = entry & QCOW2_COPIED;

	if (!qcow2_stored_refcount(
		    c, (entry & QCOW2_L2_OFFSET) >> c->g.cluster_bits,
		    &refcount))
		return;
	if ((refcount == 1) != copied)
		wrong(c, p, i, entry ^ QCOW2_COPIED, fix);
}

/* An entry whose data are outside; @guest is the cluster's offset. */
static void
check_outside(struct qcow2_checker *c, struct part *p, size_t i, uint64_t guest,
	      bool fix)
{
	uint64_t entry = entry_get(p, i);

	if (!(entry & (QCOW2_L2_OFFSET | QCOW2_COPIED)))
		return;
	if (!(entry & QCOW2_COPIED))
		wrong(c, p, i, entry | QCOW2_COPIED, fix);
	if ((entry & QCOW2_L2_OFFSET) != guest && !fix)
		qcow2_found(c, &c->res->corruptions,
			    "a cluster is not at its place in the data file "
			    "(%#" PRIx64 " instead of %#" PRIx64 ")",
			    entry & QCOW2_L2_OFFSET, guest);
}

/* Does the entry have data of its own? */
static bool
has_data(const struct qcow2_checker *c, const struct part *p, size_t i)
{
	if (c->g.extended)
		return (uint32_t)be64_get((char *)p->buf + i * p->size + 8);
	return !(entry_get(p, i) & QCOW2_ZERO);
}

static void
check_l2_entry(struct qcow2_checker *c, struct part *p, size_t i,
	       uint64_t guest, bool fix)
{
	uint64_t entry = entry_get(p, i), off = entry & QCOW2_L2_OFFSET;

	if (entry & QCOW2_COMPRESSED) {
		/* found by the walk */
		if (fix && entry & QCOW2_COPIED)
			wrong(c, p, i, entry & ~QCOW2_COPIED, fix);
		return;
	}
	if (c->h.incompat & QCOW2_DATA_FILE) {
		check_outside(c, p, i, guest, fix);
		return;
	}
	if (!off)
		return;
	if (!(off & (c->g.cluster_size - 1)))
		check_copied(c, p, i, fix);
	else if (fix && !has_data(c, p, i)) /* found by the walk */
		wrong(c, p, i, entry & ~(QCOW2_L2_OFFSET | QCOW2_COPIED), fix);
}

static int
check_l2(struct qcow2_checker *c, uint64_t at, uint64_t guest, bool fix)
{
	struct part p = { .buf = c->table,
			  .at = at,
			  .n = (size_t)1 << c->g.l2_bits,
			  .size = c->g.entry_size };
	int r = qcow2_check_go_on(c);

	if (r || !qcow2_check_read(c, c->table, c->g.cluster_size, at))
		return r;
	for (size_t i = 0; i < p.n; i++)
		if (entry_get(&p, i))
			check_l2_entry(
				c, &p, i,
				guest + ((uint64_t)i << c->g.cluster_bits),
				fix);
	return write_back(c, &p);
}

/* The part of the L1 table that is in c->piece, from entry @first on. */
static int
check_l1(struct qcow2_checker *c, struct part *p, uint64_t first, bool fix)
{
	uint64_t off;
	int r = 0;

	for (size_t i = 0; !r && i < p->n; i++) {
		off = entry_get(p, i) & QCOW2_L1_OFFSET;
		if (!off || off & (c->g.cluster_size - 1) ||
		    off >= c->file->size)
			continue;
		check_copied(c, p, i, fix);
		r = check_l2(c, off,
			     (first + i) << (c->g.l2_bits + c->g.cluster_bits),
			     fix);
	}
	return r ? r : write_back(c, p);
}

int
qcow2_check_flags(struct qcow2_checker *c, bool fix)
{
	uint64_t i, n;
	int r = 0;

	for (i = 0; !r && i < c->h.l1_size; i += n) {
		struct part p = { .buf = c->piece,
				  .at = c->h.l1_offset + i * 8,
				  .size = 8 };

		n = min_u64(c->h.l1_size - i, QCOW2_PIECE / 8);
		p.n = (size_t)n;
		if (!qcow2_check_read(c, c->piece, p.n * 8, p.at))
			return 0;
		r = check_l1(c, &p, i, fix);
	}
	return r;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * From guest clusters to host clusters: L1 and L2 tables ("Cluster mapping"
 * and "Extended L2 Entries" of the specification).  Entries are checked here
 * when they are read; nobody else decodes a table.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

#define LIVE_TRIES  4 /* looks at an entry that another process may be writing */
#define PIECE_STEPS 1024u /* batches that one search looks at */

static bool
has_host(const struct qcow2 *q, struct qcow2_entry x)
{
	return qcow2_entry_host(x) || (q->external && x.e & QCOW2_COPIED);
}

enum qcow2_kind
qcow2_entry_kind(const struct qcow2 *q, struct qcow2_entry x)
{
	if (x.e & QCOW2_COMPRESSED)
		return QCOW2_KIND_PACKED;
	if (!q->g.extended && x.e & QCOW2_ZERO)
		return has_host(q, x) ? QCOW2_KIND_ZERO_ALLOC : QCOW2_KIND_ZERO;
	return has_host(q, x) ? QCOW2_KIND_DATA : QCOW2_KIND_NONE;
}

static bool
entry_makes_sense(const struct qcow2 *q, uint64_t cluster, struct qcow2_entry x)
{
	uint64_t host = qcow2_entry_host(x);

	if (x.e & QCOW2_COMPRESSED)
		return !q->external;
	if (host & (q->g.cluster_size - 1))
		return false;
	if (q->external && has_host(q, x) &&
	    host != cluster << q->g.cluster_bits)
		return false;
	if (!q->g.extended)
		return q->v3 || !(x.e & QCOW2_ZERO);
	if (x.bits & x.bits >> QCOW2_SUBCLUSTERS & UINT32_MAX)
		return false;
	return has_host(q, x) || !(x.bits & UINT32_MAX);
}

/* The place of @cluster's entry in the image file; 0: there is no table. */
static int
entry_place(struct qcow2 *q, uint64_t cluster, uint64_t *off, bool *own)
{
	uint64_t i = cluster >> q->g.l2_bits;
	uint64_t l1, table;

	*off = 0;
	*own = false;
	if (i >= q->h.l1_size)
		return EIO;
	l1 = atomic_load_explicit(&q->l1[i], memory_order_acquire);
	table = l1 & QCOW2_L1_OFFSET;
	if (!table)
		return 0;
	if (table & (q->g.cluster_size - 1))
		return qcow2_corrupt(q, "an L2 table is not aligned", table);
	*own = l1 & QCOW2_COPIED;
	*off = table + (cluster & ((1u << q->g.l2_bits) - 1)) * q->g.entry_size;
	return 0;
}

static void
decode(const struct qcow2 *q, const uint8_t *raw, uint32_t n,
       struct qcow2_entry *x)
{
	for (uint32_t i = 0; i < n; i++, raw += q->g.entry_size) {
		x[i].e = be64_get(raw);
		x[i].bits = q->g.extended ? be64_get(raw + 8) : 0;
	}
}

/* How many of @x make sense. */
static uint32_t
count_good(const struct qcow2 *q, uint64_t cluster, uint32_t n,
	   const struct qcow2_entry *x)
{
	uint32_t i = 0;

	while (i < n && entry_makes_sense(q, cluster + i, x[i]))
		i++;
	return i;
}

int
qcow2_map_get(struct qcow2 *q, uint64_t cluster, uint32_t n,
	      struct qcow2_entry *x, uint32_t *got, bool *own)
{
	uint64_t left = (UINT64_C(1) << q->g.l2_bits) -
			(cluster & ((1u << q->g.l2_bits) - 1));
	uint8_t raw[QCOW2_BATCH * 16];
	uint64_t off;
	int r = entry_place(q, cluster, &off, own);

	n = (uint32_t)min_u64(n, min_u64(left, QCOW2_BATCH));
	*got = n;
	if (r)
		return r;
	if (!off) {
		memset(x, 0, n * sizeof *x);
		return 0;
	}
	PARK("qcow2.table-found");
	for (unsigned tries = 0; tries < LIVE_TRIES; tries++) {
		size_t bytes = (size_t)n * q->g.entry_size;

		r = qcow2_table_read(q, raw, bytes, off);
		if (r)
			return r;
		decode(q, raw, n, x);
		*got = count_good(q, cluster, n, x);
		if (*got)
			return 0;
		if (!q->live)
			break;
		qcow2_cache_forget(q, off, bytes); /* it was being written */
	}
	return qcow2_corrupt(q, "an L2 entry makes no sense", off);
}

/* --- changing ---------------------------------------------------------------------- */

/* Copy a table that a snapshot shares.  What it maps is flushed data: rule 2. */
static int
copy_table(struct qcow2 *q, uint64_t from, uint64_t to)
{
	AUTO(free) uint8_t *table = malloc(q->g.cluster_size);
	int r;

	if (!table)
		return ENOMEM;
	r = qcow2_child_read(q->file, table, q->g.cluster_size, from);
	if (!r)
		r = qcow2_meta_write(q, table, q->g.cluster_size, to);
	PARK("qcow2.table-copied");
	return r ? r : qcow2_barrier(q);
}

static int
clear_table(struct qcow2 *q, const struct qcow2_run *run)
{
	AUTO(free) uint8_t *table = NULL;
	int r;

	if (run->fresh)
		return 0;
	table = calloc(1, q->g.cluster_size);
	if (!table)
		return ENOMEM;
	r = qcow2_meta_write(q, table, q->g.cluster_size,
			     run->first << q->g.cluster_bits);
	return r ? r : qcow2_barrier(q);
}

static int
claim_table(struct qcow2 *q, uint64_t host, uint64_t instead)
{
	int r;

	(void)pthread_mutex_lock(&q->space_lock);
	r = qcow2_claim(q, host, 1);
	if (!r && instead)
		qcow2_unclaim(q, instead, 1);
	(void)pthread_mutex_unlock(&q->space_lock);
	return r;
}

/* With the tables lock. */
static int
make_table(struct qcow2 *q, uint64_t i, uint64_t old)
{
	struct qcow2_run run;
	uint8_t raw[8];
	uint64_t host;
	int r = qcow2_alloc(q, 1, &run);

	if (r)
		return r;
	host = run.first << q->g.cluster_bits;
	qcow2_cache_forget(q, host, q->g.cluster_size);
	r = old ? copy_table(q, old, host) : clear_table(q, &run);
	if (!r)
		r = claim_table(q, host, old);
	if (r) {
		run.fresh = false;
		qcow2_alloc_return(q, &run);
		return r;
	}
	be64_put(raw, host | QCOW2_COPIED);
	r = qcow2_meta_write(q, raw, sizeof raw, q->h.l1_offset + i * 8);
	if (r)
		return r; /* whether it is in the file is not known: a leak */
	atomic_store_explicit(&q->l1[i], host | QCOW2_COPIED,
			      memory_order_release);
	if (old)
		qcow2_give_up(q, old >> q->g.cluster_bits, 1);
	return 0;
}

/* The flag alone, without a table, says nothing. */
static bool
is_own(uint64_t l1)
{
	return l1 & QCOW2_COPIED && l1 & QCOW2_L1_OFFSET;
}

int
qcow2_map_own(struct qcow2 *q, uint64_t cluster)
{
	uint64_t i = cluster >> q->g.l2_bits, l1;
	int r = 0;

	if (is_own(atomic_load(&q->l1[i])))
		return 0;
	(void)pthread_mutex_lock(&q->tables);
	l1 = atomic_load(&q->l1[i]);
	if (!is_own(l1))
		r = make_table(q, i, l1 & QCOW2_L1_OFFSET);
	(void)pthread_mutex_unlock(&q->tables);
	return r;
}

int
qcow2_map_set(struct qcow2 *q, uint64_t cluster, uint32_t n,
	      const struct qcow2_entry *x)
{
	uint8_t raw[QCOW2_BATCH * 16], *p = raw;
	uint64_t off;
	bool own;
	int r = entry_place(q, cluster, &off, &own);

	if (r)
		return r;
	if (!off) /* the header is there */
		return qcow2_corrupt(q, "there is no L2 table", cluster);
	for (uint32_t i = 0; i < n; i++, p += q->g.entry_size) {
		be64_put(p, x[i].e);
		if (q->g.extended)
			be64_put(p + 8, x[i].bits);
	}
	PARK("qcow2.map-set");
	return qcow2_table_write(q, raw, (size_t)(p - raw), off);
}

/* --- pieces ---------------------------------------------------------------------------- */

static enum qcow2_kind
subcluster_kind(const struct qcow2 *q, struct qcow2_entry x, unsigned i)
{
	if (x.bits >> i & 1)
		return QCOW2_KIND_DATA;
	if (x.bits >> (QCOW2_SUBCLUSTERS + i) & 1)
		return QCOW2_KIND_ZERO;
	(void)q;
	return QCOW2_KIND_NONE;
}

/* The piece at @skip of one cluster. */
static void
piece_of(const struct qcow2 *q, struct qcow2_entry x, uint64_t skip,
	 struct qcow2_piece *p)
{
	unsigned i, first;

	p->kind = qcow2_entry_kind(q, x);
	p->entry = x.e;
	p->host = qcow2_entry_host(x) + skip;
	p->len = q->g.cluster_size - skip;
	if (p->kind == QCOW2_KIND_ZERO_ALLOC)
		p->kind = QCOW2_KIND_ZERO;
	if (!q->g.extended || p->kind == QCOW2_KIND_PACKED)
		return;
	first = i = (unsigned)(skip >> q->g.subcluster_bits);
	p->kind = subcluster_kind(q, x, first);
	while (i < QCOW2_SUBCLUSTERS && subcluster_kind(q, x, i) == p->kind)
		i++;
	p->len = ((uint64_t)i << q->g.subcluster_bits) - skip;
}

/* Does @b go on where @a ends? */
static bool
goes_on(const struct qcow2_piece *a, const struct qcow2_piece *b)
{
	return a->kind == b->kind && a->kind != QCOW2_KIND_PACKED &&
	       (a->kind != QCOW2_KIND_DATA || a->host + a->len == b->host);
}

/* Add what @x says to @p; false when the piece ends before @x does. */
static bool
add_clusters(const struct qcow2 *q, const struct qcow2_entry *x, uint32_t n,
	     uint64_t off, struct qcow2_piece *p)
{
	uint64_t mask = q->g.cluster_size - 1;

	for (uint32_t i = 0; i < n;) {
		uint64_t skip = (off + p->len) & mask;
		struct qcow2_piece next;

		piece_of(q, x[i], skip, &next);
		if (p->len == 0)
			*p = next;
		else if (goes_on(p, &next))
			p->len += next.len;
		else
			return false;
		if (((off + p->len) & mask) == 0)
			i++;
	}
	return true;
}

int
qcow2_map_piece(struct qcow2 *q, uint64_t off, uint64_t len,
		struct qcow2_piece *p)
{
	unsigned bits = q->g.cluster_bits;

	memset(p, 0, sizeof *p);
	for (uint32_t step = 0; p->len < len && step < PIECE_STEPS; step++) {
		uint64_t at = off + p->len;
		uint64_t last = (off + len - 1) >> bits;
		struct qcow2_entry x[QCOW2_BATCH];
		uint32_t got;
		bool own;
		int r = qcow2_map_get(
			q, at >> bits,
			(uint32_t)min_u64(last - (at >> bits) + 1, QCOW2_BATCH),
			x, &got, &own);

		if (r && p->len == 0)
			return r;
		if (r || !add_clusters(q, x, got, off, p))
			break;
	}
	p->len = min_u64(p->len, len);
	return 0;
}

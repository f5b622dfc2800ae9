/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Rule 8: the set of host clusters that hold metadata of the active image:
 * header, refcount table and blocks, L1 and L2 tables, snapshot table and the
 * snapshots' L1 tables.  Every write of data asks it.
 *
 * An open-addressed table of atomic words, so that asking takes no lock; one
 * thread at a time changes it (the space lock).  A table that became too
 * small is replaced, and kept until the end for whoever is still reading it:
 * all old ones together are smaller than the new one.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/qcow2/qcow2-priv.h"

#define EMPTY 0u
#define GONE  1u /* was taken out */
#define SHIFT 2u /* a slot holds cluster + SHIFT */

struct qcow2_claim_table {
	struct qcow2_claim_table *older; /* owned */
	uint64_t slots; /* a power of two */
	uint64_t used; /* not EMPTY */
	_Atomic uint64_t slot[];
};

static struct qcow2_claim_table *
table_new(uint64_t slots)
{
	struct qcow2_claim_table *t =
		calloc(1, sizeof *t + (size_t)slots * sizeof t->slot[0]);

	if (t)
		t->slots = slots;
	return t;
}

bool
qcow2_claims_init(struct qcow2 *q, uint64_t expected)
{
	uint64_t slots = 1024;
	struct qcow2_claim_table *t;

	while (slots < expected * 2)
		slots *= 2;
	t = table_new(slots);
	atomic_store(&q->claims.table, t);
	return t;
}

void
qcow2_claims_destroy(struct qcow2 *q)
{
	struct qcow2_claim_table *t = atomic_load(&q->claims.table);

	while (t) {
		struct qcow2_claim_table *older = t->older;

		free(t);
		t = older;
	}
}

static uint64_t
start_of(const struct qcow2_claim_table *t, uint64_t cluster)
{
	return cluster * UINT64_C(0x9e3779b97f4a7c15) >> 20 & (t->slots - 1);
}

/* The slot of @cluster, or the first empty one on its way.  There is always
 * an empty one.
 */
static uint64_t
slot_of(const struct qcow2_claim_table *t, uint64_t cluster, bool *found)
{
	uint64_t i = start_of(t, cluster);

	for (;; i = (i + 1) & (t->slots - 1)) {
		uint64_t v =
			atomic_load_explicit(&t->slot[i], memory_order_acquire);

		*found = v == cluster + SHIFT;
		if (*found || v == EMPTY)
			return i;
	}
}

static bool
grow(struct qcow2 *q, struct qcow2_claim_table *old)
{
	struct qcow2_claim_table *t = table_new(old->slots * 2);

	if (!t)
		return false;
	for (uint64_t i = 0; i < old->slots; i++) {
		uint64_t v = atomic_load(&old->slot[i]);
		bool found;

		if (v < SHIFT)
			continue;
		atomic_store(&t->slot[slot_of(t, v - SHIFT, &found)], v);
		t->used++;
	}
	t->older = old;
	atomic_store(&q->claims.table, t);
	return true;
}

static int
claim_one(struct qcow2 *q, uint64_t cluster)
{
	struct qcow2_claim_table *t = atomic_load(&q->claims.table);
	bool found;
	uint64_t i;

	if (t->used * 2 >= t->slots) {
		if (!grow(q, t))
			return ENOMEM;
		t = atomic_load(&q->claims.table);
	}
	i = slot_of(t, cluster, &found);
	if (found)
		return EEXIST;
	t->used++;
	atomic_store_explicit(&t->slot[i], cluster + SHIFT,
			      memory_order_release);
	return 0;
}

int
qcow2_claim(struct qcow2 *q, uint64_t off, uint64_t bytes)
{
	uint64_t first = off >> q->g.cluster_bits;
	uint64_t n = qcow2_clusters(q, bytes);
	uint64_t done = 0;
	int r = 0;

	for (; done < n && !r; done += !r)
		r = claim_one(q, first + done);
	if (r && done)
		qcow2_unclaim(q, off, done << q->g.cluster_bits);
	return r;
}

void
qcow2_unclaim(struct qcow2 *q, uint64_t off, uint64_t bytes)
{
	struct qcow2_claim_table *t = atomic_load(&q->claims.table);
	uint64_t first = off >> q->g.cluster_bits;
	uint64_t n = qcow2_clusters(q, bytes);

	for (uint64_t c = first; c < first + n; c++) {
		bool found;
		uint64_t i = slot_of(t, c, &found);

		if (found)
			atomic_store(&t->slot[i], GONE);
	}
}

bool
qcow2_is_claimed(struct qcow2 *q, uint64_t off, uint64_t bytes)
{
	struct qcow2_claim_table *t =
		atomic_load_explicit(&q->claims.table, memory_order_acquire);
	uint64_t last = (off + bytes - 1) >> q->g.cluster_bits;
	bool found = false;

	for (uint64_t c = off >> q->g.cluster_bits; c <= last && !found; c++)
		(void)slot_of(t, c, &found);
	return found;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the parts of the check share.
 *
 *   check.c          the order of things
 *   check-count.c    counters of users, in bounded memory
 *   check-walk.c     names every user of every cluster
 *   check-compare.c  refcounts against counters, and their repair in place
 *   check-rebuild.c  a new refcount structure
 *   check-flags.c    "copied" flags and single entries of the active tables
 *
 * All is done by one thread.  Functions return 0 or an errno value; what is
 * wrong with the image is not a failure but goes into the result.
 */
#ifndef BLOCK_QCOW2_CHECK_PRIV_H
#define BLOCK_QCOW2_CHECK_PRIV_H

#include "block/qcow2/check.h"
#include "block/qcow2/format.h"

/* --- counters -------------------------------------------------------------- */

/* What a cluster is used for, and how often: the low bits are a number that
 * stays at its maximum.
 */
#define QCOW2_USE_DATA     (UINT32_C(1) << 28)
#define QCOW2_USE_L2       (UINT32_C(1) << 29)
#define QCOW2_USE_META     (UINT32_C(1) << 30) /* of these one user only */
#define QCOW2_USE_REFCOUNT (UINT32_C(1) << 31) /* so here */
#define QCOW2_USES         (UINT32_C(0xf) << 28)
#define QCOW2_USERS_MAX    (QCOW2_USE_DATA - 1)

#define QCOW2_CHUNK 4096 /* clusters of one chunk of counters */

struct qcow2_chunk {
	uint64_t number; /* of its first cluster, / QCOW2_CHUNK */
	uint32_t cell[QCOW2_CHUNK];
};

/* The lowest chunks in use from @first on, as many as there is memory for;
 * clusters from @limit on are left to the next pass.
 */
struct qcow2_counts {
	struct qcow2_chunk **chunks; /* sorted; owned, and so is each */
	size_t n, max;
	uint64_t first, limit; /* clusters */
	struct qcow2_chunk *last; /* used last, or NULL; borrowed */
};

int qcow2_counts_init(struct qcow2_counts *c, size_t memory);
void qcow2_counts_destroy(struct qcow2_counts *c);
/* Forget everything and begin at cluster @first. */
void qcow2_counts_begin(struct qcow2_counts *c, uint64_t first);
int qcow2_counts_add(struct qcow2_counts *c, uint64_t cluster, uint64_t n,
		     uint32_t use, uint32_t times);
/* The cell of a cluster; 0 when nobody uses it. */
uint32_t qcow2_counts_get(struct qcow2_counts *c, uint64_t cluster);
/* Is there a user of any of these clusters? */
bool qcow2_counts_any(const struct qcow2_counts *c, uint64_t cluster,
		      uint64_t n);

/* --- the check -------------------------------------------------------------- */

/* L2 tables that L1 tables named, not yet read. */
struct qcow2_l2_ref {
	uint64_t offset;
	uint32_t times;
	bool active;
};

struct qcow2_checker {
	struct block *file; /* borrowed */
	const struct qcow2_check_options *o; /* borrowed */
	struct qcow2_check_result *res; /* borrowed */
	struct qcow2_header h;
	struct qcow2_geometry g;
	uint64_t *reftable; /* as in the file, decoded; owned */
	uint64_t reftable_n; /* entries */
	struct qcow2_counts counts;
	struct qcow2_l2_ref *refs; /* owned */
	size_t refs_n;
	void *table; /* one cluster; owned */
	void *block; /* one cluster; owned */
	/* refcount blocks that qcow2_stored_refcount() has read */
	uint64_t *
		cached; /* their indices + 1, 0: none; cache_n of them; owned */
	uint8_t *cache; /* a cluster for each; owned */
	size_t cache_n;
	void *piece; /* QCOW2_PIECE bytes; owned */
	uint64_t end; /* clusters: behind the last one that has a user */
	bool first_pass; /* the walk tells what it finds once */
	bool rebuild; /* the refcount structure cannot be repaired in place */
	bool no_refcounts; /* do not count the refcount structure's clusters */
};

#define QCOW2_PIECE   (256u << 10) /* holds a whole snapshot table entry */
#define QCOW2_L2_REFS 65536

/* Add a finding to @counter (a field of the result) and report it. */
void qcow2_found(struct qcow2_checker *c, uint64_t *counter, const char *fmt,
		 ...) PRINTF(3, 4);

/* Read metadata; what lies behind the end of the file is zero.  False, and a
 * finding, when it cannot be read.
 */
bool qcow2_check_read(struct qcow2_checker *c, void *buf, size_t len,
		      uint64_t off);

/* 0, or ECANCELED. */
int qcow2_check_go_on(const struct qcow2_checker *c);

/* Count all users of the clusters of one pass. */
int qcow2_walk(struct qcow2_checker *c);

/* Call @visit for parts of the image, each after a walk, until all have been
 * there.
 */
int qcow2_passes(struct qcow2_checker *c,
		 int (*visit)(struct qcow2_checker *c, void *opaque),
		 void *opaque);

/* To be used with qcow2_passes(): compare, or repair in place. */
int qcow2_compare(struct qcow2_checker *c, void *unused);
int qcow2_repair_refcounts(struct qcow2_checker *c, void *unused);

/* A new refcount structure; reads the header again. */
int qcow2_rebuild(struct qcow2_checker *c);

/* Flags of the active L1 and L2 tables; with @fix they are repaired. */
int qcow2_check_flags(struct qcow2_checker *c, bool fix);

/* What the refcounts in the file say; false when they cannot be read. */
bool qcow2_stored_refcount(struct qcow2_checker *c, uint64_t cluster,
			   uint64_t *out);

/* Read the header and the refcount table (again). */
bool qcow2_checker_load(struct qcow2_checker *c, struct err *e);

static inline bool
qcow2_refblock_usable(const struct qcow2_checker *c, uint64_t i)
{
	uint64_t at = c->reftable[i];

	return at && !(at & (c->g.cluster_size - 1)) && at < c->file->size;
}

#endif

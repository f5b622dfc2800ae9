/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2: one open image, as the files of this folder see it.
 *
 * Words: a host cluster is a cluster of the image file, a guest cluster one of
 * the disk.  To *give up* space is to take the last mapping of a host cluster
 * (or one of several) away.  A *barrier* returns when everything that was
 * written before it is durable.
 *
 * The rules.  Each has a test of its name in tests/unit/test-qcow2-*.c.
 *
 *  1. Counts first: a host cluster is handed out only after its refcount, the
 *     file's length and (where the file can do it fast) its zeroes are behind
 *     a barrier.  So clusters are reserved in batches, one barrier for each; a
 *     power cut or a death leaks what is left of one.
 *  2. A new refcount block is behind a barrier before the refcount table names
 *     it; a new table (refcount, L1, snapshot) before the header does; an L2
 *     table before its L1 entry, unless its cluster is known to read as zeroes.
 *  3. Data first, mapping after: the data of a new cluster is written before
 *     the entry that maps it.
 *  4. What a write moves but does not change (the rest of a cluster that came
 *     from a backing file, a snapshot, a compressed cluster) is behind a
 *     barrier before the entry that maps it.  So a power cut loses no flushed
 *     data; a sector that was written and not flushed may be new, zero or what
 *     it was at any time before (unreadable, if it was written compressed).
 *  5. Space is freed late: a refcount goes down only after the entry that gave
 *     the cluster up is behind a barrier, and while nobody holds space (see
 *     block_hold).  Until then the cluster is neither reused nor punched.  A
 *     request frees a bounded part of it.
 *  6. What was acknowledged is written: no entry, count or datum waits in
 *     memory for a later write.  A death costs leaks (rules 1 and 5).
 *  7. An entry is one aligned unit of 8 bytes (16 when extended) and written
 *     with one call, so that the second open of the image (options.live) sees
 *     the old or the new one.
 *  8. Before data or an entry is written to a host cluster it is checked that
 *     no metadata live there; if they do, the image is marked corrupt.
 *  9. After a metadata write or a barrier failed in a way that leaves open
 *     what is in the file, the image refuses all writes until it is opened
 *     again.  A full disk is no such failure: what we hold in memory is what
 *     the file says, also after it, and the next try takes no new space.
 * 10. Nothing that was read from the file is used before it was checked.
 * 11. Reads behind what we know as a file's end are zeroes without asking, so
 *     whoever writes makes a file long enough before, and whoever reads what
 *     another process writes looks at its length again.
 *
 * Locks, top to bottom; the first three are held while the image is read or
 * written, which is why they are not rows of base/mtx.h:
 *
 *   shards    the disk is cut into units of 64 KiB or a cluster; a request
 *             holds the shard locks of its units, in ascending order: shared
 *             to use a mapping (and while it reads or writes the data behind
 *             it), alone to change one.  All of them: to change the layout.
 *   tables    making an L2 table
 *   space     refcounts, reservations
 *   LOCK_QCOW2_*  short, no I/O
 */
#ifndef BLOCK_QCOW2_PRIV_H
#define BLOCK_QCOW2_PRIV_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/bits.h"
#include "base/mtx.h"
#include "block/block.h"
#include "block/qcow2/format.h"
#include "block/qcow2/qcow2.h"

#define QCOW2_SHARDS     256u /* a power of two */
#define QCOW2_SPAN_UNITS 32u /* most units that one step of a request locks */
#define QCOW2_BATCH      64u /* most entries that one step looks at */

/* --- cache.c: parts of L2 tables and refcount blocks ----------------------- */

struct qcow2_slice;

struct qcow2_cache_shard {
	struct mtx lock; /* LOCK_QCOW2_CACHE */
	pthread_cond_t loaded;
	struct qcow2_slice **bucket; /* owned; chains */
	uint32_t buckets; /* a power of two */
	struct qcow2_slice *hand; /* of the clock, in a ring; borrowed */
	uint32_t count, max;
};

struct qcow2_cache {
	struct qcow2_cache_shard *shard; /* owned */
	uint32_t shards; /* a power of two */
	uint32_t slice_size; /* bytes, a power of two */
	uint64_t bytes; /* as they were asked for */
};

/* --- claims.c: which host clusters hold metadata --------------------------- */

struct qcow2_claim_table;

struct qcow2_claims {
	struct qcow2_claim_table *_Atomic table; /* owned */
};

/* --- alloc.c ---------------------------------------------------------------- */

#define QCOW2_RESERVE_RUNS 64u

struct qcow2_run {
	uint64_t first, n; /* host clusters */
	bool fresh; /* known to read as zeroes */
};

/* Under the space lock. */
struct qcow2_space {
	struct qcow2_run run[QCOW2_RESERVE_RUNS]; /* reserved */
	uint32_t runs;
	uint64_t batch; /* bytes of the next reservation */
	uint64_t hint; /* host clusters below are believed to be in use */
	uint64_t tail; /* none from here on is in use */
	bool grown; /* the tail was used last: it may have more */
	/* packing of compressed data, see alloc.c */
	uint64_t pack_at, pack_end; /* bytes: free in the packing run */
	uint64_t pack_count; /* what the file says of each of its clusters */
	uint64_t pack_refs; /* real references to the cluster of pack_at */
};

/* --- held.c ----------------------------------------------------------------- */

struct qcow2_held_list {
	struct qcow2_run *run; /* owned */
	uint32_t n, max;
	uint64_t clusters;
};

struct qcow2_held {
	struct mtx lock; /* LOCK_QCOW2_HELD */
	struct qcow2_held_list pending; /* given up, not behind a barrier */
	struct qcow2_held_list sealed; /* a barrier is under way */
	struct qcow2_held_list ready; /* behind one */
	uint32_t holds;
	uint64_t leaked; /* clusters for which there was no room */
};

/* --- unpacked.c --------------------------------------------------------------- */

struct qcow2_unpacked_cluster {
	uint64_t entry; /* the L2 entry that refers to it; 0: none */
	uint8_t *data; /* one cluster; owned, or NULL */
	uint64_t used; /* when, by the clock */
	uint32_t users; /* threads that copy from it or wait for it */
	bool loading;
};

struct qcow2_unpacked {
	struct mtx lock; /* LOCK_QCOW2_UNPACKED */
	pthread_cond_t loaded;
	struct qcow2_unpacked_cluster v[QCOW2_UNPACKED];
	uint64_t clock;
};

/* --- the image -------------------------------------------------------------- */

struct qcow2 {
	struct block block;
	struct block *file; /* owned */
	struct block *backing; /* owned, or NULL */
	struct block *data; /* owned if external, else the same as file */
	struct qcow2_header h; /* changed under all shards and space */
	struct qcow2_geometry g;
	bool external, live, v3;
	unsigned unit_bits; /* log2 of a shard unit */

	_Atomic uint64_t *l1; /* owned; entries in the host's byte order */
	uint32_t l1_max; /* entries allocated */
	uint64_t *reftable; /* owned; entries; under space */
	uint32_t reftable_n;
	_Atomic uint64_t file_end; /* bytes: the image file's length */
	uint64_t first_end; /* what it was when the image was opened */
	struct qcow2_snapshot *snapshot; /* owned; h.snapshots of them, only
					  * when open for writing */
	uint64_t snapshots_bytes; /* length of the snapshot table */

	pthread_rwlock_t shard[QCOW2_SHARDS];
	pthread_mutex_t tables;
	pthread_mutex_t space_lock;
	pthread_mutex_t rmw; /* unaligned metadata writes, see io.c */

	struct qcow2_cache cache;
	struct qcow2_claims claims;
	struct qcow2_space space;
	struct qcow2_held held;
	struct qcow2_unpacked unpacked;

	/* barriers: io.c */
	struct mtx flush_lock; /* LOCK_QCOW2_FLUSH */
	pthread_cond_t flushed;
	bool flushing;
	uint64_t flush_started, flush_done;

	_Atomic bool failed; /* rule 9: writes are refused */
	_Atomic bool corrupt; /* and the image says so */
};

static inline struct qcow2 *
to_qcow2(struct block *b)
{
	return container_of(b, struct qcow2, block);
}

/* All functions below return 0 or a positive errno value unless they say
 * otherwise.
 */

/* --- io.c: bytes of the children -------------------------------------------- */

/* Any offset and length; what lies behind the child's end reads as zeroes. */
int qcow2_child_read(struct block *child, void *buf, size_t len, uint64_t off);
/* Metadata of the image file; any alignment.  Failures are rule 9's. */
int qcow2_meta_write(struct qcow2 *q, const void *buf, size_t len,
		     uint64_t off);
/* Rule 4's barrier, shared with whoever else wants one.  Not under
 * LOCK_QCOW2_*.
 */
int qcow2_barrier(struct qcow2 *q);
/* Make the image file at least @end bytes long; with the space lock held. */
int qcow2_extend(struct qcow2 *q, uint64_t end);
/* Rule 9. */
void qcow2_fail(struct qcow2 *q, int os, const char *what);
/* Rule 8 or 10 was broken by what the file says: EIO. */
int qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t at);
/* Change incompatible feature bits in the file (version 3; else nothing). */
int qcow2_set_incompat(struct qcow2 *q, uint64_t set, uint64_t clear);

/* --- cache.c ----------------------------------------------------------------- */

bool qcow2_cache_init(struct qcow2 *q, uint64_t bytes);
/* Nobody is inside.  Another size; when memory is gone, the one that it has. */
void qcow2_cache_resize(struct qcow2 *q, uint64_t bytes);
void qcow2_cache_destroy(struct qcow2 *q);
/* Bytes of a table of the image file. */
int qcow2_table_read(struct qcow2 *q, void *buf, size_t len, uint64_t off);
/* Writes through.  The caller alone changes these bytes. */
int qcow2_table_write(struct qcow2 *q, const void *buf, size_t len,
		      uint64_t off);
/* What is cached of [off, off + len) is no longer true. */
void qcow2_cache_forget(struct qcow2 *q, uint64_t off, uint64_t len);
void qcow2_cache_forget_all(struct qcow2 *q);

/* --- claims.c ---------------------------------------------------------------- */

bool qcow2_claims_init(struct qcow2 *q, uint64_t expected);
void qcow2_claims_destroy(struct qcow2 *q);
/* Space lock.  EEXIST: a cluster is claimed already.  All of them or none. */
int qcow2_claim(struct qcow2 *q, uint64_t off, uint64_t bytes);
void qcow2_unclaim(struct qcow2 *q, uint64_t off, uint64_t bytes);
/* Any: is metadata in [off, off + bytes)? */
bool qcow2_is_claimed(struct qcow2 *q, uint64_t off, uint64_t bytes);

/* --- refcount.c: with the space lock held ------------------------------------- */

/* The refcount of one host cluster. */
int qcow2_refcount(struct qcow2 *q, uint64_t cluster, uint64_t *count);
/* The first run of clusters in [*from, to) that are free and have a refcount
 * block: *n of them (0: none), at most @max, at *first.  Looks at no more than
 * *budget parts of refcount blocks; *from is where it stopped.
 */
int qcow2_refcount_find(struct qcow2 *q, uint64_t *from, uint64_t to,
			uint64_t max, unsigned *budget, struct qcow2_run *run);
/* Add @delta to the counts of [first, first + n); *freed, if not NULL, hears
 * of runs whose count became 0.  A failure to add leaves them as they were.
 */
typedef void qcow2_freed_fn(struct qcow2 *q, uint64_t first, uint64_t n);
int qcow2_refcount_add(struct qcow2 *q, uint64_t first, uint64_t n,
		       int64_t delta, qcow2_freed_fn *freed);
/* Take @n contiguous clusters behind all that are in use, with the refcount
 * blocks and the table that this needs, and count them once.  Not behind a
 * barrier on return.  After a failure for want of space they are free.
 */
int qcow2_refcount_grow(struct qcow2 *q, uint64_t n, uint64_t *first);
/* The first cluster behind all that are in use, from the counts. */
int qcow2_refcount_tail(struct qcow2 *q, uint64_t *tail);

/* --- alloc.c ------------------------------------------------------------------ */

/* Up to @want contiguous host clusters, one at least; rule 1 holds for them. */
int qcow2_alloc(struct qcow2 *q, uint64_t want, struct qcow2_run *got);
/* @n contiguous ones for a table; rule 1 holds; claimed. */
int qcow2_alloc_table(struct qcow2 *q, uint64_t n, uint64_t *first);
/* Clusters that were handed out and never mapped. */
void qcow2_alloc_return(struct qcow2 *q, const struct qcow2_run *r);
/* Room for @bytes (less than a cluster) of compressed data at *off. */
int qcow2_alloc_bytes(struct qcow2 *q, uint64_t bytes, uint64_t *off);
/* End the packing: all counts of packed clusters are true afterwards. */
int qcow2_alloc_unpack(struct qcow2 *q);
/* Write the true counts of what is reserved and not used, and make the file
 * shorter by what of it stands at its end; at close.
 */
int qcow2_alloc_settle(struct qcow2 *q);

/* --- held.c -------------------------------------------------------------------- */

void qcow2_held_init(struct qcow2 *q);
void qcow2_held_destroy(struct qcow2 *q);
/* One reference to each of these host clusters is gone from the tables. */
void qcow2_give_up(struct qcow2 *q, uint64_t first, uint64_t n);
/* The same for what an L2 entry refers to. */
void qcow2_give_up_entry(struct qcow2 *q, uint64_t entry);
/* Before and after a barrier that holds: what is pending becomes ready. */
void qcow2_held_seal(struct qcow2 *q);
void qcow2_held_sealed(struct qcow2 *q);
/* These clusters' counts reached zero; with the space lock held. */
void qcow2_on_freed(struct qcow2 *q, uint64_t first, uint64_t n);
/* Free some of what is ready, unless somebody holds.  No locks held. */
int qcow2_held_free(struct qcow2 *q);
/* Is there something to free? */
bool qcow2_held_any(struct qcow2 *q);
/* Called at the end of requests: frees when much is pending. */
int qcow2_held_relieve(struct qcow2 *q);
void qcow2_hold(struct block *b);
void qcow2_release(struct block *b);

/* --- unpacked.c ---------------------------------------------------------------- */

/* Part of a cluster. */
struct qcow2_part {
	void *to; /* borrowed */
	size_t skip, len;
};

void qcow2_unpacked_init(struct qcow2 *q);
void qcow2_unpacked_destroy(struct qcow2 *q);
/* Part of the compressed cluster that @entry refers to; with the span locked. */
int qcow2_unpacked_read(struct qcow2 *q, uint64_t entry,
			const struct qcow2_part *p);
/* These bytes of the image file are others now. */
void qcow2_unpacked_forget(struct qcow2 *q, uint64_t off, uint64_t bytes);

/* --- span.c: the shard locks ------------------------------------------------- */

struct qcow2_span {
	uint32_t first, n; /* shards, wrapping around */
	bool alone;
};

/* Lock the units of as much of [off, off + len) as one step may; returns how
 * many bytes that is.
 */
uint64_t qcow2_span_lock(struct qcow2 *q, uint64_t off, uint64_t len,
			 bool alone, struct qcow2_span *s) NO_TSA;
void qcow2_span_unlock(struct qcow2 *q, const struct qcow2_span *s) NO_TSA;
void qcow2_lock_all(struct qcow2 *q) NO_TSA;
void qcow2_unlock_all(struct qcow2 *q) NO_TSA;

/* --- map.c --------------------------------------------------------------------- */

struct qcow2_entry {
	uint64_t e; /* of the L2 table */
	uint64_t bits; /* subclusters when extended */
};

enum qcow2_kind {
	QCOW2_KIND_NONE, /* look in the backing file */
	QCOW2_KIND_ZERO, /* no host cluster */
	QCOW2_KIND_ZERO_ALLOC,
	QCOW2_KIND_DATA,
	QCOW2_KIND_PACKED, /* compressed */
};

static inline uint64_t
qcow2_entry_host(struct qcow2_entry x)
{
	return x.e & QCOW2_L2_OFFSET;
}

/* Without subclusters: what the whole cluster is.  With them: DATA when there
 * is a host cluster, else NONE; the bits say the rest.
 */
enum qcow2_kind qcow2_entry_kind(const struct qcow2 *q, struct qcow2_entry x);

/* The entries of @n guest clusters from @cluster on (at most QCOW2_BATCH), as
 * many as one L2 table has: *got.  *own: the L2 table is there and not
 * shared.  Checked (rule 10).
 */
int qcow2_map_get(struct qcow2 *q, uint64_t cluster, uint32_t n,
		  struct qcow2_entry *x, uint32_t *got, bool *own);
/* Make sure that there is an L2 table of our own for @cluster. */
int qcow2_map_own(struct qcow2 *q, uint64_t cluster);
/* Write entries (after qcow2_map_own); all in one table. */
int qcow2_map_set(struct qcow2 *q, uint64_t cluster, uint32_t n,
		  const struct qcow2_entry *x);

/* A piece of the disk that is all of one kind. */
struct qcow2_piece {
	enum qcow2_kind kind; /* never ZERO_ALLOC: that is ZERO */
	uint64_t host; /* DATA: of its first byte */
	uint64_t entry; /* PACKED */
	uint64_t len; /* bytes, at least 1 */
};

/* The piece at @off, no longer than @len. */
int qcow2_map_piece(struct qcow2 *q, uint64_t off, uint64_t len,
		    struct qcow2_piece *p);

/* --- read.c, write.c, zero.c, compress.c, resize.c, snapshot.c ------------------ */

/* With the span locked (alone to write). */
int qcow2_read_span(struct qcow2 *q, void *buf, uint64_t len, uint64_t off);
int qcow2_write_span(struct qcow2 *q, const void *buf, uint64_t len,
		     uint64_t off);

/* Operations of struct block. */
int qcow2_pread(struct block *b, void *buf, size_t len, uint64_t off);
int qcow2_pwrite(struct block *b, const void *buf, size_t len, uint64_t off);
int qcow2_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags);
int qcow2_discard(struct block *b, uint64_t off, uint64_t len);
int qcow2_flush(struct block *b);
int qcow2_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
		 unsigned *flags);
int qcow2_depth(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
		unsigned *depth);
int qcow2_compress(struct block *b, const void *buf, size_t len, uint64_t off);
int qcow2_truncate(struct block *b, uint64_t size);

/* 0 or EIO: decompress the cluster that @entry refers to. */
int qcow2_unpack(struct qcow2 *q, uint64_t entry, void *to);

bool qcow2_snapshots_load(struct qcow2 *q, struct err *e) MUST_CHECK;
void qcow2_snapshots_free(struct qcow2 *q);

/* Is writing refused?  0, EROFS or EIO. */
static inline int
qcow2_may_write(struct qcow2 *q)
{
	if (unlikely(q->block.read_only))
		return EROFS;
	return unlikely(atomic_load_explicit(&q->failed, memory_order_relaxed))
		       ? EIO
		       : 0;
}

static inline uint64_t
qcow2_clusters(const struct qcow2 *q, uint64_t bytes)
{
	return div_up(bytes, q->g.cluster_size);
}

#endif

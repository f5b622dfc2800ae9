/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Host clusters for whoever needs them.
 *
 * Rule 1 makes a cluster expensive (its count must be durable before anything
 * refers to it), so clusters are reserved in batches: first what is free among
 * the clusters in use, then new ones at the end of the file, all behind one
 * barrier.  A batch begins small and doubles, so that what a death leaks is in
 * proportion to what was written.  What is left at close is given back.
 *
 * Compressed data are packed: a run of reserved clusters gets the highest
 * count that we allow, behind one barrier, and each cluster its true count
 * when the packing has left it behind.  A count that is too high is a leak,
 * as rule 1 wants it; one that is too low cannot be.
 */
#include <errno.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

#define BATCH_FIRST (1 * MiB)
/* With 16 MiB a death costs less, and a guest on a disk that allocates in order
 * 12 to 19 of 100 of its speed: a barrier writes back what it has written.
 */
#define BATCH_LAST    (64 * MiB)
#define BATCH_MAX     16384u /* clusters */
#define SCAN_PARTS    64u /* of refcount blocks that one reservation looks at */
#define PACK_CLUSTERS 16u
#define PACK_REFS     65535u

/* The file's bytes as zeroes, if that is cheap. */
static bool
make_zero(struct qcow2 *q, uint64_t first, uint64_t n)
{
	return block_zero(q->file, first << q->g.cluster_bits,
			  n << q->g.cluster_bits,
			  BLOCK_ZERO_MAY_UNMAP | BLOCK_ZERO_FAST) == 0;
}

static void
put_run(struct qcow2_space *s, uint64_t first, uint64_t n, bool fresh)
{
	s->run[s->runs++] =
		(struct qcow2_run){ .first = first, .n = n, .fresh = fresh };
}

/* Reserve what is free among the clusters in use. */
static int
reserve_old(struct qcow2 *q, uint64_t want, unsigned budget)
{
	struct qcow2_space *s = &q->space;
	uint64_t total = 0;
	int r = 0;

	while (total < want && s->runs < QCOW2_RESERVE_RUNS && budget &&
	       s->hint < s->tail && !r) {
		struct qcow2_run run;

		r = qcow2_refcount_find(q, &s->hint, s->tail, want - total,
					&budget, &run);
		if (r || !run.n)
			continue;
		r = qcow2_refcount_add(q, run.first, run.n, 1, NULL);
		if (r)
			break;
		put_run(s, run.first, run.n, make_zero(q, run.first, run.n));
		total += run.n;
	}
	return r;
}

static int
reserve_new(struct qcow2 *q, uint64_t want)
{
	uint64_t end = atomic_load(&q->file_end), first;
	int r = qcow2_refcount_grow(q, want, &first);

	if (r)
		return r;
	put_run(&q->space, first, want,
		first << q->g.cluster_bits >= end || make_zero(q, first, want));
	return 0;
}

static int
reserve(struct qcow2 *q, uint64_t want)
{
	struct qcow2_space *s = &q->space;
	int r;

	want = max_u64(want, s->batch >> q->g.cluster_bits);
	want = min_u64(want, BATCH_MAX);
	r = reserve_old(q, want, SCAN_PARTS);
	if (!r && !s->runs)
		r = reserve_new(q, want);
	/* the file may grow a little; a device has what it has */
	for (; (r == EFBIG || r == ENOSPC) && want > 1 && !s->runs;
	     r = reserve_new(q, want))
		want /= 2;
	if (r == ENOSPC && !s->runs) {
		/* an image on a device: look everywhere */
		s->hint = 0;
		r = reserve_old(q, want, UINT32_MAX);
		if (!r && !s->runs)
			r = ENOSPC;
	}
	PARK("qcow2.reserved");
	if (!r)
		r = qcow2_barrier(q);
	if (r)
		s->runs = 0; /* leaks */
	else
		s->batch = min_u64(s->batch * 2, BATCH_LAST);
	return r;
}

/* --- with the space lock ------------------------------------------------------------ */

static void
drop_first_run(struct qcow2_space *s)
{
	s->runs--;
	memmove(s->run, s->run + 1, s->runs * sizeof s->run[0]);
}

static int
take(struct qcow2 *q, uint64_t want, struct qcow2_run *got)
{
	struct qcow2_space *s = &q->space;
	int r = s->runs ? 0 : reserve(q, want);

	if (r)
		return r;
	*got = s->run[0];
	got->n = min_u64(want, got->n);
	s->run[0].first += got->n;
	s->run[0].n -= got->n;
	if (!s->run[0].n)
		drop_first_run(s);
	if (qcow2_is_claimed(q, got->first << q->g.cluster_bits,
			     got->n << q->g.cluster_bits))
		return qcow2_corrupt(q, "metadata in a free cluster",
				     got->first << q->g.cluster_bits);
	return 0;
}

static void
give_back(struct qcow2_space *s, const struct qcow2_run *r)
{
	struct qcow2_run *head = &s->run[0];

	if (s->runs && r->first + r->n == head->first &&
	    r->fresh == head->fresh) {
		head->first = r->first;
		head->n += r->n;
	} else if (s->runs < QCOW2_RESERVE_RUNS) {
		put_run(s, r->first, r->n, r->fresh);
	} /* else they leak until the image is checked */
}

/* --- for everybody -------------------------------------------------------------------- */

int
qcow2_alloc(struct qcow2 *q, uint64_t want, struct qcow2_run *got)
{
	int r;

	(void)pthread_mutex_lock(&q->space_lock);
	r = take(q, want, got);
	(void)pthread_mutex_unlock(&q->space_lock);
	return r;
}

void
qcow2_alloc_return(struct qcow2 *q, const struct qcow2_run *r)
{
	(void)pthread_mutex_lock(&q->space_lock);
	give_back(&q->space, r);
	(void)pthread_mutex_unlock(&q->space_lock);
}

int
qcow2_alloc_table(struct qcow2 *q, uint64_t n, uint64_t *first)
{
	uint64_t bytes = n << q->g.cluster_bits;
	int r;

	(void)pthread_mutex_lock(&q->space_lock);
	r = qcow2_refcount_grow(q, n, first);
	if (!r)
		r = qcow2_barrier(q);
	if (!r)
		r = qcow2_claim(q, *first << q->g.cluster_bits, bytes);
	if (r == EEXIST)
		r = qcow2_corrupt(q, "metadata in a free cluster",
				  *first << q->g.cluster_bits);
	(void)pthread_mutex_unlock(&q->space_lock);
	if (!r)
		qcow2_cache_forget(q, *first << q->g.cluster_bits, bytes);
	return r;
}

/* --- packing ------------------------------------------------------------------------------ */

/* The clusters of [pack_at, pack_end) get their true counts: pack_refs for the
 * first if the packing has begun with it, none for the rest.
 */
static int
pack_finish(struct qcow2 *q, uint64_t to)
{
	struct qcow2_space *s = &q->space;
	unsigned bits = q->g.cluster_bits;
	int64_t count = (int64_t)s->pack_count;
	uint64_t first = s->pack_at >> bits, end = to >> bits;
	int r = 0;

	if (first < end)
		r = qcow2_refcount_add(q, first, 1,
				       (int64_t)s->pack_refs - count, NULL);
	if (!r && first + 1 < end)
		r = qcow2_refcount_add(q, first + 1, end - first - 1, -count,
				       NULL);
	s->pack_refs = 0;
	s->pack_at = to;
	return r;
}

static int
pack_begin(struct qcow2 *q)
{
	struct qcow2_space *s = &q->space;
	struct qcow2_run run;
	uint64_t count = min_u64(PACK_REFS, q->g.refcount_max);
	int r = pack_finish(q, s->pack_end);

	if (!r)
		r = take(q, PACK_CLUSTERS, &run);
	if (r)
		return r;
	if (count > 1) {
		r = qcow2_refcount_add(q, run.first, run.n, (int64_t)count - 1,
				       NULL);
		if (!r)
			r = qcow2_barrier(q);
	}
	if (r)
		return r;
	s->pack_count = count;
	s->pack_refs = 0;
	s->pack_at = run.first << q->g.cluster_bits;
	s->pack_end = (run.first + run.n) << q->g.cluster_bits;
	return 0;
}

static int
pack(struct qcow2 *q, uint64_t bytes, uint64_t *off)
{
	struct qcow2_space *s = &q->space;
	uint64_t cluster = q->g.cluster_size, next;
	int r = 0;

	bytes = round_up(bytes, q->file->min_block);
	if (s->pack_at < s->pack_end && s->pack_refs == s->pack_count)
		r = pack_finish(q, round_down(s->pack_at, cluster) + cluster);
	if (!r &&
	    (s->pack_at >= s->pack_end || bytes > s->pack_end - s->pack_at))
		r = pack_begin(q);
	if (r)
		return r;
	if (bytes > s->pack_end - s->pack_at)
		return ENOSPC; /* pieces of one cluster, and this needs more */
	*off = s->pack_at;
	s->pack_refs++;
	next = round_down(s->pack_at, cluster) + cluster;
	if (s->pack_at + bytes < next) {
		s->pack_at += bytes;
		return 0;
	}
	bytes -= next - s->pack_at;
	r = pack_finish(q, next);
	s->pack_refs = bytes > 0;
	s->pack_at += bytes;
	return r;
}

int
qcow2_alloc_bytes(struct qcow2 *q, uint64_t bytes, uint64_t *off)
{
	int r;

	(void)pthread_mutex_lock(&q->space_lock);
	r = pack(q, bytes, off);
	(void)pthread_mutex_unlock(&q->space_lock);
	return r;
}

int
qcow2_alloc_unpack(struct qcow2 *q)
{
	int r;

	(void)pthread_mutex_lock(&q->space_lock);
	r = pack_finish(q, round_up(q->space.pack_end, q->g.cluster_size));
	(void)pthread_mutex_unlock(&q->space_lock);
	return r;
}

/* --- the end ------------------------------------------------------------------------------- */

static int
settle(struct qcow2 *q)
{
	struct qcow2_space *s = &q->space;
	uint64_t end, tail;
	int r = pack_finish(q, round_up(s->pack_end, q->g.cluster_size));

	while (s->runs && !r) {
		r = qcow2_refcount_add(q, s->run[0].first, s->run[0].n, -1,
				       NULL);
		drop_first_run(s);
	}
	if (!r)
		r = qcow2_refcount_tail(q, &tail);
	if (r)
		return r;
	end = max_u64(tail << q->g.cluster_bits, q->first_end);
	if (end < atomic_load(&q->file_end) && q->file->ops->truncate) {
		r = block_truncate(q->file, end);
		if (!r)
			atomic_store(&q->file_end, end);
	}
	return r;
}

int
qcow2_alloc_settle(struct qcow2 *q)
{
	int r;

	(void)pthread_mutex_lock(&q->space_lock);
	r = settle(q);
	(void)pthread_mutex_unlock(&q->space_lock);
	return r;
}

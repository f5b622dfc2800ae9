/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Rule 5: space that was given up, until it is free.
 *
 *   pending  its mapping is gone from the tables, perhaps not durably
 *   sealed   a barrier is under way that makes this durable
 *   ready    durable; freed (counted down, punched out, used again) as soon
 *            as nobody holds space
 *
 * While somebody holds, a view's reader may still follow a mapping that it
 * read before; see block_hold().  The lists are bounded: what does not fit
 * stays allocated for good, a leak that check repairs.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

/* A request that finds more pending than this frees it. */
#define RELIEVE_BYTES (64 * MiB)
#define RELIEVE_RUNS  4096u

/* What a long view held may be very much.  A flush frees so many runs of it at
 * most, and others get at the space after each step.
 */
#define FREE_RUNS 2048u
#define FREE_STEP 32u

void
qcow2_held_init(struct qcow2 *q)
{
	mtx_init(&q->held.lock, LOCK_QCOW2_HELD);
}

void
qcow2_held_destroy(struct qcow2 *q)
{
	free(q->held.pending.run);
	free(q->held.sealed.run);
	free(q->held.ready.run);
	mtx_destroy(&q->held.lock);
}

static bool
list_room(struct qcow2_held_list *l)
{
	struct qcow2_run *run;
	uint32_t max;

	if (l->n < l->max)
		return true;
	max = l->max ? l->max * 2 : 64;
	if (max > QCOW2_HELD_MAX)
		return false;
	run = realloc(l->run, max * sizeof *run);
	if (!run)
		return false;
	l->run = run;
	l->max = max;
	return true;
}

static bool
list_add(struct qcow2_held_list *l, uint64_t first, uint64_t n)
{
	struct qcow2_run *last = l->n ? &l->run[l->n - 1] : NULL;

	if (last && last->first + last->n == first) {
		last->n += n;
	} else if (last && first + n == last->first) {
		last->first = first;
		last->n += n;
	} else {
		if (!list_room(l))
			return false;
		l->run[l->n++] = (struct qcow2_run){ .first = first, .n = n };
	}
	l->clusters += n;
	return true;
}

/* Append @from to @to and empty it. */
static void
list_move(struct qcow2_held *h, struct qcow2_held_list *to,
	  struct qcow2_held_list *from)
{
	if (!to->n) {
		struct qcow2_held_list empty = *to;

		*to = *from;
		*from = empty;
	}
	for (uint32_t i = 0; i < from->n; i++)
		if (!list_add(to, from->run[i].first, from->run[i].n))
			h->leaked += from->run[i].n;
	from->n = 0;
	from->clusters = 0;
}

void
qcow2_give_up(struct qcow2 *q, uint64_t first, uint64_t n)
{
	struct qcow2_held *h = &q->held;

	mtx_lock(&h->lock);
	if (!list_add(&h->pending, first, n))
		h->leaked += n;
	mtx_unlock(&h->lock);
}

void
qcow2_give_up_entry(struct qcow2 *q, uint64_t entry)
{
	unsigned bits = q->g.cluster_bits;
	uint64_t host = entry & QCOW2_L2_OFFSET, bytes;

	if (q->external)
		return;
	if (entry & QCOW2_COMPRESSED) {
		uint64_t first, last;

		qcow2_compressed_place(&q->g, entry, &host, &bytes);
		first = host >> bits;
		last = (host + bytes - 1) >> bits;
		qcow2_give_up(q, first, last - first + 1);
	} else if (host) {
		qcow2_give_up(q, host >> bits, 1);
	}
}

void
qcow2_held_seal(struct qcow2 *q)
{
	struct qcow2_held *h = &q->held;

	mtx_lock(&h->lock);
	list_move(h, &h->sealed, &h->pending);
	mtx_unlock(&h->lock);
}

void
qcow2_held_sealed(struct qcow2 *q)
{
	struct qcow2_held *h = &q->held;

	mtx_lock(&h->lock);
	list_move(h, &h->ready, &h->sealed);
	mtx_unlock(&h->lock);
}

void
qcow2_on_freed(struct qcow2 *q, uint64_t first, uint64_t n)
{
	uint64_t off = first << q->g.cluster_bits;
	uint64_t len = n << q->g.cluster_bits;

	q->space.hint = min_u64(q->space.hint, first);
	/* a damaged image may have mapped what is not there */
	if (q->block.discard_unmap && off < q->file->size)
		(void)block_discard(q->file, off,
				    min_u64(len, q->file->size - off));
}

/* The last of what is ready: how many. */
static uint32_t
take_ready(struct qcow2 *q, struct qcow2_run run[FREE_STEP])
{
	struct qcow2_held *h = &q->held;
	struct qcow2_held_list *l = &h->ready;
	uint32_t n;

	mtx_lock(&h->lock);
	n = h->holds ? 0 : (uint32_t)min_u64(l->n, FREE_STEP);
	l->n -= n;
	for (uint32_t i = 0; i < n; i++) {
		run[i] = l->run[l->n + i];
		l->clusters -= run[i].n;
	}
	mtx_unlock(&h->lock);
	return n;
}

int
qcow2_held_free(struct qcow2 *q)
{
	struct qcow2_run run[FREE_STEP];
	uint32_t n, done = 0;
	int r = 0;

	while (!r && done < FREE_RUNS && (n = take_ready(q, run))) {
		PARK("qcow2.freeing");
		(void)pthread_mutex_lock(&q->space_lock);
		for (uint32_t i = 0; i < n && !r; i++)
			r = qcow2_refcount_add(q, run[i].first, run[i].n, -1,
					       qcow2_on_freed);
		(void)pthread_mutex_unlock(&q->space_lock);
		done += n;
	}
	return r;
}

bool
qcow2_held_any(struct qcow2 *q)
{
	struct qcow2_held *h = &q->held;
	bool any;

	mtx_lock(&h->lock);
	any = !h->holds && h->ready.n;
	mtx_unlock(&h->lock);
	return any;
}

int
qcow2_held_relieve(struct qcow2 *q)
{
	struct qcow2_held *h = &q->held;
	bool much;
	int r;

	mtx_lock(&h->lock);
	much = !h->holds &&
	       (h->pending.n > RELIEVE_RUNS ||
		h->pending.clusters << q->g.cluster_bits > RELIEVE_BYTES);
	mtx_unlock(&h->lock);
	if (likely(!much))
		return 0;
	r = qcow2_barrier(q);
	return r ? r : qcow2_held_free(q);
}

void
qcow2_hold(struct block *b)
{
	struct qcow2_held *h = &to_qcow2(b)->held;

	mtx_lock(&h->lock);
	h->holds++;
	mtx_unlock(&h->lock);
}

/* What was held is freed by the next flush, or when much is pending. */
void
qcow2_release(struct block *b)
{
	struct qcow2_held *h = &to_qcow2(b)->held;
	uint64_t leaked = 0;

	mtx_lock(&h->lock);
	if (--h->holds == 0) {
		leaked = h->leaked;
		h->leaked = 0;
	}
	mtx_unlock(&h->lock);
	if (leaked)
		log_warn("qcow2: %" PRIu64
			 " clusters were given up while views were open and "
			 "stay allocated until the image is checked",
			 leaked);
}

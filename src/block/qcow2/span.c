/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The shard locks.  The disk is cut into units; neighbouring units have
 * different locks, so a request of up to QCOW2_SPAN_UNITS of them takes each
 * lock once, in ascending order.  Writers go first: a stream of readers cannot
 * keep one out.
 */
#include "block/qcow2/qcow2-priv.h"

static void
lock_one(struct qcow2 *q, uint32_t i, bool alone) NO_TSA
{
	if (alone)
		(void)pthread_rwlock_wrlock(&q->shard[i]);
	else
		(void)pthread_rwlock_rdlock(&q->shard[i]);
}

/* Shard numbers of a span: [0, wrapped) and then [first, end). */
static void
numbers(const struct qcow2_span *s, uint32_t *wrapped, uint32_t *end)
{
	*end = s->first + s->n;
	*wrapped = 0;
	if (*end > QCOW2_SHARDS) {
		*wrapped = *end - QCOW2_SHARDS;
		*end = QCOW2_SHARDS;
	}
}

uint64_t
qcow2_span_lock(struct qcow2 *q, uint64_t off, uint64_t len, bool alone,
		struct qcow2_span *s) NO_TSA
{
	uint64_t first = off >> q->unit_bits;
	uint64_t n = ((off + len - 1) >> q->unit_bits) - first + 1;
	uint32_t wrapped, end;

	if (n > QCOW2_SPAN_UNITS) {
		n = QCOW2_SPAN_UNITS;
		len = ((first + n) << q->unit_bits) - off;
	}
	s->first = (uint32_t)(first & (QCOW2_SHARDS - 1));
	s->n = (uint32_t)n;
	s->alone = alone;
	numbers(s, &wrapped, &end);
	for (uint32_t i = 0; i < wrapped; i++)
		lock_one(q, i, alone);
	for (uint32_t i = s->first; i < end; i++)
		lock_one(q, i, alone);
	return len;
}

void
qcow2_span_unlock(struct qcow2 *q, const struct qcow2_span *s) NO_TSA
{
	uint32_t wrapped, end;

	numbers(s, &wrapped, &end);
	for (uint32_t i = 0; i < wrapped; i++)
		(void)pthread_rwlock_unlock(&q->shard[i]);
	for (uint32_t i = s->first; i < end; i++)
		(void)pthread_rwlock_unlock(&q->shard[i]);
}

void
qcow2_lock_all(struct qcow2 *q) NO_TSA
{
	for (uint32_t i = 0; i < QCOW2_SHARDS; i++)
		lock_one(q, i, true);
}

void
qcow2_unlock_all(struct qcow2 *q) NO_TSA
{
	for (uint32_t i = 0; i < QCOW2_SHARDS; i++)
		(void)pthread_rwlock_unlock(&q->shard[i]);
}

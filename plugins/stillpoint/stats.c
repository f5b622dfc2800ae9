/* SPDX-License-Identifier: BSD-3-Clause */
#include "stats.h"

#include <time.h>

#include "base/mem.h"

uint64_t
stats_now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void
add(_Atomic uint64_t *to, uint64_t n)
{
	(void)atomic_fetch_add_explicit(to, n, memory_order_relaxed);
}

bool
stats_count(struct stats *s, unsigned ticket, enum stats_kind kind,
	    uint64_t bytes, uint64_t began, int os)
{
	unsigned i = gate_shard(ticket);

	if (unlikely(os)) {
		add(&s->shard[i].of[kind].failed, 1);
		return atomic_exchange(&s->failure,
				       (uint32_t)kind << 16 |
					       (uint32_t)(os & 0xffff)) == 0;
	}
	add(&s->shard[i].of[kind].ops, 1);
	add(&s->shard[i].of[kind].bytes, bytes);
	add(&s->shard[i].of[kind].ns, stats_now() - began);
	return false;
}

struct stats_sum
stats_sum(const struct stats *s, enum stats_kind kind)
{
	struct stats_sum sum = { 0 };

	for (unsigned i = 0; i < GATE_SHARDS; i++) {
		sum.ops += atomic_load(&s->shard[i].of[kind].ops);
		sum.bytes += atomic_load(&s->shard[i].of[kind].bytes);
		sum.ns += atomic_load(&s->shard[i].of[kind].ns);
		sum.failed += atomic_load(&s->shard[i].of[kind].failed);
	}
	return sum;
}

int
stats_take_failure(struct stats *s, enum stats_kind *kind)
{
	uint32_t f = atomic_exchange(&s->failure, 0);

	*kind = (enum stats_kind)(f >> 16);
	return (int)(f & 0xffff);
}

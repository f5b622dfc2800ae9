/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What an export has done, and that a request failed.
 *
 * 1. Every request is counted once, when it is done, by its kind.
 * 2. Of failures that were not told yet the latest is kept, and no more.
 *
 * Counting is a few relaxed additions in the shard that the thread has in the
 * export's gate; nobody waits for anybody.
 */
#ifndef PLUGIN_STATS_H
#define PLUGIN_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tracking/gate.h"

enum stats_kind { STATS_READ, STATS_WRITE, STATS_FLUSH, STATS_UNMAP, STATS_N };

struct stats_sum {
	uint64_t ops, bytes, ns, failed;
};

/* Embedded, all zero at first.  Fields are stats.c's only. */
struct stats {
	struct {
		_Alignas(64) struct {
			_Atomic uint64_t ops, bytes, ns, failed;
		} of[STATS_N];
	} shard[GATE_SHARDS];
	_Atomic uint32_t failure; /* kind << 16 | errno value; 0: none */
};

/* For the beginning of a request, in nanoseconds. */
uint64_t stats_now(void);

/* Guest threads; inside the gate whose @ticket they have.  @os: how it ended,
 * 0 or an errno value.  True: the failure must be told (wake the link).
 */
bool stats_count(struct stats *s, unsigned ticket, enum stats_kind kind,
		 uint64_t bytes, uint64_t began, int os);

/* Any thread. */
struct stats_sum stats_sum(const struct stats *s, enum stats_kind kind);

/* Any thread: take the failure that was kept; 0: there is none. */
int stats_take_failure(struct stats *s, enum stats_kind *kind);

#endif

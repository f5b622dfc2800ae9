/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A cut: many nodes change their epoch and get their views at one instant.
 * Everything that can fail is done when the parts are prepared; the commit
 * closes all gates, waits, swaps pointers and opens them.  It never waits for
 * stillpointd while a gate is closed, and for guests' writes in flight no
 * longer than it was told to.
 *
 * Rules:
 * 1. A write that hangs when the cut is asked for holds up no other write, of
 *    its disk or another: gates close only when all writes of before have
 *    ended.
 *
 * Link thread only.
 */
#ifndef PLUGIN_CUT_H
#define PLUGIN_CUT_H

#include "node.h"

/* One node's part. */
struct cut_part {
	struct cut_part *next;
	struct node *node; /* borrowed; a node with a part is not closed */
	struct epoch *epoch; /* to open; reference owned, or NULL */
	uint64_t epoch_id;
	bool stop; /* record nothing from now on */
	struct attached *views; /* to attach; owned */
	uint64_t closed_ns; /* how long the gate was closed */
};

void cut_part_free(struct cut_part *p);
DEFINE_CLEANUP(struct cut_part, cut_part_free);

struct cut {
	uint64_t id;
	struct cut_part *parts; /* owned */
};

/* Free all parts. */
void cut_clear(struct cut *c);

/* Is there a part for @n? */
bool cut_has(const struct cut *c, const struct node *n);

/* How long gates were closed: bar i counts times below 2^i microseconds. */
#define CUT_BARS 24
struct cut_stats {
	uint64_t cuts, max_closed_ns;
	uint64_t bars[CUT_BARS];
};

/* All parts at one instant, or none.  Old epochs and the parts are freed.
 * Records in @stats.  False: writes in flight did not end within @ms; the
 * parts stay.
 */
bool cut_commit(struct cut *c, unsigned ms, struct cut_stats *stats,
		uint64_t *closed_ns, struct err *e) MUST_CHECK;

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * gate: what a write passes through, and what a cut closes for an instant.
 *
 * 1. While a gate is open, entering and leaving take one atomic addition each
 *    and no lock.
 * 2. When gate_wait_empty() has returned, no write is between enter and
 *    leave, and none gets in before gate_open().
 * 3. Gates of many nodes are closed first and waited for after that, so that
 *    they share one instant.
 * 4. What is inside is counted on one of two sides, and gate_turn() changes
 *    the side for those who come.  So one can wait for the writes of before
 *    while the gate is open.  This is only to learn whether some write hangs;
 *    rule 2 does not rely on it.
 *
 * Any thread.  One closer at a time for each gate.
 */
#ifndef TRACKING_GATE_H
#define TRACKING_GATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/mtx.h"

#define GATE_SHARDS 16

/* Embedded in a node.  Fields are gate.c's only. */
struct gate {
	struct {
		_Alignas(64) _Atomic uint32_t inside[2]; /* by side */
	} shard[GATE_SHARDS];
	_Alignas(64) _Atomic bool closed;
	_Atomic unsigned side; /* 0 or 1 */
	struct mtx lock; /* LOCK_GATE: sleepers of both kinds */
	pthread_cond_t changed;
};

void gate_init(struct gate *g);
void gate_destroy(struct gate *g);

/* A guest's write is about to touch the node.  Sleeps while the gate is
 * closed.  Returns a ticket for gate_leave.
 */
unsigned gate_enter(struct gate *g);
void gate_leave(struct gate *g, unsigned ticket);

/* Below GATE_SHARDS: few threads at a time have the same. */
static inline unsigned
gate_shard(unsigned ticket)
{
	return ticket / 2;
}

/* The gate may be open or closed.  It has turned: else the writes of before
 * would be counted with those that come.
 */
void gate_turn(struct gate *g);
/* Has every write left that entered before the last gate_turn? */
bool gate_has_turned(struct gate *g);

void gate_close(struct gate *g);
/* False: after @ms milliseconds some write was still inside. */
bool gate_wait_empty(struct gate *g, unsigned ms);
void gate_open(struct gate *g);

#endif

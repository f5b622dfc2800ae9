/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A list of ranges of the disk, in the order in which they were added.  A
 * range that continues the last one is joined to it.  Belongs to one thread,
 * or to whoever holds the lock of its owner.
 */
#ifndef STREAM_RANGES_H
#define STREAM_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum run_flags {
	RUN_ZERO = 1, /* reads as zeroes, known without reading */
	RUN_COUNTED = 2, /* was acknowledged before: is in the progress */
};

struct run {
	uint64_t off, len;
	unsigned flags;
};

struct ranges {
	struct run *v; /* owned */
	size_t n, room;
	size_t first; /* v[first] is the next that ranges_take looks at */
	uint64_t bytes;
};

void ranges_add(struct ranges *r, uint64_t off, uint64_t len, unsigned flags);

/* Take at most @max bytes from the front; false when there are none. */
bool ranges_take(struct ranges *r, uint64_t max, struct run *out);

/* Forget all ranges; keeps the memory for the next ones. */
void ranges_clear(struct ranges *r);
void ranges_destroy(struct ranges *r);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The speed limit of a stream.  A piece may go when the time has come that
 * the pieces before it have paid for; what was not used for longer than one
 * slice is lost, so that a pause is not followed by a burst.  The first piece
 * always goes.  Times are nanoseconds of the monotonic clock, speeds are
 * bytes per second.  Whoever uses it holds the stream's lock.
 */
#ifndef STREAM_PACE_H
#define STREAM_PACE_H

#include <stdint.h>

#define PACE_SLICE_NS UINT64_C(100000000)

struct pace {
	uint64_t speed; /* 0: no limit */
	uint64_t next; /* when the next piece may go */
};

/* Changes the limit; what is still to be paid is paid at the new speed. */
void pace_set(struct pace *p, uint64_t now, uint64_t speed);

/* How long the next piece has to wait; 0: go. */
uint64_t pace_wait(const struct pace *p, uint64_t now);

/* @bytes go now. */
void pace_charge(struct pace *p, uint64_t now, uint64_t bytes);

/* The largest piece that keeps to the limit within a slice, a multiple of
 * @unit and not less than it; at most @max.
 */
uint64_t pace_piece(const struct pace *p, uint64_t unit, uint64_t max);

#endif

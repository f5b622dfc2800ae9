/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How many pieces a lane keeps in flight.  More than the target can work on
 * only wait there: they make a cancel and a pause slower, wake the server's
 * threads for nothing, and hold buffers.  So the window follows the time that
 * answers take, as TCP Vegas does (Brakmo and Peterson, 1995): the shortest
 * time seen is what a piece takes when nothing waits; what the window holds
 * beyond that is a queue, and the window is moved until the queue is a few
 * pieces long.  A target far away gets many pieces, a slow one few.
 *
 * One window belongs to one connection and is used by one thread.  Times are
 * nanoseconds of the monotonic clock.
 */
#ifndef STREAM_WINDOW_H
#define STREAM_WINDOW_H

#include <stdint.h>

#define WINDOW_MIN   2
#define WINDOW_START 4

/* The queue, in pieces, that the window aims at. */
#define WINDOW_QUEUE_MIN 2
#define WINDOW_QUEUE_MAX 4

/* A shortest time that is older than this is forgotten: paths change. */
#define WINDOW_BASE_NS UINT64_C(10000000000)

struct window {
	unsigned size; /* pieces that may be in flight */
	unsigned max;
	uint64_t base; /* the shortest time of this period; 0: none yet */
	uint64_t last_base; /* of the period before; 0: none */
	uint64_t period_ends;
	unsigned answers; /* of this round */
	uint64_t sum; /* of their times */
	unsigned most; /* pieces in flight at once in this round */
};

/* @max: at least WINDOW_MIN. */
void window_init(struct window *w, unsigned max);

/* A piece was answered @took after it was sent, while @in_flight pieces
 * (itself among them) were.
 */
void window_answer(struct window *w, uint64_t now, uint64_t took,
		   unsigned in_flight);

#endif

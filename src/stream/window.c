/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream/window.h"

#include "base/bits.h"

void
window_init(struct window *w, unsigned max)
{
	*w = (struct window){ .size = WINDOW_START, .max = max };
	if (w->size > max)
		w->size = max;
}

static uint64_t
shortest(const struct window *w)
{
	if (w->base == 0 || w->last_base == 0)
		return max_u64(w->base, w->last_base);
	return min_u64(w->base, w->last_base);
}

static void
see(struct window *w, uint64_t now, uint64_t took)
{
	if (now >= w->period_ends) {
		w->last_base = w->base;
		w->base = 0;
		w->period_ends = now + WINDOW_BASE_NS;
	}
	if (w->base == 0 || took < w->base)
		w->base = took;
}

/* A round is over: as many answers as pieces fit the window. */
static void
adjust(struct window *w)
{
	uint64_t mean = w->sum / w->answers;
	uint64_t queue = w->size - w->size * shortest(w) / mean;

	if (queue > WINDOW_QUEUE_MAX)
		w->size -= (unsigned)((queue - WINDOW_QUEUE_MIN) / 2);
	else if (queue < WINDOW_QUEUE_MIN && w->most >= w->size)
		w->size++; /* and it was all used */
	if (w->size < WINDOW_MIN)
		w->size = WINDOW_MIN;
	if (w->size > w->max)
		w->size = w->max;
}

void
window_answer(struct window *w, uint64_t now, uint64_t took, unsigned in_flight)
{
	took = max_u64(took, 1);
	see(w, now, took);
	w->answers++;
	w->sum += took;
	if (in_flight > w->most)
		w->most = in_flight;
	if (w->answers < w->size)
		return;
	adjust(w);
	w->answers = 0;
	w->sum = 0;
	w->most = 0;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream/pace.h"

#include "base/bits.h"

#define SECOND UINT64_C(1000000000)

/* a * b / c without the product wrapping; ends at the largest number. */
static uint64_t
scale(uint64_t a, uint64_t b, uint64_t c)
{
	unsigned __int128 v = (unsigned __int128)a * b / c;

	return v > UINT64_MAX / 4 ? UINT64_MAX / 4 : (uint64_t)v;
}

void
pace_set(struct pace *p, uint64_t now, uint64_t speed)
{
	if (p->speed && speed && p->next > now)
		p->next = now + scale(p->next - now, p->speed, speed);
	else if (!speed)
		p->next = 0;
	p->speed = speed;
}

uint64_t
pace_wait(const struct pace *p, uint64_t now)
{
	return p->speed && p->next > now ? p->next - now : 0;
}

void
pace_charge(struct pace *p, uint64_t now, uint64_t bytes)
{
	uint64_t oldest = now > PACE_SLICE_NS ? now - PACE_SLICE_NS : 0;
	uint64_t from;

	if (!p->speed)
		return;
	/* the very first piece pays from its own moment */
	from = p->next ? max_u64(p->next, oldest) : now;
	p->next = from + scale(bytes, SECOND, p->speed);
}

uint64_t
pace_piece(const struct pace *p, uint64_t unit, uint64_t max)
{
	uint64_t slice = p->speed / (SECOND / PACE_SLICE_NS);

	if (!p->speed)
		return max;
	return min_u64(max, max_u64(unit, round_down(slice, unit)));
}

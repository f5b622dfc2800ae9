/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream/plan.h"

#include <string.h>

#include "base/bits.h"

/* A round of looking ends early when so much data was found: more runs would
 * only be old when their turn comes.
 */
#define LOOK_BYTES (256 * MiB)

/* Ask for so much at once, and so far ahead of the piece that is taken. */
#define AHEAD_STEP (1 * MiB)
#define AHEAD_SPAN (8 * MiB)

static void
found_add(struct plan *p, uint64_t off, uint64_t len, unsigned flags)
{
	struct run *last = p->nfound ? &p->found[p->nfound - 1] : NULL;

	if (last && last->off + last->len == off && last->flags == flags)
		last->len += len;
	else
		p->found[p->nfound++] = (struct run){ off, len, flags };
}

/* One run at p->at, by the image's own account.  An image that cannot say is
 * read, and the read will say what is wrong with it.
 */
static void
look_once(struct plan *p)
{
	uint64_t at = p->at, left = p->dirty_end - at, n = 0, end;
	bool zero = false;

	if (view_reader_extent(p->reader, at, left, &n, &zero) || n == 0 ||
	    n > left) {
		n = left;
		zero = false;
	}
	end = at + n;
	if (zero && end != p->dirty_end)
		end = round_down(end, p->align);
	if (zero && end != p->dirty_end && end < at + PLAN_MIN_ZERO) {
		/* too short for a request of its own: read it */
		zero = false;
		end = max_u64(end, at + p->align);
	}
	if (!zero)
		end = min_u64(round_up(end, p->align), p->dirty_end);
	found_add(p, at, end - at, zero ? RUN_ZERO : 0);
	p->at = end;
}

void
plan_look(struct plan *p)
{
	uint64_t data = 0, before;

	p->nfound = 0;
	while (p->nfound < PLAN_RUNS && data < LOOK_BYTES) {
		if (p->at >= p->dirty_end) {
			uint64_t start, end;

			if (p->at >= p->limit ||
			    !dirty_next(&p->copy, p->at, &start, &end) ||
			    start >= p->limit) {
				p->at = p->limit;
				return;
			}
			p->at = start;
			p->dirty_end = min_u64(end, p->limit);
		}
		before = p->at;
		look_once(p);
		if (!(p->found[p->nfound - 1].flags & RUN_ZERO))
			data += p->at - before;
	}
}

void
plan_publish(struct plan *p)
{
	memcpy(p->run, p->found, p->nfound * sizeof p->run[0]);
	p->first = 0;
	p->n = p->nfound;
	p->complete = p->at >= p->limit;
	p->looking = false;
}

bool
plan_take(struct plan *p, uint64_t max_data, uint64_t max_zero, struct run *out)
{
	struct run *r = &p->run[p->first];

	if (p->first == p->n)
		return false;
	*out = *r;
	if (r->flags & RUN_ZERO)
		out->len = min_u64(r->len, max_zero);
	else
		out->len = min_u64(r->len, max_data - r->off % max_data);
	r->off += out->len;
	r->len -= out->len;
	if (r->len == 0)
		p->first++;
	return true;
}

/* The first data beyond what was asked for, within the span. */
bool
plan_ahead(struct plan *p, const struct run *taken, struct run *out)
{
	uint64_t from = max_u64(p->ahead, taken->off + taken->len);
	uint64_t to = taken->off + AHEAD_SPAN;

	for (unsigned i = p->first; i < p->n; i++) {
		const struct run *r = &p->run[i];
		uint64_t end = r->off + r->len, start = max_u64(from, r->off);

		if (start >= to)
			return false;
		if (r->flags & RUN_ZERO || end <= start)
			continue;
		end = min_u64(end, start + AHEAD_STEP);
		/* do not ask for crumbs while there is more to come */
		if (end > to)
			return false;
		*out = (struct run){ start, end - start, 0 };
		p->ahead = end;
		return true;
	}
	return false;
}

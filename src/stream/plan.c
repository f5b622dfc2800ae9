/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream/plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

/* A round of looking ends early when so much data was found: more runs would
 * only be old when their turn comes.
 */
#define LOOK_BYTES (256 * MiB)

/* Ask for so much at once, and so far ahead of the piece that is taken. */
#define AHEAD_STEP (1 * MiB)
#define AHEAD_SPAN (8 * MiB)

/* Which units of the disk were handed out before: each is copied once.  The
 * granules of a unit become DONE when it was flushed, and from then on the
 * image may change under them; a granule that was just being saved stays SAVED
 * though, and must not lead to a second copy of its unit.
 */
struct taken {
	uint64_t unit;
	uint64_t word[];
};

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
	uint64_t until =
		p->top ? min_u64(p->dirty_end, p->here_end) : p->dirty_end;
	uint64_t at = p->at, left = until - at, n = 0, end;
	bool zero = false;

	if (view_reader_extent(p->reader, at, left, &n, &zero) || n == 0 ||
	    n > left) {
		n = left;
		zero = false;
	}
	end = at + n;
	if (zero && end != until)
		end = round_down(end, p->align);
	if (zero && end != until && end < at + PLAN_MIN_ZERO) {
		/* too short for a request of its own: read it */
		zero = false;
		end = max_u64(end, at + p->align);
	}
	if (!zero)
		end = min_u64(round_up(end, p->align), until);
	found_add(p, at, end - at, zero ? RUN_ZERO : 0);
	p->at = end;
}

/* With @top: go past units of which the top layer has nothing, and find how
 * far those behind them reach.  An image that cannot say is copied.
 */
static void
pass_lower_layers(struct plan *p)
{
	uint64_t unit = p->copy.unit, n;
	bool here = true;

	while (p->at < p->dirty_end && p->at >= p->here_end) {
		uint64_t start = round_down(p->at, unit), end = start;

		if (view_reader_layer(p->reader, p->at, p->dirty_end - p->at,
				      &n, &here) ||
		    n == 0)
			here = true;
		else
			end = p->at + n;
		if (!here && end < p->dirty_end)
			end = round_down(end, unit);
		if (!here && end > p->at) {
			p->left_out += div_up(end - start, unit);
			p->at = end;
		} else if (here) {
			p->here_end =
				max_u64(round_up(end, unit), start + unit);
		} else {
			/* something of this unit is further on */
			p->here_end = start + unit;
		}
	}
}

static bool
take_unit(struct taken *t, uint64_t n)
{
	uint64_t bit = UINT64_C(1) << n % 64;

	if (t->word[n / 64] & bit)
		return false;
	t->word[n / 64] |= bit;
	return true;
}

/* The next units in which something is SAVED. */
static void
follow_look(struct plan *p)
{
	uint64_t unit = p->taken->unit;

	while (p->nfound < PLAN_RUNS) {
		uint64_t at = view_next_saved(p->reader->view, p->at, p->limit);
		uint64_t start = round_down(at, unit);

		if (at >= p->limit) {
			p->at = p->limit;
			return;
		}
		p->at = min_u64(start + unit, p->limit);
		if (take_unit(p->taken, at / unit))
			found_add(p, start, p->at - start, 0);
	}
}

bool
plan_follow(struct plan *p, uint64_t unit)
{
	uint64_t n = div_up(div_up(p->limit, unit), 64);

	/* a page of it is memory only when something near was overwritten */
	p->taken = calloc(1, sizeof *p->taken + n * sizeof p->taken->word[0]);
	if (!p->taken)
		return false;
	p->taken->unit = unit;
	plan_rewind(p);
	return true;
}

void
plan_destroy(struct plan *p)
{
	free(p->taken);
}

void
plan_rewind(struct plan *p)
{
	p->at = 0;
	p->saves = view_saves(p->reader->view);
}

bool
plan_round_is_over(const struct plan *p)
{
	return p->at >= p->limit;
}

bool
plan_has_news(const struct plan *p)
{
	return view_saves(p->reader->view) != p->saves;
}

void
plan_look(struct plan *p)
{
	uint64_t data = 0, before;

	p->nfound = 0;
	p->left_out = 0;
	if (p->taken) {
		follow_look(p);
		return;
	}
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
		if (p->top)
			pass_lower_layers(p);
		if (p->at >= p->dirty_end)
			continue;
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
	p->complete = !p->taken && p->at >= p->limit;
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

/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream/ranges.h"

#include <assert.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/mem.h"

void
ranges_add(struct ranges *r, uint64_t off, uint64_t len, unsigned flags)
{
	struct run *last = r->n > r->first ? &r->v[r->n - 1] : NULL;

	r->bytes += len;
	if (last && last->off + last->len == off && last->flags == flags) {
		last->len += len;
		return;
	}
	if (r->n == r->room) {
		r->room = r->room ? r->room * 2 : 16;
		r->v = xrealloc(r->v, r->room, sizeof r->v[0]);
	}
	assert(r->v);
	r->v[r->n++] = (struct run){ .off = off, .len = len, .flags = flags };
}

bool
ranges_take(struct ranges *r, uint64_t max, struct run *out)
{
	struct run *from;

	if (r->first == r->n)
		return false;
	assert(r->v);
	from = &r->v[r->first];
	*out = *from;
	out->len = min_u64(out->len, max);
	from->off += out->len;
	from->len -= out->len;
	r->bytes -= out->len;
	if (from->len == 0 && ++r->first == r->n)
		r->first = r->n = 0;
	return true;
}

void
ranges_clear(struct ranges *r)
{
	r->first = r->n = 0;
	r->bytes = 0;
}

void
ranges_destroy(struct ranges *r)
{
	free(r->v);
	*r = (struct ranges){ .v = NULL };
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * See history.h.  Each sector has the list of its requests, oldest first;
 * those that nobody can ask about any more are dropped when it grows.
 */
#include "history.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEQ_SHIFT  28
#define DISK_SHIFT 24

struct op {
	uint64_t seq; /* 0: it zeroes */
	uint64_t first, n;
	int64_t start;
	int64_t done; /* not done any more after this */
	int64_t sure; /* done by then, INT64_MAX: perhaps never */
	bool lost;
	size_t refs;
};

struct list {
	struct op **v;
	size_t n, room;
};

struct history {
	unsigned disk;
	uint64_t sectors;
	uint64_t *base; /* words before all requests */
	struct list *at; /* one per sector */
	int64_t horizon;
};

/* No image of the set was taken in [from, to]. */
struct gap {
	int64_t from, to;
	unsigned disk;
	uint64_t sector, word;
};

/* A value's time: it may be there in [from, to). */
struct span {
	int64_t from, to;
};

enum { MAX_SPANS = 2048 };

static void *
must(void *p)
{
	if (!p) {
		fputs("out of memory\n", stderr);
		exit(1);
	}
	return p;
}

static void
grow(void *vp, size_t n, size_t *room, size_t size)
{
	void **v = vp;

	if (n < *room)
		return;
	*room = *room ? *room * 2 : 8;
	*v = must(realloc(*v, *room * size));
}

uint64_t
history_word(uint64_t seq, unsigned disk, uint64_t sector)
{
	return seq << SEQ_SHIFT | (uint64_t)disk << DISK_SHIFT | sector;
}

static bool
word_of(const uint8_t *data, uint64_t *word)
{
	memcpy(word, data, sizeof *word);
	return memcmp(data, data + sizeof *word, SECTOR - sizeof *word) == 0;
}

struct history *
history_new(unsigned disk, uint64_t sectors, const uint8_t *image)
{
	struct history *h = must(calloc(1, sizeof *h));

	h->disk = disk;
	h->sectors = sectors;
	h->base = must(calloc(sectors, sizeof h->base[0]));
	h->at = must(calloc(sectors, sizeof h->at[0]));
	h->horizon = INT64_MIN;
	for (uint64_t i = 0; i < sectors; i++)
		if (!word_of(image + i * SECTOR, &h->base[i])) {
			fprintf(stderr,
				"disk %u: sector %" PRIu64
				" does not repeat one word\n",
				disk, i);
			exit(1);
		}
	return h;
}

static void
op_unref(struct op *o)
{
	if (--o->refs == 0)
		free(o);
}

void
history_free(struct history *h)
{
	for (uint64_t i = 0; i < h->sectors; i++) {
		for (size_t k = 0; k < h->at[i].n; k++)
			op_unref(h->at[i].v[k]);
		free(h->at[i].v);
	}
	free(h->at);
	free(h->base);
	free(h);
}

/* The latest request that was certainly done by @when: what was answered
 * before it was sent is gone.  INT64_MIN when there is none.
 */
static int64_t
newest_start(const struct list *l, int64_t when)
{
	int64_t newest = INT64_MIN;

	for (size_t i = 0; i < l->n; i++)
		if (l->v[i]->sure <= when && l->v[i]->start > newest)
			newest = l->v[i]->start;
	return newest;
}

static void
compact(struct list *l, int64_t horizon)
{
	int64_t newest = newest_start(l, horizon);
	size_t kept = 0;

	for (size_t i = 0; i < l->n; i++) {
		if (l->v[i]->done < newest)
			op_unref(l->v[i]);
		else
			l->v[kept++] = l->v[i];
	}
	l->n = kept;
}

struct op *
history_begin(struct history *h, uint64_t seq, uint64_t first, uint64_t n,
	      int64_t now)
{
	struct op *o = must(calloc(1, sizeof *o));

	o->seq = seq;
	o->first = first;
	o->n = n;
	o->start = now;
	o->done = o->sure = INT64_MAX;
	o->refs = n + 1; /* one for the caller */
	for (uint64_t i = first; i < first + n; i++) {
		struct list *l = &h->at[i];

		if (l->n == l->room)
			compact(l, h->horizon);
		grow(&l->v, l->n, &l->room, sizeof l->v[0]);
		l->v[l->n++] = o;
	}
	return o;
}

void
history_end(struct history *h, struct op *o, int64_t now)
{
	(void)h;
	o->done = o->sure = now;
	op_unref(o);
}

void
history_lost(struct history *h, struct op *o, int64_t now)
{
	(void)h;
	o->done = now;
	o->lost = true;
	op_unref(o);
}

void
history_set_horizon(struct history *h, int64_t when)
{
	h->horizon = when;
}

/* --- gaps ------------------------------------------------------------------- */

void
gaps_init(struct gaps *g, int64_t from, int64_t to)
{
	*g = (struct gaps){ .from = from, .to = to };
}

void
gaps_clear(struct gaps *g)
{
	free(g->v);
	*g = (struct gaps){ 0 };
}

static void
gap_add(struct gaps *g, struct gap gap)
{
	if (gap.from < g->from)
		gap.from = g->from;
	if (gap.to > g->to)
		gap.to = g->to;
	if (gap.from > gap.to)
		return;
	grow(&g->v, g->n, &g->room, sizeof g->v[0]);
	g->v[g->n++] = gap;
}

static int
gap_order(const void *a, const void *b)
{
	const struct gap *x = a, *y = b;

	return x->from < y->from ? -1 : x->from > y->from;
}

static void
tell_gap(char *text, size_t room, const struct gaps *g, const struct gap *p)
{
	snprintf(text, room,
		 "disk %u sector %" PRIu64 " (write %" PRIu64
		 ") not from %+.6f to %+.6f s",
		 p->disk, p->sector, p->word >> SEQ_SHIFT,
		 (double)(p->from - g->from) / 1e9,
		 (double)(p->to - g->from) / 1e9);
}

bool
gaps_instant(struct gaps *g, int64_t *when, char text[HISTORY_TEXT])
{
	size_t used = 0;
	int64_t at = g->from;

	if (g->n)
		qsort(g->v, g->n, sizeof g->v[0], gap_order);
	snprintf(text, HISTORY_TEXT, "no instant fits all sectors:");
	for (size_t i = 0; i < g->n && g->v[i].from <= at; i++) {
		if (g->v[i].to < at)
			continue;
		used = strlen(text);
		if (used < HISTORY_TEXT / 2) {
			text[used] = ' ';
			tell_gap(text + used + 1, HISTORY_TEXT - used - 1, g,
				 &g->v[i]);
		}
		if (g->v[i].to >= g->to)
			return false;
		at = g->v[i].to + 1;
	}
	*when = at;
	return true;
}

/* --- the rules -------------------------------------------------------------- */

/* Until when a value stays that was not written any more after @done. */
static int64_t
end_of(const struct list *l, int64_t done)
{
	int64_t end = INT64_MAX;

	for (size_t i = 0; i < l->n; i++)
		if (l->v[i]->start > done && l->v[i]->sure < end)
			end = l->v[i]->sure;
	return end;
}

static uint64_t
value_of(const struct history *h, const struct op *o, uint64_t sector)
{
	return o->seq ? history_word(o->seq, h->disk, sector) : 0;
}

/* When @sector may hold @word, as far as that touches [from, to].  @latest
 * becomes the latest time at which a request for this value was answered.
 */
static size_t
spans_of(const struct history *h, uint64_t sector, uint64_t word,
	 const struct gaps *g, struct span v[MAX_SPANS], int64_t *latest)
{
	const struct list *l = &h->at[sector];
	int64_t newest = newest_start(l, g->from);
	size_t n = 0;

	*latest = INT64_MIN;
	if (newest == INT64_MIN && word == h->base[sector])
		v[n++] = (struct span){ INT64_MIN, end_of(l, INT64_MIN) };
	for (size_t i = 0; i < l->n && n < MAX_SPANS; i++) {
		const struct op *o = l->v[i];

		if (o->done < newest || o->start > g->to ||
		    value_of(h, o, sector) != word)
			continue;
		if (o->done > *latest)
			*latest = o->done;
		v[n++] = (struct span){ o->start, end_of(l, o->done) };
	}
	return n;
}

static int
span_order(const void *a, const void *b)
{
	const struct span *x = a, *y = b;

	return x->from < y->from ? -1 : x->from > y->from;
}

/* Add the times that no span covers. */
static void
add_rest(struct gaps *g, struct gap gap, struct span *v, size_t n)
{
	int64_t at = g->from;

	if (n > 1)
		qsort(v, n, sizeof v[0], span_order);
	for (size_t i = 0; i < n && at <= g->to; i++) {
		if (v[i].to <= at)
			continue;
		gap.from = at;
		gap.to = v[i].from - (v[i].from > INT64_MIN);
		if (gap.to >= at)
			gap_add(g, gap);
		at = v[i].to;
	}
	if (at <= g->to) {
		gap.from = at;
		gap.to = g->to;
		gap_add(g, gap);
	}
}

static void
tell_list(const struct history *h, uint64_t sector, const struct gaps *g,
	  char *text)
{
	const struct list *l = &h->at[sector];
	size_t used = strlen(text), from = l->n > 8 ? l->n - 8 : 0;

	for (size_t i = from; i < l->n && used < HISTORY_TEXT; i++) {
		const struct op *o = l->v[i];

		snprintf(text + used, HISTORY_TEXT - used,
			 "%s%s%" PRIu64 " [%" PRIu64 "+%" PRIu64
			 "] sent %+.6f answered %+.6f%s",
			 i == from ? "; its last requests: " : ", ",
			 o->seq ? "write " : "zero ", o->seq, o->first, o->n,
			 (double)(o->start - g->from) / 1e9,
			 o->done == INT64_MAX
				 ? 0.0
				 : (double)(o->done - g->from) / 1e9,
			 o->lost                ? " lost"
			 : o->done == INT64_MAX ? " (not yet)"
						: "");
		used = strlen(text);
	}
}

static bool
check_sector(const struct history *h, uint64_t sector, uint64_t word,
	     struct gaps *g, char text[HISTORY_TEXT])
{
	struct span v[MAX_SPANS];
	int64_t latest;
	size_t n = spans_of(h, sector, word, g, v, &latest);
	size_t before = g->n;

	add_rest(
		g,
		(struct gap){ .disk = h->disk, .sector = sector, .word = word },
		v, n);
	if (g->n == before || g->v[before].from > g->from ||
	    g->v[before].to < g->to)
		return true;
	snprintf(text, HISTORY_TEXT,
		 "disk %u sector %" PRIu64 " holds word %#" PRIx64
		 " (write %" PRIu64 "), which cannot be there from 0 to "
		 "%+.6f s",
		 h->disk, sector, word, word >> SEQ_SHIFT,
		 (double)(g->to - g->from) / 1e9);
	tell_list(h, sector, g, text);
	return false;
}

static const struct op *
writer_of(const struct history *h, uint64_t sector, uint64_t word)
{
	const struct list *l = &h->at[sector];

	for (size_t i = l->n; word && i--;)
		if (value_of(h, l->v[i], sector) == word)
			return l->v[i];
	return NULL;
}

/* Second rule for the write @o, which @data shows in some sector. */
static bool
check_whole(const struct history *h, const struct op *o, const uint8_t *data,
	    uint64_t first, const struct gaps *g, char text[HISTORY_TEXT])
{
	struct span v[MAX_SPANS];
	int64_t latest;
	uint64_t word;

	for (uint64_t i = o->first; i < o->first + o->n; i++) {
		(void)word_of(data + (i - first) * SECTOR, &word);
		(void)spans_of(h, i, word, g, v, &latest);
		if (latest >= o->start)
			continue;
		snprintf(text, HISTORY_TEXT,
			 "disk %u: write %" PRIu64 " of [%" PRIu64 "+%" PRIu64
			 "] is there in part only: sector %" PRIu64
			 " holds write %" PRIu64 ", answered before",
			 h->disk, o->seq, o->first, o->n, i, word >> SEQ_SHIFT);
		tell_list(h, i, g, text);
		return false;
	}
	return true;
}

/* Was a request for @sector under way at some time of @g? */
static bool
was_busy(const struct history *h, uint64_t sector, const struct gaps *g)
{
	const struct list *l = &h->at[sector];

	for (size_t i = 0; i < l->n; i++)
		if (l->v[i]->start <= g->to && l->v[i]->done >= g->from)
			return true;
	return false;
}

bool
history_check(const struct history *h, const uint8_t *data, uint64_t first,
	      uint64_t n, bool whole, struct gaps *g, char text[HISTORY_TEXT])
{
	const struct op *o, *last = NULL;
	uint64_t word;

	for (uint64_t i = first; i < first + n; i++) {
		if (!word_of(data + (i - first) * SECTOR, &word)) {
			if (!whole && was_busy(h, i, g))
				continue;
			snprintf(text, HISTORY_TEXT,
				 "disk %u: sector %" PRIu64 " is torn", h->disk,
				 i);
			return false;
		}
		if (!check_sector(h, i, word, g, text))
			return false;
		o = whole ? writer_of(h, i, word) : NULL;
		/* one that is not answered may turn out to be lost */
		if (!o || o == last || o->lost || o->done == INT64_MAX)
			continue;
		last = o;
		if (!check_whole(h, o, data, first, g, text))
			return false;
	}
	return true;
}

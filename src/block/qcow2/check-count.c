/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Counters in chunks, which exist where clusters are in use.  When there are
 * as many as memory allows, the highest one makes room for a lower one and is
 * left, with all above it, to the next pass.  So a pass covers the lowest
 * chunks in use, however sparse the file is.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "block/qcow2/check-priv.h"

int
qcow2_counts_init(struct qcow2_counts *c, size_t memory)
{
	memset(c, 0, sizeof *c);
	c->max = memory / sizeof(struct qcow2_chunk);
	if (c->max < 2)
		c->max = 2;
	c->chunks = calloc(c->max, sizeof(struct qcow2_chunk *));
	return c->chunks ? 0 : ENOMEM;
}

void
qcow2_counts_destroy(struct qcow2_counts *c)
{
	for (size_t i = 0; i < c->n; i++)
		free(c->chunks[i]);
	free(c->chunks);
	memset(c, 0, sizeof *c);
}

void
qcow2_counts_begin(struct qcow2_counts *c, uint64_t first)
{
	for (size_t i = 0; i < c->n; i++)
		free(c->chunks[i]);
	c->n = 0;
	c->last = NULL;
	c->first = first;
	c->limit = UINT64_MAX;
}

/* The index of the first chunk that is not below @number. */
static size_t
find(const struct qcow2_counts *c, uint64_t number)
{
	size_t lo = 0, hi = c->n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (c->chunks[mid]->number < number)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct qcow2_chunk *
lookup(struct qcow2_counts *c, uint64_t number)
{
	size_t at;

	if (c->last && c->last->number == number)
		return c->last;
	at = find(c, number);
	if (at == c->n || c->chunks[at]->number != number)
		return NULL;
	c->last = c->chunks[at];
	return c->last;
}

/* Give up the highest chunk. */
static struct qcow2_chunk *
evict(struct qcow2_counts *c)
{
	struct qcow2_chunk *k = c->chunks[--c->n];

	c->chunks[c->n] = NULL;
	c->limit = k->number * QCOW2_CHUNK;
	c->last = NULL;
	return k;
}

/* A new chunk, or NULL with *@r 0 when it is left to the next pass. */
static struct qcow2_chunk *
insert(struct qcow2_counts *c, uint64_t number, int *r)
{
	struct qcow2_chunk *k =
		c->n < c->max ? malloc(sizeof(struct qcow2_chunk)) : NULL;
	size_t at;

	if (!k && !c->n) {
		*r = ENOMEM;
		return NULL;
	}
	if (!k && c->chunks[c->n - 1]->number < number) {
		c->limit = number * QCOW2_CHUNK;
		return NULL;
	}
	if (!k)
		k = evict(c);
	memset(k, 0, sizeof *k);
	k->number = number;
	at = find(c, number);
	memmove(&c->chunks[at + 1], &c->chunks[at],
		(c->n - at) * sizeof(struct qcow2_chunk *));
	c->chunks[at] = k;
	c->n++;
	c->last = k;
	return k;
}

static void
add_users(uint32_t *cell, uint32_t use, uint32_t times)
{
	uint32_t users = *cell & QCOW2_USERS_MAX;

	users += times < QCOW2_USERS_MAX - users ? times
						 : QCOW2_USERS_MAX - users;
	*cell = (*cell & QCOW2_USES) | use | users;
}

int
qcow2_counts_add(struct qcow2_counts *c, uint64_t cluster, uint64_t n,
		 uint32_t use, uint32_t times)
{
	struct qcow2_chunk *k;
	int r = 0;

	for (; n; cluster++, n--) {
		if (cluster < c->first || cluster >= c->limit)
			continue;
		k = lookup(c, cluster / QCOW2_CHUNK);
		if (!k)
			k = insert(c, cluster / QCOW2_CHUNK, &r);
		if (r)
			return r;
		if (k)
			add_users(&k->cell[cluster % QCOW2_CHUNK], use, times);
	}
	return 0;
}

uint32_t
qcow2_counts_get(struct qcow2_counts *c, uint64_t cluster)
{
	struct qcow2_chunk *k = lookup(c, cluster / QCOW2_CHUNK);

	return k ? k->cell[cluster % QCOW2_CHUNK] : 0;
}

bool
qcow2_counts_any(const struct qcow2_counts *c, uint64_t cluster, uint64_t n)
{
	size_t at = find(c, cluster / QCOW2_CHUNK);

	return at < c->n &&
	       c->chunks[at]->number <= (cluster + n - 1) / QCOW2_CHUNK;
}

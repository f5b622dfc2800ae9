/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/outq.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_MIN 4096

struct outq_chunk {
	struct outq_chunk *next;
	size_t len, cap;
	char data[];
};

void
outq_destroy(struct outq *q)
{
	outq_consume(q, q->size);
}

static struct outq_chunk *
add_chunk(struct outq *q, size_t n)
{
	size_t cap = n > CHUNK_MIN ? n : CHUNK_MIN;
	struct outq_chunk *c = malloc(sizeof *c + cap);

	if (!c)
		return NULL;
	c->next = NULL;
	c->len = 0;
	c->cap = cap;
	if (q->tail)
		q->tail->next = c;
	else
		q->head = c;
	q->tail = c;
	return c;
}

bool
outq_append(struct outq *q, const void *p, size_t n)
{
	struct outq_chunk *c = q->tail;
	size_t room = c ? c->cap - c->len : 0;
	size_t first = n < room ? n : room;

	if (n > q->max || q->size > q->max - n)
		return false;
	if (n > first && !add_chunk(q, n - first))
		return false;
	if (first) {
		memcpy(c->data + c->len, p, first);
		c->len += first;
	}
	if (n > first) {
		memcpy(q->tail->data, (const char *)p + first, n - first);
		q->tail->len = n - first;
	}
	q->size += n;
	return true;
}

size_t
outq_peek(const struct outq *q, struct iovec *v, size_t max)
{
	size_t n = 0, at = q->at;

	for (struct outq_chunk *c = q->head; c && n < max; c = c->next) {
		v[n].iov_base = c->data + at;
		v[n].iov_len = c->len - at;
		at = 0;
		n++;
	}
	return n;
}

void
outq_consume(struct outq *q, size_t n)
{
	assert(n <= q->size);
	q->size -= n;
	while (n) {
		struct outq_chunk *c = q->head;
		size_t have;

		assert(c); /* else @size was wrong */
		have = c->len - q->at;
		if (n < have) {
			q->at += n;
			return;
		}
		n -= have;
		q->at = 0;
		q->head = c->next;
		if (!q->head)
			q->tail = NULL;
		free(c);
	}
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bytes that wait for a client that reads slowly: a row of chunks, given back
 * to the system as they are sent, so memory follows what waits.  Loop.
 */
#ifndef DAEMON_OUTQ_H
#define DAEMON_OUTQ_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/uio.h>

#include "base/mem.h"

struct outq_chunk;

struct outq {
	struct outq_chunk *head, *tail; /* owned; NULL: empty */
	size_t at; /* bytes of @head that were sent */
	size_t size; /* bytes that wait */
	size_t max;
};

/* All zero but for @max is an empty queue. */
static inline void
outq_init(struct outq *q, size_t max)
{
	*q = (struct outq){ .max = max };
}

void outq_destroy(struct outq *q);

/* False, with nothing added: out of memory, or more than @max would wait. */
bool outq_append(struct outq *q, const void *p, size_t n) MUST_CHECK;

/* Describe what is first in line; returns how many of @v were filled. */
size_t outq_peek(const struct outq *q, struct iovec *v, size_t max);

/* The first @n bytes were sent. */
void outq_consume(struct outq *q, size_t n);

#endif

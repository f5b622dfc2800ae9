/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The buffers of all streams of the process: one pool with one budget, so
 * that sixty-four streams need no more memory than one.  A stream that has
 * none always gets one, beyond the budget if need be, so that every stream
 * goes on.  Any thread.
 */
#ifndef STREAM_BUFFERS_H
#define STREAM_BUFFERS_H

#include <stdbool.h>
#include <stddef.h>

#define BUFFER_SIZE    ((size_t)256 << 10)
#define BUFFERS_BUDGET ((size_t)24 << 20)

/* What one stream has.  Embedded in it; only buffers.c looks inside. */
struct buffers_share {
	unsigned held;
};

/* Somebody who was told to wait.  @wake runs once, in any thread, with a
 * lock held (LOCK_BUFFERS): it may only post to a loop.
 */
struct buffers_waiter {
	void (*wake)(struct buffers_waiter *w);
	struct buffers_share *share; /* borrowed while waiting */
	struct buffers_waiter *next;
	bool waiting;
};

/* A stream begins (ends): without streams the pool holds no memory. */
void buffers_attach(struct buffers_share *s);
void buffers_detach(struct buffers_share *s);

/* BUFFER_SIZE bytes, aligned to pages; or NULL: @w is woken when it is worth
 * another try.
 */
void *buffers_get(struct buffers_share *s, struct buffers_waiter *w);
void buffers_put(struct buffers_share *s, void *buf);

/* @w is not woken after this. */
void buffers_forget(struct buffers_waiter *w);

/* For tests: how many there are, in use or kept. */
unsigned buffers_count(void);

#endif

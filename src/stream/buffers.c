/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream/buffers.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/mem.h"
#include "base/mtx.h"

#define BUDGET_BUFFERS (BUFFERS_BUDGET / BUFFER_SIZE)

/* A buffer that nobody uses keeps the list in its first bytes. */
struct spare {
	struct spare *next;
};

static struct {
	pthread_once_t once;
	struct mtx lock; /* LOCK_BUFFERS; guards all below */
	unsigned streams;
	unsigned used, kept;
	struct spare *spares; /* owned; the last that was put comes first, it
			       * is in some cache */
	struct buffers_waiter *first, **last;
} pool = { .once = PTHREAD_ONCE_INIT };

static void
init(void)
{
	mtx_init(&pool.lock, LOCK_BUFFERS);
	pool.last = &pool.first;
}

static void
drop_spares_locked(void)
{
	while (pool.spares) {
		struct spare *s = pool.spares;

		pool.spares = s->next;
		pool.kept--;
		(void)munmap(s, BUFFER_SIZE);
	}
}

void
buffers_attach(struct buffers_share *s)
{
	(void)pthread_once(&pool.once, init);
	s->held = 0;
	mtx_lock(&pool.lock);
	pool.streams++;
	mtx_unlock(&pool.lock);
}

void
buffers_detach(struct buffers_share *s)
{
	mtx_lock(&pool.lock);
	assert(s->held == 0 && pool.streams > 0);
	if (--pool.streams == 0)
		drop_spares_locked();
	mtx_unlock(&pool.lock);
}

static void
wait_locked(struct buffers_share *s, struct buffers_waiter *w)
{
	if (w->waiting)
		return;
	w->waiting = true;
	w->share = s;
	w->next = NULL;
	*pool.last = w;
	pool.last = &w->next;
}

static void
unlink_locked(struct buffers_waiter *w)
{
	struct buffers_waiter **p = &pool.first;

	while (*p != w)
		p = &(*p)->next;
	*p = w->next;
	if (pool.last == &w->next)
		pool.last = p;
	w->waiting = false;
}

static void *
map_one(void)
{
	void *p = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* The size is ours, and a stream without any buffer could never go on. */
static void *
new_buffer_locked(bool must)
{
	void *p = map_one();

	assert(p || !must);
	return p;
}

void *
buffers_get(struct buffers_share *s, struct buffers_waiter *w)
{
	void *p = NULL;

	mtx_lock(&pool.lock);
	if (s->held == 0 || pool.used < BUDGET_BUFFERS) {
		if (pool.spares) {
			p = pool.spares;
			pool.spares = pool.spares->next;
			pool.kept--;
		} else {
			p = new_buffer_locked(s->held == 0);
		}
	}
	if (p) {
		s->held++;
		pool.used++;
	} else {
		wait_locked(s, w);
	}
	mtx_unlock(&pool.lock);
	return p;
}

/* One buffer more: who can have it?  All streams that have none may try; of
 * the others the one that waits longest.
 */
static void
wake_some_locked(void)
{
	struct buffers_waiter *w, *next;

	for (w = pool.first; w; w = next) {
		next = w->next;
		if (w->share->held > 0)
			continue;
		unlink_locked(w);
		w->wake(w);
	}
	w = pool.first;
	if (w && pool.used < BUDGET_BUFFERS) {
		unlink_locked(w);
		w->wake(w);
	}
}

void
buffers_put(struct buffers_share *s, void *buf)
{
	struct spare *sp = buf;

	mtx_lock(&pool.lock);
	assert(s->held > 0);
	s->held--;
	pool.used--;
	if (pool.used + pool.kept < BUDGET_BUFFERS) {
		sp->next = pool.spares;
		pool.spares = sp;
		pool.kept++;
	} else {
		(void)munmap(buf, BUFFER_SIZE);
	}
	wake_some_locked();
	mtx_unlock(&pool.lock);
}

void
buffers_forget(struct buffers_waiter *w)
{
	mtx_lock(&pool.lock);
	if (w->waiting)
		unlink_locked(w);
	mtx_unlock(&pool.lock);
}

unsigned
buffers_count(void)
{
	unsigned n;

	(void)pthread_once(&pool.once, init);
	mtx_lock(&pool.lock);
	n = pool.used + pool.kept;
	mtx_unlock(&pool.lock);
	return n;
}

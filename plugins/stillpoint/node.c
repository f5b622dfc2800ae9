/* SPDX-License-Identifier: BSD-3-Clause */
#include "node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "block/throttle.h"

#include "base/bits.h"
#include "base/park.h"

void
attached_free(struct attached *a)
{
	if (a->cbw)
		cbw_free(a->cbw);
	free(a);
}

struct node *
node_new(const char *name, struct block *image)
{
	struct node *n = aligned_alloc(_Alignof(struct node), sizeof *n);

	if (!n)
		return NULL;
	memset(n, 0, sizeof *n);
	n->name = strdup(name);
	if (!n->name) {
		free(n);
		return NULL;
	}
	n->image = image;
	n->throttled = block_admit_outside(image);
	gate_init(&n->gate);
	return n;
}

void
node_free(struct node *n)
{
	struct attached *a;

	while ((a = n->views)) { /* the image holds on: rule 7 */
		n->views = a->next;
		attached_free(a);
	}
	if (n->epoch)
		epoch_unref(n->epoch);
	block_free(n->image);
	gate_destroy(&n->gate);
	free(n->name);
	free(n);
}

void
node_attach(struct node *n, struct attached *views)
{
	struct attached **tail = &n->views;

	for (const struct attached *a = views; a; a = a->next)
		block_hold(n->image);
	while (*tail)
		tail = &(*tail)->next;
	*tail = views;
}

void
node_detach(struct node *n, struct attached *a)
{
	struct attached **p = &n->views;

	while (*p != a)
		p = &(*p)->next;
	*p = a->next;
	block_release(n->image);
}

/* --- views that go ---------------------------------------------------------- */

static uint64_t
now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* A write that began before it was given up may be inside, and a copy that no
 * write waits for any more may outlive it.
 */
static bool
try_detach(struct node *n, struct attached *a)
{
	bool quiet = cbw_is_quiet(a->cbw, 0);

	a->tried = now_ns();
	if (!quiet)
		return false;
	gate_close(&n->gate);
	quiet = gate_wait_empty(&n->gate, NODE_LEAVE_MS) &&
		cbw_is_quiet(a->cbw, 0);
	if (quiet)
		node_detach(n, a);
	gate_open(&n->gate);
	if (quiet)
		attached_free(a);
	return quiet;
}

void
node_give_up(struct node *n, struct attached *a)
{
	/* from now on no write saves anything for it */
	a->told = true;
	a->leaving = true;
	cbw_give_up(a->cbw);
	(void)try_detach(n, a);
}

int
node_leave(struct node *n)
{
	const uint64_t every = NODE_LEAVE_EVERY_MS * UINT64_C(1000000);
	struct attached *a, *next;
	int again = -1;

	for (a = n->views; a; a = next) {
		next = a->next;
		if (a->leaving &&
		    (now_ns() - a->tried < every || !try_detach(n, a)))
			again = NODE_LEAVE_EVERY_MS;
	}
	return again;
}

/* --- requests ----------------------------------------------------------------- */

/* Rules 2 and 3; inside the gate. */
static int
before_change(struct node *n, uint64_t off, uint64_t len)
{
	if (n->epoch)
		epoch_set(n->epoch, off, len);
	PARK("node.tracked");
	for (struct attached *a = n->views; a; a = a->next) {
		int r = cbw_before_write(a->cbw, off, len);

		if (unlikely(r))
			return r;
	}
	PARK("node.saved");
	return 0;
}

/* Rule 8. */
static inline bool
inside(const struct node *n, uint64_t off, uint64_t len)
{
	return likely(range_fits(off, len, n->image->size));
}

/* Rule 6. */
static inline void
admit(struct node *n, bool write, uint64_t len)
{
	if (unlikely(n->throttled))
		block_admit(n->image, write, len);
}

static int
then_flush(struct node *n, int r, bool fua)
{
	return r || !fua ? r : block_flush(n->image);
}

int
node_pread(struct node *n, void *buf, size_t len, uint64_t off)
{
	if (!inside(n, off, len))
		return EINVAL;
	admit(n, false, len);
	return block_pread(n->image, buf, len, off);
}

int
node_pwrite(struct node *n, const void *buf, size_t len, uint64_t off, bool fua)
{
	unsigned ticket;
	int r;

	if (!inside(n, off, len))
		return ENOSPC;
	admit(n, true, len);
	ticket = gate_enter(&n->gate);
	r = before_change(n, off, len);
	if (!r)
		r = block_pwrite(n->image, buf, len, off);
	PARK("node.written");
	gate_leave(&n->gate, ticket);
	return then_flush(n, r, fua);
}

int
node_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags, bool fua)
{
	unsigned ticket;
	int r;

	if (!inside(n, off, len))
		return ENOSPC;
	admit(n, true, len);
	ticket = gate_enter(&n->gate);
	r = before_change(n, off, len);
	if (!r)
		r = block_zero(n->image, off, len, flags);
	gate_leave(&n->gate, ticket);
	return then_flush(n, r, fua);
}

/* A discard that the image drops ("discard": "ignore") changes nothing. */
int
node_discard(struct node *n, uint64_t off, uint64_t len, bool fua)
{
	unsigned ticket;
	int r;

	if (!inside(n, off, len))
		return EINVAL;
	if (!n->image->discard_unmap)
		return then_flush(n, 0, fua);
	admit(n, true, len);
	ticket = gate_enter(&n->gate);
	r = before_change(n, off, len);
	if (!r)
		r = block_discard(n->image, off, len);
	gate_leave(&n->gate, ticket);
	return then_flush(n, r, fua);
}

int
node_flush(struct node *n)
{
	return block_flush(n->image);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "cut.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "base/bits.h"
#include "base/park.h"

void
cut_part_free(struct cut_part *p)
{
	struct attached *a;

	while ((a = p->views)) {
		p->views = a->next;
		attached_free(a);
	}
	if (p->epoch)
		epoch_unref(p->epoch);
	free(p);
}

void
cut_clear(struct cut *c)
{
	struct cut_part *p;

	while ((p = c->parts)) {
		c->parts = p->next;
		cut_part_free(p);
	}
}

bool
cut_has(const struct cut *c, const struct node *n)
{
	for (const struct cut_part *p = c->parts; p; p = p->next)
		if (p->node == n)
			return true;
	return false;
}

static uint64_t
now_ns(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* The gate is closed and empty: rule 4 of node.h.  Pointers and counters
 * only.
 */
static void
apply(struct cut_part *p)
{
	struct node *n = p->node;
	struct epoch *old;

	if (p->epoch || p->stop) {
		old = n->epoch;
		n->epoch = p->epoch;
		n->epoch_id = p->epoch_id;
		p->epoch = old; /* freed later, when the gate is open */
	}
	node_attach(n, p->views);
	p->views = NULL;
}

/* Wait until no gate has a write on the side of before.  On failure *stuck is
 * the node of one that does not end.
 */
static bool
wait_turned(struct cut *c, uint64_t end, struct node **stuck)
{
	static const struct timespec moment = { .tv_nsec = 100000 };

	for (struct cut_part *p = c->parts; p; p = p->next) {
		*stuck = p->node;
		while (!gate_has_turned(&p->node->gate)) {
			PARK("cut.old-writes");
			if (now_ns() >= end)
				return false;
			(void)nanosleep(&moment, NULL);
		}
	}
	return true;
}

/* Wait for the writes that are in flight while all gates are open, so that one
 * that hangs holds up nobody else.  A cut that failed may have left some on the
 * side of before: they have to end as well.
 */
static bool
let_old_writes_end(struct cut *c, uint64_t end, struct node **stuck)
{
	if (!wait_turned(c, end, stuck))
		return false;
	for (struct cut_part *p = c->parts; p; p = p->next)
		gate_turn(&p->node->gate);
	if (!wait_turned(c, end, stuck))
		return false;
	PARK("cut.turned");
	return true;
}

/* Close every gate first and wait after that.  On failure *stuck is the node
 * with the write that did not end.
 */
static bool
close_all(struct cut *c, uint64_t end, struct node **stuck)
{
	for (struct cut_part *p = c->parts; p; p = p->next) {
		p->closed_ns = now_ns();
		gate_close(&p->node->gate);
	}
	PARK("cut.closed");
	for (struct cut_part *p = c->parts; p; p = p->next) {
		uint64_t now = now_ns();
		uint64_t left = now < end ? (end - now) / 1000000 : 0;

		*stuck = p->node;
		if (!gate_wait_empty(&p->node->gate, (unsigned)left + 1))
			return false;
	}
	return true;
}

static void
record(struct cut_stats *s, uint64_t ns)
{
	unsigned bar = 0;

	while (bar < CUT_BARS - 1 && ns >= UINT64_C(1000) << bar)
		bar++;
	s->bars[bar]++;
	s->max_closed_ns = max_u64(s->max_closed_ns, ns);
}

static bool
stuck_set(struct err *e, const struct node *n, unsigned ms)
{
	return err_set(e, ERR_GENERIC, 0,
		       "a write to node '%s' has been in flight for more than "
		       "%u ms",
		       n->name, ms);
}

bool
cut_commit(struct cut *c, unsigned ms, struct cut_stats *stats,
	   uint64_t *closed_ns, struct err *e)
{
	uint64_t end = now_ns() + (uint64_t)ms * 1000000;
	struct node *stuck = NULL;
	bool ok;

	*closed_ns = 0;
	if (!let_old_writes_end(c, end, &stuck))
		return stuck_set(e, stuck, ms);
	ok = close_all(c, end, &stuck);
	if (ok)
		for (struct cut_part *p = c->parts; p; p = p->next)
			apply(p);
	PARK("cut.applied");
	for (struct cut_part *p = c->parts; p; p = p->next) {
		gate_open(&p->node->gate);
		p->closed_ns = now_ns() - p->closed_ns;
	}
	PARK("cut.opened");
	for (struct cut_part *p = c->parts; p; p = p->next) {
		record(stats, p->closed_ns);
		*closed_ns = max_u64(*closed_ns, p->closed_ns);
	}
	if (!ok)
		return stuck_set(e, stuck, ms);
	stats->cuts++;
	cut_clear(c);
	return true;
}

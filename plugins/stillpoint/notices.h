/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What stillpointd is told without having asked: failed requests, crossed
 * thresholds and damaged images.  The link's thread looks for them when it was woken, so that
 * nobody queues anything and memory is bounded.  Link thread only.
 */
#ifndef PLUGIN_NOTICES_H
#define PLUGIN_NOTICES_H

#include "table.h"

struct link_events;

/* Of two times to wait; negative: for good. */
static inline int
sooner(int a, int b)
{
	return a < 0 || (b >= 0 && b < a) ? b : a;
}

/* A failure of an export is told at once, and the next ones no more often
 * than this.
 */
#define NOTICE_EVERY_MS 1000

/* Milliseconds until it must be called again; -1: when somebody wakes the
 * link.
 */
int notices_tell(struct table *t, struct link_events *to);

/* Does a layer of a node with this name have another threshold from now on?
 * @fn(@opaque) wakes the link.
 */
bool notices_watch(struct node *n, const char *layer, uint64_t threshold,
		   void (*fn)(void *opaque), void *opaque);

/* A node is open: the thresholds that it was described with wake the link. */
void notices_watch_all(struct node *n, void (*fn)(void *opaque), void *opaque);

#endif

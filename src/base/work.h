/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Worker threads for what may block (opening a file, fsync, resolving a
 * name), so that no loop ever does.  A work item runs @run on some worker
 * thread, then @done on the thread of the loop that it was submitted from.
 * @done runs exactly once for each submit.
 */
#ifndef BASE_WORK_H
#define BASE_WORK_H

#include "base/loop.h"

struct work {
	void (*run)(struct work *w); /* any thread */
	void (*done)(struct work *w); /* loop; may free @w */
	struct loop *loop; /* borrowed until done */
	struct task task;
	struct work *next;
};

struct work_pool;

/* @threads of them are started when first needed; NULL: no resources. */
struct work_pool *work_pool_new(unsigned threads);

/* Waits for what is running; nothing may be queued. */
void work_pool_free(struct work_pool *p);
DEFINE_CLEANUP(struct work_pool, work_pool_free);

/* Loop.  @w is borrowed until its done() runs. */
void work_submit(struct work_pool *p, struct loop *l, struct work *w);

#endif

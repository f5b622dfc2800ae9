/* SPDX-License-Identifier: BSD-3-Clause
 *
 * One libev loop and the work that waits for it.  Functions are for the
 * thread that runs the loop ("loop") unless they say "any".
 *
 * 1. loop_defer: a task runs on the loop's thread soon, never from inside the
 *    caller.  Tasks that were queued when a turn began run in that turn, and
 *    no others, so a task that queues itself cannot starve the sockets.
 * 2. loop_post (any thread): the same from another thread; it wakes the loop.
 * 3. A queued task stays where it is until it ran or was cancelled; running
 *    it may free it.
 */
#ifndef BASE_LOOP_H
#define BASE_LOOP_H

#include <ev.h>
#include <stdbool.h>

#include "base/mem.h"
#include "base/mtx.h"

struct loop;

struct task {
	void (*fn)(struct task *t);
	struct task *next; /* borrowed, valid while queued */
	bool queued;
};

struct task_list {
	struct task *head, **tail;
};

struct loop {
	struct ev_loop *ev; /* owned */
	struct task_list ready; /* deferred, for the next turn */
	struct task_list running; /* what is left of this turn */
	struct task_list posted; /* under @mailbox */
	struct mtx mailbox;
	ev_prepare run_ready;
	ev_idle dont_block;
	ev_async wake;
	pthread_t thread; /* who runs it, for ASSERT_LOOP */
};

/* The calling thread becomes the loop's thread.  False: no resources. */
bool loop_init(struct loop *l) MUST_CHECK;

/* The same for a loop with a handful of descriptors that come, go and change
 * often: poll instead of epoll, which needs a call for each change and may
 * remember a closed descriptor when a child of fork still holds it.
 */
bool loop_init_small(struct loop *l) MUST_CHECK;

/* Nothing may be queued or posted any more. */
void loop_destroy(struct loop *l);

/* Make the calling thread the loop's thread (it was made elsewhere). */
void loop_own(struct loop *l);

/* Run until loop_stop. */
void loop_run(struct loop *l);
void loop_stop(struct loop *l);

void loop_defer(struct loop *l, struct task *t);
void loop_post(struct loop *l, struct task *t); /* any */

/* Take back a deferred task that did not run yet; nothing when it is not
 * queued.  Not for posted tasks.
 */
void loop_cancel(struct loop *l, struct task *t);

#define ASSERT_LOOP(l) assert(pthread_equal((l)->thread, pthread_self()))

#endif

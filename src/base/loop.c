/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/loop.h"

#include <assert.h>

static void
list_init(struct task_list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

static void
list_append(struct task_list *l, struct task *t)
{
	t->next = NULL;
	*l->tail = t;
	l->tail = &t->next;
}

static void
list_move(struct task_list *to, struct task_list *from)
{
	if (!from->head)
		return;
	*to->tail = from->head;
	to->tail = from->tail;
	list_init(from);
}

/* Run what was queued when we started and no more.  What runs now is taken
 * off one by one, so that a task may cancel one behind it.
 */
static void
on_prepare(struct ev_loop *ev, ev_prepare *w, int revents)
{
	struct loop *l = container_of(w, struct loop, run_ready);
	struct task *t;

	(void)revents;
	list_move(&l->running, &l->ready);
	ev_idle_stop(ev, &l->dont_block);
	while ((t = l->running.head)) {
		l->running.head = t->next;
		if (!t->next)
			list_init(&l->running);
		t->queued = false;
		t->fn(t); /* may free @t */
	}
}

static void
on_idle(struct ev_loop *ev, ev_idle *w, int revents)
{
	(void)ev;
	(void)w;
	(void)revents;
}

static void
on_wake(struct ev_loop *ev, ev_async *w, int revents)
{
	struct loop *l = container_of(w, struct loop, wake);

	(void)revents;
	mtx_lock(&l->mailbox);
	list_move(&l->ready, &l->posted);
	mtx_unlock(&l->mailbox);
	if (l->ready.head)
		ev_idle_start(ev, &l->dont_block);
}

static bool
init_with(struct loop *l, unsigned flags)
{
	l->ev = ev_loop_new(flags | EVFLAG_NOENV);
	if (!l->ev)
		return false;
	list_init(&l->ready);
	list_init(&l->running);
	list_init(&l->posted);
	mtx_init(&l->mailbox, LOCK_MAILBOX);
	ev_prepare_init(&l->run_ready, on_prepare);
	ev_prepare_start(l->ev, &l->run_ready);
	ev_unref(l->ev);
	ev_idle_init(&l->dont_block, on_idle);
	ev_async_init(&l->wake, on_wake);
	ev_async_start(l->ev, &l->wake);
	l->thread = pthread_self();
	return true;
}

bool
loop_init(struct loop *l)
{
	return init_with(l, EVFLAG_AUTO);
}

bool
loop_init_small(struct loop *l)
{
	return init_with(l, EVBACKEND_POLL);
}

void
loop_destroy(struct loop *l)
{
	assert(!l->ready.head && !l->posted.head);
	ev_ref(l->ev);
	ev_prepare_stop(l->ev, &l->run_ready);
	ev_async_stop(l->ev, &l->wake);
	ev_idle_stop(l->ev, &l->dont_block);
	ev_loop_destroy(l->ev);
	mtx_destroy(&l->mailbox);
}

void
loop_own(struct loop *l)
{
	l->thread = pthread_self();
}

void
loop_run(struct loop *l)
{
	ASSERT_LOOP(l);
	ev_run(l->ev, 0);
}

void
loop_stop(struct loop *l)
{
	ASSERT_LOOP(l);
	ev_break(l->ev, EVBREAK_ALL);
}

void
loop_defer(struct loop *l, struct task *t)
{
	ASSERT_LOOP(l);
	assert(!t->queued);
	t->queued = true;
	list_append(&l->ready, t);
	ev_idle_start(l->ev, &l->dont_block);
}

static bool
list_remove(struct task_list *l, struct task *t)
{
	for (struct task **p = &l->head; *p; p = &(*p)->next) {
		if (*p != t)
			continue;
		*p = t->next;
		if (l->tail == &t->next)
			l->tail = p;
		return true;
	}
	return false;
}

void
loop_cancel(struct loop *l, struct task *t)
{
	ASSERT_LOOP(l);
	if (t->queued &&
	    (list_remove(&l->ready, t) || list_remove(&l->running, t)))
		t->queued = false;
}

void
loop_post(struct loop *l, struct task *t)
{
	mtx_lock(&l->mailbox);
	assert(!t->queued);
	t->queued = true;
	list_append(&l->posted, t);
	mtx_unlock(&l->mailbox);
	ev_async_send(l->ev, &l->wake);
}

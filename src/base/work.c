/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/work.h"

#include <assert.h>
#include <signal.h>
#include <stdlib.h>

struct work_pool {
	struct mtx lock; /* LOCK_WORK; guards all below */
	pthread_cond_t more;
	struct work *head, **tail;
	unsigned max, started, idle;
	unsigned queued; /* items in the list */
	bool stop;
	pthread_t threads[]; /* owned, @started of them */
};

static void
on_loop(struct task *t)
{
	struct work *w = container_of(t, struct work, task);

	w->done(w);
}

static void *
worker(void *arg)
{
	struct work_pool *p = arg;
	struct work *w;

	mtx_lock(&p->lock);
	for (;;) {
		while (!p->head && !p->stop) {
			p->idle++;
			mtx_wait(&p->lock, &p->more);
			p->idle--;
		}
		if (!p->head)
			break;
		w = p->head;
		p->head = w->next;
		if (!p->head)
			p->tail = &p->head;
		p->queued--;
		mtx_unlock(&p->lock);
		w->run(w);
		w->task.fn = on_loop;
		loop_post(w->loop, &w->task);
		mtx_lock(&p->lock);
	}
	mtx_unlock(&p->lock);
	return NULL;
}

struct work_pool *
work_pool_new(unsigned threads)
{
	struct work_pool *p;

	p = calloc(1, sizeof *p + threads * sizeof p->threads[0]);
	if (!p)
		return NULL;
	mtx_init(&p->lock, LOCK_WORK);
	cond_init(&p->more);
	p->tail = &p->head;
	p->max = threads;
	return p;
}

void
work_pool_free(struct work_pool *p)
{
	mtx_lock(&p->lock);
	p->stop = true;
	(void)pthread_cond_broadcast(&p->more);
	mtx_unlock(&p->lock);
	for (unsigned i = 0; i < p->started; i++)
		(void)pthread_join(p->threads[i], NULL);
	assert(!p->head);
	(void)pthread_cond_destroy(&p->more);
	mtx_destroy(&p->lock);
	free(p);
}

/* Signals belong to the loop's thread: workers are started with all of them
 * blocked.
 */
static void
start_one_locked(struct work_pool *p)
{
	sigset_t all, old;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	if (pthread_create(&p->threads[p->started], NULL, worker, p) == 0)
		p->started++;
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void
work_submit(struct work_pool *p, struct loop *l, struct work *w)
{
	w->loop = l;
	w->next = NULL;
	w->task.queued = false;
	mtx_lock(&p->lock);
	*p->tail = w;
	p->tail = &w->next;
	/* an idle thread that was signalled already does not count twice */
	if (++p->queued > p->idle && p->started < p->max)
		start_one_locked(p);
	assert(p->started > 0);
	(void)pthread_cond_signal(&p->more);
	mtx_unlock(&p->lock);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/mtx.h"

#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <time.h>

/* One bit per class that this thread holds. */
static _Thread_local uint32_t held;

static_assert(LOCK_N <= 32, "held has a bit for each class");

void
mtx_init(struct mtx *m, enum lock_class cls)
{
	int r = pthread_mutex_init(&m->m, NULL);

	assert(r == 0);
	m->cls = cls;
}

void
mtx_destroy(struct mtx *m)
{
	int r = pthread_mutex_destroy(&m->m);

	assert(r == 0);
}

NO_TSA void
mtx_lock(struct mtx *m)
{
	int r;

	/* nothing of this row or of a lower one is held */
	assert((held >> m->cls) == 0);
	r = pthread_mutex_lock(&m->m);
	assert(r == 0);
	held |= UINT32_C(1) << m->cls;
}

NO_TSA void
mtx_unlock(struct mtx *m)
{
	int r;

	assert(held & UINT32_C(1) << m->cls);
	held &= ~(UINT32_C(1) << m->cls);
	r = pthread_mutex_unlock(&m->m);
	assert(r == 0);
}

void
mtx_wait(struct mtx *m, pthread_cond_t *c)
{
	int r = pthread_cond_wait(c, &m->m);

	assert(r == 0);
}

bool
mtx_wait_ms(struct mtx *m, pthread_cond_t *c, unsigned ms)
{
	struct timespec t;
	int r;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += ms / 1000;
	t.tv_nsec += (long)(ms % 1000) * 1000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_sec++;
		t.tv_nsec -= 1000000000;
	}
	r = pthread_cond_timedwait(c, &m->m, &t);
	assert(r == 0 || r == ETIMEDOUT);
	return r == 0;
}

void
cond_init(pthread_cond_t *c)
{
	pthread_condattr_t a;
	int r = pthread_condattr_init(&a);

	assert(r == 0);
	r = pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	assert(r == 0);
	r = pthread_cond_init(c, &a);
	assert(r == 0);
	(void)pthread_condattr_destroy(&a);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "tracking/gate.h"

#include <assert.h>
#include <time.h>

#include "base/mem.h"
#include "base/park.h"

/* Threads spread over the shards; which one a thread has does not matter. */
static _Atomic unsigned next_shard;
static _Thread_local unsigned my_shard = GATE_SHARDS;

void
gate_init(struct gate *g)
{
	for (unsigned i = 0; i < GATE_SHARDS; i++)
		for (unsigned side = 0; side < 2; side++)
			atomic_init(&g->shard[i].inside[side], 0);
	atomic_init(&g->closed, false);
	atomic_init(&g->side, 0);
	mtx_init(&g->lock, LOCK_GATE);
	cond_init(&g->changed);
}

void
gate_destroy(struct gate *g)
{
	(void)pthread_cond_destroy(&g->changed);
	mtx_destroy(&g->lock);
}

/* A ticket is a shard and a side of it. */
static _Atomic uint32_t *
counter(struct gate *g, unsigned ticket)
{
	return &g->shard[gate_shard(ticket)].inside[ticket % 2];
}

static void
step_back(struct gate *g, unsigned ticket)
{
	atomic_fetch_sub(counter(g, ticket), 1);
	if (unlikely(atomic_load(&g->closed))) {
		mtx_lock(&g->lock);
		(void)pthread_cond_broadcast(&g->changed);
		mtx_unlock(&g->lock);
	}
}

unsigned
gate_enter(struct gate *g)
{
	if (unlikely(my_shard == GATE_SHARDS))
		my_shard = atomic_fetch_add(&next_shard, 1) % GATE_SHARDS;
	for (;;) {
		unsigned ticket =
			my_shard * 2 +
			atomic_load_explicit(&g->side, memory_order_relaxed);

		atomic_fetch_add(counter(g, ticket), 1);
		/* Sequentially consistent: either we see the gate closed, or
		 * the closer sees us inside.
		 */
		if (likely(!atomic_load(&g->closed)))
			return ticket;
		step_back(g, ticket);
		PARK("gate.wait");
		mtx_lock(&g->lock);
		while (atomic_load(&g->closed))
			mtx_wait(&g->lock, &g->changed);
		mtx_unlock(&g->lock);
	}
}

void
gate_leave(struct gate *g, unsigned ticket)
{
	step_back(g, ticket);
}

static bool
side_is_empty(struct gate *g, unsigned side)
{
	for (unsigned i = 0; i < GATE_SHARDS; i++)
		if (atomic_load(&g->shard[i].inside[side]))
			return false;
	return true;
}

void
gate_turn(struct gate *g)
{
	atomic_fetch_xor(&g->side, 1);
}

bool
gate_has_turned(struct gate *g)
{
	return side_is_empty(g, !atomic_load(&g->side));
}

void
gate_close(struct gate *g)
{
	bool was = atomic_exchange(&g->closed, true);

	assert(!was);
}

static bool
empty(struct gate *g)
{
	return side_is_empty(g, 0) && side_is_empty(g, 1);
}

static uint64_t
now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

bool
gate_wait_empty(struct gate *g, unsigned ms)
{
	uint64_t now = now_ms(), end = now + ms;
	bool is_empty;

	mtx_lock(&g->lock);
	while (!(is_empty = empty(g)) && now < end) {
		/* every write that leaves wakes us: the time is not renewed */
		(void)mtx_wait_ms(&g->lock, &g->changed, (unsigned)(end - now));
		now = now_ms();
	}
	mtx_unlock(&g->lock);
	return is_empty;
}

void
gate_open(struct gate *g)
{
	mtx_lock(&g->lock);
	atomic_store(&g->closed, false);
	(void)pthread_cond_broadcast(&g->changed);
	mtx_unlock(&g->lock);
}

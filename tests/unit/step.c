/* SPDX-License-Identifier: BSD-3-Clause */
#include "step.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/park.h"
#include "unit.h"

#define MAX_PLACES 32
#define PATIENCE_S 60

struct place {
	char name[64];
	unsigned passed, armed, parked;
	bool go;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct place places[MAX_PLACES];

static struct place *
find_locked(const char *name)
{
	struct place *p = places;

	while (p < places + MAX_PLACES - 1 && p->name[0] &&
	       strcmp(p->name, name) != 0)
		p++;
	if (!p->name[0])
		(void)snprintf(p->name, sizeof p->name, "%s", name);
	return p;
}

static void
on_place(const char *name)
{
	struct place *p;

	(void)pthread_mutex_lock(&lock);
	p = find_locked(name);
	p->passed++;
	if (p->armed) {
		p->armed--;
		p->parked++;
		p->go = false;
		(void)pthread_cond_broadcast(&changed);
		while (!p->go)
			(void)pthread_cond_wait(&changed, &lock);
		p->parked--;
	}
	(void)pthread_cond_broadcast(&changed);
	(void)pthread_mutex_unlock(&lock);
}

void
step_reset(void)
{
	(void)pthread_mutex_lock(&lock);
	memset(places, 0, sizeof places);
	(void)pthread_mutex_unlock(&lock);
	park_set(on_place);
}

void
step_end(void)
{
	(void)pthread_mutex_lock(&lock);
	for (struct place *p = places; p < places + MAX_PLACES; p++) {
		p->armed = 0;
		p->go = true;
	}
	(void)pthread_cond_broadcast(&changed);
	(void)pthread_mutex_unlock(&lock);
	park_set(NULL);
}

void
step_arm(const char *place)
{
	(void)pthread_mutex_lock(&lock);
	find_locked(place)->armed++;
	(void)pthread_mutex_unlock(&lock);
}

static struct timespec
deadline(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_REALTIME, &t);
	t.tv_sec += PATIENCE_S;
	return t;
}

void
step_wait_parked(const char *place)
{
	struct timespec end = deadline();
	bool parked;
	int r = 0;

	(void)pthread_mutex_lock(&lock);
	while (!(parked = find_locked(place)->parked > 0) && r == 0)
		r = pthread_cond_timedwait(&changed, &lock, &end);
	(void)pthread_mutex_unlock(&lock);
	if (!parked)
		fail_msg("nobody came by '%s'", place);
}

void
step_release(const char *place)
{
	(void)pthread_mutex_lock(&lock);
	find_locked(place)->go = true;
	(void)pthread_cond_broadcast(&changed);
	(void)pthread_mutex_unlock(&lock);
}

unsigned
step_passed(const char *place)
{
	unsigned n;

	(void)pthread_mutex_lock(&lock);
	n = find_locked(place)->passed;
	(void)pthread_mutex_unlock(&lock);
	return n;
}

static void *
act(void *arg)
{
	struct actor *a = arg;

	atomic_store(&a->tid, gettid());
	a->fn(a->arg);
	atomic_store(&a->returned, true);
	return NULL;
}

void
actor_start(struct actor *a, void (*fn)(void *arg), void *arg)
{
	*a = (struct actor){ .fn = fn, .arg = arg };
	assert_int_equal(pthread_create(&a->thread, NULL, act, a), 0);
}

/* Does the kernel say that the thread sleeps? */
static bool
sleeps(int tid)
{
	char path[64], text[256], state = '?';
	const char *p;
	FILE *f;

	if (!tid)
		return false;
	(void)snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
	f = fopen(path, "re");
	if (!f)
		return false;
	if (fgets(text, sizeof text, f) && (p = strrchr(text, ')')))
		(void)sscanf(p + 1, " %c", &state);
	(void)fclose(f);
	return state == 'S';
}

static void
doze(void)
{
	struct timespec t = { .tv_nsec = 200000 };

	(void)nanosleep(&t, NULL);
}

bool
actor_is_held_at(struct actor *a, const char *place, unsigned times)
{
	/* three looks in a row, so that a short sleep on a lock that is about
	 * to be free does not count
	 */
	for (int i = 0, seen = 0; i < PATIENCE_S * 5000 && seen < 3; i++) {
		if (atomic_load(&a->returned))
			return false;
		if (step_passed(place) >= times && sleeps(atomic_load(&a->tid)))
			seen++;
		else
			seen = 0;
		doze();
	}
	return !atomic_load(&a->returned) && step_passed(place) >= times;
}

bool
actor_returns(struct actor *a)
{
	for (int i = 0; i < PATIENCE_S * 5000; i++) {
		if (atomic_load(&a->returned))
			return true;
		doze();
	}
	return false;
}

void
actor_join(struct actor *a)
{
	if (!actor_returns(a))
		fail_msg("a thread does not return");
	(void)pthread_join(a->thread, NULL);
}

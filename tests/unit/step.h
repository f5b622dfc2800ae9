/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Step tests: one thread is parked at a PARK() place while the test looks at
 * what the others may do.  Force the bad moment, do not sleep and hope.
 */
#ifndef UNIT_STEP_H
#define UNIT_STEP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* Install the hook and forget everything; call at the start of a test. */
void step_reset(void);

/* Let everybody who is parked go on and take the hook away. */
void step_end(void);

/* The next thread that comes by @place is parked there. */
void step_arm(const char *place);

/* Wait until a thread is parked at @place (which was armed).  Fails the test
 * after a minute.
 */
void step_wait_parked(const char *place);

/* The thread that is parked at @place goes on. */
void step_release(const char *place);

/* How often threads came by @place since step_reset(). */
unsigned step_passed(const char *place);

/* A function in a thread of its own. */
struct actor {
	pthread_t thread;
	void (*fn)(void *arg);
	void *arg;
	_Atomic bool returned;
	_Atomic int tid;
};

void actor_start(struct actor *a, void (*fn)(void *arg), void *arg);

/* Wait until @a is asleep in the kernel behind @place (it came by it @times
 * times and sleeps), or returned.  True: it is held back.
 */
bool actor_is_held_at(struct actor *a, const char *place, unsigned times);

/* Has it returned, or does it do so within a minute? */
bool actor_returns(struct actor *a);

/* Fails the test when it does not return within a minute. */
void actor_join(struct actor *a);

#endif

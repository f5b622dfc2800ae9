/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Places at which a test can park a thread or end the process, so that rules
 * about concurrency and crashes are tested by forcing the bad moment.  A
 * place costs one predicted branch when no test asked for it.
 *
 * In a program, tests of the whole system use environment variables:
 * STILLPOINT_KILL_AT=place[:n] makes the process kill itself (SIGKILL) the
 * n-th time that it comes by the place, STILLPOINT_KILL_AT=place:/file when
 * it comes by and the file exists (which it removes first, so that one process
 * dies once).  STILLPOINT_PARK_AT=place:/file holds a thread there for as long
 * as the file exists; file.parked says that one has come.  In a unit test, park_set() installs a
 * function that may block.
 */
#ifndef BASE_PARK_H
#define BASE_PARK_H

#include <stdatomic.h>

#include "base/mem.h"

typedef void park_fn(const char *place);

extern park_fn *_Atomic park_hook;

/* NULL: no hook.  Any thread. */
void park_set(park_fn *fn);

/* Read the environment variable above; call once at the program's start. */
void park_from_environment(void);

#define PARK(place)                                                           \
	do {                                                                  \
		park_fn *park_f = atomic_load_explicit(&park_hook,            \
						       memory_order_relaxed); \
		if (unlikely(park_f != NULL))                                 \
			park_f(place);                                        \
	} while (0)

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Start a program by socket activation: LISTEN_FDS sockets from descriptor 3
 * on and LISTEN_PID, which only the child knows, so posix_spawn will not do.
 * The daemon has threads, so between fork and exec the child calls nothing but
 * async-signal-safe functions and touches only what was prepared before.
 */
#ifndef DAEMON_SPAWN_H
#define DAEMON_SPAWN_H

#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"

struct spawned {
	pid_t pid;
	int pidfd; /* owned; becomes readable when it ends */
	int why; /* owned: see spawn_failure */
};

/* Run @program (a path) in a session of its own with the @n sockets @fds,
 * which stay the caller's.  Standard input is /dev/null, output and errors go
 * to our standard error, nothing else is inherited.  Signals are as if the
 * daemon had never touched them, and it runs with @niceness.  Does not wait for the exec.  Loop.
 */
bool spawn_activated(const char *program, char *const argv[], const int *fds,
		     size_t n, int niceness, struct spawned *out, struct err *e)
	MUST_CHECK;

/* After the end of the process: the errno with which the program could not be
 * run, 0 when it was run.
 */
int spawn_failure(const struct spawned *s);

/* The path of @name, which is looked up in PATH when it has no '/'.  Owned by
 * the caller; NULL: there is no such executable file.
 */
char *spawn_find(const char *name);

#endif

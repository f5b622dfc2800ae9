/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The directories that belong to one daemon: the state directory, which at
 * most one daemon uses at a time (a lock on STATE/lock, released by the
 * kernel however the daemon ends), and directories that are made for it.
 */
#ifndef DAEMON_STATEDIR_H
#define DAEMON_STATEDIR_H

#include <stdbool.h>

#include "base/err.h"

struct statedir {
	char *path; /* owned: canonical, absolute */
	int fd; /* owned: the directory */
	int lock; /* owned: the lock file */
};

/* Make @path (mode 0700, its parent must exist) unless it is there, see
 * that it can be written, and lock it.  At the start of the program; blocks.
 */
bool statedir_open(struct statedir *s, const char *path, struct err *e)
	MUST_CHECK;
void statedir_close(struct statedir *s);

/* Make @path (mode 0700) unless it is there.  It must be a directory, no
 * link, owned by us and closed to everybody else.
 */
bool private_dir_make(const char *path, const char *what, struct err *e)
	MUST_CHECK;

/* The tmpfs directory of the daemon whose state directory is @state (its
 * canonical path): /dev/shm/stillpoint-UID-HASH.  Owned by the caller.
 */
char *shm_dir_default(const char *state);

#endif

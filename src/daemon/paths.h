/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The directories that the operator allowed (--allow), and the only way by
 * which the daemon opens a file that a client names.
 *
 * Rules (each has a test of its name in tests/unit/test-paths.c):
 * 1. A file opens only when it lies below an allowed directory after every
 *    link and every ".." was followed.  The kernel walks the name below a
 *    descriptor of that directory (openat2, RESOLVE_BENEATH), so nobody who
 *    renames things meanwhile can lead us out.
 * 2. A link with an absolute target counts as leaving, even if it leads back
 *    in; so do the links of /proc (RESOLVE_NO_MAGICLINKS).
 * 3. Only regular files and block devices open; anything else is looked at,
 *    but not opened (opening a FIFO or a watchdog has effects).
 * 4. Without any allowed directory nothing opens.
 * 5. A file is made only below an allowed directory, and what is taken back is
 *    the file that was made, whatever its name means by then.
 */
#ifndef DAEMON_PATHS_H
#define DAEMON_PATHS_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"

struct paths;

/* Remembers the working directory for relative file names.  Never NULL. */
struct paths *paths_new(void);
void paths_free(struct paths *p);
DEFINE_CLEANUP(struct paths, paths_free);

/* Loop or start.  @dir must exist and be a directory. */
bool paths_allow(struct paths *p, const char *dir, struct err *e) MUST_CHECK;

/* Any thread; may block.  Open @filename with @flags (an access mode and
 * O_DIRECT, O_SYNC, ...; never O_CREAT); O_CLOEXEC and O_NOCTTY are added.
 * After success *fd is owned by the caller.  @e: class GenericError,
 *   "Could not open 'X': No such file or directory"      (e->os is set)
 *   "Could not open 'X': it is outside the allowed directories"
 *   "Could not open 'X': it is not a regular file or block device"
 */
bool paths_open(const struct paths *p, const char *filename, int flags, int *fd,
		struct err *e) MUST_CHECK;

/* A file that was made.  Zeroed with @dir -1: none. */
struct made_file {
	int dir; /* owned: its directory (O_PATH); -1: nothing was made */
	char *name; /* owned: in @dir */
	dev_t device;
	ino_t inode;
};

#define MADE_FILE_INIT    \
	{                 \
		.dir = -1 \
	}

/* Any thread; may block.  As paths_open for reading and writing, but a file
 * that is not there is made, empty, with mode 0644 less the umask: @made says
 * that it was.  Nothing is cut off of one that is there.  @e: as above, and
 *   "Could not create 'X': ..."
 */
bool paths_create(const struct paths *p, const char *filename,
		  struct made_file *made, int *fd, struct err *e) MUST_CHECK;

/* Any thread.  Take it back, or leave it there; either way @made is none. */
void made_file_remove(struct made_file *made);
void made_file_keep(struct made_file *made);

/* Any thread; may block.  Where a socket file named @filename would be: its
 * directory is resolved as above, *out (owned by the caller) is a canonical
 * path.  Nothing is opened or made, so whoever may rename directories below an
 * allowed one can still move it; bind(2) has no way to exclude that.  @e: class
 * GenericError, as above.
 */
bool paths_socket(const struct paths *p, const char *filename, char **out,
		  struct err *e) MUST_CHECK;

#endif

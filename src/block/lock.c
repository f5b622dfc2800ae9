/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* QEMU's permissions, by bit number. */
enum perm { CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE, PERM_N };

#define USED_BASE       100
#define NOT_SHARED_BASE 200

static const char *const perm_names[PERM_N] = {
	[CONSISTENT_READ] = "consistent read",
	[WRITE] = "write",
	[WRITE_UNCHANGED] = "write unchanged",
	[RESIZE] = "resize",
};

#define BIT(p) (1u << (p))

static int
lock_byte(int fd, int at, short type)
{
	struct flock l = {
		.l_type = type, .l_whence = SEEK_SET, .l_start = at, .l_len = 1
	};

	return fcntl(fd, F_OFD_SETLK, &l) < 0 ? errno : 0;
}

/* Does another open file description hold this byte? */
static bool
held_by_other(int fd, int at)
{
	struct flock l = { .l_type = F_WRLCK,
			   .l_whence = SEEK_SET,
			   .l_start = at,
			   .l_len = 1 };

	return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

/* Take our bytes first, then look at everybody else's: of two who do so at
 * the same time at least one sees the other.
 */
static bool
take(int fd, unsigned used, unsigned not_shared, struct err *e)
{
	for (int p = 0; p < PERM_N; p++) {
		int r = 0;

		if (used & BIT(p))
			r = lock_byte(fd, USED_BASE + p, F_RDLCK);
		if (!r && not_shared & BIT(p))
			r = lock_byte(fd, NOT_SHARED_BASE + p, F_RDLCK);
		if (r)
			return err_set(e, ERR_GENERIC, r,
				       "Failed to lock byte %d", USED_BASE + p);
	}
	return true;
}

static bool
check(int fd, unsigned used, unsigned not_shared, struct err *e)
{
	for (int p = 0; p < PERM_N; p++) {
		if (used & BIT(p) && held_by_other(fd, NOT_SHARED_BASE + p))
			return err_set(e, ERR_GENERIC, 0,
				       "Failed to get \"%s\" lock",
				       perm_names[p]);
		if (not_shared & BIT(p) && held_by_other(fd, USED_BASE + p))
			return err_set(e, ERR_GENERIC, 0,
				       "Failed to get shared \"%s\" lock",
				       perm_names[p]);
	}
	return true;
}

static unsigned
used_by(bool writer)
{
	return BIT(CONSISTENT_READ) | (writer ? BIT(WRITE) | BIT(RESIZE) : 0);
}

bool
image_lock_again(int held, int fd, bool writer, struct err *e)
{
	unsigned not_shared = BIT(WRITE) | BIT(RESIZE);

	return take(held, used_by(writer), not_shared, e) &&
	       check(held, used_by(writer), not_shared, e) &&
	       take(fd, used_by(writer), not_shared, e);
}

bool
image_lock(int fd, bool writer, struct err *e)
{
	unsigned used = used_by(writer);
	unsigned not_shared = BIT(WRITE) | BIT(RESIZE);

	if (take(fd, used, not_shared, e) && check(fd, used, not_shared, e))
		return true;
	image_unlock(fd);
	return false;
}

void
image_unlock(int fd)
{
	for (int p = 0; p < PERM_N; p++) {
		(void)lock_byte(fd, USED_BASE + p, F_UNLCK);
		(void)lock_byte(fd, NOT_SHARED_BASE + p, F_UNLCK);
	}
}

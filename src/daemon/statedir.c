/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/statedir.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

static bool
make_dir(const char *path, struct err *e)
{
	if (mkdir(path, 0700) == 0 || errno == EEXIST)
		return true;
	return err_set(e, ERR_GENERIC, errno,
		       "cannot make the state directory '%s'", path);
}

/* Who holds the lock, as it wrote into the file; 0: not known (yet). */
static long
holder(int lock)
{
	char text[24] = "";
	ssize_t n = pread(lock, text, sizeof text - 1, 0);

	return n > 0 ? strtol(text, NULL, 10) : 0;
}

static bool
in_use(const char *path, long pid, struct err *e)
{
	if (pid <= 0)
		return err_set(e, ERR_GENERIC, 0,
			       "state directory '%s' is in use by another "
			       "stillpointd",
			       path);
	return err_set(e, ERR_GENERIC, 0,
		       "state directory '%s' is in use by another stillpointd "
		       "(pid %ld)",
		       path, pid);
}

/* The pid is for people; the lock itself is the kernel's. */
static bool
write_pid(int lock, const char *path, struct err *e)
{
	char text[24];
	int len = snprintf(text, sizeof text, "%ld\n", (long)getpid());

	if (pwrite(lock, text, (size_t)len, 0) != len ||
	    ftruncate(lock, len) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot write in the state directory '%s'",
			       path);
	return true;
}

static bool
take_lock(struct statedir *s, struct err *e)
{
	s->lock = openat(s->fd, "lock",
			 O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->lock < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot write in the state directory '%s'",
			       s->path);
	if (flock(s->lock, LOCK_EX | LOCK_NB) < 0) {
		if (errno == EWOULDBLOCK)
			return in_use(s->path, holder(s->lock), e);
		return err_set(e, ERR_GENERIC, errno,
			       "cannot lock the state directory '%s'", s->path);
	}
	return write_pid(s->lock, s->path, e);
}

/* The lock file alone does not tell that new files can be made. */
static bool
try_new_file(const struct statedir *s, struct err *e)
{
	static const char data[] = "stillpoint\n";
	AUTO(close)
	int fd = openat(s->fd, "lock.try",
			O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
			0600);
	ssize_t len = (ssize_t)sizeof data - 1;
	bool ok = fd >= 0 && write(fd, data, sizeof data - 1) == len;
	int os = errno;

	(void)unlinkat(s->fd, "lock.try", 0);
	if (!ok)
		return err_set(e, ERR_GENERIC, os,
			       "cannot write in the state directory '%s'",
			       s->path);
	return true;
}

bool
statedir_open(struct statedir *s, const char *path, struct err *e)
{
	*s = (struct statedir){ .fd = -1, .lock = -1 };
	if (!make_dir(path, e))
		return false;
	s->path = realpath(path, NULL);
	if (s->path)
		s->fd = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->fd < 0)
		(void)err_set(e, ERR_GENERIC, errno,
			      "cannot open the state directory '%s'", path);
	else if (take_lock(s, e) && try_new_file(s, e))
		return true;
	statedir_close(s);
	return false;
}

void
statedir_close(struct statedir *s)
{
	if (s->lock >= 0)
		(void)close(s->lock);
	if (s->fd >= 0)
		(void)close(s->fd);
	free(s->path);
	*s = (struct statedir){ .fd = -1, .lock = -1 };
}

bool
private_dir_make(const char *path, const char *what, struct err *e)
{
	struct stat st;

	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return err_set(e, ERR_GENERIC, errno, "cannot make %s '%s'",
			       what, path);
	if (lstat(path, &st) < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot use %s '%s'",
			       what, path);
	if (!S_ISDIR(st.st_mode))
		return err_set(e, ERR_GENERIC, 0,
			       "cannot use %s '%s': it is not a directory",
			       what, path);
	if (st.st_uid != geteuid() || (st.st_mode & 077))
		return err_set(e, ERR_GENERIC, 0,
			       "cannot use %s '%s': others have access to it "
			       "(it must be ours, with mode 0700)",
			       what, path);
	if (access(path, W_OK | X_OK) < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot write in %s '%s'",
			       what, path);
	return true;
}

/* FNV-1a.  Two state directories with the same value would find each other's
 * files, so what is kept there names its owner as well.
 */
static uint64_t
hash(const char *s)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);

	for (; *s; s++)
		h = (h ^ (unsigned char)*s) * UINT64_C(0x100000001b3);
	return h;
}

char *
shm_dir_default(const char *state)
{
	return xasprintf("/dev/shm/stillpoint-%lu-%016" PRIx64,
			 (unsigned long)geteuid(), hash(state));
}

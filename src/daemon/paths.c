/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/paths.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define RENAME_RETRIES 16 /* while somebody renames above the file */

struct allowed {
	char *given; /* owned: absolute, as the operator wrote it */
	char *real; /* owned: canonical */
	int fd; /* owned */
};

struct paths {
	char *cwd; /* owned; "/" when it is not known */
	size_t n;
	struct allowed *v; /* owned */
};

struct paths *
paths_new(void)
{
	struct paths *p = xzalloc(sizeof *p);

	p->cwd = getcwd(NULL, 0);
	if (!p->cwd)
		p->cwd = xstrdup("/");
	return p;
}

void
paths_free(struct paths *p)
{
	for (size_t i = 0; i < p->n; i++) {
		free(p->v[i].given);
		free(p->v[i].real);
		(void)close(p->v[i].fd);
	}
	free(p->v);
	free(p->cwd);
	free(p);
}

static char *
make_absolute(const struct paths *p, const char *name)
{
	return name[0] == '/' ? xstrdup(name)
			      : xasprintf("%s/%s", p->cwd, name);
}

bool
paths_allow(struct paths *p, const char *dir, struct err *e)
{
	AUTO(close) int fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	AUTO(free) char *real = fd < 0 ? NULL : realpath(dir, NULL);

	if (!real)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot allow the directory '%s'", dir);
	p->v = xrealloc(p->v, p->n + 1, sizeof p->v[0]);
	p->v[p->n++] = (struct allowed){
		.given = make_absolute(p, dir),
		.real = steal(&real),
		.fd = steal_fd(&fd),
	};
	return true;
}

/* The next component of *@s, which is moved behind it; "" and "." are passed
 * over.  0: there is none.
 */
static size_t
component(const char **s, const char **start)
{
	for (;;) {
		size_t len;

		*s += strspn(*s, "/");
		len = strcspn(*s, "/");
		*start = *s;
		*s += len;
		if (len != 1 || **start != '.')
			return len;
	}
}

/* What follows @dir in @name, when every component of @dir is there. */
static const char *
below(const char *name, const char *dir)
{
	const char *a, *b;
	size_t len;

	while ((len = component(&dir, &b)) > 0)
		if (component(&name, &a) != len || memcmp(a, b, len) != 0)
			return NULL;
	name += strspn(name, "/");
	return name;
}

static int
open_beneath(int dir, const char *rest)
{
	const struct open_how how = {
		.flags = O_PATH | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
	};
	int fd = -1;

	for (int i = 0; i < RENAME_RETRIES; i++) {
		fd = (int)syscall(SYS_openat2, dir, rest, &how, sizeof how);
		if (fd >= 0 || errno != EAGAIN)
			break;
	}
	return fd;
}

/* Find @name below the allowed directories: a descriptor (O_PATH), or -1 and
 * *@os: EXDEV when it is nowhere inside, else why it cannot be found.
 */
static int
find(const struct paths *p, const char *name, int *os)
{
	*os = EXDEV;
	for (size_t i = 0; i < p->n; i++) {
		const char *const dirs[] = { p->v[i].given, p->v[i].real };

		for (size_t k = 0; k < ARRAY_SIZE(dirs); k++) {
			const char *rest = below(name, dirs[k]);
			int fd = rest ? open_beneath(p->v[i].fd,
						     rest[0] ? rest : ".")
				      : -1;

			if (fd >= 0)
				return fd;
			if (rest && errno != EXDEV)
				*os = errno;
		}
	}
	return -1;
}

static bool
not_found(const struct paths *p, const char *name, int os, struct err *e)
{
	if (os != EXDEV)
		return err_set(e, ERR_GENERIC, os, "Could not open '%s'", name);
	return err_set(e, ERR_GENERIC, 0,
		       "Could not open '%s': it is outside the allowed "
		       "directories%s",
		       name, p->n ? "" : " (none is allowed: see --allow)");
}

bool
paths_open(const struct paths *p, const char *filename, int flags, int *out,
	   struct err *e)
{
	AUTO(free) char *name = NULL;
	AUTO(close) int fd = -1;
	char link[40];
	struct stat st;
	int os;

	assert(!(flags & (O_CREAT | O_PATH)));
	if (!filename[0] || strlen(filename) >= PATH_MAX)
		return err_set(e, ERR_GENERIC,
			       filename[0] ? ENAMETOOLONG : ENOENT,
			       "Could not open '%s'", filename);
	name = make_absolute(p, filename);
	fd = find(p, name, &os);
	if (fd < 0)
		return not_found(p, filename, os, e);
	if (fstat(fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno, "Could not open '%s'",
			       filename);
	if (S_ISDIR(st.st_mode))
		return err_set(e, ERR_GENERIC, EISDIR, "Could not open '%s'",
			       filename);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return err_set(e, ERR_GENERIC, 0,
			       "Could not open '%s': it is not a regular file "
			       "or block device",
			       filename);
	/* The very file that was looked at, whatever its name means by now. */
	(void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	*out = open(link, flags | O_CLOEXEC | O_NOCTTY);
	if (*out < 0)
		return err_set(e, ERR_GENERIC, errno, "Could not open '%s'",
			       filename);
	return true;
}

/* A new file in the directory where @name would be. */
static bool
make(const struct paths *p, const char *filename, struct made_file *made,
     int *out, struct err *e)
{
	AUTO(free) char *name = make_absolute(p, filename);
	char *base = strrchr(name, '/') + 1;
	AUTO(close) int dir = -1;
	AUTO(close) int fd = -1;
	struct stat st;
	int os;

	if (!base[0] || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
		return err_set(e, ERR_GENERIC, EISDIR, "Could not create '%s'",
			       filename);
	base[-1] = '\0';
	dir = find(p, name[0] ? name : "/", &os);
	if (dir < 0)
		return not_found(p, filename, os, e);
	fd = openat(dir, base,
		    O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC |
			    O_NOCTTY,
		    0644);
	if (fd < 0 || fstat(fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno, "Could not create '%s'",
			       filename);
	*made = (struct made_file){ .dir = steal_fd(&dir),
				    .name = xstrdup(base),
				    .device = st.st_dev,
				    .inode = st.st_ino };
	*out = steal_fd(&fd);
	return true;
}

bool
paths_create(const struct paths *p, const char *filename,
	     struct made_file *made, int *fd, struct err *e)
{
	struct err first = ERR_INIT;

	if (paths_open(p, filename, O_RDWR, fd, &first))
		return true;
	if (first.os != ENOENT || !filename[0])
		return err_move(e, &first);
	return make(p, filename, made, fd, e);
}

void
made_file_remove(struct made_file *made)
{
	struct stat st;

	if (made->dir >= 0 &&
	    fstatat(made->dir, made->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    st.st_dev == made->device && st.st_ino == made->inode)
		(void)unlinkat(made->dir, made->name, 0);
	made_file_keep(made);
}

void
made_file_keep(struct made_file *made)
{
	if (made->dir >= 0)
		(void)close(made->dir);
	free(made->name);
	*made = (struct made_file)MADE_FILE_INIT;
}

bool
paths_socket(const struct paths *p, const char *filename, char **out,
	     struct err *e)
{
	AUTO(free) char *name = make_absolute(p, filename);
	char *base = strrchr(name, '/') + 1;
	char link[40], dir[PATH_MAX];
	AUTO(close) int fd = -1;
	struct stat st;
	ssize_t n;
	int os;

	if (!base[0] || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
		return err_set(e, ERR_GENERIC, 0,
			       "'%s' cannot be the name of a socket", filename);
	base[-1] = '\0';
	fd = find(p, name, &os);
	if (fd < 0)
		return not_found(p, filename, os, e);
	(void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, dir, sizeof dir - 1);
	if (n < 0 || fstat(fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno, "Could not open '%s'",
			       filename);
	if (!S_ISDIR(st.st_mode))
		return err_set(e, ERR_GENERIC, ENOTDIR, "Could not open '%s'",
			       filename);
	*out = xasprintf("%.*s/%s", (int)n, dir, base);
	return true;
}

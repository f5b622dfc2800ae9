/* SPDX-License-Identifier: BSD-3-Clause */
#include "captive.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/mem.h"
#include "unit.h"

#define PATIENCE_MS 60000

static void
nap(void)
{
	(void)nanosleep(&(struct timespec){ .tv_nsec = 2000000 }, NULL);
}

bool
captive_has(const char *program)
{
	AUTO(free) char *path = xstrdup(getenv("PATH") ? getenv("PATH") : "");
	char *save, *dir;

	for (dir = strtok_r(path, ":", &save); dir;
	     dir = strtok_r(NULL, ":", &save)) {
		AUTO(free) char *file = xasprintf("%s/%s", dir, program);

		if (access(file, X_OK) == 0)
			return true;
	}
	print_message("%s is not installed\n", program);
	return false;
}

void
captive_init(struct captive *c)
{
	memset(c, 0, sizeof *c);
	(void)snprintf(c->dir, sizeof c->dir, "/tmp/captive-XXXXXX");
	assert_non_null(mkdtemp(c->dir));
	(void)snprintf(c->socket, sizeof c->socket, "%s/socket", c->dir);
}

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
	(void)st;
	(void)type;
	(void)f;
	return remove(path);
}

static void
forget_arguments(struct captive *c)
{
	for (size_t i = 0; c->argv[i]; i++) {
		free(c->argv[i]);
		c->argv[i] = NULL;
	}
}

void
captive_destroy(struct captive *c)
{
	captive_kill(c);
	forget_arguments(c);
	(void)nftw(c->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* Replace every "@" by the directory. */
static char *
expand(const struct captive *c, const char *arg)
{
	char *out = xstrdup("");

	for (const char *at; (at = strchr(arg, '@')); arg = at + 1) {
		char *more = xasprintf("%s%.*s%s", out, (int)(at - arg), arg,
				       c->dir);

		free(out);
		out = more;
	}
	{
		char *more = xasprintf("%s%s", out, arg);

		free(out);
		return more;
	}
}

static void
set_arguments(struct captive *c, const char *const *first,
	      const char *const *then)
{
	size_t n = 0;

	forget_arguments(c);
	while (*first)
		c->argv[n++] = expand(c, *first++);
	while (*then) {
		assert_true(n + 1 < ARRAY_SIZE(c->argv));
		c->argv[n++] = expand(c, *then++);
	}
}

void
captive_restart(struct captive *c)
{
	captive_kill(c);
	(void)unlink(captive_path(c, "pid"));
	(void)unlink(c->socket);
	c->pid = fork();
	assert_true(c->pid >= 0);
	if (c->pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)execvp(c->argv[0], c->argv);
		_exit(127);
	}
	captive_wait_for(c, "pid");
}

void
captive_nbdkit(struct captive *c, const char *const *args)
{
	const char *const first[] = { "nbdkit", "-f",    "-U", "@/socket",
				      "-P",     "@/pid", NULL };

	set_arguments(c, first, args);
	captive_restart(c);
}

void
captive_qemu_nbd(struct captive *c, const char *const *args)
{
	const char *const first[] = { "qemu-nbd",   "-k",    "@/socket",
				      "--pid-file", "@/pid", NULL };

	set_arguments(c, first, args);
	captive_restart(c);
}

void
captive_signal(struct captive *c, int signal)
{
	assert_true(c->pid > 0);
	assert_int_equal(kill(c->pid, signal), 0);
}

void
captive_kill(struct captive *c)
{
	if (c->pid > 0) {
		(void)kill(c->pid, SIGKILL);
		(void)waitpid(c->pid, NULL, 0);
	}
	c->pid = 0;
}

const char *
captive_path(const struct captive *c, const char *name)
{
	static char path[4][160];
	static unsigned next;
	char *p = path[next++ % ARRAY_SIZE(path)];

	(void)snprintf(p, sizeof path[0], "%s/%s", c->dir, name);
	return p;
}

bool
captive_exists(const struct captive *c, const char *name)
{
	struct stat st;

	return stat(captive_path(c, name), &st) == 0;
}

void
captive_touch(const struct captive *c, const char *name)
{
	int fd = open(captive_path(c, name), O_CREAT | O_WRONLY | O_CLOEXEC,
		      0600);

	assert_true(fd >= 0);
	(void)close(fd);
}

void
captive_wait_for(const struct captive *c, const char *name)
{
	for (int ms = 0; ms < PATIENCE_MS; ms += 2) {
		if (captive_exists(c, name))
			return;
		if (c->pid && waitpid(c->pid, NULL, WNOHANG) == c->pid)
			fail_msg("%s has ended", c->argv[0]);
		nap();
	}
	fail_msg("%s does not appear", name);
}

int
captive_open(const struct captive *c, const char *name, uint64_t size)
{
	int fd =
		open(captive_path(c, name), O_CREAT | O_RDWR | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	if (size)
		assert_int_equal(ftruncate(fd, (off_t)size), 0);
	return fd;
}

unsigned
captive_count(const struct captive *c, const char *name, const char *text)
{
	FILE *f = fopen(captive_path(c, name), "re");
	char line[512];
	unsigned n = 0;

	if (!f)
		return 0;
	while (fgets(line, sizeof line, f))
		n += strstr(line, text) != NULL;
	(void)fclose(f);
	return n;
}

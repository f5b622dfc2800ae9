/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FIRST_FD 3 /* of socket activation */

/* What the child needs, made before fork. */
struct plan {
	const char *program;
	char *const *argv;
	char **env;
	char *pid_digits; /* inside env's LISTEN_PID= */
	int *fds; /* a copy, the child changes it */
	size_t n;
	int null;
	int why;
	sigset_t mask;
	int nice; /* what the program is to have */
};

/* snprintf is not async-signal-safe. */
static void
put_pid(char *to, pid_t pid)
{
	char digits[12];
	size_t n = 0;

	do {
		digits[n++] = (char)('0' + pid % 10);
		pid /= 10;
	} while (pid);
	while (n)
		*to++ = digits[--n];
	*to = '\0';
}

/* The sockets may already have numbers where they, or the pipe, must go: move
 * everything above that range first.
 */
static bool
child_descriptors(struct plan *p)
{
	int above = FIRST_FD + (int)p->n;

	p->why = fcntl(p->why, F_DUPFD_CLOEXEC, above);
	if (p->why < 0)
		return false;
	for (size_t i = 0; i < p->n; i++) {
		p->fds[i] = fcntl(p->fds[i], F_DUPFD_CLOEXEC, above);
		if (p->fds[i] < 0)
			return false;
	}
	for (size_t i = 0; i < p->n; i++)
		if (dup2(p->fds[i], FIRST_FD + (int)i) < 0)
			return false;
	if (dup2(p->null, STDIN_FILENO) < 0 ||
	    dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
		return false;
	/* Ours are all close-on-exec; this is for what we inherited. */
	(void)close_range((unsigned)above, ~0U, CLOSE_RANGE_CLOEXEC);
	return true;
}

static void
child_signals(const struct plan *p)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL };

	for (int i = 1; i < NSIG; i++)
		(void)sigaction(i, &dfl, NULL);
	(void)sigprocmask(SIG_SETMASK, &p->mask, NULL);
}

static void
child(struct plan *p)
{
	int os;

	put_pid(p->pid_digits, getpid());
	(void)setsid();
	(void)setpriority(PRIO_PROCESS, 0, p->nice);
	child_signals(p);
	if (child_descriptors(p))
		(void)execve(p->program, p->argv, p->env);
	os = errno;
	(void)!write(p->why, &os, sizeof os);
	_exit(127);
}

static bool
is_listen_variable(const char *s)
{
	return strncmp(s, "LISTEN_PID=", 11) == 0 ||
	       strncmp(s, "LISTEN_FDS=", 11) == 0 ||
	       strncmp(s, "LISTEN_FDNAMES=", 15) == 0;
}

/* Our environment with other LISTEN_ variables; the last two are owned. */
static char **
make_environment(size_t n_fds, char **pid_digits)
{
	size_t n = 0, k = 0;
	char **env;

	while (environ[n])
		n++;
	env = xcalloc(n + 3, sizeof env[0]);
	for (size_t i = 0; i < n; i++)
		if (!is_listen_variable(environ[i]))
			env[k++] = environ[i];
	env[k++] = xasprintf("LISTEN_FDS=%zu", n_fds);
	env[k] = xasprintf("LISTEN_PID=%12s", "");
	*pid_digits = strchr(env[k], '=') + 1;
	return env;
}

static void
free_environment(char **env)
{
	size_t n = 0;

	while (env[n])
		n++;
	free(env[n - 1]);
	free(env[n - 2]);
	free((void *)env);
}

/* All signals are blocked around fork, so that no handler of ours runs in the
 * child.
 */
static pid_t
fork_plan(struct plan *p)
{
	sigset_t all, old;
	pid_t pid;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	pid = fork();
	if (pid == 0)
		child(p);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return pid;
}

static bool
run_plan(struct plan *p, struct spawned *out, struct err *e)
{
	pid_t pid = fork_plan(p);
	int fd;

	if (pid < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot run '%s'",
			       p->program);
	fd = pidfd_open(pid, 0);
	if (fd < 0) {
		(void)err_set(e, ERR_GENERIC, errno, "cannot watch '%s'",
			      p->program);
		(void)kill(pid, SIGKILL);
		(void)waitpid(pid, NULL, 0);
		return false;
	}
	out->pid = pid;
	out->pidfd = fd;
	return true;
}

bool
spawn_activated(const char *program, char *const argv[], const int *fds,
		size_t n, int niceness, struct spawned *out, struct err *e)
{
	struct plan p = {
		.program = program, .argv = argv, .n = n, .nice = niceness
	};
	AUTO(close) int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	AUTO(close) int why = -1, report = -1;
	AUTO(free) int *copy = xcalloc(n, sizeof fds[0]);
	int pipe_fds[2];
	bool ok;

	if (null < 0 || pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK) < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot run '%s'",
			       program);
	why = pipe_fds[0];
	report = pipe_fds[1];
	memcpy(copy, fds, n * sizeof fds[0]);
	p.fds = copy;
	p.null = null;
	p.why = report;
	(void)sigemptyset(&p.mask);
	p.env = make_environment(n, &p.pid_digits);
	ok = run_plan(&p, out, e);
	free_environment(p.env);
	if (ok)
		out->why = steal_fd(&why);
	return ok;
}

int
spawn_failure(const struct spawned *s)
{
	int os;

	return read(s->why, &os, sizeof os) == sizeof os ? os : 0;
}

static bool
is_program(const char *path)
{
	struct stat st;

	return access(path, X_OK) == 0 && stat(path, &st) == 0 &&
	       S_ISREG(st.st_mode);
}

char *
spawn_find(const char *name)
{
	const char *dir = getenv("PATH");
	size_t len;

	if (strchr(name, '/'))
		return is_program(name) ? xstrdup(name) : NULL;
	for (dir = dir ? dir : "/usr/sbin:/usr/bin"; dir; dir += len + 1) {
		AUTO(free) char *path = NULL;

		len = strcspn(dir, ":");
		path = xasprintf("%.*s/%s", (int)len, len ? dir : ".", name);
		if (is_program(path))
			return steal(&path);
		if (!dir[len])
			break;
	}
	return NULL;
}

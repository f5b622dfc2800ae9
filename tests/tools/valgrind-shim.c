/* SPDX-License-Identifier: BSD-3-Clause
 *
 * valgrind-shim: what valgrind 3.19 (Debian 12) has no system calls for,
 * preloaded into stillpointd by tests/sanitize valgrind.  It is good enough
 * for a run that looks for memory errors, and for nothing else: names are not
 * kept below their directories, and a process is watched by looking at it.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_FDS 4096

/* A "pidfd" is the reading end of a pipe that is closed when the process has
 * ended: it becomes readable then, too.
 */
static _Atomic int pid_of[MAX_FDS];

struct watch {
	pid_t pid;
	int end;
};

static bool
has_ended(pid_t pid)
{
	siginfo_t si = { 0 };

	if (waitid(P_PID, (id_t)pid, &si, WEXITED | WNOHANG | WNOWAIT) == 0)
		return si.si_pid == pid;
	return kill(pid, 0) < 0; /* no child of ours */
}

static void *
watch(void *arg)
{
	struct watch *w = arg;

	while (!has_ended(w->pid))
		(void)usleep(5000);
	(void)close(w->end);
	free(w);
	return NULL;
}

int
pidfd_open(pid_t pid, unsigned flags)
{
	struct watch *w = malloc(sizeof *w);
	sigset_t all, old;
	pthread_t t;
	int fds[2];

	(void)flags;
	if (!w || pipe2(fds, O_CLOEXEC) < 0 || fds[0] >= MAX_FDS) {
		free(w);
		errno = EMFILE;
		return -1;
	}
	*w = (struct watch){ pid, fds[1] };
	pid_of[fds[0]] = pid;
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	if (pthread_create(&t, NULL, watch, w) == 0)
		(void)pthread_detach(t);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return fds[0];
}

int
pidfd_send_signal(int fd, int sig, siginfo_t *info, unsigned flags)
{
	(void)info;
	(void)flags;
	return kill(pid_of[fd], sig);
}

int
waitid(idtype_t type, id_t id, siginfo_t *si, int options)
{
	int (*real)(idtype_t, id_t, siginfo_t *, int);

	*(void **)&real = dlsym(RTLD_NEXT, "waitid");
	if (type == P_PIDFD)
		return real(P_PID, (id_t)pid_of[id], si, options);
	return real(type, id, si, options);
}

/* The program's own calls of syscall(2), and those of libev, which can do
 * without.
 */
long
syscall(long number, ...)
{
	const struct open_how *how;
	const char *name;
	va_list ap;
	int dir;

	if (number != SYS_openat2) {
		errno = ENOSYS;
		return -1;
	}
	va_start(ap, number);
	dir = va_arg(ap, int);
	name = va_arg(ap, const char *);
	how = va_arg(ap, const struct open_how *);
	va_end(ap);
	return openat(dir, name, (int)how->flags, (mode_t)how->mode);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/supervisor.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#include "base/log.h"
#include "daemon/spawn.h"

/* Seconds before the attempt that follows the n-th death in a row. */
static const double backoff[] = { 0, 0.1, 0.2, 0.5, 1, 2, 5 };

/* What is to be told to the owner in the next turn of the loop. */
enum tell { TELL_START = 1, TELL_GONE = 2, TELL_FAILURE = 4 };

struct supervisor {
	int niceness;
	struct loop *loop; /* borrowed */
	const struct supervisor_events *events; /* borrowed */
	void *opaque;
	char *program; /* owned */
	char **args; /* owned, NULL at the end */
	struct address *nbd; /* owned, @n_nbd of them */
	size_t n_nbd;
	struct address idle; /* owned */
	struct listeners listeners; /* for guests */
	struct listeners idling; /* used while the others are none */
	unsigned max_connections;
	bool replacing; /* the present nbdkit was killed for another one */
	struct spawned run; /* pid 0: none runs */
	bool child; /* of ours, so it can be waited for */
	ev_tstamp started;
	unsigned deaths; /* in a row */
	bool confirmed; /* once, by any nbdkit */
	bool restart;
	bool stopping;
	unsigned tell; /* of enum tell */
	struct err failure;
	ev_io gone;
	ev_timer again;
	ev_timer term;
	ev_timer telling; /* a task that can be stopped */
};

static void
tell(struct supervisor *s, enum tell what)
{
	s->tell |= (unsigned)what;
	ev_timer_set(&s->telling, 0, 0);
	ev_timer_start(s->loop->ev, &s->telling);
}

/* Rule 4's end: on_failure will be called. */
static void
give_up(struct supervisor *s, const struct err *e)
{
	err_clear(&s->failure);
	(void)err_move(&s->failure, e);
	tell(s, TELL_FAILURE);
}

static void
describe_status(int status, char *out, size_t size)
{
	if (status == -1)
		(void)snprintf(out, size, "no child of ours, status unknown");
	else if (WIFSIGNALED(status))
		(void)snprintf(out, size, "killed by signal %d (%s)",
			       WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		(void)snprintf(out, size, "exit status %d",
			       WEXITSTATUS(status));
}

static struct listeners *
in_use(struct supervisor *s)
{
	return s->listeners.n ? &s->listeners : &s->idling;
}

static void
restart_after(struct supervisor *s, double delay)
{
	ev_timer_set(&s->again, delay, 0);
	ev_timer_start(s->loop->ev, &s->again);
}

static void
schedule_restart(struct supervisor *s)
{
	size_t last = ARRAY_SIZE(backoff) - 1;
	size_t i = s->deaths - 1;
	double delay = backoff[i < last ? i : last];

	log_info("nbdkit: starting it again in %g s", delay);
	restart_after(s, delay);
}

/* It died, or could not be made: count, and decide what comes next. */
static bool
count_death(struct supervisor *s, int exec_errno, int status)
{
	struct err e = ERR_INIT;
	char text[80];

	if (!s->restart || s->stopping)
		return false;
	if (s->replacing) {
		restart_after(s, 0);
		return true;
	}
	s->deaths++;
	describe_status(status, text, sizeof text);
	if (!s->confirmed && exec_errno)
		(void)err_set(&e, ERR_GENERIC, exec_errno, "cannot run '%s'",
			      s->program);
	else if (!s->confirmed && s->deaths >= SUPERVISOR_MAX_QUICK)
		(void)err_set(&e, ERR_GENERIC, 0,
			      "'%s' does not work: it ended %u times in a row "
			      "before it could be used (%s); its own messages "
			      "stand above",
			      s->program, s->deaths, text);
	if (err_is_set(&e)) {
		give_up(s, &e);
		return false;
	}
	schedule_restart(s);
	return true;
}

static void
forget_process(struct supervisor *s)
{
	ev_io_stop(s->loop->ev, &s->gone);
	ev_timer_stop(s->loop->ev, &s->term);
	(void)close(s->run.pidfd);
	if (s->run.why >= 0)
		(void)close(s->run.why);
	s->run = (struct spawned){ .pid = 0, .pidfd = -1, .why = -1 };
}

static int
reap(const struct supervisor *s)
{
	siginfo_t si = { 0 };

	if (!s->child || waitid(P_PIDFD, (id_t)s->run.pidfd, &si, WEXITED) < 0)
		return -1;
	return si.si_code == CLD_EXITED ? si.si_status << 8 : si.si_status;
}

static void
process_ended(struct supervisor *s)
{
	pid_t pid = s->run.pid;
	int exec_errno = s->child ? spawn_failure(&s->run) : 0;
	int status = reap(s);
	char text[80];
	bool again;

	describe_status(status, text, sizeof text);
	if (s->stopping || s->replacing)
		log_info("nbdkit (pid %ld) ended: %s", (long)pid, text);
	else
		log_warn("nbdkit (pid %ld) ended unexpectedly: %s", (long)pid,
			 text);
	forget_process(s);
	if (ev_now(s->loop->ev) - s->started >= SUPERVISOR_GOOD_LIFE)
		s->deaths = 0;
	again = count_death(s, exec_errno, status);
	s->events->on_exit(s->opaque, pid, status, again);
}

static void
on_gone(struct ev_loop *ev, ev_io *w, int revents)
{
	(void)ev;
	(void)revents;
	process_ended(container_of(w, struct supervisor, gone));
}

static void
on_again(struct ev_loop *ev, ev_timer *w, int revents)
{
	(void)ev;
	(void)revents;
	supervisor_start(container_of(w, struct supervisor, again));
}

static void
on_term_timeout(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct supervisor *s = container_of(w, struct supervisor, term);

	(void)ev;
	(void)revents;
	log_warn("nbdkit (pid %ld) did not end within %g s: killing it",
		 (long)s->run.pid, SUPERVISOR_TERM_WAIT);
	(void)pidfd_send_signal(s->run.pidfd, SIGKILL, NULL, 0);
}

/* The failure comes last: its receiver may free us. */
static void
on_telling(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct supervisor *s = container_of(w, struct supervisor, telling);
	unsigned what = s->tell;
	struct err failure = s->failure;

	(void)ev;
	(void)revents;
	s->tell = 0;
	if ((what & TELL_START) && s->run.pid)
		s->events->on_start(s->opaque, s->run.pid);
	if (what & TELL_GONE)
		s->events->on_exit(s->opaque, 0, 0, false);
	if (what & TELL_FAILURE)
		s->events->on_failure(s->opaque, &failure);
}

static char **
copy_args(const struct supervisor_options *o)
{
	size_t n = 0, k = 0;
	char **v;

	while (o->args && o->args[n])
		n++;
	v = xcalloc(n + 8, sizeof v[0]);
	v[k++] = xstrdup(o->program);
	v[k++] = xstrdup("--foreground");
	if (o->threads) {
		v[k++] = xstrdup("--threads");
		v[k++] = xasprintf("%u", o->threads);
	}
	for (size_t i = 0; i < n; i++)
		v[k++] = xstrdup(o->args[i]);
	v[k++] = xstrdup(o->plugin);
	v[k++] = xasprintf("link=%s", o->link);
	return v;
}

struct supervisor *
supervisor_new(struct loop *l, const struct supervisor_options *o,
	       const struct supervisor_events *events, void *opaque)
{
	struct supervisor *s = xzalloc(sizeof *s);

	s->loop = l;
	s->niceness = o->niceness;
	s->events = events;
	s->opaque = opaque;
	s->program = xstrdup(o->program);
	s->args = copy_args(o);
	s->nbd = xcalloc(o->n_nbd, sizeof s->nbd[0]);
	for (size_t i = 0; i < o->n_nbd; i++)
		address_copy(&s->nbd[i], &o->nbd[i]);
	s->n_nbd = o->n_nbd;
	s->idle.kind = ADDRESS_UNIX;
	s->idle.path = xstrdup(o->idle ? o->idle : "");
	s->idle.text = xasprintf("unix:%s", s->idle.path);
	s->max_connections = o->max_connections;
	s->run = (struct spawned){ .pidfd = -1, .why = -1 };
	s->restart = true;
	ev_init(&s->gone, on_gone);
	ev_init(&s->again, on_again);
	ev_init(&s->term, on_term_timeout);
	ev_init(&s->telling, on_telling);
	return s;
}

static bool
listen_idle(struct supervisor *s, struct err *e)
{
	return s->idling.n ||
	       listeners_add(&s->idling, &s->idle, LISTEN_OWNER_ONLY, e);
}

bool
supervisor_listen(struct supervisor *s, struct err *e)
{
	if (s->n_nbd == 0)
		return listen_idle(s, e);
	for (size_t i = 0; i < s->n_nbd; i++)
		if (!listeners_add(&s->listeners, &s->nbd[i], 0, e)) {
			listeners_close(&s->listeners, true);
			return false;
		}
	for (size_t i = 0; i < s->listeners.n; i++)
		log_info("guests connect to %s", s->listeners.v[i].name);
	return true;
}

static void
watch_process(struct supervisor *s, bool child)
{
	s->child = child;
	s->started = ev_now(s->loop->ev);
	ev_io_set(&s->gone, s->run.pidfd, EV_READ);
	ev_io_start(s->loop->ev, &s->gone);
}

/* The arguments, the last of which depend on the sockets. */
static bool
spawn_nbdkit(struct supervisor *s, const char *path, struct err *e)
{
	const struct listeners *l = in_use(s);
	AUTO(free) char *sockets = xasprintf("listen-fds=%zu", l->n);
	AUTO(free)
	char *clients = xasprintf("max-connections=%u", s->max_connections);
	AUTO(free) char **argv = NULL;
	int fds[LISTEN_MAX];
	size_t n = 0;

	while (s->args[n])
		n++;
	argv = xcalloc(n + 3, sizeof argv[0]);
	memcpy((void *)argv, (const void *)s->args, n * sizeof argv[0]);
	argv[n++] = sockets;
	if (s->max_connections)
		argv[n] = clients;
	for (size_t i = 0; i < l->n; i++)
		fds[i] = l->v[i].fd;
	return spawn_activated(path, argv, fds, l->n, s->niceness, &s->run, e);
}

void
supervisor_start(struct supervisor *s)
{
	AUTO(free) char *path = spawn_find(s->program);
	struct err e = ERR_INIT;

	ASSERT_LOOP(s->loop);
	assert(!s->run.pid && in_use(s)->n > 0);
	ev_timer_stop(s->loop->ev, &s->again);
	s->stopping = false;
	s->replacing = false;
	if (!path) {
		log_error("cannot find the program '%s'", s->program);
		(void)count_death(s, ENOENT, 0);
		return;
	}
	if (!spawn_nbdkit(s, path, &e)) {
		log_error("%s", e.msg);
		(void)count_death(s, 0, 0);
		return;
	}
	log_info("nbdkit started, pid %ld", (long)s->run.pid);
	watch_process(s, true);
	tell(s, TELL_START);
}

/* The one socket of an nbdkit that idles. */
static void
sort_adopted(struct supervisor *s)
{
	const char *path = s->listeners.n == 1 ? s->listeners.v[0].path : NULL;

	if (!path || strcmp(path, s->idle.path) != 0)
		return;
	s->idling = s->listeners;
	s->listeners = (struct listeners){ 0 };
}

static bool
adopt_sockets(struct supervisor *s, const int *fds, size_t n, struct err *e)
{
	bool ok = true;

	for (size_t i = 0; i < n; i++) {
		if (ok)
			ok = listeners_adopt(&s->listeners, fds[i], e);
		else
			(void)close(fds[i]);
	}
	if (ok)
		sort_adopted(s);
	else
		listeners_close(&s->listeners, false);
	return ok;
}

bool
supervisor_adopt(struct supervisor *s, pid_t pid, const int *fds, size_t n,
		 struct err *e)
{
	ASSERT_LOOP(s->loop);
	assert(!s->run.pid && in_use(s)->n == 0);
	if (!adopt_sockets(s, fds, n, e))
		return err_prefix(e,
				  "cannot adopt nbdkit (pid %ld): ", (long)pid);
	s->run.pidfd = pidfd_open(pid, 0);
	if (s->run.pidfd < 0) {
		listeners_close(in_use(s), false);
		return err_set(e, ERR_GENERIC, errno,
			       "cannot adopt nbdkit (pid %ld)", (long)pid);
	}
	s->run.pid = pid;
	watch_process(s, false);
	log_info("nbdkit with pid %ld runs already", (long)pid);
	for (size_t i = 0; i < s->listeners.n; i++)
		log_info("guests connect to %s", s->listeners.v[i].name);
	for (size_t i = 0; i < s->n_nbd; i++)
		if (!listeners_cover(&s->listeners, &s->nbd[i]))
			log_warn("nbdkit does not listen on '%s': that takes "
				 "effect when nbdkit was stopped",
				 s->nbd[i].text);
	return true;
}

bool
supervisor_relisten(struct supervisor *s, struct listeners *l,
		    unsigned max_connections, struct err *e)
{
	ASSERT_LOOP(s->loop);
	if (l->n == 0 && !listen_idle(s, e))
		return false;
	listeners_close(&s->listeners, true);
	s->listeners = *l;
	*l = (struct listeners){ 0 };
	s->max_connections = max_connections;
	for (size_t i = 0; i < s->listeners.n; i++)
		log_info("guests connect to %s", s->listeners.v[i].name);
	s->replacing = s->run.pid != 0;
	supervisor_kill(s);
	return true;
}

bool
supervisor_wake(struct supervisor *s, bool *replaced, struct err *e)
{
	*replaced = false;
	if (s->n_nbd == 0 || s->listeners.n > 0)
		return true;
	if (!supervisor_listen(s, e))
		return false;
	*replaced = true;
	s->replacing = true;
	supervisor_kill(s);
	return true;
}

void
supervisor_forget_addresses(struct supervisor *s)
{
	for (size_t i = 0; i < s->n_nbd; i++)
		address_destroy(&s->nbd[i]);
	s->n_nbd = 0;
}

void
supervisor_confirm(struct supervisor *s)
{
	ASSERT_LOOP(s->loop);
	s->confirmed = true;
}

void
supervisor_set_restart(struct supervisor *s, bool on)
{
	ASSERT_LOOP(s->loop);
	s->restart = on;
	if (!on)
		ev_timer_stop(s->loop->ev, &s->again);
}

void
supervisor_stop(struct supervisor *s)
{
	ASSERT_LOOP(s->loop);
	ev_timer_stop(s->loop->ev, &s->again);
	s->stopping = true;
	if (!s->run.pid) {
		tell(s, TELL_GONE);
		return;
	}
	(void)pidfd_send_signal(s->run.pidfd, SIGTERM, NULL, 0);
	ev_timer_stop(s->loop->ev, &s->term);
	ev_timer_set(&s->term, SUPERVISOR_TERM_WAIT, 0);
	ev_timer_start(s->loop->ev, &s->term);
}

void
supervisor_kill(struct supervisor *s)
{
	ASSERT_LOOP(s->loop);
	if (s->run.pid)
		(void)pidfd_send_signal(s->run.pidfd, SIGKILL, NULL, 0);
}

pid_t
supervisor_pid(const struct supervisor *s)
{
	return s->run.pid;
}

const struct listeners *
supervisor_listeners(const struct supervisor *s)
{
	return &s->listeners;
}

void
supervisor_free(struct supervisor *s)
{
	bool runs;

	if (!s)
		return;
	runs = s->run.pid != 0;
	ev_timer_stop(s->loop->ev, &s->again);
	ev_timer_stop(s->loop->ev, &s->telling);
	if (runs)
		forget_process(s);
	listeners_close(&s->listeners, !runs);
	listeners_close(&s->idling, !runs);
	address_destroy(&s->idle);
	for (size_t i = 0; i < s->n_nbd; i++)
		address_destroy(&s->nbd[i]);
	for (size_t i = 0; s->args[i]; i++)
		free(s->args[i]);
	free((void *)s->args);
	free(s->nbd);
	free(s->program);
	free(s);
}

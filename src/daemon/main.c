/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stillpointd.  Exit codes: 0 after quit, SIGTERM or SIGINT; 1 when it could
 * not start or go on; 2 for wrong usage or configuration.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/core.h"
#include "daemon/daemon.h"
#include "daemon/paths.h"

#define WORK_THREADS 8

struct signals {
	struct daemon *d;
	ev_signal term, intr;
};

/* Files that we open must not become standard output or error. */
static bool
open_standard_files(void)
{
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
			return false;
	return true;
}

/* Images, epochs, views and sessions each take some.  The soft limit is there
 * for programs that call select(), which neither we nor nbdkit do.
 */
static void
allow_descriptors(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
		r.rlim_cur = r.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &r);
	}
}

static bool
open_directories(struct daemon *d, struct err *e)
{
	struct config *c = &d->cfg;

	if (!statedir_open(&d->state, c->state, e) ||
	    !config_complete(c, d->state.path, e) ||
	    !private_dir_make(c->store, "the store directory", e) ||
	    !private_dir_make(c->shm, "the shared memory directory", e))
		return false;
	d->paths = paths_new();
	for (size_t i = 0; i < c->n_allow; i++)
		if (!paths_allow(d->paths, c->allow[i], e))
			return false;
	return true;
}

static bool
set_up(struct daemon *d, struct err *e)
{
	if (!open_directories(d, e))
		return false;
	d->work = work_pool_new(WORK_THREADS);
	if (!d->work)
		return err_set(e, ERR_GENERIC, 0, "out of memory");
	d->qmp = qmp_server_new(&d->loop, d);
	for (size_t i = 0; i < d->cfg.n_qmp; i++)
		if (!qmp_server_add(d->qmp, &d->cfg.qmp[i], e))
			return false;
	d->core_up = true;
	return core_init(d, e);
}

static void
tear_down(struct daemon *d)
{
	if (d->core_up)
		core_free(d);
	if (d->qmp)
		qmp_server_free(d->qmp);
	if (d->work)
		work_pool_free(d->work);
	if (d->paths)
		paths_free(d->paths);
	if (d->cfg.shm_is_ours)
		(void)rmdir(d->cfg.shm); /* fails while it is of use */
	statedir_close(&d->state);
}

static void
on_signal(struct ev_loop *ev, ev_signal *w, int revents)
{
	struct signals *s = w->data;

	(void)ev;
	(void)revents;
	daemon_end(s->d, w->signum == SIGTERM ? "of SIGTERM" : "of SIGINT",
		   NULL);
}

static void
watch_signals(struct signals *s, struct daemon *d)
{
	s->d = d;
	ev_signal_init(&s->term, on_signal, SIGTERM);
	ev_signal_init(&s->intr, on_signal, SIGINT);
	s->term.data = s->intr.data = s;
	ev_signal_start(d->loop.ev, &s->term);
	ev_signal_start(d->loop.ev, &s->intr);
}

/* From now on another SIGTERM changes nothing: we are on our way. */
static void
forget_signals(struct signals *s)
{
	sigset_t both;

	(void)sigemptyset(&both);
	(void)sigaddset(&both, SIGTERM);
	(void)sigaddset(&both, SIGINT);
	(void)pthread_sigmask(SIG_BLOCK, &both, NULL);
	ev_signal_stop(s->d->loop.ev, &s->term);
	ev_signal_stop(s->d->loop.ev, &s->intr);
}

/* The loop needs little time, but soon: with the processors full of guests a
 * cut of many disks would wait for its turn at each of its steps.  Without the
 * right to ask for that it does without.  nbdkit and streams do not inherit it.
 */
static void
prefer_loop(struct daemon *d)
{
	d->niceness = getpriority(PRIO_PROCESS, 0);
	(void)setpriority(PRIO_PROCESS, 0, d->niceness - 10);
}

static int
run(struct daemon *d)
{
	struct signals signals;
	struct err e = ERR_INIT;

	if (!loop_init(&d->loop)) {
		log_error("cannot make an event loop");
		return 1;
	}
	prefer_loop(d);
	allow_descriptors();
	watch_signals(&signals, d);
	if (set_up(d, &e)) {
		core_start(d);
		loop_run(&d->loop);
	} else {
		log_error("%s", e.msg);
		d->exit_code = 1;
	}
	forget_signals(&signals);
	tear_down(d);
	loop_destroy(&d->loop);
	return d->exit_code;
}

int
main(int argc, char **argv)
{
	struct daemon d = { .state = { .fd = -1, .lock = -1 } };
	struct err e = ERR_INIT;
	int code;

	if (!open_standard_files())
		return 1;
	switch (config_parse(&d.cfg, argc, argv, &e)) {
	case CONFIG_RUN: break;
	case CONFIG_DONE: return 0;
	case CONFIG_WRONG:
		(void)fprintf(stderr,
			      "stillpointd: %s\n"
			      "Try 'stillpointd --help'.\n",
			      e.msg);
		return 2;
	}
	(void)signal(SIGPIPE, SIG_IGN);
	(void)signal(SIGHUP, SIG_IGN);
	log_set_level(d.cfg.log_level);
	park_from_environment();
	log_info("stillpointd %s, pid %ld", STILLPOINT_VERSION, (long)getpid());
	code = run(&d);
	config_destroy(&d.cfg);
	log_info("ended");
	return code;
}

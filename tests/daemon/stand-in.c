/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stand-in [--shutdown-ms N] ADDRESS...: the QMP server of stillpointd with
 * nothing behind it, for tests/daemon/test_qmp_server.py.  It ends by quit or
 * SIGTERM, as the daemon does; ending takes as long as told.
 */
#include "stand-in.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/core.h"
#include "daemon/daemon.h"

static struct {
	double delay;
	ev_timer timer;
	struct daemon *d;
	void (*done)(struct daemon *d);
} ending;

bool
core_init(struct daemon *d, struct err *e)
{
	(void)d;
	(void)e;
	return true;
}

void
core_start(struct daemon *d)
{
	daemon_ready(d);
}

static void
on_ended(struct ev_loop *ev, ev_timer *w, int revents)
{
	(void)ev;
	(void)w;
	(void)revents;
	ending.done(ending.d);
}

void
core_shutdown(struct daemon *d, void (*done)(struct daemon *d))
{
	ending.d = d;
	ending.done = done;
	ev_timer_init(&ending.timer, on_ended, ending.delay, 0);
	ev_timer_start(d->loop.ev, &ending.timer);
}

void
core_free(struct daemon *d)
{
	(void)d;
	stand_in_forget();
}

static void
on_sigterm(struct ev_loop *ev, ev_signal *w, int revents)
{
	(void)ev;
	(void)revents;
	daemon_end(w->data, "of SIGTERM", NULL);
}

static bool
listen_on(struct daemon *d, const char *text, struct err *e)
{
	struct address a;
	bool ok;

	if (!address_parse(text, &a, e))
		return false;
	ok = qmp_server_add(d->qmp, &a, e);
	address_destroy(&a);
	return ok;
}

static void
run(struct daemon *d)
{
	ev_signal term;
	sigset_t set;

	ev_signal_init(&term, on_sigterm, SIGTERM);
	term.data = d;
	ev_signal_start(d->loop.ev, &term);
	core_start(d);
	loop_run(&d->loop);
	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGTERM);
	(void)sigprocmask(SIG_BLOCK, &set, NULL);
	ev_signal_stop(d->loop.ev, &term);
	core_free(d);
}

int
main(int argc, char **argv)
{
	struct daemon d = { 0 };
	struct err e = ERR_INIT;
	int i = 1;

	(void)signal(SIGPIPE, SIG_IGN);
	log_set_level(LOG_LEVEL_DEBUG);
	if (argc > 2 && strcmp(argv[1], "--shutdown-ms") == 0) {
		ending.delay = atof(argv[2]) / 1000;
		i = 3;
	}
	if (!loop_init(&d.loop))
		return 1;
	d.qmp = qmp_server_new(&d.loop, &d);
	while (i < argc && listen_on(&d, argv[i], &e))
		i++;
	if (err_is_set(&e)) {
		log_error("%s", e.msg);
		d.exit_code = 1;
	} else {
		run(&d);
	}
	qmp_server_free(d.qmp);
	loop_destroy(&d.loop);
	return d.exit_code;
}

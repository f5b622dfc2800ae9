/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stand-in [--hold-end] ADDRESS...: the QMP server of stillpointd with nothing
 * behind it, for tests/daemon/test_qmp_server.py.  It ends by quit or SIGTERM,
 * as the daemon does; with --hold-end only when test-release names "end".
 */
#include "stand-in.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/core.h"
#include "daemon/daemon.h"

static bool hold_end;

static struct {
	struct task task;
	void (*done)(struct daemon *d);
	struct daemon *d;
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
on_ended(struct task *t)
{
	(void)t;
	ending.done(ending.d);
}

void
core_shutdown(struct daemon *d, void (*done)(struct daemon *d))
{
	if (hold_end) {
		stand_in_hold(d, "end", done);
		return;
	}
	ending.d = d;
	ending.done = done;
	ending.task.fn = on_ended;
	loop_defer(&d->loop, &ending.task);
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
	if (argc > 1 && strcmp(argv[1], "--hold-end") == 0) {
		hold_end = true;
		i = 2;
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

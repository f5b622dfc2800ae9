/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's life: up, ready, down.
 *
 * Down happens in this order: clients' commands are refused (queries are not),
 * the core shuts down, whoever said quit is answered, the sessions are closed
 * when that was sent, the loop ends.
 */
#include "daemon/daemon.h"

#include <assert.h>

#include "base/log.h"
#include "daemon/core.h"
#include "daemon/qmp-server.h"
#include "schema/qmp-commands.h"

void
daemon_ready(struct daemon *d)
{
	struct err e = ERR_INIT;

	ASSERT_LOOP(&d->loop);
	if (d->ending)
		return;
	if (!qmp_server_open(d->qmp, &e))
		daemon_fail(d, &e);
	else
		log_info("ready");
}

void
daemon_fail(struct daemon *d, const struct err *e)
{
	ASSERT_LOOP(&d->loop);
	log_error("%s", e->msg);
	d->exit_code = 1;
	daemon_end(d, "of that error", NULL);
}

static void
on_sessions_closed(void *opaque)
{
	struct daemon *d = opaque;

	loop_stop(&d->loop);
}

static void
on_core_down(struct daemon *d)
{
	ASSERT_LOOP(&d->loop);
	for (size_t i = 0; i < d->n_quits; i++)
		qmp_quit_return(d->quits[i]);
	d->n_quits = 0;
	qmp_server_close(d->qmp, on_sessions_closed);
}

/* Clients that say quit, go away and come again cannot make this grow. */
static void
remember_quit(struct daemon *d, struct qmp_call *call)
{
	struct err e = ERR_INIT;

	if (d->n_quits < ARRAY_SIZE(d->quits)) {
		d->quits[d->n_quits++] = call;
		return;
	}
	(void)err_set(&e, ERR_GENERIC, 0, "stillpointd is shutting down");
	qmp_call_fail(call, &e);
}

void
daemon_end(struct daemon *d, const char *why, struct qmp_call *call)
{
	ASSERT_LOOP(&d->loop);
	if (call)
		remember_quit(d, call);
	if (d->ending)
		return;
	d->ending = true;
	log_info("shutting down because %s", why);
	qmp_server_drain(d->qmp);
	core_shutdown(d, on_core_down);
}

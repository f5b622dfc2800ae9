/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stillpointd: the control plane.  This folder may use everything below it;
 * nothing uses it.
 *
 * One thread, the one that runs main(), runs the loop and owns everything
 * here ("loop").  What may block runs in the work pool.
 */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include <stdbool.h>

#include "base/err.h"
#include "base/loop.h"
#include "base/work.h"
#include "daemon/config.h"
#include "daemon/pending.h"
#include "daemon/qmp-server.h"
#include "daemon/statedir.h"

struct paths;

struct daemon {
	struct loop loop;
	struct work_pool *work; /* owned */
	struct config cfg;
	struct statedir state;
	struct paths *paths; /* owned: what clients may name */
	struct qmp_server *qmp; /* owned */
	bool core_up; /* core_init was called */
	int exit_code;
	int niceness; /* what the daemon was started with */
	bool ending; /* daemon_end was called */
	struct qmp_call *quits[QMP_MAX_SESSIONS]; /* who waits for the end */
	size_t n_quits;

	/* The inside: owned by core.c, made in core_init or core_start. */
	struct registry *registry;
	struct graph *graph;
	struct jobs *jobs;
	struct plane *plane;
	struct lost *lost;
	struct recovery *recovery;
	/* What nbd-server-start was told; owned, NULL: nothing. */
	struct guest_server_options *guests;
	struct merge *merge;
	struct pending pending;
	bool all_saved; /* the registry is that of the end */
	void (*core_down)(struct daemon *d); /* whom core_shutdown tells */
};

/* core_start is done: clients may come. */
void daemon_ready(struct daemon *d);

/* The daemon cannot go on: log why, shut down, exit with code 1. */
void daemon_fail(struct daemon *d, const struct err *e);

/* Shut down in order and end the loop.  @why is for the log.  @call, which may
 * be NULL, is the `quit` that asked for it; it is answered when everything is
 * down.  May be called again.
 */
void daemon_end(struct daemon *d, const char *why, struct qmp_call *call);

#endif

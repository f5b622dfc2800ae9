/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's inside (graph, jobs, link to nbdkit) as main.c sees it.  All
 * functions are for the loop's thread.
 */
#ifndef DAEMON_CORE_H
#define DAEMON_CORE_H

#include <stdbool.h>

#include "base/err.h"

struct daemon;

/* Open what the state directory holds (the registry).  Before the loop runs;
 * may block.
 */
bool core_init(struct daemon *d, struct err *e) MUST_CHECK;

/* The loop is about to run: find or start nbdkit, bring back the nodes.  When
 * that is done daemon_ready() is called, or daemon_fail().
 */
void core_start(struct daemon *d);

/* End jobs, close nodes, stop nbdkit (or leave it).  Commands may still be in
 * progress, and query commands may still come until core_free; all other
 * commands are refused from now on.  Calls done(d) once, on the loop, not from
 * inside this call; after it no call that was in progress is touched any more.
 */
void core_shutdown(struct daemon *d, void (*done)(struct daemon *d));

/* The loop has ended.  Also after a failed core_init. */
void core_free(struct daemon *d);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * blockdev-create of a qcow2 image in a node that is there: plan (loop), run
 * (worker; blocks), finish (loop).
 */
#ifndef DAEMON_CREATE_QCOW2_H
#define DAEMON_CREATE_QCOW2_H

#include "daemon/graph.h"

struct create_qcow2;

/* The nodes are @job's until finish.  @o is borrowed until then. */
bool create_qcow2_plan(struct graph *g, struct job *job,
		       const struct blockdev_create_options_qcow2 *o,
		       struct create_qcow2 **out, struct err *e) MUST_CHECK;
bool create_qcow2_run(struct create_qcow2 *c, struct err *e) MUST_CHECK;
void create_qcow2_finish(struct create_qcow2 *c); /* frees it */

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the commands of control.c need of a call's session.  Loop.
 */
#ifndef DAEMON_CONTROL_H
#define DAEMON_CONTROL_H

#include <stdbool.h>

struct qmp_call;

/* Has this session left negotiation? */
bool qmp_call_is_negotiated(const struct qmp_call *c);
void qmp_call_set_negotiated(struct qmp_call *c);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * query-status: QEMU's words for a virtual machine, said of the data plane.
 */
#include "daemon/daemon.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "schema/qmp-commands.h"

bool
qmp_query_status(struct qmp_call *call, struct status_info **ret, struct err *e)
{
	const struct daemon *d = qmp_call_opaque(call);
	AUTO(status_info_free) struct status_info *s = xzalloc(sizeof *s);

	(void)e;
	s->running = plane_is_up(d->plane);
	s->status = s->running ? RUN_STATE_RUNNING : RUN_STATE_INTERNAL_ERROR;
	*ret = steal(&s);
	return true;
}

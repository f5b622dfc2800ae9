/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The commands about the connection and the daemon itself.
 */
#include "daemon/control.h"

#include "daemon/daemon.h"
#include "daemon/qmp-server.h"
#include "daemon/version.h"
#include "schema/qmp-commands.h"

bool
qmp_qmp_capabilities(struct qmp_call *call,
		     const struct qmp_qmp_capabilities_args *arg, struct err *e)
{
	if (qmp_call_is_negotiated(call))
		return err_set(e, ERR_COMMAND_NOT_FOUND, 0,
			       "Capabilities negotiation is already complete, "
			       "command ignored");
	/* Whichever they are: we offer none. */
	if (arg->enable.n)
		return err_set(e, ERR_GENERIC, 0, "Capability %s not available",
			       qmp_capability_str(arg->enable.v[0]));
	qmp_call_set_negotiated(call);
	return true;
}

bool
qmp_query_version(struct qmp_call *call, struct version_info **ret,
		  struct err *e)
{
	AUTO(version_info_free) struct version_info *v = xzalloc(sizeof *v);

	(void)call;
	(void)e;
	v->qemu = xzalloc(sizeof *v->qemu);
	v->qemu->major = QMP_MAJOR;
	v->qemu->minor = QMP_MINOR;
	v->qemu->micro = QMP_MICRO;
	v->package = xstrdup(QMP_PACKAGE);
	*ret = steal(&v);
	return true;
}

void
qmp_quit(struct qmp_call *call)
{
	daemon_end(qmp_call_opaque(call), "a QMP client said quit", call);
}

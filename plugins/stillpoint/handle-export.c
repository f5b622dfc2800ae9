/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Exports come and go.
 */
#include "handlers.h"

#include <errno.h>

/* How long a request of a guest may keep an export from being taken away. */
#define REMOVE_MS 2000

bool
link_export_add(struct link_call *call, const struct link_export_add_args *arg,
		struct err *e)
{
	struct node *n = NULL;
	unsigned flags = 0;

	if (!handle_find_node(call, arg->node, &n, e))
		return false;
	if (arg->writable && !n->image->read_only)
		flags |= EXPORT_WRITABLE;
	if (arg->has_writethrough && arg->writethrough)
		flags |= EXPORT_WRITETHROUGH;
	return table_add_export(server_table(call->server), arg->name,
				arg->description, n, flags, e);
}

bool
link_export_del(struct link_call *call, const struct link_export_del_args *arg,
		struct err *e)
{
	struct table *t = server_table(call->server);
	struct export *x = table_export(t, arg->name);

	if (!x)
		return err_set(e, ERR_GENERIC, 0,
			       "the data plane has no export '%s'", arg->name);
	if (!arg->hard && export_connections(x))
		return err_set(e, ERR_GENERIC, EBUSY,
			       "export '%s' still in use", arg->name);
	if (!table_remove_export(t, x, REMOVE_MS))
		return err_set(e, ERR_GENERIC, 0,
			       "a request to export '%s' does not end",
			       arg->name);
	return true;
}

bool
link_exports_complete(struct link_call *call, struct err *e)
{
	(void)e;
	table_complete(server_table(call->server));
	return true;
}

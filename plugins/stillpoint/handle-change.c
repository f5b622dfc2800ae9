/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Nodes that stay open become different: other sizes and limits (other
 * options and images: handle-reopen.c).
 */
#include "handlers.h"

#include "block/throttle.h"
#include "change.h"
#include "link/image.h"

bool
link_node_resize(struct link_call *call,
		 const struct link_node_resize_args *arg, struct err *e)
{
	AUTO(epoch_unref) struct epoch *epoch = NULL;
	struct node *n = NULL;

	if (!handle_find_node(call, arg->node, &n, e))
		return false;
	if (cut_has(server_cut(call->server), n))
		return err_set(e, ERR_GENERIC, 0, "node '%s' is in use",
			       arg->node);
	if (arg->epoch &&
	    !handle_take_epoch(&call->msg, arg->epoch->fd, &epoch, e))
		return false;
	if (!change_size(server_table(call->server), n, arg->size, epoch,
			 arg->epoch ? arg->epoch->id : 0, arg->timeout_ms, e))
		return false;
	(void)steal(&epoch);
	return true;
}

bool
link_throttle_set(struct link_call *call,
		  const struct link_throttle_set_args *arg, struct err *e)
{
	struct throttle_config limits;

	(void)call;
	if (!link_throttle_config_get(arg->limits, &limits, e))
		return false;
	throttle_group_set(arg->group, &limits);
	return true;
}

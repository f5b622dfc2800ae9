/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nodes-reopen: other options or other images for nodes.  What has to be
 * opened is opened before anything changes, what was replaced is closed before
 * the answer, both on a thread of the call's own; change.h has the rules of
 * what happens in between, on the link's thread.
 */
#include "handlers.h"

#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "change.h"
#include "cut.h"
#include "link/image.h"
#include "notices.h"

struct reopen {
	struct link_nodes_reopen_args *arg; /* owned */
	bool *wants; /* owned: for each node, must images be opened? */
	struct block **images; /* owned: they, and then what they replaced */
	struct err e;
};

static void
nodes_reopened(struct link_call *call)
{
	struct reopen *r = call->state;

	if (err_is_set(&r->e))
		link_call_fail(call, &r->e);
	else
		link_nodes_reopen_return(call);
	link_nodes_reopen_args_free(r->arg);
	free(r->wants);
	free(r->images);
	free(r);
}

/* Own thread. */
static void
close_images(struct link_call *call)
{
	struct reopen *r = call->state;

	for (size_t i = 0; i < r->arg->nodes.n; i++) {
		if (!r->images[i])
			continue;
		(void)block_flush(r->images[i]);
		block_free(r->images[i]);
	}
}

static bool
reopen(struct link_call *call, struct reopen *r, struct err *e)
{
	const struct link_node_image_list *l = &r->arg->nodes;
	struct table *t = server_table(call->server);

	for (size_t i = 0; i < l->n; i++) {
		struct node *n = table_node(t, l->v[i]->node);

		if (r->images[i] && n && cut_has(server_cut(call->server), n))
			return err_set(e, ERR_GENERIC, 0, "node '%s' is in use",
				       l->v[i]->node);
	}
	if (!change_options(t, l, r->images, &call->msg, r->arg->timeout_ms, e))
		return false;
	for (size_t i = 0; i < l->n; i++)
		if (r->images[i])
			notices_watch_all(table_node(t, l->v[i]->node),
					  handle_wake, call->server);
	return true;
}

static void
images_opened(struct link_call *call)
{
	struct reopen *r = call->state;

	/* Who asked for it is gone, and his successor asks for it himself. */
	if (!err_is_set(&r->e) && !link_call_is_current(call))
		(void)err_set(&r->e, ERR_GENERIC, 0, "nobody waits for it");
	if (!err_is_set(&r->e))
		(void)!reopen(call, r, &r->e);
	call->finish = nodes_reopened;
	if (server_run(call, close_images))
		return;
	close_images(call);
	nodes_reopened(call);
}

/* Own thread: an NBD server may take its time. */
static void
open_images(struct link_call *call)
{
	struct reopen *r = call->state;

	PARK("reopen.opening");
	for (size_t i = 0; i < r->arg->nodes.n && !err_is_set(&r->e); i++)
		if (r->wants[i] &&
		    !link_image_open(r->arg->nodes.v[i]->image, &call->msg,
				     &r->images[i], &r->e))
			r->images[i] = NULL;
}

static void
begin_reopen(struct link_call *call, struct reopen *r)
{
	const struct link_node_image_list *l = &r->arg->nodes;
	bool any = false;

	for (size_t i = 0; i < l->n && !err_is_set(&r->e); i++)
		if (change_wants_image(server_table(call->server), l, i,
				       &r->wants[i], &r->e))
			any |= r->wants[i];
	if (!any && !err_is_set(&r->e))
		(void)!reopen(call, r, &r->e);
	call->state = r;
	call->finish = images_opened;
	if (!any || err_is_set(&r->e)) {
		nodes_reopened(call);
	} else if (!server_run(call, open_images)) {
		(void)err_set(&r->e, ERR_GENERIC, ENOMEM, "cannot reopen");
		nodes_reopened(call);
	}
}

void
link_nodes_reopen(struct link_call *call, struct link_nodes_reopen_args *arg)
{
	struct reopen *r = calloc(1, sizeof *r);
	size_t n = arg->nodes.n ? arg->nodes.n : 1;
	struct err e = ERR_INIT;

	if (r) {
		r->arg = arg;
		r->wants = calloc(n, sizeof *r->wants);
		r->images = calloc(n, sizeof *r->images);
		if (r->wants && r->images) {
			begin_reopen(call, r);
			return;
		}
		free(r->wants);
		free(r->images);
		free(r);
	}
	(void)err_set(&e, ERR_GENERIC, ENOMEM, "cannot reopen");
	link_call_fail(call, &e);
	link_nodes_reopen_args_free(arg);
}

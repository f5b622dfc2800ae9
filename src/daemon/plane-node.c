/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/plane-node.h"

#include <errno.h>

#include "daemon/describe.h"
#include "daemon/views.h"

/* How long guests may wait for requests of theirs that do not end. */
#define REOPEN_MS 2000

static void
describe_view(const struct view_file *v, struct link_view_list *to, int *fds,
	      unsigned *nfds)
{
	if (*nfds + 4 > LINK_MAX_FDS) {
		/* nobody will save anything for it: its job must not go on */
		view_break(v->states, EMFILE);
		return;
	}
	/* nobody saves anything now: what was being saved when a data plane
	 * died was not overwritten
	 */
	view_recover(v->states);
	view_file_describe(v, false, to, fds, nfds);
}

void
plane_open_node(struct plane *p, const struct node *n, struct plane_request *r)
{
	AUTO(link_image_free) struct link_image *image = NULL;
	struct link_node_open_args arg = { .node = n->name };
	struct link_epoch epoch;
	int fds[LINK_MAX_FDS];
	unsigned nfds = 0;
	struct json_out o;

	arg.image = image = describe_node(n, fds, &nfds);
	if (n->epoch) {
		epoch = (struct link_epoch){ .id = n->epoch->id, .fd = nfds };
		fds[nfds++] = epoch_fd(n->epoch->map);
		arg.epoch = &epoch;
	}
	/* A view whose cut is still to come is the transaction's to tell. */
	for (const struct view_file *v = n->views; v; v = v->next)
		if (v->begun)
			describe_view(v, &arg.views, fds, &nfds);
	plane_begin(&o);
	link_put_node_open(&o, &arg);
	link_view_list_clear(&arg.views);
	plane_ask(p, r, &o, fds, nfds);
}

void
plane_reopen_node(struct plane *p, const struct node *n,
		  struct plane_request *r)
{
	struct link_node_image i = { .node = n->name };
	struct link_node_image *one = &i;
	struct link_nodes_reopen_args arg = { .nodes = { .v = &one, .n = 1 },
					      .timeout_ms = REOPEN_MS };
	int fds[LINK_MAX_FDS];
	unsigned nfds = 0;
	struct json_out o;

	i.image = describe_node(n, fds, &nfds);
	plane_begin(&o);
	link_put_nodes_reopen(&o, &arg);
	link_image_free(i.image);
	plane_ask(p, r, &o, fds, nfds);
}

void
plane_close_node(struct plane *p, const char *name, struct plane_request *r)
{
	struct link_node_close_args arg = { .node = (char *)name };
	struct json_out o;

	plane_begin(&o);
	link_put_node_close(&o, &arg);
	plane_ask(p, r, &o, NULL, 0);
}

void
plane_add_export(struct plane *p, const struct export *x,
		 struct plane_request *r)
{
	struct link_export_add_args arg = {
		.name = (char *)x->name,
		.node = x->node->name,
		.description = x->options->u.nbd->description,
		.writable = x->options->writable,
		.has_writethrough = true,
		.writethrough = x->options->writethrough,
	};
	struct json_out o;

	plane_begin(&o);
	link_put_export_add(&o, &arg);
	plane_ask(p, r, &o, NULL, 0);
}

void
plane_del_export(struct plane *p, const char *name, bool hard,
		 struct plane_request *r)
{
	struct link_export_del_args arg = { .name = (char *)name,
					    .hard = hard };
	struct json_out o;

	plane_begin(&o);
	link_put_export_del(&o, &arg);
	plane_ask(p, r, &o, NULL, 0);
}

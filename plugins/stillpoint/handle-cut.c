/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A cut: each node's part is prepared, then all take effect at one instant
 * (cut.h), or none does.
 */
#include "handlers.h"

#include <errno.h>
#include <stdlib.h>

static bool
make_part(struct link_call *call, const struct link_cut_prepare_args *arg,
	  struct cut_part **out, struct err *e)
{
	AUTO(cut_part_free) struct cut_part *p = calloc(1, sizeof *p);

	if (!p)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot prepare a cut");
	if (!handle_find_node(call, arg->node, &p->node, e))
		return false;
	p->stop = arg->stop;
	if (arg->epoch) {
		p->epoch_id = arg->epoch->id;
		if (!handle_take_epoch(&call->msg, arg->epoch->fd, &p->epoch,
				       e))
			return false;
		if (epoch_size(p->epoch) != p->node->image->size)
			return err_set(e, ERR_GENERIC, 0,
				       "epoch and node '%s' have different "
				       "sizes",
				       arg->node);
	}
	for (size_t i = 0; i < arg->views.n; i++)
		if (arg->views.v[i]->mask_open && !p->epoch && !p->stop)
			return err_set(e, ERR_GENERIC, 0,
				       "a view's mask would stay open");
	if (!handle_make_views(call, p->node, &arg->views, &p->views, e))
		return false;
	*out = steal(&p);
	return true;
}

bool
link_cut_prepare(struct link_call *call,
		 const struct link_cut_prepare_args *arg, struct err *e)
{
	struct cut *c = server_cut(call->server);
	struct cut_part *p = NULL;

	/* One cut at a time: an older one was given up, and telling us that
	 * may have failed for lack of memory.
	 */
	if (c->id != arg->cut)
		cut_clear(c);
	if (!make_part(call, arg, &p, e))
		return false;
	if (cut_has(c, p->node)) {
		cut_part_free(p);
		return err_set(e, ERR_GENERIC, 0,
			       "node '%s' has a part in this cut already",
			       arg->node);
	}
	c->id = arg->cut;
	p->next = c->parts;
	c->parts = p;
	return true;
}

bool
link_cut_commit(struct link_call *call, const struct link_cut_commit_args *arg,
		struct link_cut_result **ret, struct err *e)
{
	struct cut *c = server_cut(call->server);
	AUTO(link_cut_result_free)
	struct link_cut_result *r = calloc(1, sizeof *r);

	if (!r)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot cut");
	if (!c->parts || c->id != arg->cut)
		return err_set(e, ERR_GENERIC, 0, "no such cut is prepared");
	if (!cut_commit(c, arg->timeout_ms, server_stats(call->server),
			&r->closed_ns, e)) {
		cut_clear(c);
		return false;
	}
	*ret = steal(&r);
	return true;
}

bool
link_cut_abort(struct link_call *call, const struct link_cut_abort_args *arg,
	       struct err *e)
{
	struct cut *c = server_cut(call->server);

	(void)e;
	if (c->id == arg->cut)
		cut_clear(c);
	return true;
}

static bool
add_bar(struct link_cut_stats *s, unsigned bar, uint64_t count)
{
	struct link_cut_bucket *b = calloc(1, sizeof *b);

	if (!b)
		return false;
	b->below_ns = bar == CUT_BARS - 1 ? UINT64_MAX : UINT64_C(1000) << bar;
	b->count = count;
	if (link_cut_bucket_list_append(&s->histogram, b))
		return true;
	free(b);
	return false;
}

bool
link_cut_stats(struct link_call *call, struct link_cut_stats **ret,
	       struct err *e)
{
	const struct cut_stats *from = server_stats(call->server);
	AUTO(link_cut_stats_free)
	struct link_cut_stats *s = calloc(1, sizeof *s);
	bool ok = s != NULL;

	for (unsigned i = 0; ok && i < CUT_BARS; i++)
		ok = add_bar(s, i, from->bars[i]);
	if (!ok)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot report");
	s->cuts = from->cuts;
	s->max_closed_ns = from->max_closed_ns;
	*ret = steal(&s);
	return true;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "change.h"

#include <errno.h>
#include <string.h>

#include "base/park.h"
#include "block/throttle.h"
#include "link/image.h"

/* --- keeping guests out -------------------------------------------------------- */

static void
keep_out(struct table *t, struct node *n)
{
	for (struct export *x = t->exports; x; x = x->next)
		if (x->node == n)
			gate_close(&x->users);
	block_admit_all(n->image, true);
}

static void
let_in(struct table *t, struct node *n)
{
	block_admit_all(n->image, false);
	for (struct export *x = t->exports; x; x = x->next)
		if (x->node == n)
			gate_open(&x->users);
}

static bool
wait_empty(struct table *t, struct node *n, uint64_t end, struct err *e)
{
	for (struct export *x = t->exports; x; x = x->next) {
		uint64_t now = stats_now();
		uint64_t ms = now < end ? (end - now) / 1000000 : 0;

		if (x->node == n &&
		    !gate_wait_empty(&x->users, (unsigned)ms + 1))
			return err_set(e, ERR_GENERIC, 0,
				       "a request to node '%s' does not end",
				       n->name);
	}
	return true;
}

static uint64_t
deadline(unsigned ms)
{
	return stats_now() + (uint64_t)ms * 1000000;
}

/* --- size ------------------------------------------------------------------------ */

static bool
resize(struct node *n, uint64_t size, struct err *e)
{
	int r = block_truncate(n->image, size);

	return r == 0 ||
	       err_set(e, ERR_GENERIC, r, "Failed to resize '%s'", n->name);
}

bool
change_size(struct table *t, struct node *n, uint64_t size, struct epoch *epoch,
	    uint64_t epoch_id, unsigned ms, struct err *e)
{
	struct epoch *old = NULL;
	bool ok;

	if (n->views) /* rule 3 */
		return err_set(e, ERR_GENERIC, 0,
			       "a view of node '%s' is being read", n->name);
	if (epoch && epoch_size(epoch) != size)
		return err_set(e, ERR_GENERIC, 0,
			       "epoch and node '%s' have different sizes",
			       n->name);
	keep_out(t, n); /* rule 1 */
	ok = wait_empty(t, n, deadline(ms), e);
	PARK("change.closed");
	if (ok)
		ok = resize(n, size, e);
	if (ok) {
		old = n->epoch;
		n->epoch = epoch;
		n->epoch_id = epoch_id;
	}
	PARK("change.applied");
	let_in(t, n);
	if (old)
		epoch_unref(old);
	return ok;
}

/* --- options ----------------------------------------------------------------------- */

/* Rule 2. */
static bool
check_all(struct table *t, const struct link_node_image_list *l,
	  const struct link_msg *msg, struct err *e)
{
	for (size_t i = 0; i < l->n; i++) {
		struct node *n = table_node(t, l->v[i]->node);

		if (!n || n->closing)
			return err_set(e, ERR_GENERIC, 0,
				       "the data plane has no node '%s'",
				       l->v[i]->node);
		if (!link_image_fits(l->v[i]->image, msg, n->image, e))
			return false;
	}
	return true;
}

bool
change_options(struct table *t, const struct link_node_image_list *l,
	       struct link_msg *msg, unsigned ms, struct err *e)
{
	uint64_t end = deadline(ms);
	bool ok = true;

	if (!check_all(t, l, msg, e))
		return false;
	for (size_t i = 0; i < l->n; i++)
		keep_out(t, table_node(t, l->v[i]->node));
	for (size_t i = 0; ok && i < l->n; i++)
		ok = wait_empty(t, table_node(t, l->v[i]->node), end, e);
	PARK("change.closed");
	for (size_t i = 0; ok && i < l->n; i++)
		link_image_apply(l->v[i]->image, msg,
				 table_node(t, l->v[i]->node)->image);
	PARK("change.applied");
	for (size_t i = 0; i < l->n; i++)
		let_in(t, table_node(t, l->v[i]->node));
	return ok;
}

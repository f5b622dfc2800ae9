/* SPDX-License-Identifier: BSD-3-Clause */
#include "change.h"

#include <errno.h>
#include <inttypes.h>
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

static bool
has_tables(const struct block *b)
{
	bool found = strcmp(b->ops->name, "qcow2") == 0;

	for (unsigned i = 0; !found && block_child(b, i); i++)
		found = has_tables(block_child(b, i));
	return found;
}

bool
change_wants_image(struct table *t, const struct link_node_image_list *l,
		   size_t at, bool *wants, struct err *e)
{
	const struct link_node_image *i = l->v[at];
	struct node *n;

	if (!table_find_node(t, i->node, &n, e))
		return false;
	*wants = !link_image_is(i->image, n->image);
	if (*wants && (has_tables(n->image) || link_image_has_tables(i->image)))
		return err_set(e, ERR_GENERIC, 0,
			       "node '%s' is not what it was", i->node);
	return true;
}

/* Rule 4. */
static bool
check_image(const struct node *n, const struct block *b, struct err *e)
{
	if (n->views || n->flushing)
		return err_set(e, ERR_GENERIC, 0, "node '%s' is in use",
			       n->name);
	if (b->size != n->image->size)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: its size can be changed "
			       "only while no guest uses it",
			       n->name);
	if (b->min_block > n->image->min_block)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: guests were told that they "
			       "can read and write blocks of %" PRIu32 " bytes",
			       n->name, n->image->min_block);
	return !b->read_only || n->image->read_only ||
	       err_set(e, ERR_GENERIC, 0, "Block node is read-only");
}

/* Rule 2. */
static bool
check_all(struct table *t, const struct link_node_image_list *l,
	  struct block **images, const struct link_msg *msg, struct err *e)
{
	for (size_t i = 0; i < l->n; i++) {
		struct node *n;

		if (!table_find_node(t, l->v[i]->node, &n, e))
			return false;
		if (images[i] ? !check_image(n, images[i], e)
			      : !link_image_fits(l->v[i]->image, msg, n->image,
						 e))
			return false;
	}
	return true;
}

/* Guests are kept out of both. */
static void
replace(struct node *n, struct block **image)
{
	struct block *old = n->image;

	block_admit_all(old, false);
	block_admit_all(*image, true);
	n->image = *image;
	n->throttled = block_admit_outside(n->image);
	*image = old;
}

bool
change_options(struct table *t, const struct link_node_image_list *l,
	       struct block **images, struct link_msg *msg, unsigned ms,
	       struct err *e)
{
	uint64_t end = deadline(ms);
	bool ok = true;

	if (!check_all(t, l, images, msg, e))
		return false;
	for (size_t i = 0; i < l->n; i++)
		keep_out(t, table_node(t, l->v[i]->node));
	for (size_t i = 0; ok && i < l->n; i++)
		ok = wait_empty(t, table_node(t, l->v[i]->node), end, e);
	PARK("change.closed");
	for (size_t i = 0; ok && i < l->n; i++) {
		struct node *n = table_node(t, l->v[i]->node);

		if (images[i])
			replace(n, &images[i]);
		else
			link_image_apply(l->v[i]->image, msg, n->image);
	}
	PARK("change.applied");
	for (size_t i = 0; i < l->n; i++)
		let_in(t, table_node(t, l->v[i]->node));
	return ok;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Can those who use a node live with its change?  Options may be right by
 * themselves and still take from a guest, a job or a node above what it needs.
 */
#include "daemon/daemon.h"
#include "daemon/reopen-priv.h"

static bool
is_written(struct graph *g, const struct node *n)
{
	enum child_role role;
	const struct node *p = graph_parent(g, n, &role);

	if (graph_device(g, n))
		return true;
	if (!p || role == CHILD_BACKING || p->read_only)
		return false;
	return !node_filtered(p) || is_written(g, p);
}

static bool
in_plane(const struct graph *g, const struct node *n)
{
	for (const struct node *top = g->nodes; top; top = top->next)
		if (top->in_plane && node_stands_on(top, n))
			return true;
	return false;
}

/* Is the parent changed as well, to one that only reads? */
static bool
parent_follows(const struct reopening *r, const struct node *n)
{
	for (const struct change *c = r->changes; c; c = c->next)
		for (int i = 0; i < CHILD_ROLES; i++)
			if (c->node->child[i] == n)
				return c->read_only;
	return false;
}

static bool
read_only_then(const struct reopening *r, const struct node *n)
{
	for (const struct change *c = r->changes; c; c = c->next)
		if (c->node == n)
			return c->read_only;
	return n->read_only;
}

/* What writes to its children for itself needs them writable, when all is
 * changed.
 */
static bool
children_check(const struct reopening *r, struct change *c, struct err *e)
{
	for (int i = 0; i < CHILD_ROLES && !c->read_only; i++) {
		if (i == CHILD_BACKING || !c->child[i] ||
		    node_filtered(c->node) || !read_only_then(r, c->child[i]))
			continue;
		if (!c->options->auto_read_only)
			return err_set(e, ERR_GENERIC, 0,
				       "Block node is read-only");
		c->read_only = true;
	}
	return true;
}

/* A format makes its file longer as it likes. */
static bool
is_file_of_format(const struct reopening *r, const struct node *n)
{
	enum child_role role;
	const struct node *p = graph_parent(r->d->graph, n, &role);

	return p && p->qcow2 && role != CHILD_BACKING;
}

/* What guests were told of @c->node stays true with its new children. */
static bool
guests_check(const struct reopening *r, const struct change *c, struct err *e)
{
	const struct node *n = c->node;

	if (!in_plane(r->d->graph, n) ||
	    memcmp(c->child, n->child, sizeof c->child) == 0)
		return true;
	if (c->size != n->size)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: its size can be changed "
			       "only while no guest uses it",
			       n->name);
	for (int i = 0; i < CHILD_ROLES; i++)
		if (c->child[i] && read_only_then(r, c->child[i]) &&
		    is_written(r->d->graph, n))
			return err_set(e, ERR_GENERIC, 0,
				       "Block node is read-only");
	return true;
}

bool
reopen_check_change(const struct reopening *r, struct change *c, struct err *e)
{
	const struct node *n = c->node;
	bool moved = (c->size != n->size && !is_file_of_format(r, n)) ||
		     (n->options->driver == BLOCKDEV_DRIVER_RAW &&
		      n->options->u.raw->offset != c->options->u.raw->offset);

	if (!children_check(r, c, e) || !guests_check(r, c, e))
		return false;
	if (c->read_only && !n->read_only && is_written(r->d->graph, n) &&
	    !parent_follows(r, n))
		return err_set(e, ERR_GENERIC, 0, "Block node is read-only");
	/* its tables are in the memory of the data plane */
	if (c->read_only != n->read_only &&
	    n->options->driver == BLOCKDEV_DRIVER_QCOW2 &&
	    in_plane(r->d->graph, n))
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot change the option 'read-only'");
	if (moved && (n->bitmaps || n->views || n->parents))
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: it shows another part of "
			       "its file only without bitmaps, jobs and nodes "
			       "above it",
			       n->name);
	return true;
}

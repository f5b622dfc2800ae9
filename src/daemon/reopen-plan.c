/* SPDX-License-Identifier: BSD-3-Clause
 *
 * From the options of a command to changes of nodes: of those that it names,
 * and of the children whose definitions it has.
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/nodes.h"
#include "daemon/objects.h"
#include "daemon/reopen-priv.h"

static bool plan(struct reopening *r, struct node *n,
		 const struct blockdev_options *then, struct err *e);

static bool
cannot_change(const char *option, const char *member, struct err *e)
{
	return err_set(e, ERR_GENERIC, 0, "Cannot change the option '%s%s'",
		       option, member);
}

/* @n or what it stands on has tables, which must not be open twice. */
static bool
has_tables(const struct node *n)
{
	bool found = n->qcow2 != NULL;

	for (int i = 0; i < CHILD_ROLES && !found; i++)
		found = n->child[i] && has_tables(n->child[i]);
	return found;
}

/* Nobody has read, or is going to read, what is below @n as it is now. */
static bool
link_check(const struct reopening *r, const struct node *n,
	   enum child_role role, const struct node *to, struct err *e)
{
	const struct node *old = n->child[role];

	for (const struct node *t = r->d->graph->nodes; t; t = t->next) {
		if (!node_stands_on(t, n))
			continue;
		if (t->views || t->target_of)
			return err_set(e, ERR_GENERIC, 0,
				       "Cannot change '%s' link from '%s' to "
				       "'%s'",
				       child_role_str(role), n->name,
				       old ? old->name : to->name);
		if (t->in_plane && (has_tables(t) || (to && has_tables(to))))
			return err_set(e, ERR_GENERIC, 0,
				       "Node '%s' is busy: its %s child can be "
				       "replaced only while no guest uses it, "
				       "or where no image is in qcow2 format",
				       n->name, child_role_str(role));
	}
	return true;
}

/* @c->node will have the node @name as its child, or with NULL none. */
static bool
plan_other(struct reopening *r, struct change *c, enum child_role role,
	   const char *name, struct err *e)
{
	struct node *n = c->node, *to = NULL;

	/* the file is where a qcow2 node's own tables and bitmaps are */
	if ((role != CHILD_FILE && role != CHILD_BACKING) ||
	    (role == CHILD_FILE && n->qcow2))
		return cannot_change(child_role_str(role), "", e);
	if (name && !(to = graph_node(r->d->graph, name)))
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot find device='' nor node-name='%s'",
			       name);
	if (to && node_stands_on(to, n))
		return err_set(e, ERR_GENERIC, 0,
			       "Making '%s' a %s child of '%s' would create a "
			       "cycle",
			       name, child_role_str(role), n->name);
	if (!link_check(r, n, role, to, e) ||
	    (to && !node_check_child(r->d->graph, to, n->name, role, e)))
		return false;
	c->child[role] = to;
	return true;
}

static bool
plan_definition(struct reopening *r, struct change *c, enum child_role role,
		const struct blockdev_options *given, struct err *e)
{
	AUTO(blockdev_options_free) struct blockdev_options *then = NULL;

	if (!c->child[role])
		return cannot_change(child_role_str(role), ".driver", e);
	then = blockdev_options_clone(given);
	node_inherit(then, c->options, role);
	return plan(r, c->child[role], then, e);
}

static bool
plan_child(struct reopening *r, struct change *c, enum child_role role,
	   struct err *e)
{
	const struct node *now = c->node->child[role];
	struct child_option o;

	if (!children_option(c->options, role, &o)) {
		if (!now || role != CHILD_BACKING)
			return true;
		if (children_say_nothing(c->options, role))
			return err_set(e, ERR_GENERIC, 0,
				       "backing is missing for '%s'",
				       c->node->name);
		return plan_other(r, c, role, NULL, e);
	}
	if (o.definition)
		return plan_definition(r, c, role, o.definition, e);
	return (now && strcmp(o.reference, now->name) == 0) ||
	       plan_other(r, c, role, o.reference, e);
}

/* A node that was opened along with its parent and whose name was made up. */
static bool
names_agree(const struct node *n, const struct blockdev_options *then,
	    struct err *e)
{
	return !then->node_name || strcmp(then->node_name, n->name) == 0 ||
	       cannot_change("node-name", "", e);
}

static bool
plan_limits(struct reopening *r, struct change *c, struct err *e)
{
	struct node shadow = *c->node;

	shadow.options = c->options;
	if (!objects_fill_limits(r->d->graph, &shadow, e))
		return false;
	c->limits = shadow.limits;
	return true;
}

static struct change *
change_new(struct reopening *r, struct node *n,
	   const struct blockdev_options *then)
{
	struct change *c = r->changes;

	while (c && c->node != n)
		c = c->next;
	if (c) { /* it is named twice: the last word counts */
		blockdev_options_free(c->options);
	} else {
		c = xzalloc(sizeof *c);
		c->node = n;
		c->fd = -1;
		c->next = r->changes;
		r->changes = c;
	}
	c->options = blockdev_options_clone(then);
	memcpy(c->child, n->child, sizeof c->child);
	return c;
}

static bool
plan(struct reopening *r, struct node *n, const struct blockdev_options *then,
     struct err *e)
{
	struct change *c;

	if (then->driver != n->options->driver)
		return cannot_change("driver", "", e);
	if (!names_agree(n, then, e) || !node_check_idle(n, e) ||
	    !reopen_check(n->options, then, e))
		return false;
	c = change_new(r, n, then);
	for (int i = 0; i < CHILD_ROLES; i++)
		if (!plan_child(r, c, (enum child_role)i, e))
			return false;
	return plan_limits(r, c, e);
}

bool
reopen_plan(struct reopening *r, struct err *e)
{
	const struct blockdev_options_list *l = &r->arg->options;

	for (size_t i = 0; i < l->n; i++) {
		struct node *n;

		if (!l->v[i]->node_name)
			return err_set(e, ERR_GENERIC, 0,
				       "node-name not specified");
		n = graph_node(r->d->graph, l->v[i]->node_name);
		if (!n)
			return err_set(e, ERR_GENERIC, 0,
				       "Failed to find node with "
				       "node-name='%s'",
				       l->v[i]->node_name);
		if (!plan(r, n, l->v[i], e))
			return false;
	}
	return true;
}

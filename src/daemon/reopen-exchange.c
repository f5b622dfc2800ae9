/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Nodes and changes exchange what nodes are.  The same once more brings it all
 * back.
 */
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/nodes.h"
#include "daemon/reopen-priv.h"

#define SWAP(a, b)                      \
	do {                            \
		__typeof__(a) c_ = (a); \
		(a) = (b);              \
		(b) = c_;               \
	} while (0)

static void
exchange(struct change *c)
{
	struct node *n = c->node;

	SWAP(n->options, c->options);
	SWAP(n->limits, c->limits);
	SWAP(n->size, c->size);
	SWAP(n->cluster, c->cluster);
	SWAP(n->read_only, c->read_only);
	SWAP(n->read_only_below, c->read_only_below);
	SWAP(n->fd, c->fd);
	for (int i = 0; i < CHILD_ROLES; i++) {
		SWAP(n->child[i], c->child[i]);
		if (n->child[i])
			n->child[i]->parents++;
		if (c->child[i])
			c->child[i]->parents--;
	}
}

/* Children first. */
static void
look_below(struct node *n)
{
	for (int i = 0; i < CHILD_ROLES; i++)
		if (n->child[i])
			look_below(n->child[i]);
	node_look_below(n);
}

void
reopen_exchange(struct reopening *r)
{
	for (struct change *c = r->changes; c; c = c->next)
		exchange(c);
	for (struct node *n = r->d->graph->nodes; n; n = n->next) {
		if (!n->parents)
			look_below(n);
		n->layers = node_layers(n);
	}
}

bool
reopen_check_layers(const struct reopening *r, struct err *e)
{
	for (const struct node *n = r->d->graph->nodes; n; n = n->next)
		if (n->layers > NODE_MAX_LAYERS)
			return err_set(e, ERR_GENERIC, 0,
				       "Node '%s' has more than %d nodes below "
				       "it",
				       n->name, NODE_MAX_LAYERS - 1);
	return true;
}

bool
reopen_concerns(const struct reopening *r, const struct node *top)
{
	for (const struct change *c = r->changes; c; c = c->next)
		if (node_stands_on(top, c->node))
			return true;
	return false;
}

bool
reopen_any_in_plane(const struct reopening *r)
{
	for (const struct node *n = r->d->graph->nodes; n; n = n->next)
		if (n->in_plane && reopen_concerns(r, n))
			return true;
	return false;
}

/* One that went with another may be gone. */
static bool
is_there(const struct graph *g, const struct node *n)
{
	const struct node *i = g->nodes;

	while (i && i != n)
		i = i->next;
	return i != NULL;
}

/* Nobody holds them any more. */
void
reopen_drop_old_children(struct reopening *r)
{
	struct graph *g = r->d->graph;

	for (struct change *c = r->changes; c; c = c->next)
		for (int i = 0; i < CHILD_ROLES; i++) {
			struct node *old = c->child[i];

			if (old && is_there(g, old) && !old->parents &&
			    !old->monitor_owned)
				graph_remove_node(g, old);
		}
}

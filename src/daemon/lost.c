/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/lost.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/graph.h"

struct lost {
	struct registry_node_list nodes;
	struct block_export_options_list exports;
};

struct lost *
lost_new(void)
{
	return xzalloc(sizeof(struct lost));
}

void
lost_free(struct lost *l)
{
	registry_node_list_clear(&l->nodes);
	block_export_options_list_clear(&l->exports);
	free(l);
}

void
lost_add_node(struct lost *l, const struct registry_node *n)
{
	xassert_memory(
		registry_node_list_append(&l->nodes, registry_node_clone(n)));
}

void
lost_add_export(struct lost *l, const struct block_export_options *x)
{
	xassert_memory(block_export_options_list_append(
		&l->exports, block_export_options_clone(x)));
}

void
lost_forget_exports(struct lost *l)
{
	block_export_options_list_clear(&l->exports);
}

const struct registry_node_list *
lost_nodes(const struct lost *l)
{
	return &l->nodes;
}

const struct block_export_options_list *
lost_exports(const struct lost *l)
{
	return &l->exports;
}

void
lost_forget_found(struct lost *l, struct graph *g)
{
	struct registry_node_list nodes = l->nodes;
	struct block_export_options_list exports = l->exports;

	l->nodes = (struct registry_node_list){ 0 };
	l->exports = (struct block_export_options_list){ 0 };
	for (size_t i = 0; i < nodes.n; i++)
		if (!graph_node(g, nodes.v[i]->options->node_name))
			lost_add_node(l, nodes.v[i]);
	for (size_t i = 0; i < exports.n; i++)
		if (lost_has_node(l, exports.v[i]->node_name))
			lost_add_export(l, exports.v[i]);
	registry_node_list_clear(&nodes);
	block_export_options_list_clear(&exports);
}

bool
lost_has_node(const struct lost *l, const char *name)
{
	for (size_t i = 0; i < l->nodes.n; i++)
		if (strcmp(l->nodes.v[i]->options->node_name, name) == 0)
			return true;
	return false;
}

bool
lost_has_export(const struct lost *l, const char *name)
{
	for (size_t i = 0; i < l->exports.n; i++) {
		const struct block_export_options *x = l->exports.v[i];
		const char *its =
			x->u.nbd->name ? x->u.nbd->name : x->node_name;

		if (strcmp(its, name) == 0)
			return true;
	}
	return false;
}

static bool
node_has_epoch(const struct registry_node *n, uint64_t id)
{
	for (size_t i = 0; i < n->bitmaps.n; i++)
		for (size_t k = 0; k < n->bitmaps.v[i]->epochs.n; k++)
			if (n->bitmaps.v[i]->epochs.v[k] == id)
				return true;
	return false;
}

bool
lost_has_epoch(const struct lost *l, uint64_t id)
{
	for (size_t i = 0; i < l->nodes.n; i++)
		if (node_has_epoch(l->nodes.v[i], id))
			return true;
	return false;
}

void
lost_describe(const struct lost *l, struct graph *g, struct registry_doc *doc)
{
	for (size_t i = 0; i < l->nodes.n; i++) {
		const struct registry_node *n = l->nodes.v[i];

		if (!graph_node(g, n->options->node_name))
			xassert_memory(registry_node_list_append(
				&doc->nodes, registry_node_clone(n)));
	}
	for (size_t i = 0; i < l->exports.n; i++) {
		const struct block_export_options *x = l->exports.v[i];

		if (!graph_export(g, x->id))
			xassert_memory(block_export_options_list_append(
				&doc->exports, block_export_options_clone(x)));
	}
}

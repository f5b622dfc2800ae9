/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/damage.h"

#include <string.h>

#include "block/qcow2/format.h"
#include "daemon/daemon.h"
#include "daemon/graph.h"
#include "daemon/qmp-server.h"
#include "schema/link-commands.h"
#include "schema/qmp-commands.h"

static void
tell(struct daemon *d, const char *layer, const char *what, uint64_t at,
     bool fatal)
{
	struct node *n = graph_node(d->graph, layer);
	const struct export *x = n ? graph_device(d->graph, n) : NULL;

	if (!n)
		return;
	if (fatal && n->qcow2)
		n->qcow2->incompat |= QCOW2_CORRUPT;
	qmp_event_block_image_corrupted(qmp_server_events(d->qmp),
					x ? x->options->id : "", n->name, what,
					true, (int64_t)at, false, 0, fatal);
}

bool
damage_event(struct daemon *d, const char *name, const struct json *data)
{
	AUTO(link_image_damaged_data_free)
	struct link_image_damaged_data *i = NULL;
	struct err e = ERR_INIT;

	if (strcmp(name, "IMAGE_DAMAGED") != 0 || !data)
		return false;
	if (link_image_damaged_data_decode(data, NULL, &i, &e))
		tell(d, i->layer, i->what, i->at, i->fatal);
	return true;
}

void
damage_look(struct daemon *d, struct block *b)
{
	struct block *c;
	const char *what;
	uint64_t at;
	bool fatal;

	if (!b)
		return;
	if (b->node && block_take_damage(b, &what, &at, &fatal))
		tell(d, b->node, what, at, fatal);
	for (unsigned i = 0; (c = block_child(b, i)); i++)
		damage_look(d, c);
}

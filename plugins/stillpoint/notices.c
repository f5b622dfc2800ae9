/* SPDX-License-Identifier: BSD-3-Clause */
#include "notices.h"

#include "schema/link-commands.h"

static int
tell_failure(struct export *x, struct link_events *to)
{
	uint64_t now = stats_now(), every = NOTICE_EVERY_MS * UINT64_C(1000000);
	enum stats_kind kind;
	int os;

	if (!atomic_load(&x->stats.failure))
		return -1;
	if (x->told && now - x->told < every)
		return (int)((every - (now - x->told)) / 1000000) + 1;
	os = stats_take_failure(&x->stats, &kind);
	x->told = now;
	if (x->node)
		link_event_io_failed(to, x->name, x->node->name,
				     kind != STATS_READ, os);
	return -1;
}

static void
tell_layers(struct block *b, struct link_events *to)
{
	uint64_t threshold, by, at;
	const char *what;
	struct block *c;
	bool fatal;

	if (b->node && block_take_crossed(b, &threshold, &by))
		link_event_threshold_crossed(to, b->node, threshold, by);
	if (b->node && block_take_damage(b, &what, &at, &fatal))
		link_event_image_damaged(to, b->node, what, at, fatal);
	for (unsigned i = 0; (c = block_child(b, i)); i++)
		tell_layers(c, to);
}

int
notices_tell(struct table *t, struct link_events *to)
{
	int again = -1;

	for (struct export *x = t->exports; x; x = x->next)
		again = sooner(again, tell_failure(x, to));
	for (struct node *n = t->nodes; n; n = n->next)
		tell_layers(n->image, to);
	return again;
}

bool
notices_watch(struct node *n, const char *layer, uint64_t threshold,
	      void (*fn)(void *opaque), void *opaque)
{
	struct block *b = block_find(n->image, layer);

	if (b)
		block_set_threshold(b, threshold, fn, opaque);
	return b != NULL;
}

static void
watch(struct block *b, void (*fn)(void *opaque), void *opaque)
{
	struct block *c;

	block_set_threshold(b, atomic_load(&b->high.threshold), fn, opaque);
	for (unsigned i = 0; (c = block_child(b, i)); i++)
		watch(c, fn, opaque);
}

void
notices_watch_all(struct node *n, void (*fn)(void *opaque), void *opaque)
{
	watch(n->image, fn, opaque);
}

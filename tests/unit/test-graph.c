/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How many things clients may make (src/daemon/graph.h), at both edges.
 */
#include "daemon/graph.h"

#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/exports.h"
#include "daemon/nodes.h"
#include "daemon/objects.h"
#include "unit.h"

static struct blockdev_options *
null_options(const char *name)
{
	struct blockdev_options *o = xzalloc(sizeof *o);

	o->driver = BLOCKDEV_DRIVER_NULL_CO;
	o->node_name = xstrdup(name);
	o->u.null_co = xzalloc(sizeof *o->u.null_co);
	return o;
}

/* A node that nobody opens. */
static struct node *
add_node(struct daemon *d, unsigned number)
{
	struct node *n = xzalloc(sizeof *n);

	n->name = xasprintf("n%u", number);
	n->options = null_options(n->name);
	n->fd = -1;
	graph_add_node(d->graph, n);
	return n;
}

static bool
can_plan(struct daemon *d, struct err *e)
{
	AUTO(blockdev_options_free)
	struct blockdev_options *o = null_options("another");
	struct node_add a = { 0 };
	bool ok = node_add_plan(&a, d, o, e);

	node_add_clear(&a);
	return ok;
}

static void
nodes_are_limited(void **state)
{
	struct daemon *d = *state;
	struct err e = ERR_INIT;

	for (unsigned i = 0; i + 1 < GRAPH_MAX_NODES; i++)
		(void)add_node(d, i);
	assert_ok(can_plan(d, &e), &e);
	(void)add_node(d, GRAPH_MAX_NODES);
	assert_false(can_plan(d, &e));
	assert_string_equal(e.msg, "There are 16384 nodes already, and no more "
				   "are allowed");
}

static bool
try_export(struct daemon *d, unsigned number, struct err *e)
{
	struct block_export_options *o = xzalloc(sizeof *o);
	struct export *x;

	o->type = BLOCK_EXPORT_TYPE_NBD;
	o->id = xasprintf("e%u", number);
	o->node_name = xstrdup("n0");
	o->u.nbd = xzalloc(sizeof *o->u.nbd);
	o->u.nbd->name = xstrdup(o->id);
	if (!export_new(d, o, true, &x, e))
		return false;
	graph_add_export(d->graph, x);
	return true;
}

/* Each is compared with all before it: only a few go the whole way. */
static void
exports_are_limited(void **state)
{
	struct daemon *d = *state;
	struct err e = ERR_INIT;
	struct export fake[GRAPH_MAX_EXPORTS - 2] = { 0 };
	struct block_export_options id = { .id = (char *)"x" };

	(void)add_node(d, 0);
	assert_ok(try_export(d, 0, &e), &e);
	for (size_t i = 0; i < ARRAY_SIZE(fake); i++) {
		fake[i].options = &id;
		fake[i].name = "x";
		fake[i].next = i ? &fake[i - 1] : d->graph->exports;
	}
	d->graph->exports = &fake[ARRAY_SIZE(fake) - 1];
	assert_ok(try_export(d, 1, &e), &e);
	assert_false(try_export(d, 2, &e));
	assert_string_equal(e.msg, "There are 16384 exports already, and no "
				   "more are allowed");
	/* the newest, the fake ones, the oldest */
	d->graph->exports->next = fake[0].next;
}

static void
bitmaps_are_limited(void **state)
{
	struct daemon *d = *state;
	struct node *a = add_node(d, 0), *b = add_node(d, 1);
	struct err e = ERR_INIT;

	for (unsigned i = 0; i + 1 < GRAPH_MAX_BITMAPS; i++)
		(void)bitmap_new(i % 2 ? a : b, "x", 65536, false);
	assert_ok(graph_check_bitmaps(d->graph, &e), &e);
	(void)bitmap_new(a, "y", 65536, false);
	assert_false(graph_check_bitmaps(d->graph, &e));
}

static void
objects_are_limited(void **state)
{
	struct throttle_group_properties none = { 0 };
	struct object_options o = { .qom_type = OBJECT_TYPE_THROTTLE_GROUP };
	struct daemon *d = *state;
	struct err e = ERR_INIT;
	bool ok = true;

	o.u.throttle_group = &none;
	for (unsigned i = 0; ok && i <= GRAPH_MAX_OBJECTS; i++) {
		AUTO(free) char *id = xasprintf("o%u", i);

		o.id = id;
		ok = objects_add(d->graph, &o, &e);
		assert_int_equal(ok, i < GRAPH_MAX_OBJECTS);
	}
	assert_string_equal(e.msg, "There are 4096 objects already, and no "
				   "more are allowed");
}

static int
set_up(void **state)
{
	struct daemon *d = *state = xzalloc(sizeof *d);

	d->graph = graph_new(d);
	return 0;
}

static int
tear_down(void **state)
{
	struct daemon *d = *state;

	graph_free(d->graph);
	free(d);
	return 0;
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(nodes_are_limited),
		T(exports_are_limited),
		T(bitmaps_are_limited),
		T(objects_are_limited),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

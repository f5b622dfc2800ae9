/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The rules of plugins/stillpoint/change.h.
 */
#include "change.h"

#include <stdlib.h>
#include <string.h>

#include "unit.h"

#define SIZE (1 << 20)

static struct node *
node_make(struct table *t, const char *name)
{
	struct err e = ERR_INIT;
	struct block *b;
	struct node *n;

	assert_ok(block_null_open(SIZE, 0, &b, &e), &e);
	b->node = strdup(name);
	n = node_new(name, b);
	table_add_node(t, n);
	assert_ok(table_add_export(t, name, NULL, n, EXPORT_WRITABLE, &e), &e);
	return n;
}

static void
clear(struct table *t)
{
	struct node *n;

	while (t->exports)
		assert_true(table_remove_export(t, t->exports, 1000));
	while ((n = t->nodes)) {
		table_remove_node(t, n);
		node_free(n);
	}
	mtx_destroy(&t->lock);
}

static void
rule_1_a_change_waits_for_the_requests_of_guests(void **s)
{
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct node *n;
	unsigned ticket;

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	ticket = gate_enter(&t.exports->users);
	assert_fails(change_size(&t, n, 4096, NULL, 0, 10, &e), &e,
		     "a request to node 'a' does not end");
	assert_int_equal(n->image->size, SIZE);
	gate_leave(&t.exports->users, ticket);
	assert_ok(change_size(&t, n, 4096, NULL, 0, 10, &e), &e);
	assert_int_equal(n->image->size, 4096);
	/* guests are let in again */
	gate_leave(&t.exports->users, gate_enter(&t.exports->users));
	clear(&t);
}

static void
rule_2_all_nodes_change_or_none(void **s)
{
	struct link_image_null null = { .size = SIZE };
	struct link_image image = { .driver = LINK_DRIVER_NULL_CO,
				    .node = (char *)"a",
				    .discard_unmap = true,
				    .u.null_co = &null };
	struct link_node_image a = { .node = (char *)"a", .image = &image };
	struct link_node_image b = { .node = (char *)"b", .image = &image };
	struct link_node_image *both[] = { &a, &b };
	struct link_node_image_list l = { .v = both, .n = 2 };
	struct link_msg msg = { 0 };
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct node *n;

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	assert_fails(change_options(&t, &l, &msg, 10, &e), &e,
		     "the data plane has no node 'b'");
	assert_false(n->image->discard_unmap);
	(void)node_make(&t, "b"); /* and its image is not a's */
	assert_fails(change_options(&t, &l, &msg, 10, &e), &e,
		     "node 'a' is not what it was");
	assert_false(n->image->discard_unmap);
	l.n = 1;
	assert_ok(change_options(&t, &l, &msg, 10, &e), &e);
	assert_true(n->image->discard_unmap);
	clear(&t);
}

static void
rule_3_a_node_with_a_view_keeps_its_size(void **s)
{
	struct attached view = { 0 };
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct node *n;

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	n->views = &view;
	assert_fails(change_size(&t, n, 4096, NULL, 0, 10, &e), &e,
		     "a view of node 'a' is being read");
	assert_int_equal(n->image->size, SIZE);
	n->views = NULL;
	clear(&t);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			rule_1_a_change_waits_for_the_requests_of_guests),
		cmocka_unit_test(rule_2_all_nodes_change_or_none),
		cmocka_unit_test(rule_3_a_node_with_a_view_keeps_its_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

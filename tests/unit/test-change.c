/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The rules of plugins/stillpoint/change.h.
 */
#include "change.h"

#include <stdlib.h>
#include <string.h>

#include "fault.h"
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
	struct block *none[2] = { NULL };
	struct link_msg msg = { 0 };
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct node *n;

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	assert_fails(change_options(&t, &l, none, &msg, 10, &e), &e,
		     "the data plane has no node 'b'");
	assert_false(n->image->discard_unmap);
	(void)node_make(&t, "b"); /* and its image is not a's */
	assert_fails(change_options(&t, &l, none, &msg, 10, &e), &e,
		     "node 'a' is not what it was");
	assert_false(n->image->discard_unmap);
	l.n = 1;
	assert_ok(change_options(&t, &l, none, &msg, 10, &e), &e);
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

/* What a guest sees that writes and reads behind the gates. */
static void
rule_4_a_node_gets_images_of_its_kind(void **s)
{
	struct link_image_null null = { .size = SIZE };
	struct link_image image = { .driver = LINK_DRIVER_NULL_CO,
				    .node = (char *)"other",
				    .u.null_co = &null };
	struct link_node_image a = { .node = (char *)"a", .image = &image };
	struct link_node_image *one = &a;
	struct link_node_image_list l = { .v = &one, .n = 1 };
	struct mem_image *m = mem_image_new(SIZE);
	struct block *fresh = &m->block, *old;
	struct attached view = { 0 };
	struct link_msg msg = { 0 };
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct node *n;
	bool wants = false;
	char data[512] = "x", back[512];

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	old = n->image;
	assert_ok(change_wants_image(&t, &l, 0, &wants, &e), &e);
	assert_true(wants);
	image.driver = LINK_DRIVER_QCOW2;
	image.u.qcow2 = &(struct link_image_qcow2){ .cache_size = 0 };
	assert_fails(change_wants_image(&t, &l, 0, &wants, &e), &e,
		     "node 'a' is not what it was");
	n->views = &view;
	assert_fails(change_options(&t, &l, &fresh, &msg, 10, &e), &e,
		     "node 'a' is in use");
	n->views = NULL;
	fresh->size = SIZE / 2;
	assert_fails(change_options(&t, &l, &fresh, &msg, 10, &e), &e,
		     "Node 'a' is busy: its size can be changed only while no "
		     "guest uses it");
	fresh->size = SIZE;
	fresh->min_block = 4096;
	assert_fails(change_options(&t, &l, &fresh, &msg, 10, &e), &e,
		     "Node 'a' is busy: guests were told that they can read "
		     "and write blocks of 1 bytes");
	fresh->min_block = 1;
	fresh->read_only = true;
	assert_fails(change_options(&t, &l, &fresh, &msg, 10, &e), &e,
		     "Block node is read-only");
	fresh->read_only = false;
	assert_ptr_equal(n->image, old);
	assert_ok(change_options(&t, &l, &fresh, &msg, 10, &e), &e);
	assert_ptr_equal(n->image, &m->block);
	assert_ptr_equal(fresh, old);
	block_free(fresh);
	assert_int_equal(node_pwrite(n, data, sizeof data, 512, false), 0);
	assert_int_equal(node_pread(n, back, sizeof back, 512), 0);
	assert_memory_equal(back, data, sizeof data);
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
		cmocka_unit_test(rule_4_a_node_gets_images_of_its_kind),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

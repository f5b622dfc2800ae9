/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of the plugin's tables of nodes and exports.
 */
#include "table.h"

#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "step.h"
#include "unit.h"

static struct node *
node_make(struct table *t, const char *name)
{
	struct node *n = node_new(name, &mem_image_new(65536)->block);

	table_add_node(t, n);
	return n;
}

static void
nodes_are_found_by_name_until_they_are_removed(void **s)
{
	struct table t = { 0 };
	struct node *a, *b;

	(void)s;
	table_init(&t);
	a = node_make(&t, "a");
	b = node_make(&t, "b");
	assert_ptr_equal(table_node(&t, "a"), a);
	assert_ptr_equal(table_node(&t, "b"), b);
	assert_null(table_node(&t, "c"));
	table_remove_node(&t, a);
	assert_null(table_node(&t, "a"));
	assert_ptr_equal(table_node(&t, "b"), b);
	table_remove_node(&t, b);
	node_free(a);
	node_free(b);
	mtx_destroy(&t.lock);
}

static void
two_exports_of_one_name_are_refused(void **s)
{
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct node *n;

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	assert_ok(table_add_export(&t, "x", "text", n, EXPORT_WRITABLE, &e),
		  &e);
	assert_fails(table_add_export(&t, "x", NULL, n, EXPORT_WRITABLE, &e),
		     &e, "there is an export named 'x' already");
	assert_int_equal(n->exports, 1);
	assert_ok(table_add_export(&t, "", NULL, n, 0, &e), &e);
	assert_int_equal(n->exports, 2);
	assert_true(table_remove_export(&t, table_export(&t, "x"), 1000));
	assert_true(table_remove_export(&t, table_export(&t, ""), 1000));
	assert_int_equal(n->exports, 0);
	node_free(n);
	mtx_destroy(&t.lock);
}

static void
a_connection_outlives_its_export_and_finds_no_node(void **s)
{
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct export *x;
	struct node *n;

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	assert_ok(table_add_export(&t, "x", NULL, n, EXPORT_WRITABLE, &e), &e);
	assert_null(table_connect(&t, "y"));
	x = table_connect(&t, "x");
	assert_int_equal(export_connections(x), 1);
	assert_ptr_equal(x->node, n);
	assert_true(table_remove_export(&t, x, 1000));
	assert_null(table_connect(&t, "x"));
	assert_null(x->node);
	assert_string_equal(x->name, "x");
	export_unref(x);
	node_free(n);
	mtx_destroy(&t.lock);
}

struct request {
	struct export *x;
	_Atomic bool inside;
	_Atomic bool leave;
	struct node *saw;
};

static void
make_request(void *arg)
{
	struct request *r = arg;
	unsigned ticket = gate_enter(&r->x->users);

	r->saw = r->x->node;
	atomic_store(&r->inside, true);
	while (!atomic_load(&r->leave))
		;
	gate_leave(&r->x->users, ticket);
}

static void
an_export_stays_while_a_request_does_not_end(void **s)
{
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct request r = { 0 };
	struct actor a;
	struct node *n;

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	assert_ok(table_add_export(&t, "x", NULL, n, EXPORT_WRITABLE, &e), &e);
	r.x = table_connect(&t, "x");
	actor_start(&a, make_request, &r);
	while (!atomic_load(&r.inside))
		;
	assert_false(table_remove_export(&t, r.x, 10));
	assert_ptr_equal(r.x->node, n);
	assert_ptr_equal(table_export(&t, "x"), r.x);
	assert_int_equal(n->exports, 1);
	atomic_store(&r.leave, true);
	actor_join(&a);
	assert_true(table_remove_export(&t, r.x, 1000));
	export_unref(r.x);
	node_free(n);
	mtx_destroy(&t.lock);
}

static void
a_request_that_comes_while_an_export_goes_finds_no_node(void **s)
{
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct request r = { .leave = true };
	struct actor a;
	struct node *n;

	(void)s;
	step_reset();
	table_init(&t);
	n = node_make(&t, "a");
	assert_ok(table_add_export(&t, "x", NULL, n, EXPORT_WRITABLE, &e), &e);
	r.x = table_connect(&t, "x");
	step_arm("gate.wait");
	gate_close(&r.x->users); /* as table_remove_export begins */
	actor_start(&a, make_request, &r);
	step_wait_parked("gate.wait");
	gate_open(&r.x->users);
	assert_true(table_remove_export(&t, r.x, 1000));
	step_release("gate.wait");
	actor_join(&a);
	assert_null(r.saw);
	export_unref(r.x);
	node_free(n);
	mtx_destroy(&t.lock);
	step_end();
}

static bool
count_to(const struct export *x, void *opaque)
{
	int *left = opaque;

	(void)x;
	return --*left > 0;
}

static void
a_walk_stops_when_it_is_told_to(void **s)
{
	struct table t = { 0 };
	struct err e = ERR_INIT;
	struct node *n;
	int left = 5;

	(void)s;
	table_init(&t);
	n = node_make(&t, "a");
	assert_ok(table_add_export(&t, "x", NULL, n, EXPORT_WRITABLE, &e), &e);
	assert_ok(table_add_export(&t, "y", NULL, n, EXPORT_WRITABLE, &e), &e);
	assert_ok(table_add_export(&t, "z", NULL, n, EXPORT_WRITABLE, &e), &e);
	assert_true(table_each_export(&t, count_to, &left));
	assert_int_equal(left, 2);
	assert_false(table_each_export(&t, count_to, &left));
	assert_int_equal(left, 0);
	while (t.exports)
		assert_true(table_remove_export(&t, t.exports, 1000));
	node_free(n);
	mtx_destroy(&t.lock);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			nodes_are_found_by_name_until_they_are_removed),
		cmocka_unit_test(two_exports_of_one_name_are_refused),
		cmocka_unit_test(
			a_connection_outlives_its_export_and_finds_no_node),
		cmocka_unit_test(an_export_stays_while_a_request_does_not_end),
		cmocka_unit_test(
			a_request_that_comes_while_an_export_goes_finds_no_node),
		cmocka_unit_test(a_walk_stops_when_it_is_told_to),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

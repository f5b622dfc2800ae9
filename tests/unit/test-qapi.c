/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The generated types of tests/unit/test-schema.json: every construct, and
 * every way in which arguments can be wrong.  See test-dispatch.c for the
 * commands and events.
 */
#include "json/qapi.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "oom.h"
#include "schema/qmp-types.h"
#include "tests/unit/test-types.h"
#include "unit.h"

static struct json *
parse(const char *text)
{
	struct err e = ERR_INIT;
	struct json *j = NULL;

	assert_ok(json_parse(text, strlen(text), &j, &e), &e);
	return j;
}

/* What decoding @text as @t complains of. */
static void
assert_refused(const struct qapi_type *t, const char *text, const char *why)
{
	AUTO(json_free) struct json *j = parse(text);
	struct err e = ERR_INIT;
	void *slot = &e;

	assert_fails(qapi_decode(t, j, NULL, &slot, &e), &e, why);
	assert_null(slot);
}

static char *
encoded(const struct qapi_type *t, const void *slot)
{
	struct err e = ERR_INIT;
	struct json_out o;

	json_out_init(&o, 1000000);
	qapi_encode(t, &o, slot);
	assert_ok(json_out_check(&o, &e), &e);
	return json_out_take(&o);
}

/* @text decodes, and a copy of what it decodes to encodes to @text again. */
static void
assert_round_trip(const struct qapi_type *t, const char *text)
{
	AUTO(json_free) struct json *j = parse(text);
	AUTO(free) char *out = NULL;
	void *slot = NULL, *copy = NULL;
	struct err e = ERR_INIT;

	assert_ok(qapi_decode(t, j, NULL, &slot, &e), &e);
	assert_true(qapi_clone(t, &copy, &slot));
	qapi_clear(t, &slot);
	out = encoded(t, &copy);
	assert_string_equal(out, text);
	qapi_clear(t, &copy);
}

static void
everything_survives_decoding_cloning_and_encoding(void **state)
{
	(void)state;
	assert_round_trip(
		&numbers_type,
		"{\"i\": -9223372036854775808, \"i8\": -128, \"i16\": 32767, "
		"\"i32\": -2147483648, \"i64\": 9223372036854775807, "
		"\"u8\": 255, \"u16\": 65535, \"u32\": 4294967295, "
		"\"u64\": 18446744073709551615, \"sz\": 0, \"num\": 0.5, "
		"\"flag\": false, \"nothing\": null}");
	assert_round_trip(
		&tree_type,
		"{\"name\": \"n\", \"left\": {\"name\": \"l\", \"leaves\": []}, "
		"\"leaves\": [{\"name\": \"a\", \"note\": \"\\u00E9\"}, "
		"{\"name\": \"\"}], \"colors\": [\"light-blue\", \"1st\"], "
		"\"words\": [\"x\", \"y\"], \"counts\": [1, 65535], "
		"\"shapes\": [{\"kind\": \"circle\", \"color\": \"red\", "
		"\"radius\": 7}, {\"kind\": \"unix\"}, {\"kind\": \"polygon\", "
		"\"form\": \"square\", \"side\": 3}, {\"kind\": \"polygon\", "
		"\"form\": \"triangle\"}], \"extra\": {\"any\": [null, 1.5]}, "
		"\"color\": \"default\", \"class\": \"c\", \"int\": 0}");
	assert_round_trip(&wrapped_type, "{\"data\": {}}");
	assert_round_trip(&numbers_type, "{}");
}

static void
alternates_survive_too(void **state)
{
	static const char *const mixed[] = {
		"{\"kind\": \"unix\"}", "\"s\"", "0.5", "true", "null",
		"[{\"name\": \"a\"}]",
	};
	char text[200];
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(mixed); i++) {
		snprintf(text, sizeof text, "{\"mixed\": %s}", mixed[i]);
		assert_round_trip(&box_type, text);
	}
	assert_round_trip(&box_type, "{\"choice\": \"light-blue\"}");
	assert_round_trip(&box_type, "{\"choice\": -5}");
	assert_round_trip(&box_type,
			  "{\"items\": [\"s\", {\"name\": \"n\"}], \"inner\": "
			  "[{}, {\"inner\": [{\"choice\": 1}]}]}");
}

static void
members_are_where_the_struct_says(void **state)
{
	AUTO(json_free)
	struct json *j =
		parse("{\"leaves\":[{\"name\":\"a\"}],\"name\":\"n\",\"int\":5,"
		      "\"shapes\":[{\"kind\":\"circle\",\"radius\":7}],"
		      "\"color\":\"1st\",\"words\":[]}");
	AUTO(tree_free) struct tree *t = NULL;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(tree_decode(j, NULL, &t, &e), &e);
	assert_string_equal(t->name, "n");
	assert_null(t->note);
	assert_null(t->left);
	assert_int_equal(t->leaves.n, 1);
	assert_string_equal(t->leaves.v[0]->name, "a");
	assert_true(t->has_q_int && t->q_int == 5);
	assert_true(t->has_words && t->words.n == 0);
	assert_false(t->has_colors || t->has_counts);
	assert_int_equal(t->shapes.v[0]->u.circle->radius, 7);
	assert_true(t->has_color && t->color == COLOR_1ST);
}

static void
an_alternate_says_which_branch_it_has(void **state)
{
	AUTO(json_free) struct json *j = parse("{\"mixed\":5,\"choice\":6}");
	AUTO(box_free) struct box *b = NULL;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(box_decode(j, NULL, &b, &e), &e);
	assert_int_equal(b->mixed->type, JSON_DOUBLE);
	assert_true(b->mixed->u.num == 5);
	assert_int_equal(b->choice->type, JSON_INT);
	assert_int_equal(b->choice->u.number, 6);
}

/* --- what is wrong, and how it is called ------------------------------- */

static void
a_missing_member_is_named_by_its_full_path(void **state)
{
	(void)state;
	assert_refused(&leaf_type, "{}", "Parameter 'name' is missing");
	assert_refused(&tree_type, "{\"name\":\"n\",\"leaves\":[{}]}",
		       "Parameter 'leaves[0].name' is missing");
	assert_refused(&box_type,
		       "{\"inner\":[{},{\"tree\":{\"name\":\"n\",\"left\":"
		       "{\"name\":\"l\"}}}]}",
		       "Parameter 'inner[1].tree.left.leaves' is missing");
	assert_refused(&box_type, "{\"shape\":{}}",
		       "Parameter 'shape.kind' is missing");
	assert_refused(&box_type, "{\"shape\":{\"kind\":\"circle\"}}",
		       "Parameter 'shape.radius' is missing");
	assert_refused(&box_type, "{\"items\":[\"s\",{\"note\":\"\"}]}",
		       "Parameter 'items[1].name' is missing");
}

static void
an_unexpected_member_is_named_by_its_full_path_and_last(void **state)
{
	(void)state;
	assert_refused(&leaf_type, "{\"zz\":1,\"name\":\"n\"}",
		       "Parameter 'zz' is unexpected");
	assert_refused(&leaf_type, "{\"zz\":1}", "Parameter 'name' is missing");
	assert_refused(&leaf_type, "{\"name\":\"n\",\"Name\":1}",
		       "Parameter 'Name' is unexpected");
	assert_refused(&box_type,
		       "{\"inner\":[{\"shape\":{\"kind\":\"polygon\",\"form\":"
		       "\"square\",\"side\":1,\"radius\":1}}]}",
		       "Parameter 'inner[0].shape.radius' is unexpected");
	assert_refused(&box_type, "{\"shape\":{\"kind\":\"unix\",\"side\":1}}",
		       "Parameter 'shape.side' is unexpected");
	assert_refused(&wrapped_type, "{\"data\":{\"a\":1}}",
		       "Parameter 'data.a' is unexpected");
}

#define WRONG(name, type) \
	"Invalid parameter type for '" name "', expected: " type

static void
a_wrong_type_is_named_by_its_full_path(void **state)
{
	(void)state;
	assert_refused(&leaf_type, "{\"name\":1}", WRONG("name", "string"));
	assert_refused(&numbers_type, "{\"i\":\"1\"}", WRONG("i", "integer"));
	assert_refused(&numbers_type, "{\"i\":1.0}", WRONG("i", "integer"));
	assert_refused(&numbers_type, "{\"i\":9223372036854775808}",
		       WRONG("i", "integer"));
	assert_refused(&numbers_type, "{\"flag\":1}", WRONG("flag", "boolean"));
	assert_refused(&numbers_type, "{\"num\":true}", WRONG("num", "number"));
	assert_refused(&numbers_type, "{\"nothing\":0}",
		       WRONG("nothing", "null"));
	assert_refused(&tree_type, "{\"name\":\"n\",\"leaves\":{}}",
		       WRONG("leaves", "array"));
	assert_refused(&tree_type, "{\"name\":\"n\",\"leaves\":[[]]}",
		       WRONG("leaves[0]", "object"));
	assert_refused(&tree_type,
		       "{\"name\":\"n\",\"leaves\":[],\"words\":[\"a\",1]}",
		       WRONG("words[1]", "string"));
	assert_refused(&box_type, "{\"inner\":[{\"tree\":1}]}",
		       WRONG("inner[0].tree", "object"));
	assert_refused(&box_type, "{\"shape\":{\"kind\":1}}",
		       WRONG("shape.kind", "string"));
	assert_refused(&leaf_type, "[]", WRONG("", "object"));
}

static void
null_is_no_way_to_leave_a_member_out(void **state)
{
	(void)state;
	assert_refused(&leaf_type, "{\"name\":\"n\",\"note\":null}",
		       WRONG("note", "string"));
	assert_refused(&numbers_type, "{\"i\":null}", WRONG("i", "integer"));
	assert_refused(&box_type, "{\"inner\":null}", WRONG("inner", "array"));
}

static void
unsigned_numbers_expect_uint64_whatever_their_width(void **state)
{
	(void)state;
	assert_refused(&numbers_type, "{\"u32\":\"64k\"}",
		       "Parameter 'u32' expects uint64");
	assert_refused(&numbers_type, "{\"sz\":1.5}",
		       "Parameter 'sz' expects uint64");
	assert_refused(&numbers_type, "{\"u64\":18446744073709551616}",
		       "Parameter 'u64' expects uint64");
	assert_refused(&box_type,
		       "{\"inner\":[{\"shape\":{\"kind\":\"circle\",\"radius\":"
		       "null}}]}",
		       "Parameter 'inner[0].shape.radius' expects uint64");
}

static void
a_number_outside_of_its_width_is_named_by_its_member_alone(void **state)
{
	(void)state;
	assert_refused(&numbers_type, "{\"u8\":256}",
		       "Parameter 'u8' expects uint8_t");
	assert_refused(&numbers_type, "{\"u16\":65536}",
		       "Parameter 'u16' expects uint16_t");
	assert_refused(&numbers_type, "{\"u32\":4294967296}",
		       "Parameter 'u32' expects uint32_t");
	assert_refused(&numbers_type, "{\"u32\":-1}",
		       "Parameter 'u32' expects uint32_t");
	assert_refused(&numbers_type, "{\"i8\":128}",
		       "Parameter 'i8' expects int8_t");
	assert_refused(&numbers_type, "{\"i16\":-32769}",
		       "Parameter 'i16' expects int16_t");
	assert_refused(&numbers_type, "{\"i32\":2147483648}",
		       "Parameter 'i32' expects int32_t");
	assert_refused(&box_type,
		       "{\"inner\":[{\"shape\":{\"kind\":\"circle\",\"radius\":"
		       "4294967296}}]}",
		       "Parameter 'radius' expects uint32_t");
	assert_refused(&tree_type,
		       "{\"name\":\"n\",\"leaves\":[],\"counts\":[65536]}",
		       "Parameter 'null' expects uint16_t");
}

static void
negative_numbers_wrap_into_64_unsigned_bits(void **state)
{
	AUTO(json_free) struct json *j = parse("{\"u64\":-1,\"sz\":-2}");
	AUTO(numbers_free) struct numbers *n = NULL;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(numbers_decode(j, NULL, &n, &e), &e);
	assert_true(n->u64 == UINT64_MAX && n->sz == UINT64_MAX - 1);
}

static void
a_bad_enum_value_is_named_by_its_member_alone(void **state)
{
	(void)state;
	assert_refused(&box_type, "{\"inner\":[{\"shape\":{\"kind\":\"zz\"}}]}",
		       "Parameter 'kind' does not accept value 'zz'");
	assert_refused(&box_type, "{\"shape\":{\"kind\":\"Circle\"}}",
		       "Parameter 'kind' does not accept value 'Circle'");
	assert_refused(&box_type,
		       "{\"inner\":[{\"shape\":{\"kind\":\"unix\",\"color\":"
		       "\"\"}}]}",
		       "Parameter 'color' does not accept value ''");
	assert_refused(&tree_type,
		       "{\"name\":\"n\",\"leaves\":[],\"colors\":[\"nope\"]}",
		       "Parameter 'null' does not accept value 'nope'");
	assert_refused(&box_type, "{\"choice\":\"nope\"}",
		       "Parameter 'choice' does not accept value 'nope'");
	assert_refused(&box_type, "{\"shape\":{\"kind\":\"unix\\u0000\"}}",
		       "Parameter 'kind' does not accept value 'unix'");
}

static void
what_no_branch_takes_is_named_by_its_member_alone(void **state)
{
	(void)state;
	assert_refused(&box_type, "{\"inner\":[{\"choice\":null}]}",
		       WRONG("choice", "NameOrNumber"));
	assert_refused(&box_type, "{\"choice\":1.5}",
		       WRONG("choice", "NameOrNumber"));
	assert_refused(&box_type, "{\"items\":[1]}",
		       WRONG("null", "LeafOrStr"));
	assert_refused(&box_type, "{\"items\":[{\"name\":1}]}",
		       WRONG("items[0].name", "string"));
}

static void
strings_with_nul_are_refused(void **state)
{
	(void)state;
	assert_refused(&leaf_type, "{\"name\":\"a\\u0000\"}",
		       "Parameter 'name' must not contain a NUL character");
	assert_refused(&tree_type,
		       "{\"name\":\"n\",\"leaves\":[],\"words\":[\"\\u0000\"]}",
		       "Parameter 'words[0]' must not contain a NUL "
		       "character");
}

static void
a_path_too_long_to_show_loses_its_start(void **state)
{
	char text[8000], *p = text;
	AUTO(json_free) struct json *j = NULL;
	struct box *b = NULL;
	struct err e = ERR_INIT;
	int i;

	(void)state;
	for (i = 0; i < 400; i++)
		p = stpcpy(p, "{\"inner\":[");
	p = stpcpy(p, "{\"tree\":{}}");
	for (i = 0; i < 400; i++)
		p = stpcpy(p, "]}");
	j = parse(text);
	assert_false(box_decode(j, NULL, &b, &e));
	assert_null(b);
	assert_true(strstr(e.msg, ".inner[0].tree.name' is missing") != NULL);
	assert_true(strlen(e.msg) > 1000);
}

static void
the_caller_can_name_the_whole(void **state)
{
	AUTO(json_free) struct json *j = parse("{}");
	struct leaf *l = NULL;
	struct err e = ERR_INIT;

	(void)state;
	assert_fails(leaf_decode(j, "file", &l, &e), &e,
		     "Parameter 'file.name' is missing");
}

static void
decoding_is_no_deeper_than_a_message_can_be(void **state)
{
	struct json *j = json_new_object(), *outer, *list;
	struct box *b = NULL;
	struct err e = ERR_INIT;
	int i;

	(void)state;
	for (i = 0; i < JSON_MAX_DEPTH / 2 + 1; i++) {
		list = json_new_array();
		outer = json_new_object();
		assert_true(json_append(list, j));
		assert_true(json_put(outer, "inner", list));
		j = outer;
	}
	assert_fails(box_decode(j, NULL, &b, &e), &e,
		     "JSON nesting depth limit exceeded");
	json_free(j);
}

/* What a client nests must fit into the stack of any of nbdkit's threads. */
static void *
work_on_the_deepest_message(void *unused)
{
	char text[16 * JSON_MAX_DEPTH], *p = text;
	int i;

	(void)unused;
	for (i = 0; i < JSON_MAX_DEPTH / 2 - 1; i++)
		p = stpcpy(p, "{\"inner\": [");
	p = stpcpy(p, "{\"choice\": 1}");
	for (i = 0; i < JSON_MAX_DEPTH / 2 - 1; i++)
		p = stpcpy(p, "]}");
	assert_round_trip(&box_type, text);
	p[-1] = ' ';
	strcpy(p, ",\"zz\":1}");
	assert_refused(&box_type, text, "Parameter 'zz' is unexpected");
	return NULL;
}

static void
the_deepest_message_needs_little_stack(void **state)
{
	pthread_attr_t attr;
	pthread_t thread;
	size_t stack = 1024 * 1024;

	(void)state;
#ifdef __SANITIZE_THREAD__
	stack *= 8; /* this sanitizer keeps much of its own there */
#endif
	pthread_attr_init(&attr);
	assert_int_equal(pthread_attr_setstacksize(&attr, stack), 0);
	assert_int_equal(pthread_create(&thread, &attr,
					work_on_the_deepest_message, NULL),
			 0);
	pthread_join(thread, NULL);
	pthread_attr_destroy(&attr);
}

/* --- memory ------------------------------------------------------------ */

static bool
decode_clone_and_encode(void *arg)
{
	AUTO(box_free) struct box *b = NULL, *copy = NULL;
	AUTO(json_out_destroy) struct json_out o;
	struct err e = ERR_INIT;

	json_out_init(&o, 100000);
	if (!box_decode(arg, NULL, &b, &e)) {
		assert_string_equal(e.msg, "out of memory");
		assert_null(b);
		return false;
	}
	copy = box_clone(b);
	if (!copy)
		return false;
	box_encode(&o, copy);
	return json_out_check(&o, NULL);
}

static void
no_failing_allocation_is_missed(void **state)
{
	AUTO(json_free)
	struct json *j = parse(
		"{\"mixed\":{\"kind\":\"polygon\",\"form\":\"square\","
		"\"side\":1},\"choice\":1,\"items\":[\"s\",{\"name\":\"n\","
		"\"note\":\"o\"}],\"shape\":{\"kind\":\"circle\",\"radius\":1},"
		"\"tree\":{\"name\":\"t\",\"left\":{\"name\":\"l\","
		"\"leaves\":[]},\"leaves\":[{\"name\":\"a\"},{\"name\":\"b\"}],"
		"\"words\":[\"x\",\"y\"],\"counts\":[1],\"extra\":[{\"a\":1}],"
		"\"shapes\":[{\"kind\":\"unix\"}]},"
		"\"inner\":[{\"mixed\":[{\"name\":\"m\"}]},"
		"{\"mixed\":\"s\"}]}");

	(void)state;
	assert_true(oom_every(decode_clone_and_encode, j) > 60);
}

static bool
append_two(void *unused)
{
	struct leaf_list l = { 0 };
	struct str_list s = { 0 };
	bool ok = true;
	int i;

	(void)unused;
	for (i = 0; i < 2 && ok; i++) {
		struct leaf *x = calloc(1, sizeof *x);

		ok = x && leaf_list_append(&l, x);
		if (!ok)
			leaf_free(x);
		ok = ok && str_list_append(&s, "word");
	}
	assert_int_equal(ok, l.n == 2 && s.n == 2);
	leaf_list_clear(&l);
	str_list_clear(&s);
	assert_true(l.n == 0 && !l.v);
	return ok;
}

static void
lists_grow_and_survive_failing_allocations(void **state)
{
	(void)state;
	assert_int_equal(oom_every(append_two, NULL), 2 * 4 + 1);
}

static void
a_decoded_list_can_be_appended_to(void **state)
{
	AUTO(json_free) struct json *j = parse("[1,2,3,4,5]");
	struct uint16_list l;
	struct err e = ERR_INIT;
	int i;

	(void)state;
	assert_ok(qapi_decode(&uint16_list_type, j, NULL, &l, &e), &e);
	for (i = 6; i < 40; i++)
		assert_true(uint16_list_append(&l, (uint16_t)i));
	for (i = 0; i < 39; i++)
		assert_int_equal(l.v[i], i + 1);
	uint16_list_clear(&l);
}

/* --- the real schema --------------------------------------------------- */

static char *
dup_text(const char *s)
{
	return strdup(s);
}

static struct block_device_info *
a_node(int number)
{
	struct block_device_info *n = calloc(1, sizeof *n);
	struct block_dirty_info *b = calloc(1, sizeof *b);
	char name[32];

	snprintf(name, sizeof name, "node%d", number);
	n->file = dup_text("/var/lib/images/disk.raw");
	n->node_name = dup_text(name);
	n->drv = dup_text("raw");
	n->image = calloc(1, sizeof *n->image);
	n->image->filename = dup_text("/var/lib/images/disk.raw");
	n->image->format = dup_text("raw");
	n->cache = calloc(1, sizeof *n->cache);
	b->name = dup_text("bitmap");
	n->has_dirty_bitmaps = true;
	assert_true(block_dirty_info_list_append(&n->dirty_bitmaps, b));
	return n;
}

static void
five_hundred_nodes_are_encoded_in_milliseconds(void **state)
{
	struct block_device_info_list l = { 0 };
	struct timespec a, b;
	struct json_out o;
	int i;

	(void)state;
	for (i = 0; i < 500; i++)
		assert_true(block_device_info_list_append(&l, a_node(i)));
	json_out_init(&o, 10 * 1024 * 1024);
	clock_gettime(CLOCK_MONOTONIC, &a);
	block_device_info_list_encode(&o, &l);
	clock_gettime(CLOCK_MONOTONIC, &b);
	assert_ok(json_out_check(&o, NULL), &(struct err)ERR_INIT);
	print_message("%zu bytes in %ld us\n", o.len,
		      (long)((b.tv_sec - a.tv_sec) * 1000000 +
			     (b.tv_nsec - a.tv_nsec) / 1000));
	assert_true(o.len > 100000);
	assert_true(b.tv_sec - a.tv_sec < 2); /* generous: sanitizers, load */
	json_out_destroy(&o);
	block_device_info_list_clear(&l);
}

static void
qemus_arguments_decode(void **state)
{
	(void)state;
	assert_round_trip(
		&blockdev_options_type,
		"{\"driver\": \"raw\", \"node-name\": \"d\", \"discard\": "
		"\"unmap\", \"cache\": {\"direct\": true}, \"file\": "
		"{\"driver\": \"nbd\", \"server\": {\"type\": \"unix\", "
		"\"path\": \"/s\"}, \"reconnect-delay\": 5}}");
	assert_round_trip(
		&qmp_transaction_args_type,
		"{\"actions\": [{\"type\": \"abort\", \"data\": {}}, "
		"{\"type\": \"block-dirty-bitmap-merge\", \"data\": {\"node\": "
		"\"n\", \"target\": \"t\", \"bitmaps\": [\"a\", {\"node\": "
		"\"m\", \"name\": \"b\"}]}}, {\"type\": \"blockdev-backup\", "
		"\"data\": {\"device\": \"d\", \"sync\": \"full\", "
		"\"target\": \"t\"}}], \"properties\": {\"completion-mode\": "
		"\"grouped\"}}");
	assert_refused(&qmp_transaction_args_type,
		       "{\"actions\":[{\"type\":\"abort\"}]}",
		       "Parameter 'actions[0].data' is missing");
	assert_refused(&qmp_transaction_args_type,
		       "{\"actions\":[{\"type\":\"Abort\",\"data\":{}}]}",
		       "Parameter 'type' does not accept value 'Abort'");
	assert_refused(&block_dirty_bitmap_merge_type,
		       "{\"node\":\"n\",\"target\":\"t\",\"bitmaps\":[1]}",
		       WRONG("null", "BlockDirtyBitmapOrStr"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			everything_survives_decoding_cloning_and_encoding),
		cmocka_unit_test(alternates_survive_too),
		cmocka_unit_test(members_are_where_the_struct_says),
		cmocka_unit_test(an_alternate_says_which_branch_it_has),
		cmocka_unit_test(a_missing_member_is_named_by_its_full_path),
		cmocka_unit_test(
			an_unexpected_member_is_named_by_its_full_path_and_last),
		cmocka_unit_test(a_wrong_type_is_named_by_its_full_path),
		cmocka_unit_test(null_is_no_way_to_leave_a_member_out),
		cmocka_unit_test(
			unsigned_numbers_expect_uint64_whatever_their_width),
		cmocka_unit_test(
			a_number_outside_of_its_width_is_named_by_its_member_alone),
		cmocka_unit_test(negative_numbers_wrap_into_64_unsigned_bits),
		cmocka_unit_test(a_bad_enum_value_is_named_by_its_member_alone),
		cmocka_unit_test(
			what_no_branch_takes_is_named_by_its_member_alone),
		cmocka_unit_test(strings_with_nul_are_refused),
		cmocka_unit_test(a_path_too_long_to_show_loses_its_start),
		cmocka_unit_test(the_caller_can_name_the_whole),
		cmocka_unit_test(decoding_is_no_deeper_than_a_message_can_be),
		cmocka_unit_test(the_deepest_message_needs_little_stack),
		cmocka_unit_test(no_failing_allocation_is_missed),
		cmocka_unit_test(lists_grow_and_survive_failing_allocations),
		cmocka_unit_test(a_decoded_list_can_be_appended_to),
		cmocka_unit_test(
			five_hundred_nodes_are_encoded_in_milliseconds),
		cmocka_unit_test(qemus_arguments_decode),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "json/json.h"

#include <float.h>
#include <stdio.h>
#include <stdlib.h>

#include "oom.h"
#include "unit.h"
#include "json/envelope.h"
#include "json/out.h"

static struct json *
parse(const char *text)
{
	struct err e = ERR_INIT;
	struct json *j = NULL;

	assert_ok(json_parse(text, strlen(text), &j, &e), &e);
	return j;
}

/* The value as text; free() it. */
static char *
print(const struct json *j)
{
	struct err e = ERR_INIT;
	struct json_out o;

	json_out_init(&o, 16 * 1024 * 1024);
	json_out_json(&o, j);
	assert_ok(json_out_check(&o, &e), &e);
	return json_out_take(&o);
}

static void
assert_prints(const char *text, const char *expected)
{
	AUTO(json_free) struct json *j = parse(text);
	AUTO(free) char *out = print(j);

	assert_string_equal(out, expected);
}

static void
text_comes_out_in_qemus_style(void **state)
{
	(void)state;
	assert_prints("{ }", "{}");
	assert_prints("[\t]", "[]");
	assert_prints("{\"a\":1,\"b\":[1,2,{}],\"c\":null}",
		      "{\"a\": 1, \"b\": [1, 2, {}], \"c\": null}");
	assert_prints("[true,false]", "[true, false]");
	assert_prints("'it'", "\"it\"");
}

static void
strings_come_out_in_ascii(void **state)
{
	(void)state;
	assert_prints("\"\\u00e9\xc3\xa9\x7f\"", "\"\\u00E9\\u00E9\\u007F\"");
	assert_prints("\"\xf0\x9f\x98\x80\\ud83d\\ude00\"",
		      "\"\\uD83D\\uDE00\\uD83D\\uDE00\"");
	assert_prints("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0001\"",
		      "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\"");
	assert_prints("\"a\\u0000b\xc0\x80\"", "\"a\\u0000b\\u0000\"");
}

static void
bytes_that_are_no_text_come_out_as_the_replacement_character(void **state)
{
	struct json_out o;

	(void)state;
	json_out_init(&o, 1000);
	json_out_string(&o, "a\xff"
			    "b\xc3(\xed\xa0\x80z\xe2\x82");
	assert_string_equal(o.text, "\"a\\uFFFDb\\uFFFD(\\uFFFDz\\uFFFD\"");
	json_out_destroy(&o);
}

static void
integers_keep_64_bits_and_larger_ones_become_doubles(void **state)
{
	(void)state;
	assert_prints("[9223372036854775807,-9223372036854775808]",
		      "[9223372036854775807, -9223372036854775808]");
	assert_prints("[9223372036854775808,18446744073709551615]",
		      "[9223372036854775808, 18446744073709551615]");
	assert_prints("[18446744073709551616,-9223372036854775809]",
		      "[1.8446744073709552e+19, -9.2233720368547758e+18]");
	assert_prints("[1.10,1e3,-0,-0.0,0.1]",
		      "[1.1000000000000001, 1000, 0, -0, "
		      "0.10000000000000001]");
}

static void
number_types_say_how_they_were_written(void **state)
{
	AUTO(json_free) struct json *j = parse("[1,9223372036854775808,1.0]");

	(void)state;
	assert_int_equal(json_type(json_at(j, 0)), JSON_INT);
	assert_int_equal(json_type(json_at(j, 1)), JSON_UINT);
	assert_int_equal(json_type(json_at(j, 2)), JSON_DOUBLE);
	assert_true(json_get_double(json_at(j, 0)) == 1);
	assert_true(json_get_uint(json_at(j, 1)) == UINT64_C(1) << 63);
}

static void
a_number_beyond_all_doubles_can_be_written_again(void **state)
{
	(void)state;
	assert_prints("[1e999,-1e999]", "[1.7976931348623157e+308, "
					"-1.7976931348623157e+308]");
}

static void
objects_keep_their_order_and_find_their_members(void **state)
{
	AUTO(json_free) struct json *j = parse("{\"b\":1,\"a\":2,\"\":3}");
	size_t len;

	(void)state;
	assert_int_equal(json_count(j), 3);
	assert_string_equal(json_name_at(j, 1, &len), "a");
	assert_int_equal(len, 1);
	assert_int_equal(json_get_int(json_lookup(j, "b")), 1);
	assert_int_equal(json_get_int(json_lookup(j, "")), 3);
	assert_null(json_lookup(j, "c"));
}

/* One by one they would take some 10^10 comparisons. */
static void
an_object_with_many_members_is_built_in_linear_time(void **state)
{
	const int n = 200000;
	AUTO(free) char *text = malloc(n * 16 + 16);
	AUTO(json_free) struct json *j = NULL;
	char name[16];
	char *p = text;
	int i;

	(void)state;
	*p++ = '{';
	for (i = 0; i < n; i++)
		p += sprintf(p, "%s\"m%d\":%d", i ? "," : "", i, i);
	strcpy(p, "}");
	j = parse(text);
	assert_int_equal(json_count(j), n);
	for (i = 0; i < n; i += 997) {
		sprintf(name, "m%d", i);
		assert_int_equal(json_get_int(json_lookup(j, name)), i);
	}
	assert_null(json_lookup(j, "m200000"));
}

static void
a_duplicate_is_found_among_many_members(void **state)
{
	char text[2000], *p = text;
	struct err e = ERR_INIT;
	struct json *j = NULL;
	int i;

	(void)state;
	*p++ = '{';
	for (i = 0; i < 100; i++)
		p += sprintf(p, "\"%d\":0,", i);
	strcpy(p, "\"50\":0}");
	assert_fails(json_parse(text, strlen(text), &j, &e), &e,
		     "JSON parse error, duplicate key");
}

static void
exactly_one_value_is_parsed(void **state)
{
	static const char *const bad[][2] = {
		{ "", "JSON parse error, premature EOI" },
		{ " \n", "JSON parse error, premature EOI" },
		{ "{\"a\":1", "JSON parse error, premature EOI" },
		{ "1 2", "JSON parse error, more than one value" },
		{ "{}[", "JSON parse error, more than one value" },
		{ "{} \"", "JSON parse error, more than one value" },
		{ "{}X", "JSON parse error, stray 'X'" },
		{ "\"abc", "JSON parse error, stray '\"abc\n'" },
	};
	struct err e = ERR_INIT;
	struct json *j = NULL;
	size_t i;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(bad); i++)
		assert_fails(json_parse(bad[i][0], strlen(bad[i][0]), &j, &e),
			     &e, bad[i][1]);
	assert_prints(" 12", "12");
	assert_prints("null", "null");
}

static void
a_clone_is_the_same_and_independent(void **state)
{
	static const char text[] = "{\"a\": [1, -2, 18446744073709551615, 0.5, "
				   "true, null, \"x\\u0000y\"], \"b\": {}}";
	struct json *j = parse(text);
	AUTO(json_free) struct json *copy = json_clone(j);
	AUTO(free) char *out = NULL;

	(void)state;
	json_free(j);
	out = print(copy);
	assert_string_equal(out, text);
}

static void
trees_can_be_built_by_hand(void **state)
{
	AUTO(json_free) struct json *j = json_new_object();
	struct json *list = json_new_array();
	AUTO(free) char *out = NULL;

	(void)state;
	assert_true(json_append(list, json_new_int(-1)));
	assert_true(json_append(list, json_new_uint(UINT64_MAX)));
	assert_true(json_append(list, json_new_double(0.5)));
	assert_true(json_append(list, json_new_bool(true)));
	assert_true(json_append(list, json_new_null()));
	assert_false(json_append(list, NULL));
	assert_true(json_put(j, "list", list));
	assert_true(json_put(j, "s", json_new_string_n("a\0b", 3)));
	assert_false(json_put(j, "none", NULL));
	out = print(j);
	assert_string_equal(out, "{\"list\": [-1, 18446744073709551615, 0.5, "
				 "true, null], \"s\": \"a\\u0000b\"}");
}

static void
the_writer_stops_at_its_cap_and_says_so(void **state)
{
	struct err e = ERR_INIT;
	struct json_out o;

	(void)state;
	json_out_init(&o, 6);
	json_out_string(&o, "abcd");
	assert_ok(json_out_check(&o, &e), &e);
	assert_string_equal(o.text, "\"abcd\"");
	json_out_reset(&o);
	json_out_string(&o, "abcde");
	json_out_null(&o);
	assert_true(o.len <= 6);
	assert_fails(json_out_check(&o, &e), &e,
		     "JSON text is longer than 6 bytes");
	assert_null(json_out_take(&o));
}

static bool
parse_clone_and_print(void *text)
{
	AUTO(json_free) struct json *j = NULL, *copy = NULL;
	AUTO(json_out_destroy) struct json_out o;
	struct err e = ERR_INIT;

	json_out_init(&o, 1000000);
	if (!json_parse(text, strlen(text), &j, &e)) {
		assert_string_equal(e.msg, "out of memory");
		return false;
	}
	copy = json_clone(j);
	if (!copy)
		return false;
	json_out_json(&o, copy);
	return json_out_check(&o, NULL);
}

static void
no_failing_allocation_is_missed(void **state)
{
	char text[4096], *p = text;
	int i;

	(void)state;
	p += sprintf(p, "{\"list\":[[[\"\\u00e9\",'\\'']],-1,1e5,true,null],");
	for (i = 0; i < 40; i++)
		p += sprintf(p, "\"m%d\":\"v%d\",", i, i);
	p = stpcpy(p, "\"number\":1");
	memset(p, '1', 100);
	strcpy(p + 100, "}");
	assert_true(oom_every(parse_clone_and_print, text) > 100);
}

static bool
build_by_hand(void *unused)
{
	AUTO(json_free) struct json *j = json_new_object();
	struct json *list = json_new_array();
	bool ok = j && list;

	(void)unused;
	ok = ok && json_append(list, json_new_string("x"));
	if (!ok || !json_put(j, "list", steal(&list))) {
		json_free(list);
		return false;
	}
	return json_put(j, "other", json_new_int(1));
}

static void
building_by_hand_survives_failing_allocations(void **state)
{
	(void)state;
	assert_true(oom_every(build_by_hand, NULL) > 6);
}

/* Strings with escapes go through a buffer of yajl's own; see tree.c. */
static void
long_strings_with_escapes_fit_into_the_arena(void **state)
{
	size_t sizes[] = { 1, 2040, 2048, 4096, 65535, 1000000 }, i, j, len;
	AUTO(free) char *text = malloc(12 * 1000000 + 64);
	char *p;

	(void)state;
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		AUTO(json_free) struct json *v = NULL;

		p = stpcpy(text, "[[[\"\\n\"],\"");
		for (j = 0; j < sizes[i]; j++)
			p = stpcpy(p, j % 3 ? "\\u20ac" : "x");
		p = stpcpy(p, "\\t\"],\"");
		for (j = 0; j < sizes[i] / 2; j++)
			p = stpcpy(p, "\\n");
		strcpy(p, "\"]");
		v = parse(text);
		(void)json_get_string(json_at(v, 1), &len);
		assert_int_equal(len, sizes[i] / 2);
	}
}

static void
nesting_up_to_the_limit_works(void **state)
{
	AUTO(free) char *text = malloc(16 * JSON_MAX_DEPTH);
	AUTO(json_free) struct json *v = NULL;
	char *p = text;
	int i;

	(void)state;
	for (i = 0; i < JSON_MAX_DEPTH / 2; i++)
		p = stpcpy(p, "[{\"\\n\":");
	p = stpcpy(p, "\"\\u00e9\\n\"");
	for (i = 0; i < JSON_MAX_DEPTH / 2; i++)
		p = stpcpy(p, "}]");
	v = parse(text);
	assert_int_equal(json_type(v), JSON_ARRAY);
}

/* --- envelopes ------------------------------------------------------- */

static void
assert_request_fails(const char *text, const char *why, bool has_id)
{
	AUTO(json_free) struct json *j = parse(text);
	struct err e = ERR_INIT;
	struct qmp_request r;

	assert_fails(qmp_request_parse(j, &r, &e), &e, why);
	assert_int_equal(r.id != NULL, has_id);
}

static void
requests_are_checked_as_qemu_does(void **state)
{
	(void)state;
	assert_request_fails("[]", "QMP input must be a JSON object", false);
	assert_request_fails("\"execute\"", "QMP input must be a JSON object",
			     false);
	assert_request_fails("{\"id\":1,\"execute\":1}",
			     "QMP input member 'execute' must be a string",
			     true);
	assert_request_fails("{\"execute\":\"a\",\"arguments\":null}",
			     "QMP input member 'arguments' must be an object",
			     false);
	assert_request_fails("{\"execute\":\"a\",\"x\":1,\"id\":null}",
			     "QMP input member 'x' is unexpected", true);
	assert_request_fails("{\"exec-oob\":\"a\"}",
			     "QMP input member 'exec-oob' is unexpected",
			     false);
	assert_request_fails("{}", "QMP input lacks member 'execute'", false);
}

static void
a_request_gives_command_arguments_and_id(void **state)
{
	AUTO(json_free)
	struct json *j = parse(
		"{\"id\":[1],\"arguments\":{\"a\":1},\"execute\":\"quit\"}");
	struct err e = ERR_INIT;
	struct qmp_request r;

	(void)state;
	assert_ok(qmp_request_parse(j, &r, &e), &e);
	assert_string_equal(r.command, "quit");
	assert_int_equal(json_count(r.args), 1);
	assert_int_equal(json_type(r.id), JSON_ARRAY);
}

static void
replies_are_told_apart(void **state)
{
	AUTO(json_free) struct json *ret = parse("{\"return\":{},\"id\":7}");
	AUTO(json_free)
	struct json *error = parse(
		"{\"error\":{\"class\":\"DeviceNotActive\",\"desc\":\"d\"}}");
	AUTO(json_free) struct json *event = parse("{\"event\":\"E\"}");
	AUTO(json_free) struct json *bad = parse("{\"id\":1}");
	struct err e = ERR_INIT;
	struct qmp_reply r;

	(void)state;
	assert_ok(qmp_reply_parse(ret, &r, &e), &e);
	assert_int_equal(r.kind, QMP_REPLY_RETURN);
	assert_int_equal(json_get_int(r.id), 7);
	assert_ok(qmp_reply_parse(error, &r, &e), &e);
	assert_int_equal(r.kind, QMP_REPLY_ERROR);
	assert_int_equal(r.cls, ERR_DEVICE_NOT_ACTIVE);
	assert_string_equal(r.desc, "d");
	assert_ok(qmp_reply_parse(event, &r, &e), &e);
	assert_int_equal(r.kind, QMP_REPLY_EVENT);
	assert_string_equal(r.event, "E");
	assert_false(qmp_reply_parse(bad, &r, &e));
}

static void
errors_name_their_class(void **state)
{
	struct err e = ERR_INIT;
	struct json_out o;

	(void)state;
	(void)err_set(&e, ERR_COMMAND_NOT_FOUND, 0, "no '%s'", "x");
	json_out_init(&o, 1000);
	json_out_object_begin(&o);
	qmp_error_put(&o, &e);
	json_out_object_end(&o);
	assert_string_equal(o.text, "{\"error\": {\"class\": "
				    "\"CommandNotFound\", \"desc\": "
				    "\"no 'x'\"}}");
	json_out_destroy(&o);
}

static void
events_carry_the_time_of_day(void **state)
{
	AUTO(json_free) struct json *j = NULL;
	const struct json *t;
	struct json_out o;

	(void)state;
	json_out_init(&o, 1000);
	json_out_object_begin(&o);
	qmp_event_put(&o, "NAME");
	json_out_object_end(&o);
	j = parse(o.text);
	json_out_destroy(&o);
	t = json_lookup(j, "timestamp");
	assert_true(json_get_int(json_lookup(t, "seconds")) > 1600000000);
	assert_true(json_get_int(json_lookup(t, "microseconds")) < 1000000);
	assert_string_equal(json_get_string(json_lookup(j, "event"), NULL),
			    "NAME");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(text_comes_out_in_qemus_style),
		cmocka_unit_test(strings_come_out_in_ascii),
		cmocka_unit_test(
			bytes_that_are_no_text_come_out_as_the_replacement_character),
		cmocka_unit_test(
			integers_keep_64_bits_and_larger_ones_become_doubles),
		cmocka_unit_test(number_types_say_how_they_were_written),
		cmocka_unit_test(
			a_number_beyond_all_doubles_can_be_written_again),
		cmocka_unit_test(
			objects_keep_their_order_and_find_their_members),
		cmocka_unit_test(
			an_object_with_many_members_is_built_in_linear_time),
		cmocka_unit_test(a_duplicate_is_found_among_many_members),
		cmocka_unit_test(exactly_one_value_is_parsed),
		cmocka_unit_test(a_clone_is_the_same_and_independent),
		cmocka_unit_test(trees_can_be_built_by_hand),
		cmocka_unit_test(the_writer_stops_at_its_cap_and_says_so),
		cmocka_unit_test(no_failing_allocation_is_missed),
		cmocka_unit_test(building_by_hand_survives_failing_allocations),
		cmocka_unit_test(long_strings_with_escapes_fit_into_the_arena),
		cmocka_unit_test(nesting_up_to_the_limit_works),
		cmocka_unit_test(requests_are_checked_as_qemu_does),
		cmocka_unit_test(a_request_gives_command_arguments_and_id),
		cmocka_unit_test(replies_are_told_apart),
		cmocka_unit_test(errors_name_their_class),
		cmocka_unit_test(events_carry_the_time_of_day),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

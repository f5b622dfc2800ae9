/* SPDX-License-Identifier: BSD-3-Clause */
#include "json/frame.h"

#include <stdio.h>
#include <stdlib.h>

#include "oom.h"
#include "unit.h"
#include "json/out.h"

/* Everything that comes out of @f for @n bytes in pieces of @piece: values as
 * text, errors with '!' in front, each with a newline behind; free() it.
 */
static char *
feed(struct frame *f, const char *text, size_t n, size_t piece)
{
	struct json_out o;
	struct json *j;
	size_t left;

	json_out_init(&o, 1000000);
	while (n) {
		left = piece < n ? piece : n;
		n -= left;
		while (left) {
			struct err e = ERR_INIT;

			switch (frame_feed(f, &text, &left, &j, &e)) {
			case FRAME_MORE: assert_int_equal(left, 0); break;
			case FRAME_VALUE:
				o.comma = false;
				json_out_json(&o, j);
				json_out_bytes(&o, "\n", 1);
				json_free(j);
				break;
			case FRAME_ERROR:
				json_out_bytes(&o, "!", 1);
				json_out_bytes(&o, e.msg, strlen(e.msg));
				json_out_bytes(&o, "\n", 1);
				break;
			}
		}
	}
	if (o.len == 0)
		json_out_bytes(&o, "", 0);
	return json_out_take(&o);
}

static struct frame *
new_frame(void)
{
	struct frame *f = frame_new(&frame_limits_qmp);

	assert_non_null(f);
	return f;
}

static void
assert_frames(const char *text, size_t n, const char *expected)
{
	size_t piece;

	for (piece = 1; piece <= n; piece += piece < 4 ? 1 : n - 4 + 1) {
		AUTO(frame_free) struct frame *f = new_frame();
		AUTO(free) char *out = feed(f, text, n, piece);

		assert_string_equal(out, expected);
	}
}

/* The bytes may contain NUL. */
#define FRAMES(text, expected) assert_frames(text, sizeof text - 1, expected)
#define FAULT(text, what)      FRAMES(text, "!JSON parse error, " what "\n")

static void
values_come_out_as_soon_as_they_are_complete(void **state)
{
	(void)state;
	FRAMES("{}", "{}\n");
	FRAMES("{\"a\":[1,{}]}[]", "{\"a\": [1, {}]}\n[]\n");
	FRAMES(" \r\n\t{}\n\n{}\n", "{}\n{}\n");
	FRAMES("{\"a\" : 1 }{\"b\":2", "{\"a\": 1}\n");
}

static void
scalars_at_the_top_are_values_too(void **state)
{
	(void)state;
	FRAMES("\"a\"\"b\"", "\"a\"\n\"b\"\n");
	FRAMES("1 -2.5e3\n0x", "1\n-2500\n0\n");
	FRAMES("true null false ", "true\nnull\nfalse\n");
	FRAMES("12", ""); /* more digits may follow */
}

static void
lexical_garbage_is_stray(void **state)
{
	(void)state;
	FAULT("X\n", "stray 'X'");
	FAULT("%d\n", "stray '%'");
	FAULT("+1\n", "stray '+'");
	FAULT(".5\n", "stray '.'");
	FAULT("-\n", "stray '-\n'");
	FAULT("1.\n", "stray '1.\n'");
	FAULT("1.5e+\n", "stray '1.5e+\n'");
	FAULT("2ex\n", "stray '2ex'");
	FAULT("\"abc\ndef\"\n", "stray '\"abc\n'");
	FAULT("'abc\n", "stray ''abc\n'");
	FAULT("'a\"\\'\n", "stray ''a\"\\'\n'");
	FAULT("\"\\\n", "stray '\"\\\n'");
	FAULT("\"a\tb\n", "stray '\"a\t'");
	FRAMES("tRue\n", "!JSON parse error, invalid keyword 't'\n"
			 "!JSON parse error, stray 'R'\n");
}

static void
a_fault_in_the_grammar_is_named_as_qemu_does(void **state)
{
	(void)state;
	FAULT("[,]", "expecting value");
	FAULT("[1,]", "expecting value");
	FAULT("{,}", "expecting value");
	FAULT("{\"a\":1,}", "expecting value");
	FAULT("}", "expecting value");
	FAULT(",", "expecting value");
	FAULT("foo ", "invalid keyword 'foo'");
	FAULT("{foo:1}", "invalid keyword 'foo'");
	FAULT("[nul]", "invalid keyword 'nul'");
	FAULT("{\"a\" 1}", "missing : in object pair");
	FAULT("{\"a\"}", "missing : in object pair");
	FAULT("{\"a\":1,\"a\":2}", "duplicate key");
	FAULT("{\"a\":{\"b\":1,\"b\":2}}", "duplicate key");
	FAULT("{1:2}", "key is not a string in object");
	FAULT("{[1]:2}", "key is not a string in object");
	FAULT("{{}:2}", "key is not a string in object");
	FAULT("{\"a\":1 \"b\":2}", "expected separator in dict");
	FAULT("[1 2]", "expected separator in list");
	FAULT("[\"a\":1]", "expected separator in list");
	FAULT("{\"a\":}", "Missing value in dict");
	FAULT("{\"a\":,\"b\":1}", "Missing value in dict");
}

static void
the_first_fault_is_the_one_that_is_told(void **state)
{
	(void)state;
	FAULT("{\"a\":1,\"a\":2 \"b\"}", "duplicate key");
	FAULT("{\"a\":1,\"a\":foo}", "invalid keyword 'foo'");
	FAULT("{\"a\":1 \"b\",\"a\":2}", "expected separator in dict");
	FAULT("[\"\\q\" 1]", "invalid escape sequence in string");
	FAULT("[1 \"\\q\"]", "expected separator in list");
}

static void
strings_are_checked(void **state)
{
	(void)state;
	FAULT("\"\\q\"", "invalid escape sequence in string");
	FAULT("[\"\\U0041\"]", "invalid escape sequence in string");
	FAULT("{\"\\q\":1}", "invalid escape sequence in string");
	FAULT("[\"\xc3(\"]", "invalid UTF-8 sequence in string");
	FAULT("[\"\xc1\x81\"]", "invalid UTF-8 sequence in string");
	FAULT("[\"\xe0\x80\xaf\"]", "invalid UTF-8 sequence in string");
	FAULT("[\"\xed\xa0\x80\"]", "invalid UTF-8 sequence in string");
	FAULT("[\"\xf4\x90\x80\x80\"]", "invalid UTF-8 sequence in string");
	FAULT("[\"\xf5\"]", "invalid UTF-8 sequence in string");
	FAULT("[\"\xef\xbf\xbe\"]", "invalid UTF-8 sequence in string");
}

static void
escapes_must_be_characters(void **state)
{
	(void)state;
	FAULT("[\"\\uD800\"]", "\\uD800 is not a valid Unicode character");
	FAULT("[\"\\uD800\\u0041\"]",
	      "\\uD800 is not a valid Unicode character");
	FAULT("[\"\\ud83dx\"]", "\\ud83d is not a valid Unicode character");
	FAULT("[\"\\uDC00\"]", "\\uDC00 is not a valid Unicode character");
	FAULT("[\"\\u12\"]", "\\u12\" is not a valid Unicode character");
	FAULT("[\"\\u\"]", "\\u\" is not a valid Unicode character");
	FAULT("[\"\\u12zz\"]", "\\u12zz is not a valid Unicode character");
	FAULT("[\"\\uFFFE\"]", "\\uFFFE is not a valid Unicode character");
	FAULT("[\"\\ufdd0\"]", "\\ufdd0 is not a valid Unicode character");
}

static void
numbers_do_not_begin_with_zero(void **state)
{
	(void)state;
	FRAMES("{\"execute\":01}\n", "!JSON parse error, stray '01'\n"
				     "!JSON parse error, expecting value\n");
	FRAMES("[0,-0,0.5,0e1]", "[0, 0, 0.5, 0]\n");
}

static void
single_quotes_work_like_double_ones(void **state)
{
	(void)state;
	FRAMES("{'execute':'query-version'}",
	       "{\"execute\": \"query-version\"}\n");
	FRAMES("['a\\'b\"c\\\"\\\\', \"it's\", \"\\'\", '']",
	       "[\"a'b\\\"c\\\"\\\\\", \"it's\", \"'\", \"\"]\n");
	FRAMES("['\\\\'] ['\\\\\\'\"']", "[\"\\\\\"]\n[\"\\\\'\\\"\"]\n");
	FRAMES("{'a':1,\"a\":2}", "!JSON parse error, duplicate key\n");
}

static void
nul_comes_as_an_escape_or_as_c0_80(void **state)
{
	(void)state;
	FRAMES("\"\\u0000\xc0\x80\"", "\"\\u0000\\u0000\"\n");
	FRAMES("{\"\\u0000\":1,\"\xc0\x80\":2}",
	       "!JSON parse error, duplicate key\n");
	FRAMES("[\"a\0b\"]\n", "!JSON parse error, stray '\"a'\n"
			       "!JSON parse error, expecting value\n");
}

static void
after_garbage_a_structural_character_starts_anew(void **state)
{
	(void)state;
	FRAMES("{\"a\":X foo \"b {\"c\":1}",
	       "!JSON parse error, stray 'X'\n{\"c\": 1}\n");
	FRAMES("X abc\tdef [1]", "!JSON parse error, stray 'X'\n[1]\n");
	FRAMES("X abc\n1 ", "!JSON parse error, stray 'X'\n1\n");
	FRAMES("{\"a\" \"b\":X}{}", "!JSON parse error, stray 'X'\n"
				    "!JSON parse error, expecting value\n"
				    "{}\n");
}

static void
ff_resynchronizes(void **state)
{
	(void)state;
	FRAMES("{\"a\":[\"\xff{\"b\":1}", "!JSON parse error, stray '\"\xff'\n"
					  "{\"b\": 1}\n");
	FRAMES("{\"a\":[\xff{}", "!JSON parse error, stray '\xff'\n{}\n");
	FRAMES("\xfe\n[]", "!JSON parse error, stray '\xfe'\n[]\n");
}

static void
braces_and_brackets_are_counted_apart(void **state)
{
	(void)state;
	FRAMES("{\"a\":[1}", "");
	FRAMES("{\"a\":[1}]", "!JSON parse error, expected separator in "
			      "list\n");
	FRAMES("[}", "!JSON parse error, expecting value\n");
	FRAMES("{]{}", "!JSON parse error, expecting value\n{}\n");
}

static void
a_long_stray_token_is_cut_not_refused(void **state)
{
	AUTO(frame_free) struct frame *f = new_frame();
	AUTO(free) char *text = malloc(100001), *out = NULL;

	(void)state;
	memset(text, 'a', 100000);
	text[0] = '"';
	text[99999] = '\n';
	out = feed(f, text, 100000, 100000);
	assert_true(strlen(out) > 1000 && strlen(out) < 1100);
	assert_memory_equal(out, "!JSON parse error, stray '\"aaa", 30);
}

/* --- limits: what is within passes, one more does not ------------------ */

static void
assert_limited(struct frame_limits l, const char *text, const char *expected)
{
	AUTO(frame_free) struct frame *f = frame_new(&l);
	AUTO(free) char *out = feed(f, text, strlen(text), 3);

	assert_string_equal(out, expected);
}

static void
token_bytes_are_limited(void **state)
{
	const struct frame_limits l = { 10, 100, 100 };

	(void)state;
	assert_limited(l, "[\"1234\" , 5]", "[\"1234\", 5]\n");
	assert_limited(l, "[\"12345\" , 5]{}",
		       "!JSON token size limit exceeded\n{}\n");
	assert_limited(l, "\"12345678\" ", "\"12345678\"\n");
	assert_limited(l, "\"123456789\" \n{}",
		       "!JSON token size limit exceeded\n{}\n");
	assert_limited(l, "[1]      [2]       [3]", "[1]\n[2]\n[3]\n");
}

static void
tokens_are_limited(void **state)
{
	const struct frame_limits l = { 100, 5, 100 };

	(void)state;
	assert_limited(l, "[1,2]", "[1, 2]\n");
	assert_limited(l, "[1,[]]{}", "!JSON token count limit exceeded\n{}\n");
}

static void
nesting_is_limited(void **state)
{
	const struct frame_limits l = { 100, 100, 3 };

	(void)state;
	assert_limited(l, "[[[]]]", "[[[]]]\n");
	assert_limited(l, "[{\"a\":{}}]", "[{\"a\": {}}]\n");
	assert_limited(l, "[[[[", "!JSON nesting depth limit exceeded\n");
	assert_limited(l, "{\"a\":[[{", "!JSON nesting depth limit exceeded\n");
}

/* @open @n times, @middle, @close @n times. */
static char *
nested(size_t n, const char *open, const char *middle, const char *close)
{
	char *text =
		malloc(n * (strlen(open) + strlen(close)) + strlen(middle) + 1);
	char *p = text;
	size_t i;

	for (i = 0; i < n; i++)
		p = stpcpy(p, open);
	p = stpcpy(p, middle);
	for (i = 0; i < n; i++)
		p = stpcpy(p, close);
	return text;
}

static void
qmps_depth_is_1024(void **state)
{
	AUTO(free) char *ok = nested(1024, "[", "", "]");
	AUTO(free) char *deep = nested(1025, "[", "\n", "");
	AUTO(frame_free) struct frame *f = new_frame();
	AUTO(free) char *first = NULL, *second = NULL;

	(void)state;
	first = feed(f, ok, strlen(ok), 1000);
	assert_int_equal(strlen(first), 2049);
	assert_memory_equal(first, ok, 2048);
	second = feed(f, deep, strlen(deep), 1000);
	assert_string_equal(second, "!JSON nesting depth limit exceeded\n");
}

/* Feed @head, @n times @unit, @tail; the one result's kind, message in *e. */
static enum frame_result
feed_many(const char *head, size_t n, const char *unit, const char *tail,
	  struct err *e)
{
	AUTO(frame_free) struct frame *f = new_frame();
	size_t len = strlen(unit), big = 65536 / len * len, i, left;
	AUTO(free) char *block = malloc(big);
	AUTO(json_free) struct json *j = NULL;
	enum frame_result r;
	const char *p;

	for (i = 0; i < big; i += len)
		memcpy(block + i, unit, len);
	p = head;
	left = strlen(head);
	r = frame_feed(f, &p, &left, &j, e);
	for (n *= len; n && r == FRAME_MORE; n -= i) {
		i = n < big ? n : big;
		p = block;
		left = i;
		r = frame_feed(f, &p, &left, &j, e);
	}
	p = tail;
	left = strlen(tail);
	if (r == FRAME_MORE)
		r = frame_feed(f, &p, &left, &j, e);
	return r;
}

static void
qmps_token_bytes_are_64_mib(void **state)
{
	const size_t most = 64 * 1024 * 1024;
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(feed_many("[\"", most - 4, "x", "\"]", &e),
			 FRAME_VALUE);
	assert_int_equal(feed_many("[\"", most - 3, "x", "\"]", &e),
			 FRAME_ERROR);
	assert_string_equal(e.msg, "JSON token size limit exceeded");
}

static void
qmps_tokens_are_2_mi(void **state)
{
	const size_t most = 2 * 1024 * 1024;
	struct err e = ERR_INIT;

	(void)state;
	/* "[" "0" and pairs of "," "0", then "]" or "," "[]" "]" */
	assert_int_equal(feed_many("[0", most / 2 - 3, ",0", ",[]]", &e),
			 FRAME_VALUE);
	assert_int_equal(feed_many("[0", most / 2 - 1, ",0", "]", &e),
			 FRAME_ERROR);
	assert_string_equal(e.msg, "JSON token count limit exceeded");
}

/* A client that sends forever makes us hold the limit and no more. */
static void
endless_input_takes_bounded_memory(void **state)
{
	const struct frame_limits l = { 100000, 1000, 10 };
	AUTO(frame_free) struct frame *f = frame_new(&l);
	static const char *const units[] = {
		"\"", "'\"", "[", "1", "a ", "{\"a\":", "\\", " ", "[\"a\","
	};
	struct json *j;
	size_t i, k, n;

	(void)state;
	(void)oom_largest();
	for (i = 0; i < ARRAY_SIZE(units); i++) {
		frame_reset(f);
		for (k = 0; k < 400000; k++) {
			const char *p = units[i];

			for (n = strlen(p); n;) {
				struct err e = ERR_INIT;

				j = NULL;
				(void)frame_feed(f, &p, &n, &j, &e);
				json_free(j);
			}
		}
	}
	assert_true(oom_largest() < 4 * l.token_bytes + 65536);
}

static void
a_large_buffer_is_given_back(void **state)
{
	AUTO(frame_free) struct frame *f = new_frame();
	AUTO(free) char *text = malloc(1000004), *out = NULL, *small = NULL;

	(void)state;
	memset(text, 'x', 1000004);
	memcpy(text, "[\"", 2);
	memcpy(text + 1000001, "\"]", 3);
	assert_false(frame_is_inside(f));
	out = feed(f, text, 1000000, 1000000);
	assert_true(frame_is_inside(f));
	free(out);
	out = feed(f, text + 1000000, 3, 3);
	assert_false(frame_is_inside(f));
	(void)oom_largest();
	small = feed(f, "[1]", 3, 1);
	assert_true(oom_largest() < 64 * 1024);
}

static bool
feed_with_little_memory(void *unused)
{
	static const char text[] = "{\"a\":['\\u00e9',1,{\"b\":[[[]]]}]}";
	AUTO(frame_free) struct frame *f = frame_new(&frame_limits_qmp);
	AUTO(json_free) struct json *j = NULL;
	const char *p = text, *after = "[]";
	size_t n = sizeof text - 1, two = 2;
	struct err e = ERR_INIT;
	enum frame_result r;

	(void)unused;
	if (!f)
		return false;
	r = frame_feed(f, &p, &n, &j, &e);
	assert_int_equal(n, 0);
	if (r == FRAME_VALUE)
		return true;
	assert_int_equal(r, FRAME_ERROR);
	assert_string_equal(e.msg, "out of memory");
	assert_int_equal(frame_feed(f, &after, &two, &j, NULL), FRAME_VALUE);
	return false;
}

static void
a_message_lost_to_memory_is_one_error_and_the_next_one_works(void **state)
{
	(void)state;
	assert_true(oom_every(feed_with_little_memory, NULL) > 10);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(values_come_out_as_soon_as_they_are_complete),
		cmocka_unit_test(scalars_at_the_top_are_values_too),
		cmocka_unit_test(lexical_garbage_is_stray),
		cmocka_unit_test(a_fault_in_the_grammar_is_named_as_qemu_does),
		cmocka_unit_test(the_first_fault_is_the_one_that_is_told),
		cmocka_unit_test(strings_are_checked),
		cmocka_unit_test(escapes_must_be_characters),
		cmocka_unit_test(numbers_do_not_begin_with_zero),
		cmocka_unit_test(single_quotes_work_like_double_ones),
		cmocka_unit_test(nul_comes_as_an_escape_or_as_c0_80),
		cmocka_unit_test(
			after_garbage_a_structural_character_starts_anew),
		cmocka_unit_test(ff_resynchronizes),
		cmocka_unit_test(braces_and_brackets_are_counted_apart),
		cmocka_unit_test(a_long_stray_token_is_cut_not_refused),
		cmocka_unit_test(token_bytes_are_limited),
		cmocka_unit_test(tokens_are_limited),
		cmocka_unit_test(nesting_is_limited),
		cmocka_unit_test(qmps_depth_is_1024),
		cmocka_unit_test(qmps_token_bytes_are_64_mib),
		cmocka_unit_test(qmps_tokens_are_2_mi),
		cmocka_unit_test(endless_input_takes_bounded_memory),
		cmocka_unit_test(a_large_buffer_is_given_back),
		cmocka_unit_test(
			a_message_lost_to_memory_is_one_error_and_the_next_one_works),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The generated commands and events of tests/unit/test-schema.json, with
 * handlers of every kind, and what is made for clients and for introspection.
 */
#include <stdlib.h>
#include <time.h>

#include "oom.h"
#include "tests/unit/test-client.h"
#include "tests/unit/test-commands.h"
#include "unit.h"

static struct json *
parse(const char *text)
{
	struct err e = ERR_INIT;
	struct json *j = NULL;

	assert_ok(json_parse(text, strlen(text), &j, &e), &e);
	return j;
}

/* --- commands ---------------------------------------------------------- */

struct test_call {
	struct json_out out;
	int done, begun;
	bool no_memory; /* begin has nothing to write to */
	struct err failed;
	const char *handler; /* the last one that ran */
	struct shape *shape; /* consumed by draw; owned */
	struct test_measure_args *measure; /* likewise */
};

struct json_out *
test_call_begin(struct test_call *call)
{
	call->begun++;
	return call->no_memory ? NULL : &call->out;
}

void
test_call_done(struct test_call *call)
{
	call->done++;
}

void
test_call_fail(struct test_call *call, const struct err *e)
{
	call->failed = *e;
}

bool
test_plain(struct test_call *call, struct err *e)
{
	(void)e;
	call->handler = "plain";
	return true;
}

bool
test_add_leaf(struct test_call *call, const struct test_add_leaf_args *arg,
	      struct err *e)
{
	call->handler = "add-leaf";
	if (strcmp(arg->name, "bad") == 0)
		return err_set(e, ERR_DEVICE_NOT_FOUND, 0, "'%s' with %d",
			       arg->name, arg->has_count ? arg->count : 1);
	return true;
}

bool
test_get_leaf(struct test_call *call, const struct test_get_leaf_args *arg,
	      struct leaf **ret, struct err *e)
{
	(void)call;
	*ret = calloc(1, sizeof **ret);
	(*ret)->name = strdup(arg->name);
	if (arg->name[0])
		return true;
	return err_set(e, ERR_GENERIC, 0, "no name"); /* *ret is freed too */
}

bool
test_list_leaves(struct test_call *call, struct leaf_list *ret, struct err *e)
{
	struct leaf *l = calloc(1, sizeof *l);

	(void)call;
	(void)e;
	l->name = strdup("one");
	return leaf_list_append(ret, l);
}

bool
test_get_number(struct test_call *call, uint64_t *ret, struct err *e)
{
	(void)call;
	(void)e;
	*ret = UINT64_MAX;
	return true;
}

bool
test_get_word(struct test_call *call, char **ret, struct err *e)
{
	(void)call;
	(void)e;
	*ret = strdup("word");
	return true;
}

void
test_draw(struct test_call *call, struct shape *arg)
{
	call->shape = arg;
}

void
test_measure(struct test_call *call, struct test_measure_args *arg)
{
	call->measure = arg;
}

void
test_wait(struct test_call *call)
{
	call->handler = "wait";
}

static void
call_init(struct test_call *call)
{
	memset(call, 0, sizeof *call);
	json_out_init(&call->out, 100000);
}

static void
call_destroy(struct test_call *call)
{
	json_out_destroy(&call->out);
	shape_free(call->shape);
	test_measure_args_free(call->measure);
}

/* Dispatch with arguments @args (or NULL); what is written, or "!message". */
static void
assert_call(const char *name, const char *args, const char *expected)
{
	AUTO(json_free) struct json *j = args ? parse(args) : NULL;
	struct test_call call;
	struct err e = ERR_INIT;

	call_init(&call);
	if (test_dispatch(&call, name, j, &e)) {
		assert_int_equal(call.done, 1);
		assert_string_equal(call.out.text, expected);
	} else {
		assert_int_equal(call.begun, 0);
		assert_string_equal(e.msg, expected + 1);
	}
	call_destroy(&call);
}

static void
sync_commands_are_answered_at_once(void **state)
{
	(void)state;
	assert_call("plain", NULL, "{}");
	assert_call("plain", "{}", "{}");
	assert_call("add-leaf", "{\"name\":\"x\"}", "{}");
	assert_call("get-leaf", "{\"name\":\"x\"}", "{\"name\": \"x\"}");
	assert_call("list-leaves", NULL, "[{\"name\": \"one\"}]");
	assert_call("get-number", NULL, "18446744073709551615");
	assert_call("get-word", NULL, "\"word\"");
}

static void
commands_with_wrong_arguments_do_not_run(void **state)
{
	(void)state;
	assert_call("nope", NULL, "!The command nope has not been found");
	assert_call("plain", "{\"a\":1}", "!Parameter 'a' is unexpected");
	assert_call("add-leaf", NULL, "!Parameter 'name' is missing");
	assert_call("add-leaf", "{\"name\":\"x\",\"count\":256}",
		    "!Parameter 'count' expects uint8_t");
	assert_call("draw", NULL, "!Parameter 'kind' is missing");
	assert_call("wait", "{\"a\":1}", "!Parameter 'a' is unexpected");
	assert_call("measure", "{\"box\":{\"tree\":1}}",
		    "!Invalid parameter type for 'box.tree', expected: "
		    "object");
}

static void
an_unknown_command_has_its_own_class(void **state)
{
	struct test_call call;
	struct err e = ERR_INIT;

	(void)state;
	call_init(&call);
	assert_false(test_dispatch(&call, "", NULL, &e));
	assert_int_equal(e.cls, ERR_COMMAND_NOT_FOUND);
	call_destroy(&call);
}

static void
a_handlers_error_comes_back_with_its_class(void **state)
{
	AUTO(json_free) struct json *j = parse("{\"name\":\"bad\"}");
	struct test_call call;
	struct err e = ERR_INIT;

	(void)state;
	call_init(&call);
	assert_fails(test_dispatch(&call, "add-leaf", j, &e), &e,
		     "'bad' with 1");
	assert_int_equal(call.begun, 0);
	call_destroy(&call);
	assert_call("get-leaf", "{\"name\":\"\"}", "!no name");
}

static void
async_commands_own_their_arguments_and_answer_later(void **state)
{
	AUTO(json_free)
	struct json *j = parse("{\"kind\":\"circle\",\"radius\":3}");
	struct test_call call;
	struct err e = ERR_INIT;

	(void)state;
	call_init(&call);
	assert_ok(test_dispatch(&call, "draw", j, &e), &e);
	assert_int_equal(call.begun, 0);
	assert_int_equal(call.shape->u.circle->radius, 3);
	test_draw_return(&call);
	assert_int_equal(call.done, 1);
	assert_string_equal(call.out.text, "{}");
	call_destroy(&call);
}

static void
an_async_result_is_encoded_when_it_comes(void **state)
{
	AUTO(json_free) struct json *j = parse("{\"box\":{\"choice\":4}}");
	struct leaf leaf = { .name = (char *)(uintptr_t) "big" };
	struct test_call call;
	struct err e = ERR_INIT;

	(void)state;
	call_init(&call);
	assert_ok(test_dispatch(&call, "measure", j, &e), &e);
	assert_int_equal(call.measure->box->choice->u.number, 4);
	test_measure_return(&call, &leaf);
	assert_string_equal(call.out.text, "{\"name\": \"big\"}");
	call_destroy(&call);
}

static void
a_server_without_memory_is_asked_for_nothing_more(void **state)
{
	struct test_call call;
	struct err e = ERR_INIT;

	(void)state;
	call_init(&call);
	call.no_memory = true;
	assert_ok(test_dispatch(&call, "get-word", NULL, &e), &e);
	assert_ok(test_dispatch(&call, "wait", NULL, &e), &e);
	test_wait_return(&call);
	assert_int_equal(call.begun, 2);
	assert_int_equal(call.done, 0);
	call_destroy(&call);
}

static void
commands_can_be_looked_up(void **state)
{
	const struct test_command_info *info = test_command_lookup("wait");

	(void)state;
	assert_true(info->is_async && info->is_query);
	info = test_command_lookup("draw");
	assert_true(info->is_async && !info->is_query);
	info = test_command_lookup("get-leaf");
	assert_true(!info->is_async && info->is_query);
	assert_null(test_command_lookup("wai"));
	assert_null(test_command_lookup("waitt"));
}

static void
enums_translate_both_ways(void **state)
{
	enum color c;

	(void)state;
	assert_string_equal(color_str(COLOR_LIGHT_BLUE), "light-blue");
	assert_true(color_find("default", &c));
	assert_int_equal(c, COLOR_DEFAULT);
	assert_false(color_find("Red", &c));
	assert_int_equal(COLOR_N, 4);
}

/* --- introspection ----------------------------------------------------- */

/* The entry called @name in the answer to query-qmp-schema. */
static const struct json *
entry(const struct json *schema, const char *name)
{
	size_t i;

	for (i = 0; i < json_count(schema); i++)
		if (!strcmp(json_get_string(
				    json_lookup(json_at(schema, i), "name"),
				    NULL),
			    name))
			return json_at(schema, i);
	return NULL;
}

static const char *
str(const struct json *j, const char *name)
{
	return json_get_string(json_lookup(j, name), NULL);
}

static void
the_schema_describes_the_commands(void **state)
{
	AUTO(json_free) struct json *schema = NULL;
	const struct json *c, *arg, *m;
	struct test_call call;
	struct err e = ERR_INIT;

	(void)state;
	call_init(&call);
	assert_ok(test_dispatch(&call, "query-qmp-schema", NULL, &e), &e);
	schema = parse(call.out.text);
	call_destroy(&call);
	c = entry(schema, "add-leaf");
	assert_string_equal(str(c, "meta-type"), "command");
	arg = entry(schema, str(c, "arg-type"));
	m = json_lookup(arg, "members");
	assert_int_equal(json_count(m), 2);
	assert_string_equal(str(json_at(m, 0), "type"), "str");
	assert_null(json_lookup(json_at(m, 0), "default"));
	assert_string_equal(str(json_at(m, 1), "name"), "count");
	assert_string_equal(str(json_at(m, 1), "type"), "int");
	assert_int_equal(json_type(json_lookup(json_at(m, 1), "default")),
			 JSON_NULL);
	assert_int_equal(json_count(json_lookup(
				 entry(schema, str(c, "ret-type")), "members")),
			 0);
	c = entry(schema, "draw");
	arg = entry(schema, str(c, "arg-type"));
	assert_string_equal(str(arg, "tag"), "kind");
	assert_int_equal(json_count(json_lookup(arg, "variants")), 3);
	assert_string_equal(str(entry(schema, "int"), "json-type"), "int");
	assert_string_equal(str(entry(schema, "QUIET"), "meta-type"), "event");
	assert_null(entry(schema, "Leaf"));
}

static void
all_commands_are_listed(void **state)
{
	AUTO(json_free) struct json *list = NULL;
	struct test_call call;
	struct err e = ERR_INIT;

	(void)state;
	call_init(&call);
	assert_ok(test_dispatch(&call, "query-commands", NULL, &e), &e);
	list = parse(call.out.text);
	call_destroy(&call);
	assert_int_equal(json_count(list), 11);
	assert_non_null(entry(list, "wait"));
}

/* --- events ------------------------------------------------------------ */

struct test_events {
	int count;
	const char *name;
	struct json *last; /* owned; NULL when memory was gone */
};

void
test_event_emit(struct test_events *sink, const char *name,
		const struct json_out *text)
{
	sink->count++;
	sink->name = name;
	json_free(sink->last);
	sink->last = text ? parse(text->text) : NULL;
}

static void
events_have_name_time_and_data(void **state)
{
	struct test_events sink = { 0 };
	const struct json *t;

	(void)state;
	test_event_quiet(&sink);
	assert_string_equal(sink.name, "QUIET");
	assert_null(json_lookup(sink.last, "data"));
	t = json_lookup(json_lookup(sink.last, "timestamp"), "seconds");
	assert_in_range(json_get_int(t), time(NULL) - 2, time(NULL));
	test_event_loud_noise(&sink, "bang", NULL, COLOR_RED, false, 0, NULL,
			      NULL);
	t = json_lookup(sink.last, "data");
	assert_int_equal(json_count(t), 2);
	assert_string_equal(str(t, "color"), "red");
	json_free(sink.last);
}

static void
optional_data_of_events_is_sent_when_given(void **state)
{
	struct test_events sink = { 0 };
	struct leaf leaf = { .name = (char *)(uintptr_t) "l" };
	struct str_list words = { 0 };
	const struct json *t;

	(void)state;
	assert_true(str_list_append(&words, "w"));
	test_event_loud_noise(&sink, "bang", "note", COLOR_RED, true, 0, &leaf,
			      &words);
	t = json_lookup(sink.last, "data");
	assert_int_equal(json_count(t), 6);
	assert_string_equal(str(t, "note"), "note");
	assert_int_equal(json_get_int(json_lookup(t, "count")), 0);
	assert_string_equal(str(json_lookup(t, "leaf"), "name"), "l");
	assert_int_equal(json_count(json_lookup(t, "words")), 1);
	str_list_clear(&words);
	json_free(sink.last);
}

static void
an_event_lost_to_memory_is_told(void **state)
{
	struct test_events sink = { 0 };

	(void)state;
	oom_fail_at(1);
	test_event_quiet(&sink);
	assert_true(oom_has_failed());
	assert_int_equal(sink.count, 1);
	assert_null(sink.last);
}

/* --- the client's side ------------------------------------------------- */

static void
a_client_can_ask_and_understand(void **state)
{
	struct test_get_leaf_args args = { .name = (char *)(uintptr_t) "x" };
	AUTO(json_free) struct json *request = NULL, *ret = NULL;
	AUTO(leaf_free) struct leaf *leaf = NULL;
	struct qmp_request r;
	struct err e = ERR_INIT;
	struct json_out o;

	(void)state;
	json_out_init(&o, 1000);
	json_out_object_begin(&o);
	test_put_get_leaf(&o, &args);
	json_out_object_end(&o);
	request = parse(o.text);
	json_out_destroy(&o);
	assert_ok(qmp_request_parse(request, &r, &e), &e);
	assert_string_equal(r.command, "get-leaf");
	assert_string_equal(str(r.args, "name"), "x");
	ret = parse("{\"name\":\"y\"}");
	assert_ok(test_got_get_leaf(ret, &leaf, &e), &e);
	assert_string_equal(leaf->name, "y");
	assert_fails(test_got_plain(ret, &e), &e, "plain returned something");
}

static void
a_client_knows_the_events(void **state)
{
	enum test_event event;

	(void)state;
	assert_true(test_event_find("LOUD_NOISE", &event));
	assert_int_equal(event, TEST_EVENT_LOUD_NOISE);
	assert_false(test_event_find("loud_noise", &event));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sync_commands_are_answered_at_once),
		cmocka_unit_test(commands_with_wrong_arguments_do_not_run),
		cmocka_unit_test(an_unknown_command_has_its_own_class),
		cmocka_unit_test(a_handlers_error_comes_back_with_its_class),
		cmocka_unit_test(
			async_commands_own_their_arguments_and_answer_later),
		cmocka_unit_test(an_async_result_is_encoded_when_it_comes),
		cmocka_unit_test(
			a_server_without_memory_is_asked_for_nothing_more),
		cmocka_unit_test(commands_can_be_looked_up),
		cmocka_unit_test(enums_translate_both_ways),
		cmocka_unit_test(the_schema_describes_the_commands),
		cmocka_unit_test(all_commands_are_listed),
		cmocka_unit_test(events_have_name_time_and_data),
		cmocka_unit_test(optional_data_of_events_is_sent_when_given),
		cmocka_unit_test(an_event_lost_to_memory_is_told),
		cmocka_unit_test(a_client_can_ask_and_understand),
		cmocka_unit_test(a_client_knows_the_events),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

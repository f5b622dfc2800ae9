/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of daemon/config and daemon/options: how command line, file and
 * defaults come together, and what is refused in which words.
 */
#include "daemon/config.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/options.h"
#include "schema/config-types.h"
#include "schema/registry-types.h"

#include "unit.h"

static struct config c;
static struct err e;
static char file[64];

/* Parse a command line of words without blanks. */
static enum config_result
parse(const char *line)
{
	static char words[4096];
	char *argv[64] = { (char *)"stillpointd" }, *save = NULL;
	int argc = 1;

	err_clear(&e);
	(void)snprintf(words, sizeof words, "%s", line);
	for (char *w = strtok_r(words, " ", &save); w;
	     w = strtok_r(NULL, " ", &save))
		argv[argc++] = w;
	return config_parse(&c, argc, argv, &e);
}

static void
assert_wrong(const char *line, const char *why)
{
	assert_int_equal(parse(line), CONFIG_WRONG);
	if (!strstr(e.msg, why))
		fail_msg("'%s' does not say '%s'", e.msg, why);
}

static void
write_config(const char *text, size_t len)
{
	AUTO(close) int fd = -1;

	strcpy(file, "/tmp/test-config-XXXXXX");
	fd = mkstemp(file);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, len), len);
}

/* With "%s" for the configuration file's name. */
static enum config_result
parse_with_file(const char *text, const char *line)
{
	char whole[4096];
	enum config_result r;

	write_config(text, strlen(text));
	(void)snprintf(whole, sizeof whole, "--config %s %s", file, line);
	r = parse(whole);
	(void)unlink(file);
	return r;
}

static void
assert_wrong_file(const char *text, const char *why)
{
	assert_int_equal(parse_with_file(text, "--state s"), CONFIG_WRONG);
	if (!strstr(e.msg, why))
		fail_msg("'%s' does not say '%s'", e.msg, why);
	assert_non_null(strstr(e.msg, file));
}

static void
defaults_are_as_documented(void **state)
{
	(void)state;
	assert_int_equal(parse("--state dir"), CONFIG_RUN);
	assert_string_equal(c.state, "dir");
	assert_string_equal(c.nbdkit, "nbdkit");
	assert_non_null(strstr(c.plugin, "/nbdkit-stillpoint-plugin.so"));
	assert_int_equal(c.threads, 0);
	assert_int_equal(c.target_timeout, 60);
	assert_int_equal(c.log_level, LOG_LEVEL_INFO);
	assert_false(c.keep_nbdkit);
	assert_null(c.nbdkit_args[0]);
	assert_int_equal(c.n_allow, 0);
	assert_int_equal(c.blockdev->n, 0);
	assert_int_equal(c.exports->n, 0);
	assert_true(config_complete(&c, "/s", &e));
	assert_int_equal(c.n_qmp, 1);
	assert_string_equal(c.qmp[0].text, "unix:/s/qmp.sock");
	assert_int_equal(c.n_nbd, 0); /* nbd-server-start will say */
	assert_string_equal(c.store, "/s/store");
	assert_int_equal(strncmp(c.shm, "/dev/shm/stillpoint-", 20), 0);
	config_destroy(&c);
}

static void
every_option_of_the_command_line_counts(void **state)
{
	(void)state;
	assert_int_equal(
		parse("--state dir --qmp unix:q --qmp tcp:127.0.0.1:1 "
		      "--nbd unix:n --allow a --allow b --store st --shm sh "
		      "--target-timeout 5 --nbdkit /x/nbdkit --plugin p.so "
		      "--threads 3 --keep-nbdkit --tls require "
		      "--tls-certificates tc --tls-psk tp --tls-verify-peer "
		      "--log-level debug"),
		CONFIG_RUN);
	assert_int_equal(c.n_qmp, 2);
	assert_string_equal(c.qmp[1].text, "tcp:127.0.0.1:1");
	assert_int_equal(c.n_nbd, 1);
	assert_int_equal(c.n_allow, 2);
	assert_string_equal(c.allow[1], "b");
	assert_string_equal(c.nbdkit, "/x/nbdkit");
	assert_string_equal(c.plugin, "./p.so");
	assert_int_equal(c.threads, 3);
	assert_int_equal(c.target_timeout, 5);
	assert_true(c.keep_nbdkit);
	assert_int_equal(c.log_level, LOG_LEVEL_DEBUG);
	assert_string_equal(c.nbdkit_args[0], "--tls=require");
	assert_string_equal(c.nbdkit_args[1], "--tls-certificates=tc");
	assert_string_equal(c.nbdkit_args[2], "--tls-psk=tp");
	assert_string_equal(c.nbdkit_args[3], "--tls-verify-peer");
	assert_null(c.nbdkit_args[4]);
	assert_true(config_complete(&c, "/s", &e));
	assert_string_equal(c.store, "st");
	assert_string_equal(c.shm, "sh");
	assert_int_equal(c.n_qmp, 2);
	config_destroy(&c);
}

static void
nodes_and_exports_are_decoded(void **state)
{
	(void)state;
	assert_int_equal(parse("--state s --blockdev "
			       "{\"driver\":\"file\",\"node-name\":\"d0\","
			       "\"filename\":\"/x\"} "
			       "--blockdev {\"driver\":\"null-co\","
			       "\"node-name\":\"d1\"} "
			       "--export {\"type\":\"nbd\",\"id\":\"e0\","
			       "\"node-name\":\"d0\",\"writable\":true}"),
			 CONFIG_RUN);
	assert_int_equal(c.blockdev->n, 2);
	assert_int_equal(c.blockdev->v[0]->driver, BLOCKDEV_DRIVER_FILE);
	assert_string_equal(c.blockdev->v[0]->u.file->filename, "/x");
	assert_string_equal(c.blockdev->v[1]->node_name, "d1");
	assert_int_equal(c.exports->n, 1);
	assert_string_equal(c.exports->v[0]->id, "e0");
	config_destroy(&c);
}

static void
wrong_usage_is_named(void **state)
{
	(void)state;
	assert_wrong("", "--state DIR");
	assert_wrong("--state", "option '--state' needs a value");
	assert_wrong("--no-such x", "'--no-such'");
	assert_wrong("--keep-nbdkit=x --state s", "'--keep-nbdkit=x'");
	assert_wrong("-x", "'-x'");
	assert_wrong("--state s extra", "unexpected argument 'extra'");
	assert_wrong("--state s --qmp 4444", "tcp:HOST:PORT");
	assert_wrong("--state s --nbd tcp:x:y", "0 to 65535");
	assert_wrong("--state s --threads x", "--threads: 'x'");
	assert_wrong("--state s --threads -1", "--threads: '-1'");
	assert_wrong("--state s --threads 9999999999", "too large");
	assert_wrong("--state s --tls maybe", "does not accept value 'maybe'");
	assert_wrong("--state s --log-level x", "does not accept value 'x'");
	assert_wrong("--state s --blockdev {", "--blockdev: JSON parse error");
	assert_wrong("--state s --blockdev {\"driver\":\"file\"}",
		     "Parameter 'blockdev[0].filename' is missing");
	assert_wrong("--state s --blockdev {\"driver\":\"nope\"}",
		     "does not accept value 'nope'");
	assert_wrong("--state s --export {\"type\":\"nbd\",\"id\":\"e\"}",
		     "Parameter 'export[0].node-name' is missing");
	assert_wrong("--state s --blockdev 1", "expected: object");
}

static void
numbers_have_limits_at_both_ends(void **state)
{
	static const char *const good[] = { "--threads 1", "--threads 1024",
					    "--target-timeout 1",
					    "--target-timeout 86400" };
	static const char *const bad[] = { "--threads 0", "--threads 1025",
					   "--target-timeout 0",
					   "--target-timeout 86401" };
	char line[100];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		(void)snprintf(line, sizeof line, "--state s %s", good[i]);
		assert_int_equal(parse(line), CONFIG_RUN);
		config_destroy(&c);
		(void)snprintf(line, sizeof line, "--state s %s", bad[i]);
		assert_wrong(line, "must be from 1 to");
	}
}

static void
a_file_says_the_same_with_the_same_names(void **state)
{
	(void)state;
	assert_int_equal(
		parse_with_file("{ \"state\": \"dir\", \"qmp\": [\"unix:q\"],"
				"\"allow\": [\"a\"], \"threads\": 4,"
				"\"keep-nbdkit\": true, \"tls\": \"on\","
				"\"blockdev\": [{\"driver\": \"null-co\","
				"\"node-name\": \"d\"}]}\n",
				""),
		CONFIG_RUN);
	assert_string_equal(c.state, "dir");
	assert_string_equal(c.qmp[0].path, "q");
	assert_string_equal(c.allow[0], "a");
	assert_int_equal(c.threads, 4);
	assert_true(c.keep_nbdkit);
	assert_string_equal(c.nbdkit_args[0], "--tls=on");
	assert_int_equal(c.blockdev->n, 1);
	config_destroy(&c);
}

static void
the_command_line_replaces_values_and_extends_lists(void **state)
{
	(void)state;
	assert_int_equal(parse_with_file("{\"state\": \"dir\", \"threads\": 4,"
					 "\"allow\": [\"a\", \"b\"],"
					 "\"nbd\": [\"unix:n\"]}",
					 "--threads 5 --allow c --state other"),
			 CONFIG_RUN);
	assert_string_equal(c.state, "other");
	assert_int_equal(c.threads, 5);
	assert_int_equal(c.n_allow, 3);
	assert_string_equal(c.allow[0], "a");
	assert_string_equal(c.allow[2], "c");
	assert_int_equal(c.n_nbd, 1);
	config_destroy(&c);
}

static void
wrong_files_are_named_with_the_reason(void **state)
{
	(void)state;
	assert_wrong_file("", "");
	assert_wrong_file("{", "JSON parse error");
	assert_wrong_file("[]", "expected: object");
	assert_wrong_file("{} {}", "JSON parse error");
	assert_wrong_file("{\"no-such\": 1}", "'no-such' is unexpected");
	assert_wrong_file("{\"config\": \"x\"}", "'config' is unexpected");
	assert_wrong_file("{\"help\": true}", "'help' is unexpected");
	assert_wrong_file("{\"allow\": \"x\"}", "expected: array");
	assert_wrong_file("{\"export\": {}}", "expected: array");
	assert_wrong_file("{\"export\": [{}]}", "'export[0].type' is missing");
	assert_wrong_file("{\"threads\": \"4\"}", "'threads'");
	assert_wrong_file("{\"state\": 1}", "expected: string");
	assert_wrong("--config /nonexistent/x --state s",
		     "cannot open '/nonexistent/x': No such file");
	assert_wrong("--config /tmp --state s", "cannot read '/tmp'");
}

static void
a_file_may_have_one_mebibyte_and_no_more(void **state)
{
	size_t len = CONFIG_FILE_MAX;
	AUTO(free) char *text = xzalloc(len + 1);
	char line[100];

	(void)state;
	memset(text, ' ', len + 1);
	memcpy(text, "{}", 2);
	write_config(text, len);
	(void)snprintf(line, sizeof line, "--config %s --state s", file);
	assert_int_equal(parse(line), CONFIG_RUN);
	config_destroy(&c);
	(void)unlink(file);
	write_config(text, len + 1);
	(void)snprintf(line, sizeof line, "--config %s --state s", file);
	assert_wrong(line, "more than 1048576 bytes");
	(void)unlink(file);
}

/* The table and the schema are two lists of the same names: this holds them
 * together from one side, the decoder (unexpected member) from the other.
 */
static void
every_option_of_the_table_is_known_to_the_schema(void **state)
{
	(void)state;
	for (size_t i = 0; i < options_count; i++) {
		const struct option_desc *o = &options[i];
		char line[200];

		if (o->kind == OPTION_HELP || o->kind == OPTION_VERSION ||
		    o->kind == OPTION_CONFIG)
			continue;
		(void)snprintf(line, sizeof line, "--state s --%s %s", o->name,
			       o->arg ? "1" : "");
		if (parse(line) == CONFIG_RUN)
			config_destroy(&c);
		else
			assert_null(strstr(e.msg, "is unexpected"));
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults_are_as_documented),
		cmocka_unit_test(every_option_of_the_command_line_counts),
		cmocka_unit_test(nodes_and_exports_are_decoded),
		cmocka_unit_test(wrong_usage_is_named),
		cmocka_unit_test(numbers_have_limits_at_both_ends),
		cmocka_unit_test(a_file_says_the_same_with_the_same_names),
		cmocka_unit_test(
			the_command_line_replaces_values_and_extends_lists),
		cmocka_unit_test(wrong_files_are_named_with_the_reason),
		cmocka_unit_test(a_file_may_have_one_mebibyte_and_no_more),
		cmocka_unit_test(
			every_option_of_the_table_is_known_to_the_schema),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

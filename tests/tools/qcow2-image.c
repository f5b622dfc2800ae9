/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2-image: makes and checks qcow2 images with the product's code, so that
 * scripts can compare with qemu-img.
 *
 *   qcow2-image create FILE [OPTION=VALUE...]   options as qemu-img create -o
 *   qcow2-image check FILE [fix=leaks|errors|all] [memory=BYTES] [verbose=on]
 *   qcow2-image amend FILE OPTION=VALUE...      options as qemu-img amend -o
 *
 * check prints one JSON object with the names of qemu-img check.  The exit
 * status is 0, or 1 and a line on standard error.  STILLPOINT_KILL_AT works.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/park.h"
#include "block/qcow2/amend.h"
#include "block/qcow2/check.h"
#include "block/qcow2/create.h"
#include "image-tool.h"

/* --- options ------------------------------------------------------------------ */

static const char *
value_of(char **args, const char *key)
{
	size_t n = strlen(key);

	for (; *args; args++)
		if (!strncmp(*args, key, n) && (*args)[n] == '=')
			return *args + n + 1;
	return NULL;
}

static uint64_t
number_of(char **args, const char *key, uint64_t otherwise)
{
	const char *v = value_of(args, key);
	char *end;
	uint64_t n;

	if (!v)
		return otherwise;
	n = strtoull(v, &end, 0);
	switch (*end) {
	case 'k':
	case 'K': n *= KiB; break;
	case 'm':
	case 'M': n *= MiB; break;
	case 'g':
	case 'G': n *= GiB; break;
	case 't':
	case 'T': n *= TiB; break;
	case '\0': break;
	default: die("%s: not a number: %s", key, v);
	}
	return n;
}

/* The index of the value in @words, or @otherwise. */
static int
word_of(char **args, const char *key, const char *const *words, int otherwise)
{
	const char *v = value_of(args, key);

	for (int i = 0; v && words[i]; i++)
		if (!strcmp(v, words[i]))
			return i;
	if (v)
		die("%s: unknown value %s", key, v);
	return otherwise;
}

static bool
switch_of(char **args, const char *key)
{
	static const char *const words[] = { "off", "on", NULL };

	return word_of(args, key, words, 0);
}

/* --- commands ------------------------------------------------------------------ */

static void
create(const char *name, char **args)
{
	static const char *const prealloc[] = { "off", "metadata", "falloc",
						"full", NULL };
	static const char *const compression[] = { "zlib", "zstd", NULL };
	static const char *const compat[] = { "0.10", "1.1", NULL };
	struct qcow2_create_options o = {
		.size = number_of(args, "size", 0),
		.version = 2 + (unsigned)word_of(args, "compat", compat, 1),
		.cluster_size = number_of(args, "cluster_size", 0),
		.refcount_bits = (unsigned)number_of(args, "refcount_bits", 0),
		.lazy_refcounts = switch_of(args, "lazy_refcounts"),
		.extended_l2 = switch_of(args, "extended_l2"),
		.data_file_raw = switch_of(args, "data_file_raw"),
		.compression = (enum qcow2_compression)word_of(
			args, "compression_type", compression, 0),
		.preallocation = (enum qcow2_preallocation)word_of(
			args, "preallocation", prealloc, 0),
		.backing_file = value_of(args, "backing_file"),
		.backing_format = value_of(args, "backing_fmt"),
		.data_file = value_of(args, "data_file"),
	};
	struct block *file, *data = NULL;
	struct err e = ERR_INIT;

	if (!qcow2_create_check(&o, &e))
		die("%s", e.msg);
	file = tool_open_file(name, O_RDWR | O_CREAT, true);
	if (o.data_file)
		data = tool_open_file(o.data_file, O_RDWR | O_CREAT, true);
	if (!qcow2_create(file, data, &o, &e))
		die("%s", e.msg);
	block_free(file);
	if (data)
		block_free(data);
}

static void
report(void *opaque, const char *text)
{
	(void)opaque;
	(void)fprintf(stderr, "%s\n", text);
}

static void
check(const char *name, char **args)
{
	static const char *const fixes[] = { "none", "leaks", "errors", "all",
					     NULL };
	struct qcow2_check_options o = {
		.fix = (unsigned)word_of(args, "fix", fixes, 0),
		.memory = (size_t)number_of(args, "memory", 0),
		.report = switch_of(args, "verbose") ? report : NULL,
	};
	struct qcow2_check_result res;
	struct err e = ERR_INIT;
	struct block *file =
		tool_open_file(name, o.fix ? O_RDWR : O_RDONLY, true);

	if (!qcow2_check(file, &o, &res, &e))
		die("%s", e.msg);
	block_free(file);
	(void)printf("{\"corruptions\": %" PRIu64 ", \"leaks\": %" PRIu64
		     ", \"check-errors\": %" PRIu64
		     ", \"corruptions-fixed\": %" PRIu64
		     ", \"leaks-fixed\": %" PRIu64
		     ", \"image-end-offset\": %" PRIu64
		     ", \"total-clusters\": %" PRIu64
		     ", \"allocated-clusters\": %" PRIu64
		     ", \"fragmented-clusters\": %" PRIu64
		     ", \"compressed-clusters\": %" PRIu64 "}\n",
		     res.corruptions, res.leaks, res.check_errors,
		     res.corruptions_fixed, res.leaks_fixed, res.image_end,
		     res.total_clusters, res.allocated_clusters,
		     res.fragmented_clusters, res.compressed_clusters);
}

static void
amend(const char *name, char **args)
{
	struct qcow2_amend_options o = { 0 };
	struct err e = ERR_INIT;
	struct block *file;

	for (; *args; args++) {
		char *equals = strchr(*args, '=');

		if (!equals)
			die("'%s' is not OPTION=VALUE", *args);
		*equals = '\0';
		if (!qcow2_amend_option(&o, *args, equals + 1, &e))
			die("%s", e.msg);
	}
	file = tool_open_file(name, O_RDWR, true);
	if (!qcow2_amend(file, &o, &e))
		die("%s", e.msg);
	block_free(file);
}

static const struct command {
	const char *name;
	void (*run)(const char *file, char **args);
} commands[] = {
	{ "create", create },
	{ "check", check },
	{ "amend", amend },
};

int
main(int argc, char **argv)
{
	park_from_environment();
	for (size_t i = 0; argc > 2 && i < ARRAY_SIZE(commands); i++)
		if (!strcmp(argv[1], commands[i].name)) {
			commands[i].run(argv[2], argv + 3);
			return 0;
		}
	die("usage: qcow2-image create|check|amend FILE [OPTION=VALUE...]");
}

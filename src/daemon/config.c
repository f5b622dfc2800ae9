/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/config.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/options.h"
#include "daemon/statedir.h"
#include "schema/config-types.h"
#include "schema/qmp-types.h"
#include "schema/registry-types.h"
#include "json/json.h"

#define OPTIONS_MAX 32

/* What the command line says: for each row of the table, a value as it would
 * stand in the file, or NULL.
 */
struct given {
	struct json *v[OPTIONS_MAX]; /* owned */
	char *file; /* owned: --config */
};

/* A whole configuration. */
static bool
decode_options(const struct json *j, struct config_options **out,
	       struct block_export_options_list *exports, struct err *e)
{
	if (!config_options_decode(j, NULL, out, e))
		return false;
	return !(*out)->export || block_export_options_list_decode(
					  (*out)->export, "export", exports, e);
}

static bool
no_memory(struct err *e)
{
	return err_set(e, ERR_GENERIC, 0, "out of memory");
}

static void
given_destroy(struct given *g)
{
	for (size_t i = 0; i < OPTIONS_MAX; i++)
		json_free(g->v[i]);
	free(g->file);
}

/* Read all of @path, at most CONFIG_FILE_MAX bytes.  Owned by the caller. */
static char *
read_file(const char *path, size_t *len, struct err *e)
{
	AUTO(close) int fd = open(path, O_RDONLY | O_CLOEXEC);
	AUTO(free) char *buf = xzalloc(CONFIG_FILE_MAX + 1);
	ssize_t n = 0;

	*len = 0;
	if (fd < 0) {
		(void)err_set(e, ERR_GENERIC, errno, "cannot open '%s'", path);
		return NULL;
	}
	do {
		n = read(fd, buf + *len, CONFIG_FILE_MAX + 1 - *len);
		if (n > 0)
			*len += (size_t)n;
	} while (n > 0 || (n < 0 && errno == EINTR));
	if (n < 0) {
		(void)err_set(e, ERR_GENERIC, errno, "cannot read '%s'", path);
		return NULL;
	}
	if (*len > CONFIG_FILE_MAX) {
		(void)err_set(e, ERR_GENERIC, 0, "'%s' has more than %d bytes",
			      path, CONFIG_FILE_MAX);
		return NULL;
	}
	return steal(&buf);
}

/* The object in the configuration file; it must be right by itself. */
static bool
load_file(const char *path, struct json **out, struct err *e)
{
	AUTO(json_free) struct json *j = NULL;
	AUTO(config_options_free) struct config_options *check = NULL;
	struct block_export_options_list exports = { 0 };
	size_t len;
	AUTO(free) char *text = read_file(path, &len, e);

	if (!text)
		return false;
	if (!json_parse(text, len, &j, e) ||
	    !decode_options(j, &check, &exports, e))
		return err_prefix(e, "'%s': ", path);
	block_export_options_list_clear(&exports);
	*out = steal(&j);
	return true;
}

static bool
append_given(struct json **list, struct json *item, struct err *e)
{
	if (!*list)
		*list = json_new_array();
	if (!*list) {
		json_free(item);
		return no_memory(e);
	}
	return json_append(*list, item) || no_memory(e);
}

static bool
replace_given(struct json **slot, struct json *value, struct err *e)
{
	json_free(*slot);
	*slot = value;
	return value || no_memory(e);
}

static bool
give_number(struct json **slot, const char *name, const char *text,
	    struct err *e)
{
	size_t digits = strspn(text, "0123456789");

	if (digits == 0 || text[digits] || digits > 9)
		return err_set(e, ERR_GENERIC, 0,
			       "--%s: '%s' is not a number (or too large)",
			       name, text);
	return replace_given(slot, json_new_int(atol(text)), e);
}

static bool
give_json(struct json **slot, const char *name, const char *text, struct err *e)
{
	struct json *j = NULL;

	if (!json_parse(text, strlen(text), &j, e))
		return err_prefix(e, "--%s: ", name);
	return append_given(slot, j, e);
}

static bool
give(struct given *g, size_t i, const char *arg, struct err *e)
{
	const struct option_desc *o = &options[i];

	switch (o->kind) {
	case OPTION_TEXT:
		return replace_given(&g->v[i], json_new_string(arg), e);
	case OPTION_LIST:
		return append_given(&g->v[i], json_new_string(arg), e);
	case OPTION_JSON: return give_json(&g->v[i], o->name, arg, e);
	case OPTION_NUMBER: return give_number(&g->v[i], o->name, arg, e);
	case OPTION_FLAG:
		return replace_given(&g->v[i], json_new_bool(true), e);
	case OPTION_CONFIG:
		free(g->file);
		g->file = xstrdup(arg);
		return true;
	case OPTION_HELP:
	case OPTION_VERSION: break;
	}
	return true;
}

static enum config_result
wrong_usage(int c, char **argv, struct err *e)
{
	const char *word = argv[optind - 1];

	if (c == ':')
		(void)err_set(e, ERR_GENERIC, 0, "option '%s' needs a value",
			      word);
	else if (strncmp(word, "--", 2) == 0)
		(void)err_set(e, ERR_GENERIC, 0,
			      "unknown, ambiguous or wrongly used option '%s'",
			      word);
	else
		(void)err_set(e, ERR_GENERIC, 0, "unknown option '-%c'",
			      optopt);
	return CONFIG_WRONG;
}

static void
fill_long_options(struct option *o)
{
	for (size_t i = 0; i < options_count; i++)
		o[i] = (struct option){
			.name = options[i].name,
			.has_arg = options[i].arg ? required_argument
						  : no_argument,
			.val = (int)i + 256,
		};
}

static enum config_result
print_and_leave(enum option_kind kind)
{
	if (kind == OPTION_HELP)
		options_print_help(stdout);
	else
		(void)printf("stillpointd %s\n", STILLPOINT_VERSION);
	return fflush(stdout) == 0 ? CONFIG_DONE : CONFIG_WRONG;
}

static enum config_result
parse_command_line(struct given *g, int argc, char **argv, struct err *e)
{
	struct option table[OPTIONS_MAX + 1] = { 0 };
	int c;

	assert(options_count <= OPTIONS_MAX);
	fill_long_options(table);
	opterr = 0;
	optind = 0; /* start anew, also in tests that parse twice */
	while ((c = getopt_long(argc, argv, ":", table, NULL)) != -1) {
		if (c == ':' || c == '?')
			return wrong_usage(c, argv, e);
		if (options[c - 256].kind == OPTION_HELP ||
		    options[c - 256].kind == OPTION_VERSION)
			return print_and_leave(options[c - 256].kind);
		if (!give(g, (size_t)c - 256, optarg, e))
			return CONFIG_WRONG;
	}
	if (optind < argc) {
		(void)err_set(e, ERR_GENERIC, 0, "unexpected argument '%s'",
			      argv[optind]);
		return CONFIG_WRONG;
	}
	return CONFIG_RUN;
}

/* The file's list followed by the command line's. */
static struct json *
joined(const struct json *file, const struct json *line)
{
	AUTO(json_free) struct json *list = json_clone(file);

	if (!list)
		return NULL;
	for (size_t i = 0; i < json_count(line); i++)
		if (!json_append(list, json_clone(json_at(line, i))))
			return NULL;
	return steal(&list);
}

/* The file's object with the command line over it. */
static struct json *
merge(const struct json *file, const struct given *g)
{
	AUTO(json_free) struct json *all = json_new_object();

	for (size_t i = 0; all && i < options_count; i++) {
		const char *name = options[i].name;
		const struct json *a = file ? json_lookup(file, name) : NULL;
		const struct json *b = g->v[i];
		bool list = options[i].kind == OPTION_LIST ||
			    options[i].kind == OPTION_JSON;

		if (!a && !b)
			continue;
		if (!json_put(all, name,
			      a && b && list ? joined(a, b)
					     : json_clone(b ? b : a)))
			return NULL;
	}
	return steal(&all);
}

static bool
parse_addresses(const char *option, const struct str_list *list,
		struct address **out, size_t *n, struct err *e)
{
	*out = xcalloc(list->n, sizeof **out);
	for (*n = 0; *n < list->n; (*n)++)
		if (!address_parse(list->v[*n], &(*out)[*n], e))
			return err_prefix(e, "--%s: ", option);
	return true;
}

static bool
check_range(const char *name, uint64_t v, uint64_t max, struct err *e)
{
	if (v >= 1 && v <= max)
		return true;
	return err_set(e, ERR_GENERIC, 0, "%s must be from 1 to %" PRIu64, name,
		       max);
}

static enum log_level
log_level_of(const struct config_options *o)
{
	static const enum log_level level[] = {
		[CONFIG_LOG_LEVEL_ERROR] = LOG_LEVEL_ERROR,
		[CONFIG_LOG_LEVEL_WARNING] = LOG_LEVEL_WARN,
		[CONFIG_LOG_LEVEL_INFO] = LOG_LEVEL_INFO,
		[CONFIG_LOG_LEVEL_DEBUG] = LOG_LEVEL_DEBUG,
	};

	return o->has_log_level ? level[o->log_level] : LOG_LEVEL_INFO;
}

static char **
make_nbdkit_args(const struct config_options *o)
{
	char **v = xcalloc(5, sizeof v[0]);
	size_t n = 0;

	if (o->has_tls)
		v[n++] = xasprintf("--tls=%s", config_tls_str(o->tls));
	if (o->tls_certificates)
		v[n++] =
			xasprintf("--tls-certificates=%s", o->tls_certificates);
	if (o->tls_psk)
		v[n++] = xasprintf("--tls-psk=%s", o->tls_psk);
	if (o->has_tls_verify_peer && o->tls_verify_peer)
		v[n++] = xstrdup("--tls-verify-peer");
	return v;
}

/* The plugin of the build tree that this program lies in, or the installed
 * one.  Owned by the caller.
 */
static char *
find_plugin(void)
{
	char exe[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);

	if (n > 0) {
		AUTO(free) char *near = NULL;

		exe[n] = '\0';
		near = xasprintf("%s/../../plugins/stillpoint/"
				 "nbdkit-stillpoint-plugin.so",
				 dirname(exe));
		if (access(near, R_OK) == 0)
			return steal(&near);
	}
	return xstrdup(STILLPOINT_PLUGIN_DIR "/nbdkit-stillpoint-plugin.so");
}

/* nbdkit takes a name without a slash for one of its own plugins. */
static char *
plugin_path(const char *given)
{
	if (!given)
		return find_plugin();
	return strchr(given, '/') ? xstrdup(given) : xasprintf("./%s", given);
}

static bool
check(struct config *c, struct err *e)
{
	const struct config_options *o = c->given;

	if (!o->state || !o->state[0])
		return err_set(e, ERR_GENERIC, 0,
			       "a state directory is needed: --state DIR");
	if (!parse_addresses("qmp", &o->qmp, &c->qmp, &c->n_qmp, e) ||
	    !parse_addresses("nbd", &o->nbd, &c->nbd, &c->n_nbd, e))
		return false;
	if (o->has_threads &&
	    !check_range("threads", o->threads, CONFIG_THREADS_MAX, e))
		return false;
	return !o->has_target_timeout ||
	       check_range("target-timeout", o->target_timeout,
			   CONFIG_TARGET_TIMEOUT_MAX, e);
}

static void
fill(struct config *c)
{
	const struct config_options *o = c->given;

	c->state = o->state;
	c->store = o->store ? xstrdup(o->store) : NULL;
	c->shm = o->shm ? xstrdup(o->shm) : NULL;
	c->nbdkit = xstrdup(o->nbdkit ? o->nbdkit : "nbdkit");
	c->plugin = plugin_path(o->plugin);
	c->nbdkit_args = make_nbdkit_args(o);
	c->threads = o->has_threads ? o->threads : 0;
	c->target_timeout = o->has_target_timeout ? o->target_timeout
						  : CONFIG_TARGET_TIMEOUT;
	c->keep_nbdkit = o->has_keep_nbdkit && o->keep_nbdkit;
	c->allow_fault_injection =
		o->has_allow_fault_injection && o->allow_fault_injection;
	c->log_level = log_level_of(o);
	c->allow = o->allow.v;
	c->n_allow = o->allow.n;
	c->blockdev = &o->blockdev;
}

static bool
decode(struct config *c, const struct given *g, struct err *e)
{
	AUTO(json_free) struct json *file = NULL;
	AUTO(json_free) struct json *all = NULL;

	if (g->file && !load_file(g->file, &file, e))
		return false;
	all = merge(file, g);
	if (!all)
		return no_memory(e);
	c->exports = xzalloc(sizeof *c->exports);
	if (!decode_options(all, &c->given, c->exports, e))
		return false;
	if (!check(c, e))
		return false;
	fill(c);
	return true;
}

enum config_result
config_parse(struct config *c, int argc, char **argv, struct err *e)
{
	struct given g = { 0 };
	enum config_result r;

	memset(c, 0, sizeof *c);
	r = parse_command_line(&g, argc, argv, e);
	if (r == CONFIG_RUN && !decode(c, &g, e)) {
		config_destroy(c);
		r = CONFIG_WRONG;
	}
	given_destroy(&g);
	return r;
}

static bool
default_address(struct address **v, size_t *n, const char *dir,
		const char *file, struct err *e)
{
	AUTO(free) char *text = xasprintf("unix:%s/%s", dir, file);

	if (*n)
		return true;
	free(*v);
	*v = xcalloc(1, sizeof **v);
	if (!address_parse(text, *v, e))
		return false;
	*n = 1;
	return true;
}

bool
config_complete(struct config *c, const char *state, struct err *e)
{
	if (!c->store)
		c->store = xasprintf("%s/store", state);
	if (!c->shm) {
		c->shm = shm_dir_default(state);
		c->shm_is_ours = true;
	}
	return default_address(&c->qmp, &c->n_qmp, state, "qmp.sock", e);
}

static void
free_addresses(struct address *v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		address_destroy(&v[i]);
	free(v);
}

void
config_destroy(struct config *c)
{
	free_addresses(c->qmp, c->n_qmp);
	free_addresses(c->nbd, c->n_nbd);
	for (size_t i = 0; c->nbdkit_args && c->nbdkit_args[i]; i++)
		free(c->nbdkit_args[i]);
	free((void *)c->nbdkit_args);
	if (c->exports)
		block_export_options_list_clear(c->exports);
	free(c->exports);
	free(c->store);
	free(c->shm);
	free(c->nbdkit);
	free(c->plugin);
	config_options_free(c->given);
	memset(c, 0, sizeof *c);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2-bitmaps: uses the bitmaps that are stored in a qcow2 image as the
 * daemon does, for scripts that compare with QEMU.
 *
 *   qcow2-bitmaps [-r] FILE COMMAND...
 *
 * The image is opened (-r: read only), its bitmaps are loaded, and then each
 * argument is a command:
 *
 *   list                     one JSON object
 *   take                     mark them in use; needed before writes
 *   add NAME GRANULARITY on|off     remove NAME     keep NAME
 *   write OFF LEN BYTE       and note it in the bitmaps that are enabled
 *   dirty NAME OFF LEN       note it in one
 *   store                    as when the image is released
 *
 * STILLPOINT_KILL_AT works.  Exit status: 0, or 1 and a line on standard
 * error.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/park.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/qcow2.h"
#include "image-tool.h"

#define BITMAPS_MAX 70000

struct set {
	char *name;
	uint64_t granularity;
	bool enabled, inconsistent, keep;
	uint64_t granules;
	uint8_t *dirty; /* one byte for each granule */
};

static struct block *image;
static struct qcow2_bitmaps *list;
static struct set sets[BITMAPS_MAX];
static size_t n_sets;

/* --- sets ----------------------------------------------------------------------- */

static struct set *
new_set(const char *name, uint64_t granularity)
{
	struct set *s = &sets[n_sets++];

	if (n_sets == BITMAPS_MAX)
		die("too many bitmaps");
	s->name = strdup(name);
	s->granularity = granularity;
	s->granules = div_up(image->size, granularity);
	s->dirty = calloc(s->granules + 1, 1);
	return s;
}

static struct set *
set_of(const char *name)
{
	for (size_t i = 0; i < n_sets; i++)
		if (!strcmp(sets[i].name, name))
			return &sets[i];
	die("no bitmap '%s'", name);
}

static int
add_range(void *opaque, uint64_t off, uint64_t len)
{
	struct set *s = opaque;

	if (!len || !range_fits(off, len, image->size))
		die("a range is outside of the disk");
	memset(s->dirty + off / s->granularity, 1,
	       div_up(off + len, s->granularity) - off / s->granularity);
	return 0;
}

static bool
next_range(void *opaque, uint64_t from, uint64_t *start, uint64_t *end)
{
	const struct set *s = opaque;
	uint64_t i = from / s->granularity;

	while (i < s->granules && !s->dirty[i])
		i++;
	if (from >= image->size || i == s->granules)
		return false;
	*start = i * s->granularity;
	while (i < s->granules && s->dirty[i])
		i++;
	*end = min_u64(i * s->granularity, image->size);
	return true;
}

static void
load(void)
{
	struct qcow2_bitmap_info info;
	struct err e = ERR_INIT;

	if (!qcow2_bitmaps_load(image, &list, &e))
		die("%s", e.msg);
	for (size_t i = 0; i < qcow2_bitmaps_count(list); i++) {
		struct set *s;

		qcow2_bitmaps_get(list, i, &info);
		s = new_set(info.name, info.granularity);
		s->enabled = info.enabled;
		s->inconsistent = s->keep = info.inconsistent;
		if (!qcow2_bitmap_ranges(image, list, i, add_range, s, &e))
			die("%s", e.msg);
	}
}

/* --- commands ------------------------------------------------------------------ */

static void
do_list(char **w)
{
	(void)w;
	printf("[");
	for (size_t i = 0; i < n_sets; i++) {
		const struct set *s = &sets[i];
		uint64_t from = 0, start, end;

		printf("%s{\"name\": \"%s\", \"granularity\": %" PRIu64
		       ", \"enabled\": %s, \"inconsistent\": %s, \"dirty\": [",
		       i ? ", " : "", s->name, s->granularity,
		       s->enabled ? "true" : "false",
		       s->inconsistent ? "true" : "false");
		for (; next_range(&sets[i], from, &start, &end); from = end)
			printf("%s[%" PRIu64 ", %" PRIu64 "]", from ? ", " : "",
			       start, end - start);
		printf("]}");
	}
	printf("]\n");
}

static void
do_take(char **w)
{
	struct err e = ERR_INIT;

	(void)w;
	if (!qcow2_bitmaps_take(image, list, &e))
		die("%s", e.msg);
}

static void
do_add(char **w)
{
	new_set(w[1], strtoull(w[2], NULL, 0))->enabled = !strcmp(w[3], "on");
}

static void
do_remove(char **w)
{
	struct set *s = set_of(w[1]);

	free(s->name);
	free(s->dirty);
	*s = sets[--n_sets];
}

static void
do_keep(char **w)
{
	set_of(w[1])->keep = true;
}

static void
do_write(char **w)
{
	uint64_t off = strtoull(w[1], NULL, 0), len = strtoull(w[2], NULL, 0);
	void *buf = malloc(len);
	int r;

	memset(buf, atoi(w[3]), len);
	r = block_pwrite(image, buf, len, off);
	if (r)
		die("write: %s", strerror(r));
	free(buf);
	for (size_t i = 0; i < n_sets; i++)
		if (sets[i].enabled && !sets[i].inconsistent)
			(void)add_range(&sets[i], off, len);
}

static void
do_dirty(char **w)
{
	(void)add_range(set_of(w[1]), strtoull(w[2], NULL, 0),
			strtoull(w[3], NULL, 0));
}

static void
do_store(char **w)
{
	struct qcow2_bitmap_source *s = calloc(n_sets + 1, sizeof *s);
	struct err e = ERR_INIT;

	(void)w;
	for (size_t i = 0; i < n_sets; i++)
		s[i] = (struct qcow2_bitmap_source){
			.name = sets[i].name,
			.keep = sets[i].keep,
			.granularity = sets[i].granularity,
			.enabled = sets[i].enabled,
			.next = next_range,
			.opaque = &sets[i],
		};
	if (!qcow2_bitmaps_store(image, list, s, n_sets, &e))
		die("%s", e.msg);
	free(s);
}

static const struct {
	const char *name;
	int words;
	void (*run)(char **words);
} commands[] = {
	{ "list", 1, do_list },   { "take", 1, do_take },
	{ "add", 4, do_add },     { "remove", 2, do_remove },
	{ "keep", 2, do_keep },   { "write", 4, do_write },
	{ "dirty", 4, do_dirty }, { "store", 1, do_store },
};

static void
run(char *line)
{
	char *w[8] = { 0 }, *save = NULL, *p;
	int n = 0;

	for (p = strtok_r(line, " ", &save); p && n < 7;
	     p = strtok_r(NULL, " ", &save))
		w[n++] = p;
	for (size_t i = 0; n && i < ARRAY_SIZE(commands); i++)
		if (!strcmp(w[0], commands[i].name) && n == commands[i].words) {
			commands[i].run(w);
			return;
		}
	die("what is '%s'?", n ? w[0] : "");
}

int
main(int argc, char **argv)
{
	struct qcow2_options o = { .keep_bitmaps = true };
	struct qcow2_info *info = calloc(1, sizeof *info);
	struct err e = ERR_INIT;

	o.read_only = argc > 1 && !strcmp(argv[1], "-r");
	argv += 1 + o.read_only;
	if (!*argv)
		die("usage: qcow2-bitmaps [-r] FILE COMMAND...");
	park_from_environment();
	o.file = tool_open_file(*argv, o.read_only ? O_RDONLY : O_RDWR, true);
	if (!qcow2_probe(o.file, info, &e))
		die("%s", e.msg);
	if (info->needs_data_file)
		o.data = tool_open_file(info->header.data_file,
					o.read_only ? O_RDONLY : O_RDWR, true);
	free(info);
	if (!qcow2_open(&o, &image, &e))
		die("%s", e.msg);
	load();
	while (*++argv)
		run(*argv);
	qcow2_bitmaps_free(list);
	block_free(image);
	for (size_t i = 0; i < n_sets; i++) {
		free(sets[i].name);
		free(sets[i].dirty);
	}
	return 0;
}

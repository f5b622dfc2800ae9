/* SPDX-License-Identifier: BSD-3-Clause
 *
 * block-io: commands on an image that is opened with our own block drivers,
 * without a daemon, for scripts and randomised tests.
 *
 *   block-io [-r] [-l] [-u] [-C BYTES] FORMAT:PATH [COMMAND ...]
 *
 * FORMAT is qcow2 or raw.  A qcow2 image's backing and data files are opened
 * as its header says, names without a leading slash beside the image; a
 * backing file without a format counts as raw.  -r: read only; -l: live (see
 * qcow2.h); -u: discards give space up; -C: the cache's size.
 *
 * Commands come from the arguments, or one by one from the lines of standard
 * input.  Each answers with one line: "ok", perhaps with a result, or
 * "error: REASON".  Sizes are in bytes, with k, M, G or T behind them; a
 * PATTERN is a byte, as a number.
 *
 *   read OFF LEN [PATTERN]      with a pattern: it must be that
 *   write OFF LEN PATTERN       compress OFF LEN PATTERN
 *   zero OFF LEN [unmap] [fast] discard OFF LEN          flush
 *   load OFF LEN FILE [AT]      write from a file, from byte AT of it
 *   dump FILE                   the whole disk into a file
 *   extents [OFF LEN]           lines "extent OFF LEN FLAGS DEPTH", then ok
 *   truncate SIZE               size        hold     release     refresh
 *   bench read|write random|seq OFF LEN SIZE THREADS REQUESTS
 *                               each thread makes REQUESTS of SIZE bytes
 *   snapshot NAME   unsnapshot NAME        internal ones
 *   die                         ends the process as SIGKILL does
 *
 * Exit status: 0, or 1 when a command failed.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bits.h"
#include "base/park.h"
#include "block/block.h"
#include "block/qcow2/check.h"
#include "block/qcow2/qcow2.h"
#include "image-tool.h"

#define PIECE    (4 * MiB) /* a long request is made in pieces of this */
#define WORDS    9
#define LAYERS   64
#define PATH_LEN 4096

static struct {
	bool read_only, live, unmap;
	uint64_t cache_size;
} options;

/* --- opening ------------------------------------------------------------------ */

static struct block *open_qcow2(const char *path, bool read_only, int depth);

static struct block *
open_file(const char *path, bool read_only)
{
	return tool_open_file(path, read_only ? O_RDONLY : O_RDWR,
			      options.unmap);
}

static struct block *
open_format(const char *format, const char *path, bool read_only, int depth)
{
	struct err e = ERR_INIT;
	struct block *b;

	if (depth > LAYERS)
		die("%s: the chain is too long", path);
	if (strcmp(format, "qcow2") == 0)
		return open_qcow2(path, read_only, depth);
	if (strcmp(format, "raw"))
		die("%s: unknown format '%s'", path, format);
	if (!block_raw_open(open_file(path, read_only), 0, false, 0, &b, &e))
		die("%s: %s", path, e.msg);
	return b;
}

/* @name as the image @path means it. */
static void
beside(const char *path, const char *name, char *to)
{
	const char *slash = strrchr(path, '/');
	int dir = name[0] == '/' || !slash ? 0 : (int)(slash - path) + 1;

	(void)snprintf(to, PATH_LEN, "%.*s%s", dir, path, name);
}

static struct block *
open_qcow2(const char *path, bool read_only, int depth)
{
	struct qcow2_options o = { .file = open_file(path, read_only),
				   .read_only = read_only,
				   .live = options.live,
				   .cache_size = options.cache_size };
	static struct qcow2_info info; /* large; used before we recurse */
	struct err e = ERR_INIT;
	char backing[PATH_LEN], data[PATH_LEN], format[64];
	bool has_backing;
	struct block *b;

	if (!qcow2_probe(o.file, &info, &e))
		die("%s: %s", path, e.msg);
	beside(path, info.header.backing, backing);
	beside(path, info.header.data_file, data);
	(void)snprintf(format, sizeof format, "%s",
		       info.header.has_backing_format
			       ? info.header.backing_format
			       : "raw");
	has_backing = info.header.has_backing;
	if (info.needs_data_file)
		o.data = open_file(data, read_only);
	if (has_backing)
		o.backing = open_format(format, backing, true, depth + 1);
	if (!read_only && !qcow2_repair_dirty(o.file, &e))
		die("%s: %s", path, e.msg);
	if (!qcow2_open(&o, &b, &e))
		die("%s: %s", path, e.msg);
	b->discard_unmap = options.unmap;
	return b;
}

static struct block *
open_image(const char *text)
{
	const char *colon = strchr(text, ':');
	char format[16];

	if (!colon || colon - text >= (int)sizeof format)
		die("'%s' is not FORMAT:PATH", text);
	(void)snprintf(format, sizeof format, "%.*s", (int)(colon - text),
		       text);
	return open_format(format, colon + 1, options.read_only, 0);
}

/* --- commands ------------------------------------------------------------------ */

struct call {
	struct block *b;
	char *word[WORDS]; /* NULL behind the last */
};

static uint64_t
size_of(const char *text)
{
	static const char units[] = "kMGT";
	char *end;
	uint64_t v = strtoull(text, &end, 0);
	const char *unit = *end ? strchr(units, *end) : NULL;

	if (end == text || (*end && (!unit || end[1])))
		die("'%s' is not a size", text);
	return unit ? v << 10 * (unit - units + 1) : v;
}

static bool
has_word(const struct call *c, const char *word)
{
	for (int i = 1; i < WORDS && c->word[i]; i++)
		if (strcmp(c->word[i], word) == 0)
			return true;
	return false;
}

typedef int piece_fn(const struct call *c, uint8_t *buf, size_t len,
		     uint64_t off);

/* Run @fn over the range of words 1 and 2 in pieces. */
static int
pieces(const struct call *c, piece_fn *fn)
{
	uint64_t off = size_of(c->word[1]), len = size_of(c->word[2]);
	uint8_t *buf;
	int r = 0;

	if (!range_fits(off, len, c->b->size))
		return EINVAL;
	buf = malloc((size_t)min_u64(len, PIECE) + 1);
	while (len && !r) {
		size_t n = (size_t)min_u64(len, PIECE);

		r = fn(c, buf, n, off);
		off += n;
		len -= n;
	}
	free(buf);
	return r;
}

static int
read_piece(const struct call *c, uint8_t *buf, size_t len, uint64_t off)
{
	int r = block_pread(c->b, buf, len, off);

	if (r || !c->word[3])
		return r;
	for (size_t i = 0; i < len; i++)
		if (buf[i] != (uint8_t)size_of(c->word[3])) {
			printf("byte %" PRIu64 " is %#x; ", off + i, buf[i]);
			return EILSEQ;
		}
	return 0;
}

static int
write_piece(const struct call *c, uint8_t *buf, size_t len, uint64_t off)
{
	memset(buf, (int)size_of(c->word[3]), len);
	return block_pwrite(c->b, buf, len, off);
}

static int
compress_piece(const struct call *c, uint8_t *buf, size_t len, uint64_t off)
{
	memset(buf, (int)size_of(c->word[3]), len);
	return block_compress(c->b, buf, len, off);
}

static int
load_piece(const struct call *c, uint8_t *buf, size_t len, uint64_t off)
{
	uint64_t at = off - size_of(c->word[1]) +
		      (c->word[4] ? size_of(c->word[4]) : 0);
	FILE *f = fopen(c->word[3], "rb");
	int r = 0;

	if (!f)
		return errno;
	if (fseeko(f, (off_t)at, SEEK_SET) || fread(buf, 1, len, f) != len)
		r = EIO;
	(void)fclose(f);
	return r ? r : block_pwrite(c->b, buf, len, off);
}

static int
do_read(const struct call *c)
{
	return pieces(c, read_piece);
}

static int
do_write(const struct call *c)
{
	return pieces(c, write_piece);
}

static int
do_compress(const struct call *c)
{
	return pieces(c, compress_piece);
}

static int
do_load(const struct call *c)
{
	return pieces(c, load_piece);
}

static int
do_zero(const struct call *c)
{
	unsigned flags = (has_word(c, "unmap") ? BLOCK_ZERO_MAY_UNMAP : 0) |
			 (has_word(c, "fast") ? BLOCK_ZERO_FAST : 0);

	return block_zero(c->b, size_of(c->word[1]), size_of(c->word[2]),
			  flags);
}

static int
do_discard(const struct call *c)
{
	return block_discard(c->b, size_of(c->word[1]), size_of(c->word[2]));
}

static int
do_flush(const struct call *c)
{
	return block_flush(c->b);
}

static int
do_truncate(const struct call *c)
{
	return block_truncate(c->b, size_of(c->word[1]));
}

static int
do_size(const struct call *c)
{
	printf("%" PRIu64 " ", c->b->size);
	return 0;
}

static int
do_hold(const struct call *c)
{
	block_hold(c->b);
	return 0;
}

static int
do_release(const struct call *c)
{
	block_release(c->b);
	return 0;
}

static int
do_refresh(const struct call *c)
{
	return qcow2_is(c->b) ? qcow2_refresh(c->b) : 0;
}

static int
do_snapshot(const struct call *c)
{
	struct qcow2_snapshot_info info = { .name = c->word[1],
					    .date_s = 1000000000 };

	return qcow2_is(c->b) ? qcow2_snapshot_create(c->b, &info) : ENOTSUP;
}

static int
do_unsnapshot(const struct call *c)
{
	const struct qcow2_snapshot *s;
	uint32_t n;

	if (!qcow2_is(c->b))
		return ENOTSUP;
	s = qcow2_snapshots(c->b, &n);
	for (uint32_t i = 0; i < n; i++)
		if (strcmp(s[i].name, c->word[1]) == 0)
			return qcow2_snapshot_delete(c->b, i);
	return ENOENT;
}

static int
do_die(const struct call *c)
{
	(void)c;
	return raise(SIGKILL);
}

static int
do_dump(const struct call *c)
{
	FILE *f = fopen(c->word[1], "wb");
	uint8_t *buf = malloc(PIECE);
	uint64_t off = 0;
	int r = f ? 0 : errno;

	while (!r && off < c->b->size) {
		size_t n = (size_t)min_u64(c->b->size - off, PIECE);

		r = block_pread(c->b, buf, n, off);
		if (!r && fwrite(buf, 1, n, f) != n)
			r = errno;
		off += n;
	}
	free(buf);
	if (f && fclose(f))
		r = errno;
	return r;
}

static int
do_extents(const struct call *c)
{
	uint64_t off = c->word[1] ? size_of(c->word[1]) : 0;
	uint64_t end = c->word[1] ? off + size_of(c->word[2]) : c->b->size;

	while (off < end) {
		unsigned flags, depth;
		uint64_t n, m;
		int r = block_extent(c->b, off, end - off, &n, &flags);

		if (!r)
			r = block_depth(c->b, off, n, &m, &depth);
		if (r)
			return r;
		n = min_u64(n, m);
		printf("extent %" PRIu64 " %" PRIu64 " %s%s %u\n", off, n,
		       flags & BLOCK_HOLE ? "hole" : "data",
		       flags & BLOCK_ZERO ? ",zero" : "", depth);
		off += n;
	}
	return 0;
}

/* --- many threads ------------------------------------------------------------------ */

struct bench {
	struct block *b;
	bool write, random;
	uint64_t off, len, size, requests;
	_Atomic uint64_t turn;
	_Atomic int os;
};

static void *
bench_thread(void *arg)
{
	struct bench *t = arg;
	uint64_t slots = t->len / t->size;
	uint8_t *buf = malloc(t->size);

	memset(buf, 0x5a, t->size);
	for (uint64_t i = 0; i < t->requests && !t->os; i++) {
		uint64_t n = atomic_fetch_add(&t->turn, 1);
		uint64_t at = t->off;
		int r;

		if (t->random)
			n = n * UINT64_C(0x9e3779b97f4a7c15) >> 20;
		at += n % slots * t->size;
		if (t->write)
			r = block_pwrite(t->b, buf, t->size, at);
		else
			r = block_pread(t->b, buf, t->size, at);
		if (r)
			t->os = r;
	}
	free(buf);
	return NULL;
}

static int
do_bench(const struct call *c)
{
	struct bench t = { .b = c->b,
			   .write = strcmp(c->word[1], "write") == 0,
			   .random = strcmp(c->word[2], "random") == 0,
			   .off = size_of(c->word[3]),
			   .len = size_of(c->word[4]),
			   .size = size_of(c->word[5]),
			   .requests = size_of(c->word[7]) };
	unsigned n = (unsigned)size_of(c->word[6]);
	pthread_t *id = calloc(n + 1, sizeof *id);
	struct timespec a, z;
	double s;

	if (!t.size || t.size > t.len || !range_fits(t.off, t.len, c->b->size))
		die("bench: the range does not fit");
	(void)clock_gettime(CLOCK_MONOTONIC, &a);
	for (unsigned i = 0; i < n; i++)
		if (pthread_create(&id[i], NULL, bench_thread, &t))
			die("no thread");
	for (unsigned i = 0; i < n; i++)
		(void)pthread_join(id[i], NULL);
	(void)clock_gettime(CLOCK_MONOTONIC, &z);
	s = (double)(z.tv_sec - a.tv_sec) +
	    (double)(z.tv_nsec - a.tv_nsec) / 1e9;
	printf("%.0f requests/s ", (double)(n * t.requests) / s);
	free(id);
	return t.os;
}

/* --- the program ---------------------------------------------------------------------- */

static const struct {
	const char *name;
	int least; /* words behind the name */
	int (*fn)(const struct call *c);
} commands[] = {
	{ "read", 2, do_read },         { "write", 3, do_write },
	{ "compress", 3, do_compress }, { "zero", 2, do_zero },
	{ "discard", 2, do_discard },   { "flush", 0, do_flush },
	{ "load", 3, do_load },         { "dump", 1, do_dump },
	{ "extents", 0, do_extents },   { "truncate", 1, do_truncate },
	{ "size", 0, do_size },         { "hold", 0, do_hold },
	{ "release", 0, do_release },   { "refresh", 0, do_refresh },
	{ "snapshot", 1, do_snapshot }, { "unsnapshot", 1, do_unsnapshot },
	{ "bench", 7, do_bench },       { "die", 0, do_die },
};

static int
run(struct block *b, char *line)
{
	struct call c = { .b = b };
	char *save = NULL;
	int n = 0;

	for (char *w = strtok_r(line, " \t\n", &save); w && n < WORDS - 1;
	     w = strtok_r(NULL, " \t\n", &save))
		c.word[n++] = w;
	if (!n)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		int r;

		if (strcmp(c.word[0], commands[i].name))
			continue;
		if (n - 1 < commands[i].least)
			die("%s: too few words", c.word[0]);
		r = commands[i].fn(&c);
		if (r)
			printf("error: %s\n", strerror(r));
		else
			printf("ok\n");
		(void)fflush(stdout);
		return r;
	}
	die("unknown command '%s'", c.word[0]);
}

static int
run_all(struct block *b, char **commands_given)
{
	char line[PATH_LEN * 2];
	bool failed = false;

	for (; *commands_given; commands_given++) {
		(void)snprintf(line, sizeof line, "%s", *commands_given);
		failed |= run(b, line) != 0;
	}
	return failed;
}

static int
run_input(struct block *b)
{
	char line[PATH_LEN * 2];
	bool failed = false;

	while (fgets(line, sizeof line, stdin))
		failed |= run(b, line) != 0;
	return failed;
}

int
main(int argc, char **argv)
{
	struct block *b;
	int failed, c;

	while ((c = getopt(argc, argv, "rluC:")) != -1)
		switch (c) {
		case 'r': options.read_only = true; break;
		case 'l': options.live = options.read_only = true; break;
		case 'u': options.unmap = true; break;
		case 'C': options.cache_size = size_of(optarg); break;
		default: return 2;
		}
	if (optind >= argc)
		die("usage: block-io [-r] [-l] [-u] [-C BYTES] FORMAT:PATH "
		    "[COMMAND ...]");
	park_from_environment();
	b = open_image(argv[optind]);
	failed =
		argv[optind + 1] ? run_all(b, argv + optind + 1) : run_input(b);
	block_free(b);
	return failed;
}

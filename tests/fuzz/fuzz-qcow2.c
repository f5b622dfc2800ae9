/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A qcow2 image of arbitrary bytes: it is probed, checked, opened and read,
 * written to, and repaired; its bitmaps are loaded and stored.  The image lies
 * in memory and cannot grow without bound, and work on it is limited.  Besides
 * not crashing:
 *
 *  - a check without repair does not write;
 *  - an image without corruption has none after it was written to, and what
 *    was written is read again;
 *  - a repair that says that it left nothing has left nothing.
 */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/log.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/check.h"
#include "block/qcow2/qcow2.h"

#define INPUT_MAX (256 * KiB)
#define FILE_MAX  (512 * KiB) /* an image does not grow beyond it */
#define DISK_MAX  (1 * GiB) /* what is read and written lies below */
#define STEPS_MAX 500 /* tables that one check reads */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* --- a file in memory ---------------------------------------------------------- */

/* What the file holds; it outlives those who have it open.  There are two, for
 * good: what is behind @used is zero, so that only what was in use needs to be
 * cleared for the next input.
 */
struct store {
	uint8_t bytes[FILE_MAX];
	uint64_t size, used;
	unsigned writes;
};

static struct store image_file, data_file;

struct mem {
	struct block block;
	struct store *store; /* borrowed */
};

static struct store *
store_of(const struct block *b)
{
	return container_of(b, const struct mem, block)->store;
}

static void
grow(struct block *b, uint64_t end)
{
	store_of(b)->writes++;
	b->size = max_u64(b->size, round_up(end, 512));
	store_of(b)->size = b->size;
	store_of(b)->used = max_u64(store_of(b)->used, b->size);
}

static int
mem_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	if (!range_fits(off, len, b->size))
		abort();
	memcpy(buf, store_of(b)->bytes + off, len);
	return 0;
}

static int
mem_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	if (!range_fits(off, len, FILE_MAX))
		return ENOSPC;
	memcpy(store_of(b)->bytes + off, buf, len);
	grow(b, off + len);
	return 0;
}

static int
mem_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	(void)flags;
	if (!range_fits(off, len, FILE_MAX))
		return ENOSPC;
	memset(store_of(b)->bytes + off, 0, len);
	grow(b, off + len);
	return 0;
}

static int
mem_discard(struct block *b, uint64_t off, uint64_t len)
{
	if (!range_fits(off, len, b->size))
		abort();
	return mem_zero(b, off, len, 0);
}

static int
mem_flush(struct block *b)
{
	(void)b;
	return 0;
}

static int
mem_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	   unsigned *flags)
{
	(void)b;
	(void)off;
	*n = len;
	*flags = BLOCK_DATA;
	return 0;
}

static int
mem_truncate(struct block *b, uint64_t size)
{
	if (size > FILE_MAX)
		return ENOSPC;
	if (size > b->size)
		memset(store_of(b)->bytes + b->size, 0, size - b->size);
	b->size = round_up(size, 512);
	grow(b, size);
	return 0;
}

static void
mem_free(struct block *b)
{
	free(container_of(b, struct mem, block));
}

static const struct block_ops mem_ops = {
	.name = "memory",
	.free = mem_free,
	.pread = mem_pread,
	.pwrite = mem_pwrite,
	.zero = mem_zero,
	.discard = mem_discard,
	.flush = mem_flush,
	.extent = mem_extent,
	.truncate = mem_truncate,
};

static struct block *
mem_open(struct store *st)
{
	struct mem *m = calloc(1, sizeof *m);

	assert(m);
	m->store = st;
	m->block.ops = &mem_ops;
	m->block.size = st->size;
	m->block.min_block = 1;
	m->block.pref_block = 4096;
	m->block.discard_unmap = true;
	m->block.coherent = true;
	return &m->block;
}

static void
store_fill(struct store *st, const uint8_t *data, size_t size)
{
	if (size < st->used)
		memset(st->bytes + size, 0, st->used - size);
	if (size)
		memcpy(st->bytes, data, size);
	st->size = st->used = round_up(size, 512);
	st->writes = 0;
}

/* --- the parts ------------------------------------------------------------------ */

static bool
enough(void *opaque)
{
	unsigned *steps = opaque;

	return ++*steps > STEPS_MAX;
}

static bool
check(struct store *st, unsigned fix, struct qcow2_check_result *res)
{
	unsigned steps = 0, before = st->writes;
	struct qcow2_check_options o = { .fix = fix,
					 .memory = QCOW2_CHECK_MEMORY_MIN,
					 .cancelled = enough,
					 .opaque = &steps };
	struct block *file = mem_open(st);
	bool ok = qcow2_check(file, &o, res, NULL);

	assert(fix || st->writes == before);
	block_free(file);
	return ok;
}

static bool
is_clean(const struct qcow2_check_result *res)
{
	return !res->corruptions && !res->check_errors;
}

/* NULL when the image is refused. */
static struct block *
open_image(struct store *st, bool read_only, bool keep_bitmaps)
{
	struct qcow2_options o = { .read_only = read_only,
				   .keep_bitmaps = keep_bitmaps,
				   .cache_size = QCOW2_CACHE_MIN };
	struct qcow2_info *info = malloc(sizeof *info);
	struct block *b = NULL;

	assert(info);
	o.file = mem_open(st);
	if (!qcow2_probe(o.file, info, NULL)) {
		block_free(o.file);
		free(info);
		return NULL;
	}
	if (info->needs_data_file)
		o.data = mem_open(&data_file);
	if (info->header.has_backing &&
	    !block_null_open(MiB, 0, &o.backing, NULL))
		abort();
	free(info);
	if (!qcow2_open(&o, &b, NULL))
		return NULL;
	b->discard_unmap = true;
	return b;
}

static void
read_range(struct block *b, uint8_t *buf, uint64_t off, uint64_t len)
{
	uint64_t end, n;
	unsigned flags, depth, limit = 200;

	if (off >= b->size)
		return;
	len = min_u64(len, b->size - off);
	(void)block_pread(b, buf, (size_t)len, off);
	for (end = off + len; off < end && limit--; off += n) {
		if (block_extent(b, off, end - off, &n, &flags))
			return;
		assert(n && n <= end - off);
		if (block_depth(b, off, end - off, &n, &depth))
			return;
		assert(n && n <= end - off);
	}
}

static void
read_all(struct store *st, uint8_t *buf)
{
	struct block *b = open_image(st, true, false);

	if (!b)
		return;
	read_range(b, buf, 0, 256 * KiB);
	read_range(b, buf, round_down(b->size / 2, 512), 64 * KiB);
	read_range(b, buf, b->size - min_u64(b->size, 64 * KiB), 64 * KiB);
	block_free(b);
	assert(!st->writes);
}

/* Write @len bytes and read them again.  In a damaged image two clusters may
 * be one.
 */
static bool is_whole;

static void
write_read(struct block *b, uint8_t *buf, uint64_t off, size_t len,
	   uint8_t byte)
{
	if (!range_fits(off, len, b->size))
		return;
	memset(buf, byte, len);
	if (block_pwrite(b, buf, len, off))
		return;
	memset(buf, 0, len);
	if (block_pread(b, buf, len, off))
		return;
	for (size_t i = 0; i < len; i++)
		assert(buf[i] == byte || !is_whole);
}

static void
write_some(struct block *b, uint8_t *buf)
{
	uint64_t end = min_u64(b->size, DISK_MAX);
	uint64_t at = round_down(end / 3, 512);

	write_read(b, buf, 0, 512, 0x11);
	write_read(b, buf, at, 3 * 512, 0x22);
	write_read(b, buf, at + 9000, 70 * KiB, 0x33);
	if (b->size >= 64 * KiB) {
		(void)block_zero(b, 512, 5000, 0);
		(void)block_zero(b, at / 2, min_u64(30 * KiB, at),
				 BLOCK_ZERO_MAY_UNMAP);
		(void)block_discard(b, at, 20 * KiB);
		(void)block_flush(b);
	}
	if (b->cluster && b->cluster <= 64 * KiB && b->size > 4 * b->cluster) {
		memset(buf, 0x44, b->cluster);
		(void)block_compress(b, buf, b->cluster, 2 * b->cluster);
	}
	write_read(b, buf, b->size - min_u64(b->size, 512), 512, 0x55);
}

static bool
write_all(struct store *st, uint8_t *buf)
{
	struct block *b = open_image(st, false, false);

	if (b) {
		write_some(b, buf);
		block_free(b);
	}
	return b != NULL;
}

/* --- stored bitmaps --------------------------------------------------------------- */

/* Ranges come in order, inside the disk, and not without end. */
struct seen {
	uint64_t end, size;
	unsigned n;
};

static int
see_range(void *opaque, uint64_t off, uint64_t len)
{
	struct seen *s = opaque;

	assert(len && off >= s->end && range_fits(off, len, s->size));
	s->end = off + len;
	return ++s->n > STEPS_MAX ? ECANCELED : 0;
}

static bool
first_half(void *opaque, uint64_t from, uint64_t *start, uint64_t *end)
{
	const struct block *b = opaque;

	*start = 0;
	*end = min_u64(b->size / 2, MiB);
	return from < *end;
}

/* Load what there is, keep it, and store one more. */
static void
use_bitmaps(struct block *b, struct qcow2_bitmaps *l)
{
	size_t n = qcow2_bitmaps_count(l);
	struct qcow2_bitmap_source *s = calloc(n + 1, sizeof *s);
	struct qcow2_bitmap_info info;

	assert(s);
	for (size_t i = 0; i < n; i++) {
		struct seen seen = { .size = b->size };

		qcow2_bitmaps_get(l, i, &info);
		s[i].name = info.name;
		s[i].keep = true;
		if (!qcow2_bitmap_ranges(b, l, i, see_range, &seen, NULL))
			seen.n = 0; /* it may be kept all the same */
	}
	s[n] = (struct qcow2_bitmap_source){ .name = "a bitmap of the fuzzer",
					     .granularity = 65536,
					     .next = first_half,
					     .opaque = b };
	if (b->size <= DISK_MAX && qcow2_bitmaps_take(b, l, NULL) &&
	    qcow2_bitmaps_store(b, l, s, n + 1, NULL))
		assert(qcow2_bitmaps_count(l) == n + 1);
	free(s);
}

static bool
bitmaps_all(struct store *st)
{
	struct block *b = open_image(st, false, true);
	struct qcow2_bitmaps *l = NULL;

	if (b && qcow2_bitmaps_load(b, &l, NULL)) {
		use_bitmaps(b, l);
		qcow2_bitmaps_free(l);
	}
	if (b)
		block_free(b);
	return b != NULL;
}

static void
no_log(enum log_level level, const char *line)
{
	(void)level;
	(void)line;
}

/* The image as it came, and a data file of zeroes. */
static void
begin(const uint8_t *image, size_t size)
{
	store_fill(&image_file, image, size);
	store_fill(&data_file, NULL, 0);
	data_file.size = INPUT_MAX;
}

/* What was clean is clean. */
static void
assert_still_clean(struct store *st)
{
	struct qcow2_check_result res;

	if (check(st, 0, &res))
		assert(is_clean(&res));
}

int
LLVMFuzzerTestOneInput(const uint8_t *image, size_t size)
{
	static uint8_t buf[MiB];
	struct qcow2_check_result before, after;
	struct store *st = &image_file;

	if (size > INPUT_MAX)
		return 0;
	log_set_sink(no_log);
	begin(image, size);
	is_whole = check(st, 0, &before) && is_clean(&before);
	read_all(st, buf);
	if (write_all(st, buf) && is_whole)
		assert_still_clean(st);
	begin(image, size);
	if (bitmaps_all(st) && is_whole)
		assert_still_clean(st);
	begin(image, size);
	if (check(st, QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS, &before) &&
	    check(st, 0, &after))
		assert(before.corruptions == after.corruptions &&
		       before.leaks == after.leaks);
	return 0;
}

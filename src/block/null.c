/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The null-co driver: takes every write, keeps nothing, reads as zeroes (QEMU
 * leaves the buffer as it is unless read-zeroes is set; we never show memory
 * that somebody else used).
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bits.h"
#include "block/block.h"

struct null_image {
	struct block block;
	struct timespec latency;
};

static void
take_time(struct block *b)
{
	struct null_image *i = container_of(b, struct null_image, block);

	if (i->latency.tv_sec || i->latency.tv_nsec)
		(void)nanosleep(&i->latency, NULL);
}

static void
null_free(struct block *b)
{
	free(container_of(b, struct null_image, block));
}

static int
null_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	(void)off;
	take_time(b);
	memset(buf, 0, len);
	return 0;
}

static int
null_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	(void)buf;
	(void)len;
	(void)off;
	take_time(b);
	return 0;
}

static int
null_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	(void)off;
	(void)len;
	(void)flags;
	take_time(b);
	return 0;
}

static int
null_discard(struct block *b, uint64_t off, uint64_t len)
{
	return null_zero(b, off, len, 0);
}

static int
null_flush(struct block *b)
{
	take_time(b);
	return 0;
}

static int
null_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	    unsigned *flags)
{
	(void)b;
	(void)off;
	*n = len;
	*flags = BLOCK_ZERO;
	return 0;
}

static int
null_truncate(struct block *b, uint64_t size)
{
	b->size = size;
	return 0;
}

static const struct block_ops null_ops = {
	.name = "null-co",
	.free = null_free,
	.pread = null_pread,
	.pwrite = null_pwrite,
	.zero = null_zero,
	.discard = null_discard,
	.flush = null_flush,
	.extent = null_extent,
	.truncate = null_truncate,
};

bool
block_null_open(uint64_t size, uint64_t latency_ns, struct block **out,
		struct err *e)
{
	struct null_image *i = calloc(1, sizeof *i);

	if (!i)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open null-co");
	i->block.ops = &null_ops;
	i->block.size = round_up(min_u64(size, UINT64_C(1) << 62), 512);
	i->block.min_block = 1;
	i->block.pref_block = 4096;
	i->block.coherent = true;
	i->latency.tv_sec = (time_t)(latency_ns / 1000000000);
	i->latency.tv_nsec = (long)(latency_ns % 1000000000);
	*out = &i->block;
	return true;
}

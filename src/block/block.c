/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/block.h"

#include <errno.h>

#include "base/bits.h"

void
block_free(struct block *b)
{
	b->ops->free(b);
}

int
block_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	return b->ops->pread(b, buf, len, off);
}

int
block_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	if (b->detect_zeroes && buf_is_zero(buf, len))
		return b->ops->zero(b, off, len,
				    b->detect_unmap ? BLOCK_ZERO_MAY_UNMAP : 0);
	return b->ops->pwrite(b, buf, len, off);
}

int
block_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	/* "discard": "ignore" means that space is never given up */
	if (!b->discard_unmap)
		flags &= ~(unsigned)BLOCK_ZERO_MAY_UNMAP;
	return b->ops->zero(b, off, len, flags);
}

int
block_discard(struct block *b, uint64_t off, uint64_t len)
{
	return b->discard_unmap ? b->ops->discard(b, off, len) : 0;
}

int
block_flush(struct block *b)
{
	return b->no_flush ? 0 : b->ops->flush(b);
}

int
block_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	     unsigned *flags)
{
	return b->ops->extent(b, off, len, n, flags);
}

int
block_cache(struct block *b, uint64_t off, uint64_t len)
{
	return b->ops->cache ? b->ops->cache(b, off, len) : 0;
}

int
block_fd(const struct block *b)
{
	return b->ops->fd ? b->ops->fd(b) : -1;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The raw driver: a window on another image, all of it by default.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bits.h"
#include "block/block.h"

struct raw {
	struct block block;
	struct block *file; /* owned */
	uint64_t offset;
	bool fixed; /* has a size of its own */
};

static struct raw *
to_raw(struct block *b)
{
	return container_of(b, struct raw, block);
}

static void
raw_free(struct block *b)
{
	struct raw *r = to_raw(b);

	block_free(r->file);
	free(r);
}

static int
raw_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	struct raw *r = to_raw(b);

	block_event(r->file, BLOCK_EVENT_READ_AIO);
	return block_pread(r->file, buf, len, off + r->offset);
}

static int
raw_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	struct raw *r = to_raw(b);

	block_event(r->file, BLOCK_EVENT_WRITE_AIO);
	return block_pwrite(r->file, buf, len, off + r->offset);
}

static int
raw_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	struct raw *r = to_raw(b);

	return block_zero(r->file, off + r->offset, len, flags);
}

static int
raw_discard(struct block *b, uint64_t off, uint64_t len)
{
	struct raw *r = to_raw(b);

	return block_discard(r->file, off + r->offset, len);
}

static int
raw_flush(struct block *b)
{
	return block_flush(to_raw(b)->file);
}

static int
raw_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	   unsigned *flags)
{
	struct raw *r = to_raw(b);

	return block_extent(r->file, off + r->offset, len, n, flags);
}

static int
raw_cache(struct block *b, uint64_t off, uint64_t len)
{
	struct raw *r = to_raw(b);

	return block_cache(r->file, off + r->offset, len);
}

static struct block *
raw_child(const struct block *b, unsigned i)
{
	return i ? NULL : container_of(b, const struct raw, block)->file;
}

/* Resizing the window resizes what it looks at, as in QEMU. */
static int
raw_truncate(struct block *b, uint64_t size)
{
	struct raw *r = to_raw(b);
	int os = 0;

	if (r->fixed)
		return ENOTSUP;
	if (size > INT64_MAX - r->offset)
		return EINVAL;
	os = block_truncate(r->file, size + r->offset);
	if (!os)
		block_size_set(b, size);
	return os;
}

static void
raw_look(struct block *b)
{
	struct raw *r = to_raw(b);
	uint64_t size = block_look(r->file);

	if (!r->fixed && size > block_size_now(b) + r->offset)
		block_size_set(b, size - r->offset);
}

static int
raw_depth(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	  unsigned *depth)
{
	struct raw *r = to_raw(b);

	return block_depth(r->file, off + r->offset, len, n, depth);
}

static const struct block_ops raw_ops = {
	.name = "raw",
	.free = raw_free,
	.pread = raw_pread,
	.pwrite = raw_pwrite,
	.zero = raw_zero,
	.discard = raw_discard,
	.flush = raw_flush,
	.extent = raw_extent,
	.cache = raw_cache,
	.child = raw_child,
	.truncate = raw_truncate,
	.look = raw_look,
	.depth = raw_depth,
};

static bool
window_fits(const struct block *file, uint64_t offset, bool has_size,
	    uint64_t *size, struct err *e)
{
	if (offset > file->size)
		return err_set(e, ERR_GENERIC, 0,
			       "Offset (%" PRIu64
			       ") cannot be greater than size of the "
			       "containing file (%" PRIu64 ")",
			       offset, file->size);
	if (!has_size)
		*size = file->size - offset;
	if (!range_fits(offset, *size, file->size))
		return err_set(e, ERR_GENERIC, 0,
			       "The sum of offset (%" PRIu64
			       ") and size (%" PRIu64
			       ") has to be smaller or equal to the  actual "
			       "size of the containing file (%" PRIu64 ")",
			       offset, *size, file->size);
	if (has_size && *size % 512)
		return err_set(e, ERR_GENERIC, 0,
			       "Specified size is not multiple of 512");
	/* QEMU rounds up, to a sector of which the file has a part */
	if (*size % 512)
		return err_set(e, ERR_GENERIC, 0,
			       "Specified offset is not multiple of 512 and "
			       "size is not given");
	return true;
}

bool
block_raw_window_fits(const struct block *b, uint64_t offset, bool has_size,
		      uint64_t size, struct err *e)
{
	const struct raw *r = container_of(b, const struct raw, block);

	return window_fits(r->file, offset, has_size, &size, e);
}

void
block_raw_set_window(struct block *b, uint64_t offset, bool has_size,
		     uint64_t size)
{
	struct raw *r = to_raw(b);

	r->offset = offset;
	r->fixed = has_size;
	b->size = has_size ? size : r->file->size - offset;
}

bool
block_raw_open(struct block *file, uint64_t offset, bool has_size,
	       uint64_t size, struct block **out, struct err *e)
{
	AUTO(block_free) struct block *own = file;
	struct raw *r;

	if (!window_fits(own, offset, has_size, &size, e))
		return false;
	r = calloc(1, sizeof *r);
	if (!r)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open raw");
	block_inherit(&r->block, own);
	r->block.ops = &raw_ops;
	r->block.size = size;
	r->fixed = has_size;
	r->file = steal(&own);
	r->offset = offset;
	*out = &r->block;
	return true;
}

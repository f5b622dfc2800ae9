/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A lane's requests to an image that this process has open.  The driver's
 * calls block, and the lane's thread is there to be blocked: each request is
 * answered before its call returns.  Several lanes keep several requests
 * under way; a driver takes any number of threads.
 *
 * The image belongs to one stream, and a flush covers whatever it acknowledged
 * before, also to other lanes.  Each lane flushes its own account all the same
 * (rule 1 of stream.h): what others just wrote costs the second flush little.
 */
#include "base/park.h"
#include "stream/stream-priv.h"

static struct block *
image(const struct lane *l)
{
	return l->s->o.target->block;
}

static void
do_write(struct lane *l, struct op *op, const void *buf, size_t len,
	 uint64_t off)
{
	struct block *b = image(l);
	int r;

	PARK("stream.block-write");
	off += l->s->o.at;
	r = l->s->o.compress ? block_compress(b, buf, len, off)
			     : block_pwrite(b, buf, len, off);
	lane_answered(l, op, r);
}

/* Whether the space is given back is the choice of who opened the image. */
static void
do_zero(struct lane *l, struct op *op, uint64_t len, uint64_t off)
{
	lane_answered(l, op,
		      block_zero(image(l), off + l->s->o.at, len,
				 BLOCK_ZERO_MAY_UNMAP));
}

static void
do_flush(struct lane *l, struct op *op)
{
	PARK("stream.block-flush");
	lane_answered(l, op, block_flush(image(l)));
}

static bool
never(const struct lane *l)
{
	(void)l;
	return false;
}

static bool
always(const struct lane *l)
{
	(void)l;
	return true;
}

const struct lane_ops lane_block = {
	.write = do_write,
	.zero = do_zero,
	.flush = do_flush,
	.is_full = never,
	.is_alive = always,
	.immediate = true,
};

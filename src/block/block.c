/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/block.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

void
block_free(struct block *b)
{
	free(b->node);
	b->ops->free(b);
}

/* --- the highest write ------------------------------------------------------ */

/* notice is what a write is compared with: the lower of the two. */
static void
update_notice(struct block_high *h)
{
	uint64_t highest = atomic_load(&h->highest);
	uint64_t threshold = atomic_load(&h->threshold);

	atomic_store(&h->notice,
		     threshold ? min_u64(highest, threshold) : highest);
}

static void
cross(struct block_high *h, uint64_t end)
{
	uint64_t threshold = atomic_load(&h->threshold);

	if (!threshold || end <= threshold ||
	    !atomic_compare_exchange_strong(&h->threshold, &threshold, 0))
		return;
	atomic_store(&h->by, end - threshold);
	atomic_store(&h->crossed, threshold);
	if (h->fn)
		h->fn(h->opaque);
}

static void
notice(struct block_high *h, uint64_t end)
{
	uint64_t highest = atomic_load(&h->highest);

	while (highest < end &&
	       !atomic_compare_exchange_weak(&h->highest, &highest, end))
		;
	cross(h, end);
	update_notice(h);
}

/* A write is about to begin. */
static inline void
note(struct block *b, uint64_t end)
{
	if (unlikely(end > atomic_load_explicit(&b->high.notice,
						memory_order_relaxed)))
		notice(&b->high, end);
}

void
block_set_threshold(struct block *b, uint64_t threshold,
		    void (*fn)(void *opaque), void *opaque)
{
	/* a writer that is crossing the old one may be calling the old @fn */
	atomic_store(&b->high.threshold, 0);
	b->high.fn = fn;
	b->high.opaque = opaque;
	atomic_store(&b->high.threshold, threshold);
	update_notice(&b->high);
}

bool
block_take_crossed(struct block *b, uint64_t *threshold, uint64_t *by)
{
	*by = atomic_load(&b->high.by);
	*threshold = atomic_exchange(&b->high.crossed, 0);
	return *threshold != 0;
}

void
block_damaged(struct block *b, const char *what, uint64_t at, bool fatal)
{
	b->damage.at = at;
	b->damage.fatal = fatal;
	atomic_store(&b->damage.what, what);
	if (b->high.fn)
		b->high.fn(b->high.opaque);
}

bool
block_take_damage(struct block *b, const char **what, uint64_t *at, bool *fatal)
{
	*what = atomic_load(&b->damage.what);
	if (!*what)
		return false;
	*at = b->damage.at;
	*fatal = b->damage.fatal;
	atomic_store(&b->damage.what, NULL);
	return true;
}

/* --- requests ---------------------------------------------------------------- */

int
block_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	return b->ops->pread(b, buf, len, off);
}

int
block_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	note(b, off + len);
	if (b->detect_zeroes && buf_is_zero(buf, len))
		return b->ops->zero(b, off, len,
				    b->detect_unmap ? BLOCK_ZERO_MAY_UNMAP : 0);
	return b->ops->pwrite(b, buf, len, off);
}

int
block_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	note(b, off + len);
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
block_truncate(struct block *b, uint64_t size)
{
	return b->ops->truncate ? b->ops->truncate(b, size) : ENOTSUP;
}

int
block_depth(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	    unsigned *depth)
{
	if (b->ops->depth)
		return b->ops->depth(b, off, len, n, depth);
	*n = len;
	*depth = 1;
	return 0;
}

int
block_compress(struct block *b, const void *buf, size_t len, uint64_t off)
{
	if (!b->ops->compress)
		return ENOTSUP;
	note(b, off + len);
	return b->ops->compress(b, buf, len, off);
}

void
block_event(struct block *b, enum block_event event)
{
	if (unlikely(b->ops->event != NULL))
		b->ops->event(b, event);
}

void
block_hold(struct block *b)
{
	struct block *c;

	if (b->ops->hold)
		b->ops->hold(b);
	for (unsigned i = 0; (c = block_child(b, i)); i++)
		block_hold(c);
}

void
block_release(struct block *b)
{
	struct block *c;

	if (b->ops->release)
		b->ops->release(b);
	for (unsigned i = 0; (c = block_child(b, i)); i++)
		block_release(c);
}

uint64_t
block_look(struct block *b)
{
	if (b->ops->look)
		b->ops->look(b);
	return block_size_now(b);
}

int
block_refresh(struct block *b)
{
	int r = b->ops->refresh ? b->ops->refresh(b) : 0;
	struct block *c;

	for (unsigned i = 0; !r && (c = block_child(b, i)); i++)
		r = block_refresh(c);
	return r;
}

/* --- what an image is made of ------------------------------------------------ */

struct block *
block_child(const struct block *b, unsigned i)
{
	return b->ops->child ? b->ops->child(b, i) : NULL;
}

int
block_fd(const struct block *b)
{
	return b->ops->fd ? b->ops->fd(b) : -1;
}

const char *
block_filename(const struct block *b)
{
	return b->ops->filename ? b->ops->filename(b) : NULL;
}

struct block *
block_find(struct block *b, const char *node)
{
	struct block *c, *found = NULL;

	if (b->node && strcmp(b->node, node) == 0)
		return b;
	for (unsigned i = 0; !found && (c = block_child(b, i)); i++)
		found = block_find(c, node);
	return found;
}

void
block_inherit(struct block *b, const struct block *file)
{
	b->size = file->size;
	b->min_block = file->min_block;
	b->pref_block = file->pref_block;
	b->read_only = file->read_only;
	b->rotational = file->rotational;
	b->coherent = file->coherent;
}

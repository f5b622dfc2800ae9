/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/blkdebug.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/mtx.h"

#define SECTOR 512

struct rule {
	struct blkdebug_rule r;
	bool awake, gone;
};

struct debug {
	struct block block;
	struct block *image; /* owned */
	uint32_t max_transfer, max_zero, max_discard;
	_Atomic bool told; /* events come from the driver above */
	struct mtx lock; /* LOCK_BLKDEBUG: the rest */
	uint32_t state;
	struct rule *rules; /* owned */
	size_t n;
};

bool
block_event_parse(const char *text, enum block_event *out)
{
	static const char *const names[BLOCK_EVENT_N] = {
#define X(name, word) [BLOCK_EVENT_##name] = (word),
		BLOCK_EVENTS(X)
#undef X
	};

	for (int i = 0; i < BLOCK_EVENT_N; i++)
		if (strcmp(names[i], text) == 0) {
			*out = (enum block_event)i;
			return true;
		}
	return false;
}

static struct debug *
to_debug(struct block *b)
{
	return container_of(b, struct debug, block);
}

/* --- rules ------------------------------------------------------------------ */

static bool
concerns(const struct debug *d, const struct rule *r, enum block_event event)
{
	return !r->gone && r->r.event == event &&
	       (!r->r.state || r->r.state == d->state);
}

/* Rule 1: those that were awake sleep when others take their place. */
static void
wake(struct debug *d, enum block_event event)
{
	bool any = false;

	for (size_t i = 0; i < d->n; i++)
		any |= concerns(d, &d->rules[i], event) && !d->rules[i].r.sets;
	for (size_t i = 0; any && i < d->n; i++)
		d->rules[i].awake =
			!d->rules[i].r.sets && concerns(d, &d->rules[i], event);
}

static void
happen_locked(struct debug *d, enum block_event event) NEEDS(d->lock)
{
	uint32_t next = d->state;

	wake(d, event);
	for (size_t i = 0; i < d->n; i++)
		if (d->rules[i].r.sets && concerns(d, &d->rules[i], event))
			next = d->rules[i].r.new_state;
	d->state = next; /* rule 4 */
}

static void
happen(struct debug *d, enum block_event event)
{
	mtx_lock(&d->lock);
	happen_locked(d, event);
	mtx_unlock(&d->lock);
}

static bool
fits(const struct rule *r, unsigned kind, uint64_t off, uint64_t len)
{
	uint64_t at = (uint64_t)r->r.sector * SECTOR;

	if (!r->awake || r->gone || !(r->r.kinds & kind))
		return false;
	return r->r.sector < 0 || (len && at >= off && at < off + len);
}

/* A request is about to begin: the errno value with which it fails, or 0. */
static int
check(struct debug *d, unsigned kind, uint64_t off, uint64_t len)
{
	int os = 0;

	mtx_lock(&d->lock);
	happen_locked(d, BLOCK_EVENT_NONE); /* rule 2 */
	for (size_t i = 0; i < d->n; i++)
		if (fits(&d->rules[i], kind, off, len)) {
			os = d->rules[i].r.os;
			d->rules[i].gone = os && d->rules[i].r.once;
			break;
		}
	mtx_unlock(&d->lock);
	return os;
}

static void
debug_event(struct block *b, enum block_event event)
{
	struct debug *d = to_debug(b);

	if (!atomic_load_explicit(&d->told, memory_order_relaxed))
		atomic_store(&d->told, true);
	happen(d, event);
}

/* Without a driver above that says what it does. */
static void
guess(struct debug *d, enum block_event event)
{
	if (!atomic_load_explicit(&d->told, memory_order_relaxed))
		happen(d, event);
}

/* --- requests ----------------------------------------------------------------- */

static uint64_t
piece(uint64_t len, uint32_t max)
{
	return max ? min_u64(len, max) : len;
}

static int
debug_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	struct debug *d = to_debug(b);
	char *p = buf;
	int r = 0;

	guess(d, BLOCK_EVENT_READ_AIO);
	while (!r && len) {
		size_t n = (size_t)piece(len, d->max_transfer);

		r = check(d, BLKDEBUG_READ, off, n);
		if (!r)
			r = block_pread(d->image, p, n, off);
		p += n;
		off += n;
		len -= n;
	}
	return r;
}

static int
debug_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	struct debug *d = to_debug(b);
	const char *p = buf;
	int r = 0;

	guess(d, BLOCK_EVENT_WRITE_AIO);
	happen(d, BLOCK_EVENT_PWRITEV);
	while (!r && len) {
		size_t n = (size_t)piece(len, d->max_transfer);

		r = check(d, BLKDEBUG_WRITE, off, n);
		if (!r)
			r = block_pwrite(d->image, p, n, off);
		p += n;
		off += n;
		len -= n;
	}
	happen(d, BLOCK_EVENT_PWRITEV_DONE);
	return r;
}

static int
debug_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	struct debug *d = to_debug(b);
	int r = 0;

	happen(d, BLOCK_EVENT_PWRITEV_ZERO);
	while (!r && len) {
		uint64_t n = piece(len, d->max_zero);

		r = check(d, BLKDEBUG_ZERO, off, n);
		if (!r)
			r = block_zero(d->image, off, n, flags);
		off += n;
		len -= n;
	}
	happen(d, BLOCK_EVENT_PWRITEV_DONE);
	return r;
}

static int
debug_discard(struct block *b, uint64_t off, uint64_t len)
{
	struct debug *d = to_debug(b);
	int r = 0;

	while (!r && len) {
		uint64_t n = piece(len, d->max_discard);

		r = check(d, BLKDEBUG_DISCARD, off, n);
		if (!r)
			r = block_discard(d->image, off, n);
		off += n;
		len -= n;
	}
	return r;
}

static int
debug_flush(struct block *b)
{
	struct debug *d = to_debug(b);
	int r;

	happen(d, BLOCK_EVENT_FLUSH_TO_DISK);
	r = check(d, BLKDEBUG_FLUSH, 0, 0);
	return r ? r : block_flush(d->image);
}

static int
debug_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	     unsigned *flags)
{
	struct debug *d = to_debug(b);
	int r = check(d, BLKDEBUG_STATUS, off, len);

	return r ? r : block_extent(d->image, off, len, n, flags);
}

static int
debug_cache(struct block *b, uint64_t off, uint64_t len)
{
	return block_cache(to_debug(b)->image, off, len);
}

static struct block *
debug_child(const struct block *b, unsigned i)
{
	return i ? NULL : container_of(b, const struct debug, block)->image;
}

static void
debug_look(struct block *b)
{
	block_size_set(b, block_look(to_debug(b)->image));
}

static int
debug_truncate(struct block *b, uint64_t size)
{
	int r = block_truncate(to_debug(b)->image, size);

	if (!r)
		b->size = size;
	return r;
}

static int
debug_depth(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	    unsigned *depth)
{
	return block_depth(to_debug(b)->image, off, len, n, depth);
}

static void
debug_free(struct block *b)
{
	struct debug *d = to_debug(b);

	if (d->image)
		block_free(d->image);
	mtx_destroy(&d->lock);
	free(d->rules);
	free(d);
}

static const struct block_ops debug_ops = {
	.name = "blkdebug",
	.free = debug_free,
	.pread = debug_pread,
	.pwrite = debug_pwrite,
	.zero = debug_zero,
	.discard = debug_discard,
	.flush = debug_flush,
	.extent = debug_extent,
	.cache = debug_cache,
	.child = debug_child,
	.truncate = debug_truncate,
	.look = debug_look,
	.depth = debug_depth,
	.event = debug_event,
};

/* --- opening ------------------------------------------------------------------- */

static bool
limit_ok(const char *name, uint32_t limit, uint32_t align, struct err *e)
{
	return limit % align == 0 ||
	       err_set(e, ERR_GENERIC, 0,
		       "Cannot meet constraints with %s %" PRIu32, name, limit);
}

static bool
options_ok(const struct blkdebug_options *o, struct err *e)
{
	uint32_t align = o->align ? o->align : 1;

	if (!is_pow2(align))
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot meet constraints with align %" PRIu32,
			       align);
	if (o->n > BLKDEBUG_MAX_RULES)
		return err_set(e, ERR_GENERIC, 0,
			       "blkdebug takes at most %d rules",
			       BLKDEBUG_MAX_RULES);
	return limit_ok("max-transfer", o->max_transfer, align, e) &&
	       limit_ok("max-write-zero", o->max_zero, align, e) &&
	       limit_ok("max-discard", o->max_discard, align, e);
}

bool
block_blkdebug_open(struct block *image, const struct blkdebug_options *o,
		    struct block **out, struct err *e)
{
	AUTO(block_free) struct block *own = image;
	AUTO(free) struct debug *d = NULL;

	if (!options_ok(o, e))
		return false;
	d = calloc(1, sizeof *d);
	if (d)
		d->rules = calloc(o->n ? o->n : 1, sizeof d->rules[0]);
	if (!d || !d->rules)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open blkdebug");
	for (size_t i = 0; i < o->n; i++)
		d->rules[i].r = o->rules[i];
	d->n = o->n;
	d->state = 1;
	d->max_transfer = o->max_transfer;
	d->max_zero = o->max_zero;
	d->max_discard = o->max_discard;
	mtx_init(&d->lock, LOCK_BLKDEBUG);
	block_inherit(&d->block, own);
	d->block.ops = &debug_ops;
	d->block.min_block = (uint32_t)max_u64(own->min_block, o->align);
	d->image = steal(&own);
	*out = &steal(&d)->block;
	return true;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "tracking/epoch.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/mtx.h"
#include "base/park.h"

#define EPOCH_MAGIC   UINT64_C(0x3148434f50455053) /* "SPEPOCH1" on disk */
#define EPOCH_VERSION 1
#define PAGE          UINT64_C(4096)
#define CHUNK         (PAGE * 8) /* granules in a page of bits */
#define WORD_BITS     64

/* A disk cannot be larger, so that no sum below wraps. */
#define MAX_SIZE (UINT64_C(1) << 62)

enum summary { EMPTY = 0, BITS = 1, ALL = 2 };

/* Little endian hosts only: both processes run on one machine. */
struct epoch_header {
	uint64_t magic;
	uint32_t version;
	uint32_t granularity_bits;
	uint64_t size;
	uint64_t chunks;
};

struct epoch {
	_Atomic unsigned refs;
	int fd; /* owned */
	void *map; /* owned, @map_len bytes */
	size_t map_len;
	uint64_t size, chunks;
	unsigned shift;
	_Atomic uint8_t *summary; /* in @map */
	_Atomic uint64_t *bits; /* in @map */
	uint64_t bits_at; /* offset of @bits in the file */
	struct mtx lock; /* LOCK_EPOCH: one allocation at a time */
};

static uint64_t
bits_offset(uint64_t chunks)
{
	return PAGE + round_up(chunks, PAGE);
}

bool
epoch_format(int fd, uint64_t size, uint64_t granularity, struct err *e)
{
	struct epoch_header h = { .magic = EPOCH_MAGIC,
				  .version = EPOCH_VERSION,
				  .size = size };
	uint64_t fixed, total;
	ssize_t n;
	int r;

	if (!is_pow2(granularity) || granularity < EPOCH_MIN_GRANULARITY ||
	    granularity > EPOCH_MAX_GRANULARITY || size > MAX_SIZE)
		return err_set(e, ERR_GENERIC, EINVAL,
			       "an epoch cannot have this geometry");
	h.granularity_bits = log2_of(granularity);
	h.chunks = div_up(div_up(size, granularity), CHUNK);
	fixed = bits_offset(h.chunks);
	total = fixed + h.chunks * PAGE;
	if (ftruncate(fd, (off_t)total) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot size an epoch's file");
	r = posix_fallocate(fd, 0, (off_t)fixed);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "cannot allocate an epoch's summary");
	n = pwrite(fd, &h, sizeof h, 0);
	if (n != sizeof h)
		return err_set(e, ERR_GENERIC, n < 0 ? errno : EIO,
			       "cannot write an epoch's header");
	return true;
}

static bool
header_check(const struct epoch_header *h, int fd, struct err *e)
{
	struct stat st;

	if (h->magic != EPOCH_MAGIC)
		return err_set(e, ERR_GENERIC, 0, "not an epoch file");
	if (h->version != EPOCH_VERSION)
		return err_set(e, ERR_GENERIC, 0,
			       "epoch file of unknown version %u", h->version);
	if (h->granularity_bits < 9 || h->granularity_bits > 31 ||
	    h->size > MAX_SIZE ||
	    h->chunks !=
		    div_up(div_up(h->size, UINT64_C(1) << h->granularity_bits),
			   CHUNK))
		return err_set(e, ERR_GENERIC, 0,
			       "epoch file with impossible geometry");
	if (fstat(fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot look at an epoch file");
	if ((uint64_t)st.st_size != bits_offset(h->chunks) + h->chunks * PAGE)
		return err_set(e, ERR_GENERIC, 0,
			       "epoch file of a wrong length");
	return true;
}

bool
epoch_open(int fd, struct epoch **out, struct err *e)
{
	AUTO(close) int own = fd;
	AUTO(free) struct epoch *ep = calloc(1, sizeof *ep);
	struct epoch_header h;

	if (!ep)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot map an epoch");
	if (pread(own, &h, sizeof h, 0) != sizeof h)
		return err_set(e, ERR_GENERIC, 0, "not an epoch file");
	if (!header_check(&h, own, e))
		return false;
	ep->size = h.size;
	ep->chunks = h.chunks;
	ep->shift = h.granularity_bits;
	ep->bits_at = bits_offset(h.chunks);
	ep->map_len = ep->bits_at + h.chunks * PAGE;
	ep->map = mmap(NULL, ep->map_len, PROT_READ | PROT_WRITE, MAP_SHARED,
		       own, 0);
	if (ep->map == MAP_FAILED)
		return err_set(e, ERR_GENERIC, errno, "cannot map an epoch");
	ep->summary = (_Atomic uint8_t *)((char *)ep->map + PAGE);
	ep->bits = (_Atomic uint64_t *)((char *)ep->map + ep->bits_at);
	ep->fd = steal_fd(&own);
	atomic_init(&ep->refs, 1);
	mtx_init(&ep->lock, LOCK_EPOCH);
	*out = steal(&ep);
	return true;
}

struct epoch *
epoch_ref(struct epoch *ep)
{
	atomic_fetch_add(&ep->refs, 1);
	return ep;
}

void
epoch_unref(struct epoch *ep)
{
	if (atomic_fetch_sub(&ep->refs, 1) != 1)
		return;
	(void)munmap(ep->map, ep->map_len);
	(void)close(ep->fd);
	mtx_destroy(&ep->lock);
	free(ep);
}

uint64_t
epoch_size(const struct epoch *ep)
{
	return ep->size;
}

uint64_t
epoch_granularity(const struct epoch *ep)
{
	return UINT64_C(1) << ep->shift;
}

int
epoch_fd(const struct epoch *ep)
{
	return ep->fd;
}

static enum summary
chunk_state(const struct epoch *ep, uint64_t chunk)
{
	return (enum summary)atomic_load_explicit(&ep->summary[chunk],
						  memory_order_acquire);
}

static bool
allocate_page(const struct epoch *ep, uint64_t chunk)
{
	int r;

	do
		r = fallocate(ep->fd, 0, (off_t)(ep->bits_at + chunk * PAGE),
			      PAGE);
	while (r < 0 && errno == EINTR);
	return r == 0;
}

/* Rules 2 and 3: the first bit of a chunk.  The other process may do the same
 * at the same time: allocating twice is harmless, and the summary moves
 * forward only.
 */
static enum summary
chunk_allocate(struct epoch *ep, uint64_t chunk)
{
	enum summary want, now;
	uint8_t expected = EMPTY;

	mtx_lock(&ep->lock);
	now = chunk_state(ep, chunk);
	if (now == EMPTY) {
		want = allocate_page(ep, chunk) ? BITS : ALL;
		if (atomic_compare_exchange_strong(&ep->summary[chunk],
						   &expected, (uint8_t)want))
			now = want;
		else
			now = (enum summary)expected;
	}
	mtx_unlock(&ep->lock);
	return now;
}

/* Set granules [g, end), all of one chunk. */
static void
set_in_chunk(struct epoch *ep, uint64_t g, uint64_t end)
{
	enum summary s = chunk_state(ep, g / CHUNK);

	if (unlikely(s == EMPTY))
		s = chunk_allocate(ep, g / CHUNK);
	if (s == ALL)
		return;
	while (g < end) {
		uint64_t word = g / WORD_BITS;
		uint64_t n = min_u64(WORD_BITS - g % WORD_BITS, end - g);
		uint64_t mask =
			(n == WORD_BITS ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1)
			<< g % WORD_BITS;

		/* most writes go where a write was before */
		if ((atomic_load_explicit(&ep->bits[word],
					  memory_order_relaxed) &
		     mask) != mask) {
			PARK("epoch.set");
			atomic_fetch_or(&ep->bits[word], mask);
		}
		g += n;
	}
}

void
epoch_set(struct epoch *ep, uint64_t off, uint64_t len)
{
	uint64_t g, end;

	if (len == 0)
		return;
	assert(range_fits(off, len, ep->size));
	g = off >> ep->shift;
	end = ((off + len - 1) >> ep->shift) + 1;
	while (g < end) {
		uint64_t stop = min_u64(end, (g / CHUNK + 1) * CHUNK);

		set_in_chunk(ep, g, stop);
		g = stop;
	}
}

/* The first granule in [g, end), all of one chunk with BITS, whose bit is
 * @dirty; @end when there is none.
 */
static uint64_t
scan_bits(const struct epoch *ep, uint64_t g, uint64_t end, bool dirty)
{
	while (g < end) {
		uint64_t w = atomic_load_explicit(&ep->bits[g / WORD_BITS],
						  memory_order_relaxed);

		if (!dirty)
			w = ~w;
		w >>= g % WORD_BITS;
		if (w)
			return min_u64(end, g + (uint64_t)__builtin_ctzll(w));
		g = (g / WORD_BITS + 1) * WORD_BITS;
	}
	return end;
}

/* The first granule in [g, stop) whose bit is @dirty; @stop when none is. */
static uint64_t
scan(const struct epoch *ep, uint64_t g, uint64_t stop, bool dirty)
{
	while (g < stop) {
		uint64_t chunk = g / CHUNK;
		uint64_t end = min_u64(stop, (chunk + 1) * CHUNK);
		enum summary s = chunk_state(ep, chunk);

		if (s == BITS) {
			g = scan_bits(ep, g, end, dirty);
			if (g < end)
				return g;
		} else if ((s == ALL) == dirty) {
			return g;
		}
		g = end;
	}
	return stop;
}

static uint64_t
next(const struct epoch *ep, uint64_t off, uint64_t end, bool dirty)
{
	uint64_t g;

	end = min_u64(end, ep->size);
	if (off >= end)
		return end;
	g = scan(ep, off >> ep->shift, ((end - 1) >> ep->shift) + 1, dirty);
	return min_u64(end, max_u64(off, g << ep->shift));
}

uint64_t
epoch_next_dirty(const struct epoch *ep, uint64_t off, uint64_t end)
{
	return next(ep, off, end, true);
}

uint64_t
epoch_next_clean(const struct epoch *ep, uint64_t off, uint64_t end)
{
	return next(ep, off, end, false);
}

bool
epoch_any(const struct epoch *ep, uint64_t off, uint64_t len)
{
	uint64_t end = min_u64(off + len, ep->size);

	return off < end && epoch_next_dirty(ep, off, end) < end;
}

void
epoch_merge(struct epoch *to, const struct epoch *from)
{
	uint64_t at = 0, size = min_u64(to->size, from->size), end;

	while ((at = epoch_next_dirty(from, at, size)) < size) {
		end = epoch_next_clean(from, at, size);
		epoch_set(to, at, end - at);
		at = end;
	}
}

/* --- several epochs seen as one ------------------------------------------ */

static uint64_t
any_next_dirty(const struct dirty *d, uint64_t from, uint64_t limit)
{
	for (size_t i = 0; i < d->n; i++)
		limit = epoch_next_dirty(d->v[i], from, limit);
	return limit;
}

/* The first byte in [from, limit) that is clean in every epoch. */
static uint64_t
all_next_clean(const struct dirty *d, uint64_t from, uint64_t limit)
{
	uint64_t before;

	do {
		before = from;
		for (size_t i = 0; i < d->n; i++)
			from = epoch_next_clean(d->v[i], from, limit);
	} while (from != before && from < limit);
	return from;
}

bool
dirty_next_in(const struct dirty *d, uint64_t from, uint64_t limit,
	      uint64_t *start, uint64_t *end)
{
	uint64_t s, t;

	limit = min_u64(limit, d->size);
	if (from >= limit)
		return false;
	if (d->n == 0) { /* everything */
		*start = from;
		*end = limit;
		return true;
	}
	/* units are dirty as a whole, so look at all of the outer ones */
	limit = min_u64(round_up(limit, d->unit), d->size);
	s = any_next_dirty(d, round_down(from, d->unit), limit);
	if (s >= limit)
		return false;
	*start = max_u64(from, round_down(s, d->unit));
	t = all_next_clean(d, s, limit);
	while (t < limit && t % d->unit) {
		/* the rest of this unit is dirty by rounding; what follows
		 * may be so by itself
		 */
		t = min_u64(limit, round_up(t, d->unit));
		if (t < limit)
			t = all_next_clean(d, t, limit);
	}
	*end = t;
	return true;
}

bool
dirty_next(const struct dirty *d, uint64_t from, uint64_t *start, uint64_t *end)
{
	return dirty_next_in(d, from, d->size, start, end);
}

bool
dirty_any(const struct dirty *d, uint64_t off, uint64_t len)
{
	uint64_t from = round_down(off, d->unit);
	uint64_t to = min_u64(d->size, round_up(off + len, d->unit));

	if (d->n == 0)
		return true;
	for (size_t i = 0; i < d->n; i++)
		if (epoch_any(d->v[i], from, to - from))
			return true;
	return false;
}

uint64_t
dirty_count(const struct dirty *d)
{
	uint64_t at = 0, start, end, n = 0;

	while (dirty_next(d, at, &start, &end)) {
		n += div_up(end, d->unit) - start / d->unit;
		at = end;
	}
	return n;
}

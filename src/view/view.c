/* SPDX-License-Identifier: BSD-3-Clause */
#include "view/view.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/mtx.h"
#include "base/park.h"

#define VIEW_MAGIC   UINT64_C(0x3157454956505053) /* "SPPVIEW1" on disk */
#define VIEW_VERSION 1
#define PAGE         UINT64_C(4096)
#define CHUNK        (PAGE * 4) /* granules in a page of states */
#define PER_WORD     32
#define MAX_SIZE     (UINT64_C(1) << 62)

/* One byte for each chunk.  It moves from ALL_NEEDED to one of the others and
 * from there nowhere.
 */
enum summary { ALL_NEEDED = 0, DETAIL = 1, ALL_DONE = 2 };

struct view_header {
	uint64_t magic;
	uint32_t version;
	uint32_t granule_bits;
	uint64_t size;
	uint64_t chunks;
	_Atomic int32_t broken; /* errno value */
	_Atomic uint64_t saves; /* 0 in files of older versions */
};

struct view {
	_Atomic unsigned refs;
	int fd; /* owned */
	void *map; /* owned, @map_len bytes */
	size_t map_len;
	uint64_t size, chunks;
	unsigned shift;
	struct view_header *header; /* in @map, as are the next two */
	_Atomic uint8_t *summary;
	_Atomic uint64_t *states;
	uint64_t states_at; /* offset of @states in the file */
};

static uint64_t
states_offset(uint64_t chunks)
{
	return PAGE + round_up(chunks, PAGE);
}

uint64_t
view_granule_for(uint64_t size)
{
	uint64_t granule = VIEW_MIN_GRANULE;

	while (div_up(size, granule) / 4 > VIEW_STATES_BUDGET)
		granule *= 2;
	return granule;
}

bool
view_format(int fd, uint64_t size, struct err *e)
{
	struct view_header h = { .magic = VIEW_MAGIC,
				 .version = VIEW_VERSION,
				 .size = size };
	uint64_t granule, fixed;
	ssize_t n;
	int r;

	if (size > MAX_SIZE)
		return err_set(e, ERR_GENERIC, EFBIG,
			       "a view cannot have this size");
	granule = view_granule_for(size);
	h.granule_bits = log2_of(granule);
	h.chunks = div_up(div_up(size, granule), CHUNK);
	fixed = states_offset(h.chunks);
	if (ftruncate(fd, (off_t)(fixed + h.chunks * PAGE)) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot size a view's states");
	r = posix_fallocate(fd, 0, (off_t)fixed);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "cannot allocate a view's summary");
	n = pwrite(fd, &h, sizeof h, 0);
	if (n != sizeof h)
		return err_set(e, ERR_GENERIC, n < 0 ? errno : EIO,
			       "cannot write a view's header");
	return true;
}

static bool
header_check(const struct view_header *h, int fd, struct err *e)
{
	struct stat st;

	if (h->magic != VIEW_MAGIC)
		return err_set(e, ERR_GENERIC, 0, "not a view's states");
	if (h->version != VIEW_VERSION)
		return err_set(e, ERR_GENERIC, 0,
			       "view's states of unknown version %u",
			       h->version);
	if (h->granule_bits < 12 || h->granule_bits > 40 ||
	    h->size > MAX_SIZE ||
	    h->chunks != div_up(div_up(h->size, UINT64_C(1) << h->granule_bits),
				CHUNK))
		return err_set(e, ERR_GENERIC, 0,
			       "view's states with impossible geometry");
	if (fstat(fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot look at a view's states");
	if ((uint64_t)st.st_size != states_offset(h->chunks) + h->chunks * PAGE)
		return err_set(e, ERR_GENERIC, 0,
			       "view's states of a wrong length");
	return true;
}

bool
view_open(int fd, struct view **out, struct err *e)
{
	AUTO(close) int own = fd;
	AUTO(free) struct view *v = calloc(1, sizeof *v);
	struct view_header h;

	if (!v)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot map a view");
	if (pread(own, &h, sizeof h, 0) != sizeof h)
		return err_set(e, ERR_GENERIC, 0, "not a view's states");
	if (!header_check(&h, own, e))
		return false;
	v->size = h.size;
	v->chunks = h.chunks;
	v->shift = h.granule_bits;
	v->states_at = states_offset(h.chunks);
	v->map_len = v->states_at + h.chunks * PAGE;
	v->map = mmap(NULL, v->map_len, PROT_READ | PROT_WRITE, MAP_SHARED, own,
		      0);
	if (v->map == MAP_FAILED)
		return err_set(e, ERR_GENERIC, errno, "cannot map a view");
	v->header = v->map;
	v->summary = (_Atomic uint8_t *)((char *)v->map + PAGE);
	v->states = (_Atomic uint64_t *)((char *)v->map + v->states_at);
	v->fd = steal_fd(&own);
	atomic_init(&v->refs, 1);
	*out = steal(&v);
	return true;
}

struct view *
view_ref(struct view *v)
{
	atomic_fetch_add(&v->refs, 1);
	return v;
}

void
view_unref(struct view *v)
{
	if (atomic_fetch_sub(&v->refs, 1) != 1)
		return;
	(void)munmap(v->map, v->map_len);
	(void)close(v->fd);
	free(v);
}

uint64_t
view_size(const struct view *v)
{
	return v->size;
}

uint64_t
view_granule(const struct view *v)
{
	return UINT64_C(1) << v->shift;
}

int
view_fd(const struct view *v)
{
	return v->fd;
}

static enum summary
chunk_state(const struct view *v, uint64_t chunk)
{
	return (enum summary)atomic_load_explicit(&v->summary[chunk],
						  memory_order_acquire);
}

static unsigned
shift_in_word(uint64_t g)
{
	return (unsigned)(g % PER_WORD) * 2;
}

enum view_state
view_get(const struct view *v, uint64_t g)
{
	uint64_t w;

	switch (chunk_state(v, g / CHUNK)) {
	case ALL_NEEDED: return VIEW_NEEDED;
	case ALL_DONE: return VIEW_DONE;
	case DETAIL: break;
	}
	w = atomic_load_explicit(&v->states[g / PER_WORD],
				 memory_order_acquire);
	return (enum view_state)(w >> shift_in_word(g) & 3);
}

/* Give a chunk its page.  Either process may do so at any time: allocating
 * twice is harmless (it keeps what is there), and a summary moves once.
 */
static int
chunk_detail(struct view *v, uint64_t chunk)
{
	uint8_t expected = ALL_NEEDED;

	while (fallocate(v->fd, 0, (off_t)(v->states_at + chunk * PAGE), PAGE) <
	       0)
		if (errno != EINTR)
			return errno;
	(void)atomic_compare_exchange_strong(&v->summary[chunk], &expected,
					     (uint8_t)DETAIL);
	return 0;
}

bool
view_move(struct view *v, uint64_t g, enum view_state from, enum view_state to,
	  int *os)
{
	unsigned shift = shift_in_word(g);
	uint64_t old, new;

	*os = 0;
	if (chunk_state(v, g / CHUNK) == ALL_NEEDED) {
		if (from != VIEW_NEEDED)
			return false;
		*os = chunk_detail(v, g / CHUNK);
		if (*os)
			return false;
	}
	if (chunk_state(v, g / CHUNK) == ALL_DONE)
		return false;
	old = atomic_load(&v->states[g / PER_WORD]);
	do {
		if ((old >> shift & 3) != (uint64_t)from)
			return false;
		new = (old & ~(UINT64_C(3) << shift)) | (uint64_t)to << shift;
		PARK("view.move");
	} while (!atomic_compare_exchange_weak(&v->states[g / PER_WORD], &old,
					       new));
	return true;
}

/* One granule becomes DONE from whatever it is but SAVING; true when it was
 * SAVED.
 */
static bool
done_one(struct view *v, uint64_t g)
{
	int os;

	if (view_move(v, g, VIEW_NEEDED, VIEW_DONE, &os) || os)
		return false;
	return view_move(v, g, VIEW_SAVED, VIEW_DONE, &os);
}

/* All of a chunk at once, when nothing happened in it yet. */
static bool
done_chunk(struct view *v, uint64_t chunk)
{
	uint8_t expected = ALL_NEEDED;

	return atomic_compare_exchange_strong(&v->summary[chunk], &expected,
					      (uint8_t)ALL_DONE) ||
	       expected == ALL_DONE;
}

/* A run of granules that are DONE, from the first to the last that was
 * SAVED.
 */
struct hole {
	void (*make)(void *opaque, uint64_t g, uint64_t end);
	void *opaque;
	uint64_t start, end; /* none when equal */
};

static void
hole_finish(struct hole *h)
{
	if (h->start < h->end)
		h->make(h->opaque, h->start, h->end);
	h->start = h->end = 0;
}

static void
hole_add(struct hole *h, uint64_t g)
{
	if (h->start == h->end)
		h->start = g;
	h->end = g + 1;
}

void
view_done(struct view *v, uint64_t g, uint64_t end,
	  void (*hole)(void *opaque, uint64_t g, uint64_t end), void *opaque)
{
	uint64_t granules = div_up(v->size, view_granule(v));
	struct hole h = { .make = hole, .opaque = opaque };

	end = min_u64(end, granules);
	while (g < end) {
		uint64_t stop = min_u64(g + CHUNK, granules);

		if (g % CHUNK == 0 && stop <= end && done_chunk(v, g / CHUNK)) {
			hole_finish(&h);
			g = stop;
			continue;
		}
		if (done_one(v, g))
			hole_add(&h, g);
		else if (view_get(v, g) != VIEW_DONE)
			hole_finish(&h); /* it is being saved */
		g++;
	}
	hole_finish(&h);
}

/* The first granule in [g, end) for which "is SAVED" is not @saved. */
static uint64_t
run_in_chunk(const struct view *v, uint64_t g, uint64_t end, bool saved)
{
	if (chunk_state(v, g / CHUNK) != DETAIL)
		return saved ? g : end;
	while (g < end) {
		uint64_t w = atomic_load_explicit(&v->states[g / PER_WORD],
						  memory_order_acquire);

		/* 32 granules at once: none is SAVED (binary 10) */
		if (!saved && g % PER_WORD == 0 &&
		    !(w >> 1 & ~w & UINT64_C(0x5555555555555555))) {
			g += PER_WORD;
			continue;
		}
		if (((w >> shift_in_word(g) & 3) == VIEW_SAVED) != saved)
			return g;
		g++;
	}
	return end;
}

uint64_t
view_run(const struct view *v, uint64_t off, uint64_t len, bool *saved)
{
	uint64_t first = off >> v->shift;
	uint64_t end = ((off + len - 1) >> v->shift) + 1;
	uint64_t g = first + 1;

	*saved = view_get(v, first) == VIEW_SAVED;
	while (g < end) {
		uint64_t stop = min_u64(end, (g / CHUNK + 1) * CHUNK);
		uint64_t at = run_in_chunk(v, g, stop, *saved);

		g = at;
		if (at < stop)
			break;
	}
	return min_u64(len, (g << v->shift) - off);
}

/* A chunk without details is passed in one step. */
static uint64_t
next_by_done(const struct view *v, uint64_t off, uint64_t end, bool done)
{
	uint64_t g = off >> v->shift;

	while (g << v->shift < end) {
		enum summary s = chunk_state(v, g / CHUNK);

		if (s == DETAIL ? (view_get(v, g) == VIEW_DONE) == done
				: (s == ALL_DONE) == done)
			return max_u64(off, g << v->shift);
		g = s == DETAIL ? g + 1 : (g / CHUNK + 1) * CHUNK;
	}
	return end;
}

uint64_t
view_next_not_done(const struct view *v, uint64_t off, uint64_t end)
{
	return next_by_done(v, off, end, false);
}

uint64_t
view_next_done(const struct view *v, uint64_t off, uint64_t end)
{
	return next_by_done(v, off, end, true);
}

uint64_t
view_next_saved(const struct view *v, uint64_t off, uint64_t end)
{
	uint64_t g = off >> v->shift;
	uint64_t last = div_up(end, view_granule(v));

	while (g < last) {
		uint64_t stop = min_u64(last, (g / CHUNK + 1) * CHUNK);

		g = run_in_chunk(v, g, stop, false);
		if (g < stop)
			return max_u64(off, g << v->shift);
	}
	return end;
}

uint64_t
view_saves(const struct view *v)
{
	return atomic_load_explicit(&v->header->saves, memory_order_acquire);
}

void
view_count_save(struct view *v)
{
	atomic_fetch_add_explicit(&v->header->saves, 1, memory_order_release);
}

void
view_recover(struct view *v)
{
	uint64_t granules = div_up(v->size, view_granule(v));
	int os;

	for (uint64_t g = 0; g < granules; g++) {
		if (chunk_state(v, g / CHUNK) != DETAIL) {
			g = (g / CHUNK + 1) * CHUNK - 1;
			continue;
		}
		(void)view_move(v, g, VIEW_SAVING, VIEW_NEEDED, &os);
	}
}

void
view_break(struct view *v, int os)
{
	int32_t expected = 0;

	(void)atomic_compare_exchange_strong(&v->header->broken, &expected,
					     os ? os : EIO);
}

int
view_broken(const struct view *v)
{
	return atomic_load(&v->header->broken);
}

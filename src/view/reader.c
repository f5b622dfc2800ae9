/* SPDX-License-Identifier: BSD-3-Clause */
#include "view/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/park.h"

/* The store is as long as the disk, holes included. */
static int
store_read(int fd, char *p, size_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pread(fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		if (n == 0) { /* beyond the last thing that was saved */
			memset(p, 0, len);
			return 0;
		}
		p += n;
		len -= (size_t)n;
		off += (uint64_t)n;
	}
	return 0;
}

int
view_reader_pread(const struct view_reader *r, void *buf, size_t len,
		  uint64_t off)
{
	int os = block_pread(r->image, buf, len, off);
	char *p = buf;

	if (os || !r->view)
		return os;
	PARK("reader.after-image");
	/* Rule 3: the states are looked at after the image was read, and
	 * "broken" after the states (rule 6).
	 */
	atomic_thread_fence(memory_order_seq_cst);
	while (len) {
		bool saved;
		size_t n = (size_t)view_run(r->view, off, len, &saved);

		if (saved)
			os = store_read(r->store, p, n, off);
		if (os)
			return os;
		p += n;
		off += n;
		len -= n;
	}
	return view_broken(r->view);
}

/* What is saved is data whatever the image says now, so only holes of the
 * image have to be looked at granule by granule.  Looking for the end of an
 * extent keeps guests' writes out of some file systems (tmpfs searches under
 * the inode's lock), so it is not done for what is saved.
 */
int
view_reader_extent(const struct view_reader *r, uint64_t off, uint64_t len,
		   uint64_t *n, bool *zero)
{
	unsigned flags;
	bool saved = false;
	int os;

	*zero = false;
	if (r->view &&
	    view_get(r->view, off / view_granule(r->view)) == VIEW_SAVED)
		*n = view_run(r->view, off, len, &saved);
	if (saved)
		return view_broken(r->view);
	os = block_extent(r->image, off, len, n, &flags);
	if (os)
		return os;
	if (!r->view || !(flags & BLOCK_ZERO)) {
		*zero = flags & BLOCK_ZERO;
		return r->view ? view_broken(r->view) : 0;
	}
	PARK("reader.after-extent");
	atomic_thread_fence(memory_order_seq_cst);
	*n = view_run(r->view, off, *n, &saved);
	*zero = !saved;
	return view_broken(r->view);
}

/* As with data: the image is asked first, then the states decide. */
int
view_reader_layer(const struct view_reader *r, uint64_t off, uint64_t len,
		  uint64_t *n, bool *here)
{
	unsigned depth;
	bool saved = false;
	int os = block_depth(r->image, off, len, n, &depth);

	if (os)
		return os;
	*here = depth == 1;
	if (!r->view)
		return 0;
	PARK("reader.after-depth");
	atomic_thread_fence(memory_order_seq_cst);
	if (!*here)
		*n = view_run(r->view, off, *n, &saved);
	*here |= saved;
	return view_broken(r->view);
}

/* Guests that save to the store wait while a hole is made: make it in steps. */
#define PUNCH_STEP (4 * MiB)

static void
punch(void *opaque, uint64_t g, uint64_t end)
{
	const struct view_reader *r = opaque;
	uint64_t at = g * view_granule(r->view);
	uint64_t stop = end * view_granule(r->view);

	for (; at < stop; at += min_u64(stop - at, PUNCH_STEP))
		(void)fallocate(
			r->store, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)at, (off_t)min_u64(stop - at, PUNCH_STEP));
}

void
view_reader_done(const struct view_reader *r, uint64_t off, uint64_t len)
{
	uint64_t granule, end = off + len;

	if (!r->view)
		return;
	granule = view_granule(r->view);
	end = end >= view_size(r->view) ? div_up(end, granule) : end / granule;
	view_done(r->view, div_up(off, granule), end, punch, (void *)r);
}

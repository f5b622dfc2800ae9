/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The nbd driver: an image on an NBD server.  What travels is in nbd-io.c;
 * here requests are cut to what the server takes and its abilities are
 * filled in.
 *
 * Size: NBD knows no sectors, so a server's last sector may be incomplete.
 * What is missing reads as zeroes, and takes zeroes only.
 *
 * After a lost connection a write that was not answered is sent again, so it
 * may reach the server twice; a write that was answered but not flushed may
 * be lost with a server that crashed, which is what a guest must expect of
 * writes that it did not flush.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "block/block.h"
#include "block/nbd-io.h"

/* One request to zero, trim or describe; a multiple of all block sizes. */
#define MAX_RANGE (1 * GiB)

struct image {
	struct block block;
	struct remote_io *io; /* owned */
	struct remote_info info;
};

/* For servers that cannot zero.  Never written. */
static char zeroes[64 << 10];

static struct image *
to_image(struct block *b)
{
	return container_of(b, struct image, block);
}

/* Run @op for [off, off + len) in requests of at most @max bytes. */
static int
in_pieces(struct image *m, const struct remote_request *op, uint64_t max)
{
	char *buf = op->buf;
	uint64_t done = 0;
	int os = 0;

	while (done < op->len && os == 0) {
		struct remote_request rq = *op;

		rq.off = op->off + done;
		rq.len = min_u64(op->len - done, max);
		rq.buf = buf ? buf + done : NULL;
		os = remote_io_submit(m->io, &rq);
		done += rq.len;
	}
	return os;
}

/* How much of the range the server has. */
static uint64_t
inside(const struct image *m, uint64_t off, uint64_t len)
{
	if (off >= m->info.size)
		return 0;
	return min_u64(len, m->info.size - off);
}

/* A part of one of the server's blocks: [off, off + len). */
static int
read_part(struct image *m, void *buf, uint64_t len, uint64_t off)
{
	uint64_t start = round_down(off, m->info.min_block);
	uint64_t end = min_u64(start + m->info.min_block, m->info.size);
	AUTO(free) char *block = malloc((size_t)(end - start));
	struct remote_request rq = { .op = REMOTE_READ,
				     .buf = block,
				     .off = start,
				     .len = end - start };
	int os = block ? in_pieces(m, &rq, m->info.max_block) : ENOMEM;

	if (!os)
		memcpy(buf, block + (off - start), (size_t)len);
	return os;
}

/* Whoever reads a disk as a whole need not know the server's blocks. */
static int
image_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	struct image *m = to_image(b);
	uint64_t unit = m->info.min_block, n = inside(m, off, len), some;
	struct remote_request rq = { .op = REMOTE_READ };
	char *to = buf;
	int os = 0;

	memset(to + n, 0, len - n);
	for (; n && !os; to += some, off += some, n -= some) {
		if (off % unit || n < unit) {
			some = min_u64(n, unit - off % unit);
			os = read_part(m, to, some, off);
			continue;
		}
		rq.buf = to;
		rq.off = off;
		rq.len = some = round_down(n, unit);
		os = in_pieces(m, &rq, m->info.max_block);
	}
	return os;
}

static int
image_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	struct image *m = to_image(b);
	uint64_t n = inside(m, off, len);
	struct remote_request rq = {
		.op = REMOTE_WRITE, .buf = (void *)buf, .off = off, .len = n
	};

	if (n < len && !buf_is_zero((const char *)buf + n, len - n))
		return ENOSPC;
	return in_pieces(m, &rq, m->info.max_block);
}

static int
write_zeroes(struct image *m, uint64_t off, uint64_t len)
{
	uint64_t max = min_u64(sizeof zeroes, m->info.max_block);
	int os = 0;

	while (len && os == 0) {
		struct remote_request rq = { .op = REMOTE_WRITE,
					     .buf = zeroes,
					     .off = off,
					     .len = min_u64(len, max) };

		os = remote_io_submit(m->io, &rq);
		off += rq.len;
		len -= rq.len;
	}
	return os;
}

static int
image_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	struct image *m = to_image(b);
	struct remote_request rq = { .op = REMOTE_ZERO,
				     .off = off,
				     .len = inside(m, off, len) };
	int os;

	if (!(flags & BLOCK_ZERO_MAY_UNMAP))
		rq.flags |= LIBNBD_CMD_FLAG_NO_HOLE;
	if (flags & BLOCK_ZERO_FAST) {
		if (!m->info.can_zero || !m->info.can_fast_zero)
			return ENOTSUP;
		rq.flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
	}
	if (!m->info.can_zero)
		return write_zeroes(m, off, rq.len);
	os = in_pieces(m, &rq, MAX_RANGE);
	/* some servers limit this as they limit data */
	if (os == EINVAL && rq.len > m->info.max_block)
		os = in_pieces(m, &rq, m->info.max_block);
	return os;
}

static int
image_discard(struct block *b, uint64_t off, uint64_t len)
{
	struct image *m = to_image(b);
	struct remote_request rq = { .op = REMOTE_TRIM,
				     .off = off,
				     .len = inside(m, off, len) };

	return m->info.can_trim ? in_pieces(m, &rq, MAX_RANGE) : 0;
}

static int
image_flush(struct block *b)
{
	struct image *m = to_image(b);
	struct remote_request rq = { .op = REMOTE_FLUSH };

	return m->info.can_flush ? remote_io_submit(m->io, &rq) : 0;
}

static int
image_cache(struct block *b, uint64_t off, uint64_t len)
{
	struct image *m = to_image(b);
	struct remote_request rq = { .op = REMOTE_CACHE,
				     .off = off,
				     .len = inside(m, off, len) };

	return m->info.can_cache ? in_pieces(m, &rq, m->info.max_block) : 0;
}

/* The request is widened to the server's blocks, and the answer cut. */
static int
image_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	     unsigned *flags)
{
	struct image *m = to_image(b);
	uint64_t start = round_down(off, m->info.min_block);
	uint64_t want = inside(m, off, len), end;
	struct remote_request rq = { .op = REMOTE_STATUS, .off = start };
	int os;

	if (want == 0) { /* the rest of the last sector */
		*n = len;
		*flags = BLOCK_HOLE | BLOCK_ZERO;
		return 0;
	}
	*n = want;
	*flags = BLOCK_DATA;
	if (!m->info.has_allocation)
		return 0;
	end = min_u64(round_up(off + want, m->info.min_block), m->info.size);
	rq.len = min_u64(end - start, MAX_RANGE);
	os = remote_io_submit(m->io, &rq);
	/* a server that has nothing to say, or says too little */
	if (os || rq.run_len <= off - start)
		return os;
	*n = min_u64(want, rq.run_len - (off - start));
	*flags = rq.run_flags & (BLOCK_HOLE | BLOCK_ZERO);
	return 0;
}

static void
image_free(struct block *b)
{
	struct image *m = to_image(b);

	remote_io_free(m->io);
	free(m);
}

static const struct block_ops nbd_ops = {
	.name = "nbd",
	.free = image_free,
	.pread = image_pread,
	.pwrite = image_pwrite,
	.zero = image_zero,
	.discard = image_discard,
	.flush = image_flush,
	.extent = image_extent,
	.cache = image_cache,
};

static void
fill_in(struct image *m, const struct block_nbd_options *o)
{
	m->block = (struct block){
		.ops = &nbd_ops,
		.size = round_up(m->info.size, 512),
		.min_block = m->info.min_block,
		.pref_block =
			m->info.pref_block ? m->info.pref_block : 64 << 10,
		.read_only = o->read_only || m->info.read_only,
		.rotational = m->info.rotational,
		.coherent = m->info.can_multi_conn,
	};
}

void
block_nbd_set_reconnect_delay(struct block *b, unsigned seconds)
{
	remote_io_set_delay(to_image(b)->io, seconds);
}

bool
block_nbd_open(const struct block_nbd_options *o, struct block **out,
	       struct err *e)
{
	unsigned connections = (unsigned)min_u64(max_u64(o->connections, 1),
						 REMOTE_IO_CONNECTIONS);
	AUTO(remote_free) struct remote *r = NULL;
	AUTO(free) struct image *m = calloc(1, sizeof *m);
	struct nbd_handle *h;

	if (!m)
		return err_set(e, ERR_GENERIC, ENOMEM, "NBD image");
	if (!remote_new(o, &r, e) || !remote_connect(r, &h, e))
		return false;
	if (!remote_get_info(r, h, &m->info, e)) {
		nbd_close(h);
		return false;
	}
	if (m->info.read_only && !o->read_only) {
		nbd_close(h);
		return err_set(e, ERR_GENERIC, EACCES,
			       "The export of '%s' is read-only",
			       remote_address(r));
	}
	if (!remote_io_new(steal(&r), h, &m->info, connections,
			   o->reconnect_delay_s, &m->io, e))
		return false;
	fill_in(m, o);
	*out = &steal(&m)->block;
	return true;
}

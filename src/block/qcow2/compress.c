/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Compressed clusters: raw deflate with a window of 4 KiB, or one zstd frame,
 * as the header says ("Compressed Clusters Descriptor").  Compression runs in
 * the caller's thread without any lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

#define WINDOW_BITS (-12) /* raw deflate, 4 KiB */

/* --- packing ---------------------------------------------------------------------- */

/* The number of bytes in @to, 0 when they are not fewer than @len. */
static size_t
deflate_cluster(const void *from, size_t len, void *to)
{
	z_stream z = { .next_in = (void *)(uintptr_t)from,
		       .avail_in = (uInt)len,
		       .next_out = to,
		       .avail_out = (uInt)len - 1 };
	size_t n = 0;

	if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, 9,
			 Z_DEFAULT_STRATEGY) != Z_OK)
		return 0;
	if (deflate(&z, Z_FINISH) == Z_STREAM_END)
		n = len - 1 - z.avail_out;
	(void)deflateEnd(&z);
	return n;
}

static size_t
zstd_cluster(const void *from, size_t len, void *to)
{
	size_t n = ZSTD_compress(to, len - 1, from, len, ZSTD_CLEVEL_DEFAULT);

	return ZSTD_isError(n) ? 0 : n;
}

/* --- unpacking ---------------------------------------------------------------------- */

static bool
inflate_cluster(const void *from, size_t n, void *to, size_t len)
{
	z_stream z = { .next_in = (void *)(uintptr_t)from,
		       .avail_in = (uInt)n,
		       .next_out = to,
		       .avail_out = (uInt)len };
	int r;

	if (inflateInit2(&z, WINDOW_BITS) != Z_OK)
		return false;
	/* what follows in the last sector is not ours: it may look as if the
	 * stream went on, but the cluster is complete
	 */
	r = inflate(&z, Z_FINISH);
	(void)inflateEnd(&z);
	return z.avail_out == 0 && (r == Z_STREAM_END || r == Z_BUF_ERROR);
}

static bool
unzstd_cluster(const void *from, size_t n, void *to, size_t len)
{
	ZSTD_inBuffer in = { .src = from, .size = n };
	ZSTD_outBuffer out = { .dst = to, .size = len };
	ZSTD_DCtx *d = ZSTD_createDCtx();
	size_t r = 1;

	if (!d)
		return false;
	while (out.pos < out.size) {
		size_t was = out.pos + in.pos;

		r = ZSTD_decompressStream(d, &out, &in);
		if (ZSTD_isError(r) || out.pos + in.pos == was)
			break;
	}
	(void)ZSTD_freeDCtx(d);
	return !ZSTD_isError(r) && out.pos == out.size;
}

int
qcow2_unpack(struct qcow2 *q, uint64_t entry, void *to)
{
	AUTO(free) uint8_t *packed = NULL;
	uint64_t off, bytes;
	bool good;
	int r;

	qcow2_compressed_place(&q->g, entry, &off, &bytes);
	packed = malloc((size_t)bytes);
	if (!packed)
		return ENOMEM;
	r = qcow2_child_read(q->file, packed, (size_t)bytes, off);
	PARK("qcow2.packed-read");
	if (r)
		return r;
	if (q->h.compression == QCOW2_ZSTD)
		good = unzstd_cluster(packed, (size_t)bytes, to,
				      q->g.cluster_size);
	else
		good = inflate_cluster(packed, (size_t)bytes, to,
				       q->g.cluster_size);
	return good ? 0 : EIO;
}

/* --- writing -------------------------------------------------------------------------- */

/* Map @cluster to the @n packed bytes; the span is locked. */
static int
store(struct qcow2 *q, uint64_t cluster, const uint8_t *packed, size_t n)
{
	struct qcow2_entry old, x = { 0 };
	uint64_t off;
	uint32_t got;
	bool own;
	int r = qcow2_map_own(q, cluster);

	if (!r)
		r = qcow2_map_get(q, cluster, 1, &old, &got, &own);
	if (!r)
		r = qcow2_alloc_bytes(q, n, &off);
	if (r)
		return r;
	x.e = qcow2_compressed_entry(&q->g, off, n);
	if (!x.e)
		return EFBIG; /* a leak, in a file that is too large anyway */
	r = qcow2_meta_write(q, packed, n, off);
	PARK("qcow2.packed-written");
	qcow2_unpacked_forget(q, off, n);
	if (!r)
		r = qcow2_map_set(q, cluster, 1, &x);
	if (!r && old.e)
		qcow2_give_up_entry(q, old.e);
	return r;
}

static int
write_cluster(struct qcow2 *q, const uint8_t *from, uint8_t *packed,
	      uint64_t off)
{
	size_t len = q->g.cluster_size;
	size_t n = q->h.compression == QCOW2_ZSTD
			   ? zstd_cluster(from, len, packed)
			   : deflate_cluster(from, len, packed);
	struct qcow2_span s;
	int r;

	(void)qcow2_span_lock(q, off, len, true, &s);
	if (n && n <= q->g.cluster_size - q->file->min_block)
		r = store(q, off >> q->g.cluster_bits, packed, n);
	else
		r = qcow2_write_span(q, from, min_u64(len, q->block.size - off),
				     off);
	qcow2_span_unlock(q, &s);
	return r;
}

/* Whole clusters; the disk's last one may be short. */
int
qcow2_compress(struct block *b, const void *buf, size_t len, uint64_t off)
{
	struct qcow2 *q = to_qcow2(b);
	size_t cluster = q->g.cluster_size;
	AUTO(free) uint8_t *packed = malloc(2 * cluster);
	const uint8_t *from = buf;
	int r = qcow2_may_write(q);

	if (r)
		return r;
	if (q->external)
		return ENOTSUP;
	if (off % cluster || (len % cluster && off + len != b->size))
		return EINVAL;
	if (!packed)
		return ENOMEM;
	while (len && !r) {
		size_t n = len < cluster ? len : cluster;
		const uint8_t *whole = from;

		if (n < cluster) {
			memcpy(packed + cluster, from, n);
			memset(packed + cluster + n, 0, cluster - n);
			whole = packed + cluster;
		}
		r = write_cluster(q, whole, packed, off);
		from += n;
		off += n;
		len -= n;
	}
	return r ? r : qcow2_held_relieve(q);
}

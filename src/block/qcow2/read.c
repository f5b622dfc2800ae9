/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading, flushing, and what is where.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

/* Part of a compressed cluster. */
static int
read_packed(struct qcow2 *q, uint64_t entry, void *to, uint64_t off,
	    uint64_t len)
{
	struct qcow2_part p = { .to = to,
				.skip = (size_t)(off & (q->g.cluster_size - 1)),
				.len = (size_t)len };

	return qcow2_unpacked_read(q, entry, &p);
}

static int
read_piece(struct qcow2 *q, const struct qcow2_piece *p, uint8_t *to,
	   uint64_t off)
{
	switch (p->kind) {
	case QCOW2_KIND_DATA:
		return qcow2_child_read(q->data, to, (size_t)p->len, p->host);
	case QCOW2_KIND_PACKED:
		return read_packed(q, p->entry, to, off, p->len);
	case QCOW2_KIND_NONE:
		if (q->backing)
			return qcow2_child_read(q->backing, to, (size_t)p->len,
						off);
		break;
	case QCOW2_KIND_ZERO:
	case QCOW2_KIND_ZERO_ALLOC: break;
	}
	memset(to, 0, (size_t)p->len);
	return 0;
}

int
qcow2_read_span(struct qcow2 *q, void *buf, uint64_t len, uint64_t off)
{
	uint8_t *to = buf;

	while (len) {
		struct qcow2_piece p;
		int r = qcow2_map_piece(q, off, len, &p);

		PARK("qcow2.mapped");
		if (!r)
			r = read_piece(q, &p, to, off);
		if (r)
			return r;
		to += p.len;
		off += p.len;
		len -= p.len;
	}
	return 0;
}

int
qcow2_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	struct qcow2 *q = to_qcow2(b);
	uint8_t *to = buf;
	int r = 0;

	while (len && !r) {
		struct qcow2_span s;
		uint64_t n = qcow2_span_lock(q, off, len, false, &s);

		r = qcow2_read_span(q, to, n, off);
		qcow2_span_unlock(q, &s);
		to += n;
		off += n;
		len -= (size_t)n;
	}
	return r;
}

int
qcow2_flush(struct block *b)
{
	struct qcow2 *q = to_qcow2(b);
	int r;

	if (q->block.read_only)
		return 0;
	r = qcow2_barrier(q);
	return r ? r : qcow2_held_free(q);
}

/* --- what is where ------------------------------------------------------------------ */

/* What is where is true for an instant only, so the lock of the first unit,
 * which keeps the layout as it is, will do: runs may be long.
 */
static int
piece_at(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_piece *p)
{
	struct qcow2_span s;
	int r;

	(void)qcow2_span_lock(q, off, 1, false, &s);
	r = qcow2_map_piece(q, off, len, p);
	qcow2_span_unlock(q, &s);
	return r;
}

/* Data, and what the file below has there. */
static int
extent_of_data(struct qcow2 *q, const struct qcow2_piece *p, uint64_t *n,
	       unsigned *flags)
{
	uint64_t size = block_size_now(q->data);

	*flags = BLOCK_DATA;
	*n = p->len;
	if (p->kind == QCOW2_KIND_PACKED || p->host >= size)
		return 0;
	return block_extent(q->data, p->host, min_u64(p->len, size - p->host),
			    n, flags);
}

int
qcow2_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	     unsigned *flags)
{
	struct qcow2 *q = to_qcow2(b);
	struct qcow2_piece p;
	int r = piece_at(q, off, len, &p);

	if (r)
		return r;
	*n = p.len;
	switch (p.kind) {
	case QCOW2_KIND_DATA:
	case QCOW2_KIND_PACKED: return extent_of_data(q, &p, n, flags);
	case QCOW2_KIND_NONE:
		if (q->backing && off < q->backing->size)
			return block_extent(
				q->backing, off,
				min_u64(p.len, q->backing->size - off), n,
				flags);
		break;
	case QCOW2_KIND_ZERO:
	case QCOW2_KIND_ZERO_ALLOC: break;
	}
	*flags = BLOCK_HOLE | BLOCK_ZERO;
	return 0;
}

int
qcow2_depth(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	    unsigned *depth)
{
	struct qcow2 *q = to_qcow2(b);
	struct qcow2_piece p;
	int r = piece_at(q, off, len, &p);

	if (r)
		return r;
	*n = p.len;
	*depth = p.kind == QCOW2_KIND_NONE ? 0 : 1;
	if (*depth || !q->backing || off >= q->backing->size)
		return 0;
	r = block_depth(q->backing, off, min_u64(p.len, q->backing->size - off),
			n, depth);
	if (!r && *depth)
		++*depth;
	return r;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Zeroes and discards: whole clusters (subclusters, for zeroes) are a matter
 * of entries, the rest is written.
 *
 * What they leave in an entry is what QEMU leaves there.  Zeroes are said even
 * where nothing is below: an increment that was written without its backing
 * file gets it by "qemu-img rebase -u", and what was zero must not show that
 * file's data then.  Zeroes without permission to unmap keep the host cluster;
 * a discard of version 3 leaves zeroes, so that neither old data nor a backing
 * file shine through; version 2, which has no zero clusters, writes zeroes and
 * discards only where nothing can.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/qcow2/qcow2-priv.h"

#define ALL_ZERO (UINT64_C(0xffffffff) << QCOW2_SUBCLUSTERS)

static const struct qcow2_entry nothing;

/* Would everything from @off on read as zeroes without an entry?  Also when the
 * image is opened with the backing file that it names.
 */
static bool
nothing_below(const struct qcow2 *q, uint64_t off)
{
	return q->backing ? off >= q->backing->size : !q->h.has_backing;
}

static struct qcow2_entry
zero_without_host(const struct qcow2 *q)
{
	if (q->g.extended)
		return (struct qcow2_entry){ .bits = ALL_ZERO };
	return (struct qcow2_entry){ .e = QCOW2_ZERO };
}

/* What @x becomes; false: entries cannot do it (version 2). */
static bool
zeroed(const struct qcow2 *q, struct qcow2_entry x, bool unmap,
       struct qcow2_entry *to)
{
	enum qcow2_kind k = qcow2_entry_kind(q, x);

	*to = x;
	if (!q->v3)
		return false;
	if (k == QCOW2_KIND_ZERO)
		return true;
	if (k == QCOW2_KIND_NONE || k == QCOW2_KIND_PACKED || unmap)
		*to = zero_without_host(q);
	else if (q->g.extended)
		to->bits = ALL_ZERO;
	else
		to->e |= QCOW2_ZERO;
	return true;
}

static struct qcow2_entry
discarded(const struct qcow2 *q, struct qcow2_entry x, uint64_t off)
{
	enum qcow2_kind k = qcow2_entry_kind(q, x);
	bool below = !nothing_below(q, off);

	if (k == QCOW2_KIND_ZERO || (k == QCOW2_KIND_NONE && !x.bits && !below))
		return x;
	if (!q->v3)
		return below ? x : nothing;
	return zero_without_host(q);
}

static bool
differ(struct qcow2_entry a, struct qcow2_entry b)
{
	return a.e != b.e || a.bits != b.bits;
}

/* Replace @n entries from @cluster on. */
static int
replace(struct qcow2 *q, uint64_t cluster, uint32_t n,
	const struct qcow2_entry *old, const struct qcow2_entry *now)
{
	bool any = false;
	int r;

	for (uint32_t i = 0; i < n; i++)
		any |= differ(old[i], now[i]);
	if (!any)
		return 0;
	r = qcow2_map_own(q, cluster);
	if (!r)
		r = qcow2_map_set(q, cluster, n, now);
	for (uint32_t i = 0; i < n && !r; i++)
		if (old[i].e && (old[i].e ^ now[i].e) & ~QCOW2_ZERO)
			qcow2_give_up_entry(q, old[i].e);
	return r;
}

/* --- zeroes ------------------------------------------------------------------------ */

struct job {
	uint64_t off, len;
	unsigned flags;
	bool discard;
};

/* Zeroes as data, within one cluster. */
static int
write_zeroes(struct qcow2 *q, uint64_t off, uint64_t len, unsigned flags)
{
	AUTO(free) uint8_t *zeroes = NULL;

	if (flags & BLOCK_ZERO_FAST)
		return ENOTSUP;
	zeroes = calloc(1, (size_t)len);
	return zeroes ? qcow2_write_span(q, zeroes, len, off) : ENOMEM;
}

/* Nothing shows from the start of the unit (subcluster, or cluster) at @off on,
 * so that a mark for all of it hides nothing: a backing file may well end inside
 * of a unit.
 */
static bool
unit_shows_nothing(const struct qcow2 *q, uint64_t off)
{
	return nothing_below(
		q, round_down(off, UINT64_C(1) << q->g.subcluster_bits));
}

/* The entry @x of a cluster, with zeroes in all units that [off, off + len)
 * touches.
 */
static int
set_zero_units(struct qcow2 *q, uint64_t off, uint64_t len,
	       struct qcow2_entry x)
{
	uint64_t cluster = off >> q->g.cluster_bits;
	uint64_t skip = off & (q->g.cluster_size - 1);
	unsigned first = (unsigned)(skip >> q->g.subcluster_bits);
	uint64_t end =
		round_up(skip + len, UINT64_C(1) << q->g.subcluster_bits);
	unsigned n = (unsigned)(end >> q->g.subcluster_bits) - first;
	uint64_t mask = ((UINT64_C(1) << n) - 1) << first;
	struct qcow2_entry now = zero_without_host(q);

	if (q->g.extended) {
		now = x;
		now.bits &= ~mask;
		now.bits |= mask << QCOW2_SUBCLUSTERS;
	}
	return replace(q, cluster, 1, &x, &now);
}

/* Part of a cluster that entries cannot describe. */
static int
zero_bytes(struct qcow2 *q, const struct job *j)
{
	uint64_t off = j->off, len = j->len;
	struct qcow2_entry x;
	uint32_t got;
	bool own;

	while (len) {
		struct qcow2_piece p;
		int r = qcow2_map_piece(q, off, len, &p);

		if (!r)
			r = qcow2_map_get(q, off >> q->g.cluster_bits, 1, &x,
					  &got, &own);
		if (r)
			return r;
		if (p.kind == QCOW2_KIND_ZERO)
			r = 0;
		else if (p.kind == QCOW2_KIND_NONE && q->v3 &&
			 unit_shows_nothing(q, off))
			r = set_zero_units(q, off, p.len, x);
		else if (p.kind == QCOW2_KIND_DATA && own &&
			 (q->external || x.e & QCOW2_COPIED) &&
			 !qcow2_is_claimed(q, p.host, p.len))
			r = block_zero(q->data, p.host, p.len, j->flags);
		else
			r = write_zeroes(q, off, p.len, j->flags);
		if (r)
			return r;
		off += p.len;
		len -= p.len;
	}
	return 0;
}

/* Whole subclusters of one cluster: [off, off + len). */
static int
zero_subclusters(struct qcow2 *q, const struct job *j)
{
	uint64_t cluster = j->off >> q->g.cluster_bits;
	struct qcow2_entry x;
	uint32_t got;
	bool own;
	int r = qcow2_map_get(q, cluster, 1, &x, &got, &own);

	if (r)
		return r;
	if (qcow2_entry_kind(q, x) == QCOW2_KIND_PACKED)
		return zero_bytes(q, j);
	return set_zero_units(q, j->off, j->len, x);
}

/* A part of one cluster: bytes, subclusters, bytes. */
static int
zero_part(struct qcow2 *q, const struct job *j)
{
	uint64_t sub = UINT64_C(1) << q->g.subcluster_bits;
	uint64_t end = j->off + j->len;
	uint64_t a = round_up(j->off, sub), z = round_down(end, sub);
	struct job part = *j;
	int r = 0;

	if (!q->g.extended || a >= z)
		return zero_bytes(q, j);
	part.len = a - j->off;
	r = zero_bytes(q, &part);
	part.off = a;
	part.len = z - a;
	if (!r)
		r = zero_subclusters(q, &part);
	part.off = z;
	part.len = end - z;
	return r ? r : zero_bytes(q, &part);
}

/* --- whole clusters -------------------------------------------------------------------- */

/* As many clusters of @j as one batch has; *done bytes. */
static int
whole_batch(struct qcow2 *q, const struct job *j, uint64_t *done)
{
	uint64_t first = j->off >> q->g.cluster_bits;
	uint64_t n = div_up(j->len, q->g.cluster_size);
	struct qcow2_entry x[QCOW2_BATCH], now[QCOW2_BATCH];
	bool own, unmap = j->flags & BLOCK_ZERO_MAY_UNMAP;
	uint32_t got, i;
	int r = qcow2_map_get(q, first, (uint32_t)min_u64(n, QCOW2_BATCH), x,
			      &got, &own);

	if (r)
		return r;
	for (i = 0; i < got; i++) {
		uint64_t off = (first + i) << q->g.cluster_bits;

		if (j->discard)
			now[i] = discarded(q, x[i], off);
		else if (!zeroed(q, x[i], unmap, &now[i]))
			break;
	}
	*done = min_u64((uint64_t)i << q->g.cluster_bits, j->len);
	if (i)
		return replace(q, first, i, x, now);
	*done = min_u64(q->g.cluster_size, j->len);
	return zero_bytes(q, &(struct job){ .off = j->off,
					    .len = *done,
					    .flags = j->flags });
}

/* Must the data file be readable alone? */
static bool
is_raw(const struct qcow2 *q)
{
	return q->external && q->h.autoclear & QCOW2_AUTO_RAW_DATA;
}

/* How much of @j an external data file has. */
static uint64_t
in_data_file(const struct qcow2 *q, const struct job *j)
{
	return j->off < q->data->size ? min_u64(j->len, q->data->size - j->off)
				      : 0;
}

/* Such a file has the zeroes before an entry says so, and where guests discard
 * as well.  ENOTSUP: it cannot do that, as fast as asked for.
 */
static int
zero_raw_data(struct qcow2 *q, const struct job *j)
{
	uint64_t len = is_raw(q) ? in_data_file(q, j) : 0;
	unsigned flags = j->flags;

	if (j->discard)
		flags = BLOCK_ZERO_FAST | BLOCK_ZERO_MAY_UNMAP;
	return len ? block_zero(q->data, j->off, len, flags) : 0;
}

/* Another external data file need not keep what no entry shows any more. */
static int
discard_data(struct qcow2 *q, const struct job *j)
{
	bool may = j->discard || j->flags & BLOCK_ZERO_MAY_UNMAP;
	uint64_t len =
		q->external && !is_raw(q) && may ? in_data_file(q, j) : 0;

	return len ? block_discard(q->data, j->off, len) : 0;
}

/* The body of a step: whole clusters, the disk's last one perhaps short. */
static int
whole(struct qcow2 *q, struct job j)
{
	int r = 0;

	while (j.len && !r) {
		uint64_t done = 0;
		struct job part = j;

		r = whole_batch(q, &j, &done);
		part.len = done;
		if (!r)
			r = discard_data(q, &part);
		j.off += done;
		j.len -= done;
	}
	return r;
}

/* Whole clusters, and nothing at all where that is not possible. */
static int
discard_step(struct qcow2 *q, const struct job *body)
{
	int r = zero_raw_data(q, body);

	if (r)
		return r == ENOTSUP ? 0 : r;
	return whole(q, *body);
}

static int
step(struct qcow2 *q, const struct job *j)
{
	uint64_t unit = q->g.cluster_size, end = j->off + j->len;
	uint64_t a = round_up(j->off, unit);
	uint64_t z = end == q->block.size ? end : round_down(end, unit);
	struct job head = *j, body = *j, tail = *j;
	int r;

	head.len = a - j->off;
	body.off = a;
	body.len = z - a;
	tail.off = z;
	tail.len = end - z;
	if (j->discard)
		return a < z ? discard_step(q, &body) : 0;
	r = zero_raw_data(q, j);
	if (r)
		return r;
	if (a > z)
		return zero_part(q, j);
	if (head.len)
		r = zero_part(q, &head);
	if (!r && body.len)
		r = whole(q, body);
	if (!r && tail.len)
		r = zero_part(q, &tail);
	return r;
}

static int
run_job(struct block *b, struct job *j)
{
	struct qcow2 *q = to_qcow2(b);
	uint64_t left = j->len;
	int r = qcow2_may_write(q);

	while (left && !r) {
		struct qcow2_span s;

		j->len = qcow2_span_lock(q, j->off, left, true, &s);
		r = step(q, j);
		qcow2_span_unlock(q, &s);
		j->off += j->len;
		left -= j->len;
	}
	if (!r)
		r = qcow2_held_relieve(q);
	return r;
}

int
qcow2_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	struct job j = { .off = off, .len = len, .flags = flags };

	return run_job(b, &j);
}

int
qcow2_discard(struct block *b, uint64_t off, uint64_t len)
{
	struct job j = { .off = off, .len = len, .discard = true };

	return run_job(b, &j);
}

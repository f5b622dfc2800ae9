/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Writing.  A request whose clusters are all ours writes to them under shared
 * locks; the first cluster that needs a new mapping sends what is left of the
 * step through the same loop with the locks held alone.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

/* What is written, and where the next byte goes. */
struct todo {
	const uint8_t *buf;
	uint64_t off, len;
};

static void
advance(struct todo *t, uint64_t n)
{
	t->buf += n;
	t->off += n;
	t->len -= n;
}

static uint64_t
cluster_of(const struct qcow2 *q, uint64_t off)
{
	return off >> q->g.cluster_bits;
}

/* The subclusters that [from, to) of one cluster touches, as bits. */
static uint64_t
touched(const struct qcow2 *q, uint64_t from, uint64_t to)
{
	unsigned first = (unsigned)(from >> q->g.subcluster_bits);
	unsigned last = (unsigned)((to - 1) >> q->g.subcluster_bits);

	return (UINT64_C(2) << last) - (UINT64_C(1) << first);
}

/* Is the host cluster of @x ours alone? */
static bool
is_ours(const struct qcow2 *q, struct qcow2_entry x)
{
	return q->external || x.e & QCOW2_COPIED;
}

/* Can [from, to) of the cluster be written where it is? */
static bool
in_place(const struct qcow2 *q, struct qcow2_entry x, uint64_t from,
	 uint64_t to)
{
	uint64_t need;

	if (qcow2_entry_kind(q, x) != QCOW2_KIND_DATA || !is_ours(q, x))
		return false;
	if (!q->g.extended)
		return true;
	need = touched(q, from, to);
	return (x.bits & need) == need;
}

/* The part of [off, off + len) in the cluster of @off: its bounds there. */
static void
bounds(const struct qcow2 *q, uint64_t off, uint64_t len, uint64_t *from,
       uint64_t *to)
{
	*from = off & (q->g.cluster_size - 1);
	*to = min_u64(*from + len, q->g.cluster_size);
}

/* Rule 8. */
static int
may_land(struct qcow2 *q, uint64_t host, uint64_t len)
{
	if (q->external)
		return 0;
	if (host + len >
	    round_up(atomic_load_explicit(&q->file_end, memory_order_relaxed),
		     q->g.cluster_size))
		return qcow2_corrupt(q, "data behind the end of the file",
				     host);
	if (qcow2_is_claimed(q, host, len))
		return qcow2_corrupt(q, "a write would hit metadata", host);
	return 0;
}

/* How much of @t from @x[0] on is ours and contiguous in the file. */
static uint64_t
run_in_place(const struct qcow2 *q, const struct qcow2_entry *x, uint32_t n,
	     const struct todo *t)
{
	uint64_t host = qcow2_entry_host(x[0]), done = 0;

	for (uint32_t i = 0; i < n && done < t->len; i++) {
		uint64_t from, to;

		bounds(q, t->off + done, t->len - done, &from, &to);
		if (!in_place(q, x[i], from, to) ||
		    qcow2_entry_host(x[i]) !=
			    host + ((uint64_t)i << q->g.cluster_bits))
			break;
		done += to - from;
	}
	return done;
}

/* Write what can be written in place at the beginning of @t; *done is 0 when
 * that is nothing.
 */
static int
write_in_place(struct qcow2 *q, const struct qcow2_entry *x, uint32_t n,
	       const struct todo *t, uint64_t *done)
{
	uint64_t host =
		qcow2_entry_host(x[0]) + (t->off & (q->g.cluster_size - 1));
	int r;

	*done = run_in_place(q, x, n, t);
	if (!*done)
		return 0;
	r = may_land(q, host, *done);
	PARK("qcow2.in-place");
	return r ? r : block_pwrite(q->data, t->buf, (size_t)*done, host);
}

/* --- new mappings --------------------------------------------------------------------- */

/* Clusters that get a mapping: [off, off + len) is written to @n of them,
 * [lo, hi) will be mapped, and what of it is not written is preserved.
 */
struct fill {
	const struct qcow2_entry *old;
	uint64_t cluster; /* the first guest cluster */
	uint32_t n;
	struct qcow2_run run; /* the host clusters */
	bool moved; /* the run is not where @old is */
	uint64_t off, len; /* bytes of the disk that are written */
	uint64_t lo, hi;
	bool barrier; /* rule 4 */
};

/* A piece to preserve, in memory; NULL: it is zeroes and the file has them. */
struct rest {
	uint64_t off, len;
	uint8_t *buf; /* owned */
};

static bool
known_zero(struct qcow2 *q, uint64_t off, uint64_t len)
{
	struct qcow2_piece p;

	return qcow2_map_piece(q, off, len, &p) == 0 && p.len == len &&
	       (p.kind == QCOW2_KIND_ZERO ||
		(p.kind == QCOW2_KIND_NONE &&
		 (!q->backing || off >= q->backing->size)));
}

static int
preserve(struct qcow2 *q, struct fill *f, struct rest *rest)
{
	int r = 0;

	if (!rest->len || (f->run.fresh && known_zero(q, rest->off, rest->len)))
		return 0;
	rest->buf = malloc((size_t)rest->len);
	if (!rest->buf)
		return ENOMEM;
	r = qcow2_read_span(q, rest->buf, rest->len, rest->off);
	if (!r && f->run.fresh && buf_is_zero(rest->buf, (size_t)rest->len)) {
		free(rest->buf);
		rest->buf = NULL;
	} else {
		f->barrier = true;
	}
	return r;
}

static uint64_t
host_of(const struct qcow2 *q, const struct fill *f, uint64_t off)
{
	return (f->run.first << q->g.cluster_bits) +
	       (off - (f->cluster << q->g.cluster_bits));
}

static int
write_rest(struct qcow2 *q, const struct fill *f, const struct rest *rest)
{
	if (!rest->buf)
		return 0;
	return block_pwrite(q->data, rest->buf, (size_t)rest->len,
			    host_of(q, f, rest->off));
}

/* One cluster of which both sides are preserved: one write instead of three. */
static int
write_joined(struct qcow2 *q, const struct fill *f, const uint8_t *buf,
	     const struct rest *head, const struct rest *tail)
{
	size_t len = (size_t)(f->hi - f->lo);
	AUTO(free) uint8_t *all = malloc(len);

	if (!all)
		return ENOMEM;
	if (head->len)
		memcpy(all, head->buf, (size_t)head->len);
	memcpy(all + head->len, buf, (size_t)f->len);
	if (tail->len)
		memcpy(all + head->len + f->len, tail->buf, (size_t)tail->len);
	return block_pwrite(q->data, all, len, host_of(q, f, f->lo));
}

static int
write_parts(struct qcow2 *q, struct fill *f, const uint8_t *buf,
	    struct rest *head, struct rest *tail)
{
	int r = preserve(q, f, head);

	if (!r)
		r = preserve(q, f, tail);
	if (r)
		return r;
	if (f->n == 1 && (head->buf || tail->buf) && !head->len == !head->buf &&
	    !tail->len == !tail->buf)
		return write_joined(q, f, buf, head, tail);
	r = write_rest(q, f, head);
	if (!r)
		r = block_pwrite(q->data, buf, (size_t)f->len,
				 host_of(q, f, f->off));
	return r ? r : write_rest(q, f, tail);
}

static int
write_data(struct qcow2 *q, struct fill *f, const uint8_t *buf)
{
	struct rest head = { .off = f->lo, .len = f->off - f->lo };
	struct rest tail = { .off = f->off + f->len,
			     .len = f->hi - f->off - f->len };
	int r = write_parts(q, f, buf, &head, &tail);

	free(head.buf);
	free(tail.buf);
	PARK("qcow2.data-written");
	if (!r && f->barrier)
		r = qcow2_barrier(q);
	return r;
}

/* What the cluster's bits must cover besides what is written: subclusters
 * that lie in a host cluster which is left behind.
 */
static void
find_bounds(const struct qcow2 *q, struct fill *f)
{
	uint64_t sub = UINT64_C(1) << q->g.subcluster_bits;
	uint64_t start = f->cluster << q->g.cluster_bits;
	uint64_t end = (f->cluster + f->n) << q->g.cluster_bits;
	struct qcow2_entry a = f->old[0], z = f->old[f->n - 1];

	f->lo = round_down(f->off, sub);
	f->hi = round_up(f->off + f->len, sub);
	if (!f->moved) {
		/* what is there already is as it should be */
		if (q->g.extended &&
		    a.bits >> ((f->lo - start) >> q->g.subcluster_bits) & 1)
			f->lo = f->off;
		if (q->g.extended &&
		    z.bits >> ((f->hi - 1 - start) >> q->g.subcluster_bits) & 1)
			f->hi = f->off + f->len;
		return;
	}
	if (qcow2_entry_kind(q, a) == QCOW2_KIND_PACKED)
		f->lo = start;
	else if (a.bits & UINT32_MAX)
		f->lo = min_u64(
			f->lo, start + sub * (uint64_t)__builtin_ctzll(a.bits));
	if (qcow2_entry_kind(q, z) == QCOW2_KIND_PACKED) {
		f->hi = end;
	} else if (z.bits & UINT32_MAX) {
		unsigned last = 31 - (unsigned)__builtin_clz((uint32_t)z.bits);

		f->hi = max_u64(f->hi,
				end - q->g.cluster_size + sub * (last + 1));
	}
}

static void
make_entries(const struct qcow2 *q, const struct fill *f, struct qcow2_entry *x)
{
	for (uint32_t i = 0; i < f->n; i++) {
		uint64_t start = (f->cluster + i) << q->g.cluster_bits;
		uint64_t from = max_u64(f->lo, start) - start;
		uint64_t to = min_u64(f->hi, start + q->g.cluster_size) - start;
		uint64_t bits = touched(q, from, to);

		x[i].e = (f->run.first + i) << q->g.cluster_bits | QCOW2_COPIED;
		x[i].bits = 0;
		if (!q->g.extended)
			continue;
		if (!(f->old[i].e & QCOW2_COMPRESSED))
			x[i].bits = f->old[i].bits;
		x[i].bits |= bits;
		x[i].bits &= ~(bits << QCOW2_SUBCLUSTERS);
	}
}

/* Rule 3: data, then mapping. */
static int
fill(struct qcow2 *q, struct fill *f, const uint8_t *buf)
{
	struct qcow2_entry x[QCOW2_BATCH];
	int r;

	find_bounds(q, f);
	r = write_data(q, f, buf);
	if (r) {
		f->run.fresh = false;
		if (f->moved && !q->external)
			qcow2_alloc_return(q, &f->run);
		return r;
	}
	make_entries(q, f, x);
	r = qcow2_map_set(q, f->cluster, f->n, x);
	if (r)
		return r; /* perhaps they are mapped: not to be used again */
	for (uint32_t i = 0; i < f->n && f->moved; i++)
		if (f->old[i].e)
			qcow2_give_up_entry(q, f->old[i].e);
	return 0;
}

/* A host cluster is there and ours, but not (all) mapped as data. */
static bool
can_reuse(const struct qcow2 *q, struct qcow2_entry x)
{
	enum qcow2_kind k = qcow2_entry_kind(q, x);

	return (k == QCOW2_KIND_DATA || k == QCOW2_KIND_ZERO_ALLOC) &&
	       is_ours(q, x);
}

static int
get_clusters(struct qcow2 *q, struct fill *f)
{
	if (!q->external) {
		int r = qcow2_alloc(q, f->n, &f->run);

		f->n = (uint32_t)f->run.n;
		return r;
	}
	/* guest and host offsets are the same, and nothing is counted */
	f->run = (struct qcow2_run){ .first = f->cluster, .n = f->n };
	return 0;
}

static int
map_and_write(struct qcow2 *q, const struct qcow2_entry *x, uint32_t n,
	      const struct todo *t, uint64_t *done)
{
	struct fill f = { .old = x, .off = t->off, .n = 1 };
	uint64_t end;
	int r;

	f.cluster = cluster_of(q, t->off);
	f.moved = !can_reuse(q, x[0]);
	if (f.moved) {
		while (f.n < n && !can_reuse(q, x[f.n]))
			f.n++;
		r = get_clusters(q, &f);
	} else {
		f.run.first = cluster_of(q, qcow2_entry_host(x[0]));
		f.run.n = 1;
		r = may_land(q, qcow2_entry_host(x[0]), q->g.cluster_size);
	}
	if (r)
		return r;
	end = min_u64(t->off + t->len, (f.cluster + f.n) << q->g.cluster_bits);
	f.len = end - t->off;
	*done = f.len;
	return fill(q, &f, t->buf);
}

/* One step of @t.  Shared: *done is 0 when it must be done alone. */
static int
step(struct qcow2 *q, const struct todo *t, bool alone, uint64_t *done)
{
	uint64_t first = cluster_of(q, t->off);
	uint64_t n = cluster_of(q, t->off + t->len - 1) - first + 1;
	struct qcow2_entry x[QCOW2_BATCH];
	uint32_t got;
	bool own;
	int r = qcow2_map_get(q, first, (uint32_t)min_u64(n, QCOW2_BATCH), x,
			      &got, &own);

	*done = 0;
	if (!r && own)
		r = write_in_place(q, x, got, t, done);
	if (r || *done || !alone)
		return r;
	r = qcow2_map_own(q, first);
	return r ? r : map_and_write(q, x, got, t, done);
}

/* Go on until all is done, or (shared) something must be done alone. */
static int
steps(struct qcow2 *q, struct todo *t, bool alone)
{
	while (t->len) {
		uint64_t done;
		int r = step(q, t, alone, &done);

		if (r || !done)
			return r;
		advance(t, done);
	}
	return 0;
}

int
qcow2_write_span(struct qcow2 *q, const void *buf, uint64_t len, uint64_t off)
{
	struct todo t = { .buf = buf, .off = off, .len = len };

	return steps(q, &t, true);
}

static int
write_step(struct qcow2 *q, struct todo *t)
{
	struct todo part = *t;
	struct qcow2_span s;
	uint64_t all = qcow2_span_lock(q, t->off, t->len, false, &s);
	int r;

	part.len = all;
	r = steps(q, &part, false);
	qcow2_span_unlock(q, &s);
	if (!r && part.len) {
		part.len = qcow2_span_lock(q, part.off, part.len, true, &s);
		r = steps(q, &part, true);
		qcow2_span_unlock(q, &s);
	}
	advance(t, all);
	return r;
}

int
qcow2_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	struct qcow2 *q = to_qcow2(b);
	struct todo t = { .buf = buf, .off = off, .len = len };
	int r = qcow2_may_write(q);

	while (t.len && !r)
		r = write_step(q, &t);
	if (!r)
		r = qcow2_held_relieve(q);
	return r;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Internal snapshots ("Snapshots" of the specification): the table, creation
 * and deletion.
 *
 * Counts go up before a snapshot is named and down after it is not, so a power
 * cut leaks; the dirty bit is set meanwhile (version 3), because the "copied"
 * flags of the active tables cannot change in the same instant.  A stale flag
 * of version 2 is one that check repairs; it leads nobody to a wrong write.
 *
 * Deleting needs no hold: what a view's reader could still map is counted for
 * the active image, or for the space that it gave up (rule 5).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

void
qcow2_snapshots_free(struct qcow2 *q)
{
	for (uint32_t i = 0; q->snapshot && i < q->h.snapshots; i++)
		qcow2_snapshot_clear(&q->snapshot[i]);
	free(q->snapshot);
	q->snapshot = NULL;
}

/* One entry of the table into @raw; no more than it has, because there may be
 * many.
 */
static int
read_entry(struct qcow2 *q, uint8_t *raw, size_t *len, uint64_t off)
{
	int r = qcow2_child_read(q->file, raw, QCOW2_SNAPSHOT_FIXED, off);

	if (r)
		return r;
	*len = (size_t)min_u64(qcow2_snapshot_bytes(raw), QCOW2_SNAPSHOT_MAX);
	return qcow2_child_read(q->file, raw, *len, off);
}

bool
qcow2_snapshots_load(struct qcow2 *q, struct err *e)
{
	AUTO(free) uint8_t *raw = NULL;
	uint64_t at = 0;

	q->snapshots_bytes = 0;
	if (!q->h.snapshots)
		return true;
	raw = malloc(QCOW2_SNAPSHOT_MAX);
	q->snapshot = calloc(q->h.snapshots, sizeof *q->snapshot);
	if (!raw || !q->snapshot)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot load the snapshot table");
	for (uint32_t i = 0; i < q->h.snapshots; i++) {
		size_t used, len = 0;
		int r = read_entry(q, raw, &len, q->h.snapshots_offset + at);

		if (r)
			return err_set(e, ERR_GENERIC, r,
				       "Could not read snapshots");
		if (!qcow2_snapshot_parse(&q->snapshot[i], &q->g, raw, len,
					  q->h.size, &used, e))
			return err_prefix(e, "Could not read snapshots: ");
		at += used;
		if (at > QCOW2_SNAPSHOT_TABLE_MAX)
			return err_set(e, ERR_GENERIC, 0,
				       "Snapshot table too large");
	}
	q->snapshots_bytes = at;
	return true;
}

/* --- walking over tables ------------------------------------------------------------- */

/* Hears of runs of host clusters that an L1 table refers to. */
typedef int run_fn(struct qcow2 *q, uint64_t first, uint64_t n);

struct walk {
	struct qcow2 *q;
	run_fn *fn;
	struct qcow2_run run; /* not told yet */
	uint8_t *table; /* owned; an L2 table */
};

static int
tell(struct walk *w, uint64_t first, uint64_t n)
{
	struct qcow2_run was = w->run;

	if (was.n && was.first + was.n == first) {
		w->run.n += n;
		return 0;
	}
	w->run = (struct qcow2_run){ .first = first, .n = n };
	return was.n ? w->fn(w->q, was.first, was.n) : 0;
}

static bool
is_inside(const struct qcow2 *q, uint64_t off, uint64_t bytes)
{
	return range_fits(off, bytes, atomic_load(&q->file_end));
}

static int
walk_entry(struct walk *w, uint64_t e)
{
	struct qcow2 *q = w->q;
	uint64_t off = e & QCOW2_L2_OFFSET, bytes = 1, first;

	if (e & QCOW2_COMPRESSED) {
		qcow2_compressed_place(&q->g, e, &off, &bytes);
	} else if (!off) {
		return 0;
	} else if (off % q->g.cluster_size) {
		return qcow2_corrupt(q, "an L2 entry makes no sense", off);
	}
	if (!is_inside(q, off, 1))
		return qcow2_corrupt(q, "data behind the end of the file", off);
	first = off >> q->g.cluster_bits;
	return tell(w, first,
		    ((off + bytes - 1) >> q->g.cluster_bits) - first + 1);
}

static int
load_table(struct qcow2 *q, uint64_t l1_entry, uint8_t *table)
{
	uint64_t off = l1_entry & QCOW2_L1_OFFSET;

	if (off % q->g.cluster_size || !is_inside(q, off, q->g.cluster_size))
		return qcow2_corrupt(q, "an L2 table is not in its place", off);
	return qcow2_child_read(q->file, table, q->g.cluster_size, off);
}

static int
walk_table(struct walk *w, uint64_t l1_entry)
{
	struct qcow2 *q = w->q;
	int r;

	if (!(l1_entry & QCOW2_L1_OFFSET))
		return 0;
	r = load_table(q, l1_entry, w->table);
	for (uint32_t at = 0; at < q->g.cluster_size && !r;
	     at += q->g.entry_size)
		r = walk_entry(w, be64_get(w->table + at));
	if (!r)
		r = tell(w, (l1_entry & QCOW2_L1_OFFSET) >> q->g.cluster_bits,
			 1);
	return r;
}

/* @l1 NULL: the active table. */
static int
walk_l1(struct qcow2 *q, const uint8_t *l1, uint32_t n, run_fn *fn)
{
	struct walk w = { .q = q, .fn = fn };
	int r = 0;

	w.table = malloc(q->g.cluster_size);
	if (!w.table)
		return ENOMEM;
	for (uint32_t i = 0; i < n && !r; i++)
		r = walk_table(&w, l1 ? be64_get(l1 + (size_t)i * 8)
				      : atomic_load(&q->l1[i]));
	if (!r && w.run.n)
		r = fn(q, w.run.first, w.run.n);
	free(w.table);
	return r;
}

static int
add_to_run(struct qcow2 *q, uint64_t first, uint64_t n, int64_t delta,
	   qcow2_freed_fn *freed)
{
	int r;

	(void)pthread_mutex_lock(&q->space_lock);
	r = qcow2_refcount_add(q, first, n, delta, freed);
	(void)pthread_mutex_unlock(&q->space_lock);
	return r;
}

static int
count_up(struct qcow2 *q, uint64_t first, uint64_t n)
{
	return add_to_run(q, first, n, 1, NULL);
}

static int
count_down(struct qcow2 *q, uint64_t first, uint64_t n)
{
	return add_to_run(q, first, n, -1, qcow2_on_freed);
}

static int
has_room(struct qcow2 *q, uint64_t first, uint64_t n)
{
	int r = 0;

	(void)pthread_mutex_lock(&q->space_lock);
	for (uint64_t c = first; c < first + n && !r; c++) {
		uint64_t count;

		r = qcow2_refcount(q, c, &count);
		/* packed data may refer to a cluster many times */
		if (!r && count > q->g.refcount_max / 2)
			r = EOVERFLOW;
	}
	(void)pthread_mutex_unlock(&q->space_lock);
	return r;
}

/* --- "copied" flags -------------------------------------------------------------------- */

/* Bit 63 of @e as the counts have it: set when @alone, else cleared. */
static int
flag(struct qcow2 *q, uint64_t e, uint64_t mask, bool set, uint64_t *to)
{
	uint64_t count = 0;
	int r = 0;

	*to = e & ~QCOW2_COPIED;
	if (e & mask && set) {
		(void)pthread_mutex_lock(&q->space_lock);
		r = qcow2_refcount(q, (e & mask) >> q->g.cluster_bits, &count);
		(void)pthread_mutex_unlock(&q->space_lock);
	}
	if (count == 1)
		*to |= QCOW2_COPIED;
	return r;
}

static int
flag_table(struct qcow2 *q, uint64_t l1_entry, bool set, uint8_t *table)
{
	uint64_t off = l1_entry & QCOW2_L1_OFFSET;
	bool any = false;
	int r = load_table(q, l1_entry, table);

	for (uint32_t at = 0; at < q->g.cluster_size && !r;
	     at += q->g.entry_size) {
		uint64_t e = be64_get(table + at), now;

		if (e & QCOW2_COMPRESSED)
			continue;
		r = flag(q, e, QCOW2_L2_OFFSET, set, &now);
		any |= now != e;
		be64_put(table + at, now);
	}
	return r || !any ? r
			 : qcow2_table_write(q, table, q->g.cluster_size, off);
}

/* Set or clear the flags of all active tables.  A table that a snapshot shares
 * has none set, and is not ours to change.
 */
static int
flag_all(struct qcow2 *q, bool set)
{
	AUTO(free) uint8_t *table = malloc(q->g.cluster_size);
	int r = table ? 0 : ENOMEM;

	for (uint32_t i = 0; i < q->h.l1_size && !r; i++) {
		uint64_t e = atomic_load(&q->l1[i]), now;
		uint8_t raw[8];

		if (!(e & QCOW2_L1_OFFSET))
			continue;
		r = flag(q, e, QCOW2_L1_OFFSET, set, &now);
		if (!r && (now | e) & QCOW2_COPIED)
			r = flag_table(q, e, set, table);
		if (r || now == e)
			continue;
		be64_put(raw, now);
		r = qcow2_meta_write(q, raw, sizeof raw,
				     q->h.l1_offset + (uint64_t)i * 8);
		atomic_store(&q->l1[i], now);
	}
	return r;
}

/* --- the table ---------------------------------------------------------------------------- */

/* Write @n entries as the image's snapshot table; the old one is given up. */
static int
write_list(struct qcow2 *q, const struct qcow2_snapshot *list, uint32_t n)
{
	uint64_t bytes = 0, at = 0, first = 0;
	uint64_t old = q->h.snapshots_offset, old_bytes = q->snapshots_bytes;
	AUTO(free) uint8_t *raw = NULL;
	uint8_t fields[12];
	int r = 0;

	for (uint32_t i = 0; i < n; i++)
		bytes += qcow2_snapshot_length(&list[i]);
	if (bytes > QCOW2_SNAPSHOT_TABLE_MAX)
		return EFBIG;
	raw = calloc(1, (size_t)bytes + 1);
	if (!raw)
		return ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		qcow2_snapshot_serialise(&list[i], raw + at);
		at += qcow2_snapshot_length(&list[i]);
	}
	if (n)
		r = qcow2_alloc_table(q, qcow2_clusters(q, bytes), &first);
	if (!r && n)
		r = qcow2_meta_write(q, raw, (size_t)bytes,
				     first << q->g.cluster_bits);
	if (!r)
		r = qcow2_barrier(q);
	if (r)
		return r;
	be32_put(fields, n);
	be64_put(fields + 4, first << q->g.cluster_bits);
	r = qcow2_meta_write(q, fields, sizeof fields, QCOW2_AT_SNAPSHOTS);
	if (!r)
		r = qcow2_barrier(q);
	if (r)
		return r;
	q->h.snapshots_offset = first << q->g.cluster_bits;
	q->snapshots_bytes = bytes;
	if (old_bytes) {
		(void)pthread_mutex_lock(&q->space_lock);
		qcow2_unclaim(q, old, old_bytes);
		(void)pthread_mutex_unlock(&q->space_lock);
		qcow2_give_up(q, old >> q->g.cluster_bits,
			      qcow2_clusters(q, old_bytes));
	}
	return 0;
}

/* --- creation ------------------------------------------------------------------------------- */

static int
copy_l1(struct qcow2 *q, struct qcow2_snapshot *s)
{
	uint64_t bytes = (uint64_t)q->h.l1_size * 8, first;
	AUTO(free) uint8_t *raw = malloc((size_t)bytes + 1);
	int r;

	if (!raw)
		return ENOMEM;
	for (uint32_t i = 0; i < q->h.l1_size; i++)
		be64_put(raw + (size_t)i * 8, atomic_load(&q->l1[i]));
	r = qcow2_alloc_table(q, max_u64(qcow2_clusters(q, bytes), 1), &first);
	if (r)
		return r;
	s->l1_offset = first << q->g.cluster_bits;
	s->l1_size = q->h.l1_size;
	r = qcow2_meta_write(q, raw, (size_t)bytes, s->l1_offset);
	return r ? r : qcow2_barrier(q);
}

/* With all shards. */
static int
create(struct qcow2 *q, struct qcow2_snapshot *s)
{
	struct qcow2_snapshot *list;
	uint32_t n = q->h.snapshots;
	int r = qcow2_alloc_unpack(q);

	if (!r)
		r = walk_l1(q, NULL, q->h.l1_size, has_room);
	if (r)
		return r;
	list = realloc(q->snapshot, (n + 1) * sizeof *list);
	if (!list)
		return ENOMEM;
	q->snapshot = list;
	r = qcow2_set_incompat(q, QCOW2_DIRTY, 0);
	if (!r)
		r = qcow2_barrier(q);
	if (!r)
		r = walk_l1(q, NULL, q->h.l1_size, count_up);
	PARK("qcow2.snapshot-counted");
	if (!r)
		r = flag_all(q, false);
	if (!r)
		r = copy_l1(q, s);
	if (r)
		return r;
	list[n] = *s;
	r = write_list(q, list, n + 1);
	if (r)
		return r;
	q->h.snapshots = n + 1;
	memset(s, 0, sizeof *s); /* it is in the list now */
	return qcow2_set_incompat(q, 0, QCOW2_DIRTY);
}

const struct qcow2_snapshot *
qcow2_snapshots(const struct block *b, uint32_t *n)
{
	const struct qcow2 *q = container_of(b, const struct qcow2, block);

	*n = q->snapshot ? q->h.snapshots : 0;
	return q->snapshot;
}

/* One more than the highest number among the ids, as QEMU chooses them. */
static uint64_t
next_id(const struct qcow2 *q)
{
	uint64_t id = 0;

	for (uint32_t i = 0; i < q->h.snapshots; i++)
		id = max_u64(id, strtoull(q->snapshot[i].id, NULL, 10));
	return id + 1;
}

int
qcow2_snapshot_create(struct block *b, const struct qcow2_snapshot_info *info)
{
	struct qcow2 *q = to_qcow2(b);
	struct qcow2_snapshot s = { .date_s = info->date_s,
				    .date_ns = info->date_ns,
				    .vm_clock_ns = info->vm_clock_ns,
				    .disk_size = b->size };
	char id[24];
	int r = qcow2_may_write(q);

	if (r)
		return r;
	if (q->external)
		return ENOTSUP;
	if (q->h.snapshots >= QCOW2_SNAPSHOTS_MAX)
		return EFBIG;
	if (strlen(info->name) > UINT16_MAX)
		return EINVAL;
	(void)snprintf(id, sizeof id, "%" PRIu64, next_id(q));
	s.id = strdup(info->id ? info->id : id);
	s.name = strdup(info->name);
	r = s.id && s.name ? 0 : ENOMEM;
	qcow2_lock_all(q);
	if (!r)
		r = create(q, &s);
	qcow2_unlock_all(q);
	qcow2_snapshot_clear(&s);
	/* half of a snapshot is for check to clear up */
	if (r && q->h.incompat & QCOW2_DIRTY)
		qcow2_fail(q, r, "making a snapshot");
	return r;
}

/* --- deletion --------------------------------------------------------------------------------- */

static int
read_l1(struct qcow2 *q, const struct qcow2_snapshot *s, uint8_t **l1)
{
	size_t bytes = (size_t)s->l1_size * 8;

	*l1 = malloc(bytes + 1);
	return *l1 ? qcow2_child_read(q->file, *l1, bytes, s->l1_offset)
		   : ENOMEM;
}

/* The snapshot is not named any more: its references go. */
static int
drop(struct qcow2 *q, const struct qcow2_snapshot *s, const uint8_t *l1)
{
	uint64_t bytes = (uint64_t)s->l1_size * 8;
	int r = walk_l1(q, l1, s->l1_size, count_down);

	if (!r && bytes)
		r = count_down(q, s->l1_offset >> q->g.cluster_bits,
			       qcow2_clusters(q, bytes));
	if (r)
		return r;
	(void)pthread_mutex_lock(&q->space_lock);
	qcow2_unclaim(q, s->l1_offset, bytes);
	(void)pthread_mutex_unlock(&q->space_lock);
	PARK("qcow2.snapshot-dropped");
	return flag_all(q, true);
}

static int
remove_snapshot(struct qcow2 *q, uint32_t i)
{
	struct qcow2_snapshot s = q->snapshot[i];
	uint32_t rest = q->h.snapshots - i - 1;
	AUTO(free) uint8_t *l1 = NULL;
	int r = qcow2_alloc_unpack(q);

	if (!r)
		r = read_l1(q, &s, &l1);
	if (!r)
		r = qcow2_set_incompat(q, QCOW2_DIRTY, 0);
	if (!r)
		r = qcow2_barrier(q);
	if (r)
		return r;
	memmove(&q->snapshot[i], &q->snapshot[i + 1], rest * sizeof s);
	q->h.snapshots--;
	r = write_list(q, q->snapshot, q->h.snapshots);
	if (!r)
		r = drop(q, &s, l1);
	qcow2_snapshot_clear(&s);
	if (!r)
		r = qcow2_barrier(q);
	return r ? r : qcow2_set_incompat(q, 0, QCOW2_DIRTY);
}

int
qcow2_snapshot_delete(struct block *b, uint32_t i)
{
	struct qcow2 *q = to_qcow2(b);
	int r = qcow2_may_write(q);

	if (r)
		return r;
	if (i >= q->h.snapshots)
		return ENOENT;
	qcow2_lock_all(q);
	r = remove_snapshot(q, i);
	qcow2_unlock_all(q);
	if (r && q->h.incompat & QCOW2_DIRTY)
		qcow2_fail(q, r, "deleting a snapshot");
	return r;
}

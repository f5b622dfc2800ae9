/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Storing bitmaps: rules 3 to 5 of bitmaps.h.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/bitmaps-priv.h"
#include "block/qcow2/header.h"

/* QEMU's: 1024 bytes for each of 65535 bitmaps. */
#define DIRECTORY_MAX (UINT64_C(1024) * QCOW2_BITMAPS_MAX)
#define EXT_BYTES     24u
#define SECTOR        512u

static bool
cannot(struct err *e, int os)
{
	return err_set(e, ERR_GENERIC, os, "cannot store bitmaps");
}

bool
qcow2_bitmap_can_store(const struct block *b, const char *name,
		       uint64_t granularity, size_t others, struct err *e)
{
	const struct qcow2 *q = container_of(b, const struct qcow2, block);
	const char *what = NULL;

	if (!q->v3)
		what = "Cannot store dirty bitmaps in qcow2 v2 files";
	else if (!*name)
		what = "Bitmap name cannot be empty";
	else if (strlen(name) > QCOW2_BITMAP_NAME_MAX)
		what = "Name length exceeds maximum (1023 characters)";
	else if (!is_pow2(granularity))
		what = "Granularity must be power of 2";
	else if (granularity > UINT64_C(1) << QCOW2_BITMAP_GRANULARITY_MAX)
		what = "Granularity exceeds maximum (2147483648 bytes)";
	else if (granularity < UINT64_C(1) << QCOW2_BITMAP_GRANULARITY_MIN)
		what = "Granularity is under minimum (512 bytes)";
	else if (qcow2_bitmap_bytes(q->block.size, log2_of(granularity)) >
		 QCOW2_BITMAP_BYTES_MAX)
		what = "Too much space will be occupied by the bitmap. Use "
		       "larger granularity";
	else if (others >= QCOW2_BITMAPS_MAX)
		what = "Maximum number of persistent bitmaps is already "
		       "reached";
	return what ? err_set(e, ERR_GENERIC, 0, "%s", what) : true;
}

/* --- the bits of one bitmap -------------------------------------------------------- */

struct bits {
	const struct qcow2_bitmap_source *s;
	unsigned shift; /* log2 of the granularity */
	uint64_t size; /* of the disk */
	uint64_t per_cluster; /* bits */
	uint64_t entries; /* of the table: clusters of bits */
	uint8_t *buf; /* one cluster; owned */
};

static void
set_bits(uint8_t *buf, uint64_t first, uint64_t end)
{
	for (; first < end && first % 8; first++)
		buf[first / 8] |= (uint8_t)(1u << first % 8);
	if (end - first >= 8) {
		memset(buf + first / 8, 0xff, (size_t)((end - first) / 8));
		first += (end - first) / 8 * 8;
	}
	for (; first < end; first++)
		buf[first / 8] |= (uint8_t)(1u << first % 8);
}

/* The bits of cluster @i into w->buf; its table entry if it needs no cluster,
 * else 2.
 */
static uint64_t
fill_cluster(struct bits *w, uint64_t i)
{
	uint64_t first = i * w->per_cluster, end = first + w->per_cluster;
	uint64_t from = first << w->shift, to = w->size;
	uint64_t start, stop;
	bool any = false;

	memset(w->buf, 0, (size_t)(w->per_cluster / 8));
	if (end << w->shift >> w->shift == end)
		to = min_u64(to, end << w->shift);
	while (from < to && w->s->next(w->s->opaque, from, &start, &stop) &&
	       start < to) {
		start = max_u64(start, from);
		stop = min_u64(stop, to);
		if (start == first << w->shift && stop == end << w->shift)
			return QCOW2_BITMAP_ALL_ONES;
		set_bits(w->buf, (start >> w->shift) - first,
			 ((stop - 1) >> w->shift) + 1 - first);
		any = true;
		from = stop;
	}
	return any ? 2 : 0;
}

static bool
bits_init(struct bits *w, const struct qcow2 *q,
	  const struct qcow2_bitmap_source *s)
{
	w->s = s;
	w->shift = log2_of(s->granularity);
	w->size = q->block.size;
	w->per_cluster = (uint64_t)q->g.cluster_size * 8;
	w->entries = qcow2_clusters(q, qcow2_bitmap_bytes(w->size, w->shift));
	w->buf = malloc(q->g.cluster_size);
	return w->buf;
}

/* How many clusters a bitmap needs: for its table, and for bits that are
 * neither all zero nor all one.
 */
static int
count_clusters(const struct qcow2 *q, const struct qcow2_bitmap_source *s,
	       uint64_t *n)
{
	struct bits w;

	if (!bits_init(&w, q, s))
		return ENOMEM;
	*n += qcow2_clusters(q, w.entries * 8);
	for (uint64_t i = 0; i < w.entries; i++)
		*n += fill_cluster(&w, i) == 2;
	free(w.buf);
	return 0;
}

/* Write a table and its bits from cluster *@next on, which moves behind
 * them.
 */
static int
write_bits(struct qcow2 *q, struct bits *w, struct qcow2_bitmap_entry *b,
	   uint64_t *next)
{
	AUTO(free) uint8_t *table = calloc(w->entries, 8);
	int r = table ? 0 : ENOMEM;

	b->table_size = (uint32_t)w->entries;
	b->table_offset = *next << q->g.cluster_bits;
	*next += qcow2_clusters(q, w->entries * 8);
	for (uint64_t i = 0; !r && i < w->entries; i++) {
		uint64_t entry = fill_cluster(w, i);

		if (entry == 2) {
			entry = (*next)++ << q->g.cluster_bits;
			r = qcow2_meta_write(q, w->buf, q->g.cluster_size,
					     entry);
		}
		be64_put(table + i * 8, entry);
	}
	return r ? r
		 : qcow2_meta_write(q, table, (size_t)w->entries * 8,
				    b->table_offset);
}

static int
store_bits(struct qcow2 *q, const struct qcow2_bitmap_source *s,
	   struct qcow2_bitmap_entry *b, uint64_t *next)
{
	struct bits w;
	int r = 0;

	if (!bits_init(&w, q, s))
		return ENOMEM;
	if (w.entries) /* a disk of no bytes has none */
		r = write_bits(q, &w, b, next);
	free(w.buf);
	return r;
}

/* --- the directory ------------------------------------------------------------------- */

static struct qcow2_stored_bitmap *
find(const struct qcow2_bitmaps *l, const char *name)
{
	for (size_t i = 0; i < l->n; i++)
		if (!strcmp(l->bitmap[i].name, name))
			return &l->bitmap[i];
	return NULL;
}

static bool
check_sources(struct block *b, const struct qcow2_bitmaps *l,
	      const struct qcow2_bitmap_source *s, size_t n, uint64_t *bytes,
	      struct err *e)
{
	*bytes = 0;
	for (size_t i = 0; i < n; i++) {
		const struct qcow2_stored_bitmap *old =
			s[i].keep ? find(l, s[i].name) : NULL;

		if (s[i].keep && !old)
			return err_set(e, ERR_GENERIC, 0,
				       "there is no stored bitmap '%s'",
				       s[i].name);
		if (!old && !qcow2_bitmap_can_store(b, s[i].name,
						    s[i].granularity, i, e))
			return err_prefix(e,
					  "Can't make bitmap '%s' persistent: ",
					  s[i].name);
		*bytes += old ? old->length
			      : round_up(QCOW2_BITMAP_FIXED + strlen(s[i].name),
					 8);
	}
	if (n > QCOW2_BITMAPS_MAX || *bytes > DIRECTORY_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "Not enough space in the bitmap directory");
	return true;
}

/* The entry of one bitmap at @p; its bits are stored from cluster *@next on.
 * *@length is the entry's.
 */
static int
put_one(struct qcow2 *q, const struct qcow2_bitmaps *l,
	const struct qcow2_bitmap_source *s, uint8_t *p, uint64_t *length,
	uint64_t *next)
{
	struct qcow2_stored_bitmap *old = s->keep ? find(l, s->name) : NULL;
	struct qcow2_bitmap_entry b = { .type = QCOW2_BITMAP_TYPE_DIRTY };
	int r;

	if (old) {
		memcpy(p, l->directory + old->at, old->length);
		*length = old->length;
		old->kept = true;
		return 0;
	}
	b.flags = s->enabled ? QCOW2_BITMAP_AUTO : 0;
	b.granularity_bits = (uint8_t)log2_of(s->granularity);
	b.name_size = (uint16_t)strlen(s->name);
	r = store_bits(q, s, &b, next);
	qcow2_bitmap_entry_put(&b, p);
	memcpy(p + QCOW2_BITMAP_FIXED, s->name, b.name_size);
	*length = qcow2_bitmap_entry_length(&b);
	return r;
}

/* Clusters for all that is written, directory first. */
static int
allocate(struct qcow2 *q, const struct qcow2_bitmap_source *s, size_t n,
	 uint64_t bytes, uint64_t *first)
{
	uint64_t clusters = qcow2_clusters(q, bytes);
	int r = 0;

	for (size_t i = 0; !r && i < n; i++)
		if (!s[i].keep)
			r = count_clusters(q, &s[i], &clusters);
	return r ? r : qcow2_alloc_table(q, clusters, first);
}

/* Write what is new: bits, tables, and the directory itself into @l.  @old is
 * the list that is replaced.
 */
static int
write_all(struct qcow2 *q, const struct qcow2_bitmaps *old,
	  const struct qcow2_bitmap_source *s, size_t n, uint64_t bytes,
	  struct qcow2_bitmaps *l)
{
	uint64_t at = 0, length = 0, first, next;
	int r;

	if (!n)
		return 0;
	l->directory = calloc(1, bytes);
	r = l->directory ? allocate(q, s, n, bytes, &first) : ENOMEM;
	if (r)
		return r;
	next = first + qcow2_clusters(q, bytes);
	for (size_t i = 0; !r && i < n; i++) {
		r = put_one(q, old, &s[i], l->directory + at, &length, &next);
		at += length;
	}
	l->claimed = true;
	l->place.count = (uint32_t)n;
	l->place.directory_size = bytes;
	l->place.directory_offset = first << q->g.cluster_bits;
	return r ? r
		 : qcow2_meta_write(q, l->directory, bytes,
				    l->place.directory_offset);
}

/* --- the header ------------------------------------------------------------------------- */

/* Where the data of the bitmaps extension stand in the first cluster, 0:
 * nowhere.
 */
static uint32_t
find_extension(const struct qcow2 *q, const uint8_t *area)
{
	uint64_t at = q->h.length, len;
	uint32_t type;

	while (at + 8 <= q->g.cluster_size) {
		type = be32_get(area + at);
		len = be32_get(area + at + 4);
		if (type == QCOW2_EXT_END || len > q->g.cluster_size - at - 8)
			return 0;
		if (type == QCOW2_EXT_BITMAPS)
			return len == EXT_BYTES ? (uint32_t)at + 8 : 0;
		at += 8 + round_up(len, 8);
	}
	return 0;
}

static int
set_flag(struct qcow2 *q, bool on)
{
	uint8_t field[8];
	int r;

	q->h.autoclear &= ~QCOW2_AUTO_BITMAPS;
	if (on)
		q->h.autoclear |= QCOW2_AUTO_BITMAPS;
	be64_put(field, q->h.autoclear);
	r = qcow2_meta_write(q, field, sizeof field, QCOW2_AT_AUTOCLEAR);
	return r ? r : qcow2_barrier(q);
}

static int
write_file(void *opaque, const void *buf, size_t len, uint64_t off)
{
	return qcow2_meta_write(opaque, buf, len, off);
}

static int
flush_file(void *opaque)
{
	return qcow2_barrier(opaque);
}

/* Rule 4. */
static int
rewrite_header(struct qcow2 *q, uint8_t *old,
	       const struct qcow2_bitmaps_ext *place)
{
	struct qcow2_header_file f = {
		.write = write_file,
		.flush = flush_file,
		.opaque = q,
		.sector = (uint32_t)max_u64(SECTOR, q->file->min_block),
	};
	int r = set_flag(q, false);

	if (r)
		return r;
	be64_put(old + QCOW2_AT_AUTOCLEAR, q->h.autoclear);
	q->h.has_bitmaps = place->count > 0;
	q->h.bitmaps = *place;
	PARK("qcow2.bitmaps.header");
	r = qcow2_header_replace(&f, &q->h, old);
	if (r == EMSGSIZE)
		r = ENOSPC;
	return r || !place->count ? r : set_flag(q, true);
}

/* Rule 3. */
static int
publish(struct qcow2 *q, const struct qcow2_bitmaps_ext *place)
{
	AUTO(free) uint8_t *area = malloc(q->g.cluster_size);
	uint8_t ext[EXT_BYTES];
	uint32_t at;
	int r = area ? qcow2_child_read(q->file, area, q->g.cluster_size, 0)
		     : ENOMEM;

	if (r)
		return r;
	at = find_extension(q, area);
	if (!at || !place->count || !(q->h.autoclear & QCOW2_AUTO_BITMAPS) ||
	    at / SECTOR != (at + EXT_BYTES - 1) / SECTOR)
		return rewrite_header(q, area, place);
	be32_put(ext, place->count);
	be32_put(ext + 4, 0);
	be64_put(ext + 8, place->directory_size);
	be64_put(ext + 16, place->directory_offset);
	PARK("qcow2.bitmaps.header");
	r = qcow2_meta_write(q, ext, sizeof ext, at);
	q->h.has_bitmaps = true;
	q->h.bitmaps = *place;
	return r ? r : qcow2_barrier(q);
}

/* --- rule 5 ------------------------------------------------------------------------------- */

static int
give_up(struct qcow2 *q, uint64_t off, uint64_t bytes)
{
	(void)pthread_mutex_lock(&q->space_lock);
	qcow2_unclaim(q, off, bytes);
	(void)pthread_mutex_unlock(&q->space_lock);
	qcow2_give_up(q, off >> q->g.cluster_bits, qcow2_clusters(q, bytes));
	return 0;
}

/* What cannot be read any more leaks. */
static void
give_up_old(struct qcow2 *q, const struct qcow2_bitmaps *l)
{
	for (size_t i = 0; i < l->n; i++)
		if (!l->bitmap[i].kept)
			(void)qcow2_bitmap_clusters(q, &l->bitmap[i], give_up);
	if (l->place.count)
		(void)give_up(q, l->place.directory_offset,
			      l->place.directory_size);
}

static int
switch_over(struct qcow2 *q, const struct qcow2_bitmaps *old,
	    const struct qcow2_bitmaps *now)
{
	int r;

	if (!old->n && !now->place.count)
		return 0;
	PARK("qcow2.bitmaps.written");
	r = qcow2_barrier(q);
	if (!r) {
		qcow2_lock_all(q);
		r = publish(q, &now->place);
		qcow2_unlock_all(q);
	}
	PARK("qcow2.bitmaps.published");
	if (r)
		return r;
	give_up_old(q, old);
	r = qcow2_barrier(q);
	return r ? r : qcow2_held_free(q);
}

bool
qcow2_bitmaps_store(struct block *b, struct qcow2_bitmaps *l,
		    const struct qcow2_bitmap_source *s, size_t n,
		    struct err *e)
{
	struct qcow2 *q = to_qcow2(b);
	struct qcow2_bitmaps now = { 0 };
	int r = qcow2_may_write(q);
	uint64_t bytes;

	if (r)
		return cannot(e, r);
	if (!check_sources(b, l, s, n, &bytes, e))
		return false;
	for (size_t i = 0; i < l->n; i++)
		l->bitmap[i].kept = false;
	r = write_all(q, l, s, n, bytes, &now);
	if (!r)
		r = switch_over(q, l, &now);
	if (r) {
		qcow2_bitmaps_clear(&now);
		return cannot(e, r);
	}
	qcow2_bitmaps_clear(l);
	*l = now;
	if (!n)
		return true;
	return qcow2_bitmaps_parse(q, l, e);
}

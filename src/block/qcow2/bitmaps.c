/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/qcow2/bitmaps.h"

#include <errno.h>
#include <stdlib.h>

#include "base/park.h"
#include "block/qcow2/bitmaps-priv.h"

#define PIECE 8192u /* entries of a table that are read at once, in bytes */

static bool
no_memory(struct err *e)
{
	return err_set(e, ERR_GENERIC, ENOMEM, "cannot load stored bitmaps");
}

/* --- the list ------------------------------------------------------------------ */

void
qcow2_bitmaps_clear(struct qcow2_bitmaps *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->bitmap[i].name);
	free(l->bitmap);
	free(l->directory);
	memset(l, 0, sizeof *l);
}

void
qcow2_bitmaps_free(struct qcow2_bitmaps *l)
{
	qcow2_bitmaps_clear(l);
	free(l);
}

size_t
qcow2_bitmaps_count(const struct qcow2_bitmaps *l)
{
	return l->n;
}

void
qcow2_bitmaps_get(const struct qcow2_bitmaps *l, size_t i,
		  struct qcow2_bitmap_info *out)
{
	const struct qcow2_stored_bitmap *s = &l->bitmap[i];

	out->name = s->name;
	out->granularity = UINT64_C(1) << s->entry.granularity_bits;
	out->enabled = s->entry.flags & QCOW2_BITMAP_AUTO;
	out->inconsistent = s->inconsistent;
}

/* --- loading --------------------------------------------------------------------- */

static int
by_name(const void *a, const void *b)
{
	const char *const *x = a, *const *y = b;

	return strcmp(*x, *y);
}

static bool
check_unique(const struct qcow2_bitmaps *l, struct err *e)
{
	AUTO(free) const char **names = calloc(l->n + 1, sizeof *names);

	if (!names)
		return no_memory(e);
	for (size_t i = 0; i < l->n; i++)
		names[i] = l->bitmap[i].name;
	qsort(names, l->n, sizeof *names, by_name);
	for (size_t i = 1; i < l->n; i++)
		if (!strcmp(names[i - 1], names[i]))
			return err_set(e, ERR_GENERIC, 0,
				       "two stored bitmaps have the name '%s'",
				       names[i]);
	return true;
}

/* Rule 2; and what belongs to a disk of another size, or has data that we do
 * not know, is of no use.
 */
static bool
is_inconsistent(const struct qcow2 *q, const struct qcow2_bitmap_entry *b)
{
	uint64_t bytes = qcow2_bitmap_bytes(q->block.size, b->granularity_bits);

	if (b->flags & QCOW2_BITMAP_IN_USE || bytes > QCOW2_BITMAP_BYTES_MAX)
		return true;
	if (b->extra_size && !(b->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE))
		return true;
	return b->table_size != div_up(bytes, q->g.cluster_size);
}

/* Who has the image open only to read it may find the file longer than it
 * was.
 */
static uint64_t
end_of_file(const struct qcow2 *q)
{
	if (q->block.read_only)
		return round_up(block_look(q->file), q->g.cluster_size);
	return atomic_load(&q->file_end);
}

static bool
parse_one(const struct qcow2 *q, struct qcow2_bitmaps *l, uint64_t at,
	  struct err *e)
{
	struct qcow2_stored_bitmap *s = &l->bitmap[l->n];
	const uint8_t *p = l->directory + at;
	uint64_t left = l->place.directory_size - at;

	if (!qcow2_bitmap_entry_parse(&s->entry, &q->g, p, left, &s->length, e))
		return false;
	s->at = at;
	s->name = malloc(s->entry.name_size + 1u);
	if (!s->name)
		return no_memory(e);
	memcpy(s->name, p + QCOW2_BITMAP_FIXED + s->entry.extra_size,
	       s->entry.name_size);
	s->name[s->entry.name_size] = '\0';
	l->n++;
	if (strlen(s->name) != s->entry.name_size)
		return err_set(e, ERR_GENERIC, 0,
			       "the name of a stored bitmap has a 0 byte");
	s->inconsistent = is_inconsistent(q, &s->entry);
	return true;
}

bool
qcow2_bitmaps_parse(const struct qcow2 *q, struct qcow2_bitmaps *l,
		    struct err *e)
{
	uint64_t at = 0, tables = 0;

	l->bitmap = calloc(l->place.count + 1u, sizeof *l->bitmap);
	if (!l->bitmap)
		return no_memory(e);
	for (uint32_t i = 0; i < l->place.count; i++) {
		if (!parse_one(q, l, at, e))
			return false;
		at += l->bitmap[i].length;
		tables += (uint64_t)l->bitmap[i].entry.table_size * 8;
	}
	if (tables > end_of_file(q)) /* so the work on them is bounded by it */
		return err_set(e, ERR_GENERIC, 0,
			       "the tables of the stored bitmaps are larger "
			       "than the file");
	if (at != l->place.directory_size)
		return err_set(e, ERR_GENERIC, 0,
			       "the bitmap directory is larger than its "
			       "entries");
	return check_unique(l, e);
}

bool
qcow2_bitmaps_load(struct block *b, struct qcow2_bitmaps **out, struct err *e)
{
	struct qcow2 *q = to_qcow2(b);
	AUTO(qcow2_bitmaps_free) struct qcow2_bitmaps *l = calloc(1, sizeof *l);
	int r;

	if (!l)
		return no_memory(e);
	if (!q->h.has_bitmaps || !(q->h.autoclear & QCOW2_AUTO_BITMAPS)) {
		*out = steal(&l);
		return true;
	}
	l->place = q->h.bitmaps;
	if (!l->place.count || l->place.count > QCOW2_BITMAPS_MAX ||
	    l->place.directory_size > QCOW2_BITMAP_DIRECTORY_MAX ||
	    !range_fits(l->place.directory_offset, l->place.directory_size,
			round_up(q->file->size, q->g.cluster_size)))
		return err_set(e, ERR_GENERIC, 0,
			       "the bitmaps extension is invalid");
	l->directory = malloc(l->place.directory_size + 1);
	if (!l->directory)
		return no_memory(e);
	r = qcow2_child_read(q->file, l->directory, l->place.directory_size,
			     l->place.directory_offset);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "cannot read the bitmap directory");
	if (!qcow2_bitmaps_parse(q, l, e))
		return false;
	*out = steal(&l);
	return true;
}

/* --- tables ------------------------------------------------------------------------ */

static bool
table_is_there(const struct qcow2 *q, const struct qcow2_bitmap_entry *b)
{
	return range_fits(b->table_offset, (uint64_t)b->table_size * 8,
			  end_of_file(q));
}

/* Call @each for the entries of a table. */
static int
for_entries(struct qcow2 *q, const struct qcow2_stored_bitmap *s,
	    int (*each)(struct qcow2 *q, void *opaque, uint64_t i,
			uint64_t entry),
	    void *opaque)
{
	uint8_t raw[PIECE];
	uint64_t i = 0, k, n;
	int r = table_is_there(q, &s->entry) ? 0 : EINVAL;

	for (; !r && i < s->entry.table_size; i += n) {
		n = min_u64(s->entry.table_size - i, PIECE / 8);
		r = qcow2_child_read(q->file, raw, (size_t)n * 8,
				     s->entry.table_offset + i * 8);
		for (k = 0; !r && k < n; k++) {
			uint64_t entry = be64_get(raw + k * 8);

			r = qcow2_bitmap_table_entry_valid(&q->g, entry)
				    ? each(q, opaque, i + k, entry)
				    : EIO;
		}
	}
	return r;
}

typedef int cluster_fn(struct qcow2 *q, uint64_t off, uint64_t bytes);

static int
tell_cluster(struct qcow2 *q, void *opaque, uint64_t i, uint64_t entry)
{
	cluster_fn **each = opaque;

	(void)i;
	return entry & QCOW2_BITMAP_OFFSET
		       ? (*each)(q, entry & QCOW2_BITMAP_OFFSET,
				 q->g.cluster_size)
		       : 0;
}

int
qcow2_bitmap_clusters(struct qcow2 *q, const struct qcow2_stored_bitmap *s,
		      cluster_fn *each)
{
	int r = for_entries(q, s, tell_cluster, &each);

	if (r || !s->entry.table_size)
		return r;
	return each(q, s->entry.table_offset,
		    (uint64_t)s->entry.table_size * 8);
}

/* --- ranges ------------------------------------------------------------------------- */

struct ranges {
	int (*each)(void *opaque, uint64_t off, uint64_t len);
	void *opaque;
	uint64_t start, end; /* of the run that is not told yet, in bits */
	unsigned bits; /* log2 of the granularity */
	uint64_t size; /* of the disk */
	uint8_t *buf; /* one cluster */
};

static int
tell(struct ranges *w)
{
	uint64_t off = w->start << w->bits, end = w->end << w->bits;

	if (w->start == w->end || off >= w->size)
		return 0;
	return w->each(w->opaque, off, min_u64(end, w->size) - off);
}

/* Bits [start, end) are set. */
static int
add_run(struct ranges *w, uint64_t start, uint64_t end)
{
	int r = 0;

	if (w->end == start && w->start != w->end) {
		w->end = end;
		return 0;
	}
	r = tell(w);
	w->start = start;
	w->end = end;
	return r;
}

static int
add_bytes(struct ranges *w, uint64_t first, const uint8_t *p, size_t n)
{
	int r = 0;

	for (size_t i = 0; !r && i < n; i++) {
		if (!p[i])
			continue;
		if (p[i] == 0xff) {
			r = add_run(w, first + i * 8, first + i * 8 + 8);
			continue;
		}
		for (unsigned k = 0; !r && k < 8; k++)
			if (p[i] & 1u << k)
				r = add_run(w, first + i * 8 + k,
					    first + i * 8 + k + 1);
	}
	return r;
}

static int
add_cluster(struct qcow2 *q, void *opaque, uint64_t i, uint64_t entry)
{
	struct ranges *w = opaque;
	uint64_t bits = (uint64_t)q->g.cluster_size * 8, first = i * bits;
	int r;

	if (!entry)
		return 0;
	if (entry == QCOW2_BITMAP_ALL_ONES)
		return add_run(w, first, first + bits);
	r = qcow2_child_read(q->file, w->buf, q->g.cluster_size,
			     entry & QCOW2_BITMAP_OFFSET);
	return r ? r : add_bytes(w, first, w->buf, q->g.cluster_size);
}

bool
qcow2_bitmap_ranges(struct block *b, const struct qcow2_bitmaps *l, size_t i,
		    int (*each)(void *opaque, uint64_t off, uint64_t len),
		    void *opaque, struct err *e)
{
	struct qcow2 *q = to_qcow2(b);
	const struct qcow2_stored_bitmap *s = &l->bitmap[i];
	AUTO(free) uint8_t *buf = malloc(q->g.cluster_size);
	struct ranges w = { .each = each,
			    .opaque = opaque,
			    .bits = s->entry.granularity_bits,
			    .size = q->block.size,
			    .buf = buf };
	int r;

	if (!buf)
		return no_memory(e);
	if (s->inconsistent)
		return true;
	r = for_entries(q, s, add_cluster, &w);
	if (!r)
		r = tell(&w);
	return r ? err_set(e, ERR_GENERIC, r,
			   "cannot load the stored bitmap '%s'", s->name)
		 : true;
}

/* --- rule 1 ---------------------------------------------------------------------------- */

static int
claim(struct qcow2 *q, uint64_t off, uint64_t bytes)
{
	if (!range_fits(off, bytes, atomic_load(&q->file_end)))
		return EINVAL;
	return qcow2_claim(q, off, bytes);
}

/* The clusters are metadata from now on. */
static bool
claim_all(struct qcow2 *q, struct qcow2_bitmaps *l, struct err *e)
{
	int r;

	(void)pthread_mutex_lock(&q->space_lock);
	r = claim(q, l->place.directory_offset, l->place.directory_size);
	for (size_t i = 0; !r && i < l->n; i++)
		r = qcow2_bitmap_clusters(q, &l->bitmap[i], claim);
	(void)pthread_mutex_unlock(&q->space_lock);
	l->claimed = !r;
	if (!r)
		return true;
	return err_set(e, ERR_GENERIC, r == EEXIST || r == EINVAL ? 0 : r,
		       "the clusters of the stored bitmaps overlap other "
		       "metadata, lie behind the end of the file or cannot be "
		       "read");
}

static int
mark(struct qcow2 *q, struct qcow2_bitmaps *l, struct qcow2_stored_bitmap *s)
{
	uint8_t field[4];
	int r;

	if (s->entry.flags & QCOW2_BITMAP_IN_USE)
		return 0;
	be32_put(field, s->entry.flags | QCOW2_BITMAP_IN_USE);
	r = qcow2_meta_write(q, field, sizeof field,
			     l->place.directory_offset + s->at +
				     QCOW2_BITMAP_AT_FLAGS);
	if (!r) {
		s->entry.flags |= QCOW2_BITMAP_IN_USE;
		memcpy(l->directory + s->at + QCOW2_BITMAP_AT_FLAGS, field,
		       sizeof field);
	}
	return r;
}

bool
qcow2_bitmaps_take(struct block *b, struct qcow2_bitmaps *l, struct err *e)
{
	struct qcow2 *q = to_qcow2(b);
	int r = qcow2_may_write(q);

	if (!l->n && !r)
		return true;
	if (!r && !l->claimed && !claim_all(q, l, e))
		return false;
	for (size_t i = 0; !r && i < l->n; i++)
		r = mark(q, l, &l->bitmap[i]);
	PARK("qcow2.bitmaps.take");
	if (!r)
		r = qcow2_barrier(q);
	return r ? err_set(e, ERR_GENERIC, r,
			   "cannot mark the stored bitmaps as in use")
		 : true;
}

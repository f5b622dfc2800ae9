/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/qcow2/bitmap-format.h"

#include "base/bits.h"

uint64_t
qcow2_bitmap_entry_length(const struct qcow2_bitmap_entry *b)
{
	return round_up(
		(uint64_t)QCOW2_BITMAP_FIXED + b->extra_size + b->name_size, 8);
}

static bool
check_entry(const struct qcow2_bitmap_entry *b, const struct qcow2_geometry *g,
	    struct err *e)
{
	const char *what = NULL;

	if (!b->name_size || b->name_size > QCOW2_BITMAP_NAME_MAX)
		what = "the length of its name";
	else if (b->table_offset & (g->cluster_size - 1) ||
		 b->table_offset >> QCOW2_OFFSET_BITS ||
		 (b->table_size && !b->table_offset))
		what = "the offset of its table";
	else if (b->table_size > QCOW2_BITMAP_TABLE_MAX)
		what = "the size of its table";
	else if (b->flags & ~QCOW2_BITMAP_FLAGS_KNOWN)
		what = "unknown flags";
	else if (b->type != QCOW2_BITMAP_TYPE_DIRTY)
		what = "an unknown type";
	else if (b->granularity_bits < QCOW2_BITMAP_GRANULARITY_MIN ||
		 b->granularity_bits > QCOW2_BITMAP_GRANULARITY_MAX)
		what = "its granularity";
	if (!what)
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "an entry of the bitmap directory is invalid or not "
		       "supported: %s",
		       what);
}

bool
qcow2_bitmap_entry_parse(struct qcow2_bitmap_entry *b,
			 const struct qcow2_geometry *g, const void *entry,
			 uint64_t left, uint64_t *used, struct err *e)
{
	const uint8_t *p = entry;

	if (left < QCOW2_BITMAP_FIXED)
		return err_set(e, ERR_GENERIC, 0,
			       "the bitmap directory is cut off");
	b->table_offset = be64_get(p);
	b->table_size = be32_get(p + 8);
	b->flags = be32_get(p + QCOW2_BITMAP_AT_FLAGS);
	b->type = p[16];
	b->granularity_bits = p[17];
	b->name_size = be16_get(p + 18);
	b->extra_size = be32_get(p + 20);
	*used = qcow2_bitmap_entry_length(b);
	if (*used > left)
		return err_set(e, ERR_GENERIC, 0,
			       "the bitmap directory is cut off");
	return check_entry(b, g, e);
}

void
qcow2_bitmap_entry_put(const struct qcow2_bitmap_entry *b, void *entry)
{
	uint8_t *p = entry;

	be64_put(p, b->table_offset);
	be32_put(p + 8, b->table_size);
	be32_put(p + QCOW2_BITMAP_AT_FLAGS, b->flags);
	p[16] = b->type;
	p[17] = b->granularity_bits;
	be16_put(p + 18, b->name_size);
	be32_put(p + 20, b->extra_size);
}

bool
qcow2_bitmap_table_entry_valid(const struct qcow2_geometry *g, uint64_t entry)
{
	uint64_t at = entry & QCOW2_BITMAP_OFFSET;

	if (at)
		return entry == at && !(at & (g->cluster_size - 1));
	return !(entry & ~QCOW2_BITMAP_ALL_ONES);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the header's geometry means for tables, and single entries of them
 * ("Host cluster management", "Cluster mapping", "Snapshots" of the
 * specification).
 */
#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"
#include "block/qcow2/format.h"

void
qcow2_geometry_init(struct qcow2_geometry *g, const struct qcow2_header *h)
{
	g->extended = h->incompat & QCOW2_EXTENDED_L2;
	g->cluster_bits = h->cluster_bits;
	g->cluster_size = 1u << h->cluster_bits;
	g->entry_size = g->extended ? 16 : 8;
	g->l2_bits = h->cluster_bits - (g->extended ? 4 : 3);
	g->refcount_order = h->refcount_order;
	g->refblock_bits = h->cluster_bits + 3 - h->refcount_order;
	g->refcount_max =
		h->refcount_order == 6
			? UINT64_MAX
			: (UINT64_C(1) << (1 << h->refcount_order)) - 1;
	g->subcluster_bits = h->cluster_bits - (g->extended ? 5 : 0);
}

uint64_t
qcow2_l1_entries(const struct qcow2_geometry *g, uint64_t size)
{
	return div_up(size, UINT64_C(1) << (g->cluster_bits + g->l2_bits));
}

/* Widths below a byte: the first entry has the least significant bits. */
uint64_t
qcow2_refcount_get(const void *block, unsigned order, uint64_t index)
{
	const uint8_t *p = block;

	switch (order) {
	case 3: return p[index];
	case 4: return be16_get(p + index * 2);
	case 5: return be32_get(p + index * 4);
	case 6: return be64_get(p + index * 8);
	default: {
		unsigned width = 1u << order;
		uint64_t bit = index << order;

		return p[bit / 8] >> bit % 8 & ((1u << width) - 1);
	}
	}
}

void
qcow2_refcount_set(void *block, unsigned order, uint64_t index, uint64_t value)
{
	uint8_t *p = block;

	switch (order) {
	case 3: p[index] = (uint8_t)value; return;
	case 4: be16_put(p + index * 2, (uint16_t)value); return;
	case 5: be32_put(p + index * 4, (uint32_t)value); return;
	case 6: be64_put(p + index * 8, value); return;
	default: {
		unsigned width = 1u << order;
		uint64_t bit = index << order;
		unsigned mask = ((1u << width) - 1) << bit % 8;

		p[bit / 8] = (uint8_t)((p[bit / 8] & ~mask) |
				       (value << bit % 8 & mask));
		return;
	}
	}
}

/* Bits of the offset in a compressed cluster's descriptor. */
static unsigned
offset_bits(const struct qcow2_geometry *g)
{
	return 62 - (g->cluster_bits - 8);
}

void
qcow2_compressed_place(const struct qcow2_geometry *g, uint64_t entry,
		       uint64_t *offset, uint64_t *bytes)
{
	unsigned x = offset_bits(g);
	uint64_t at = entry & ((UINT64_C(1) << x) - 1);
	uint64_t more = (entry & (QCOW2_COMPRESSED - 1)) >> x;

	*offset = at;
	*bytes = (more + 1) * 512 - at % 512;
}

uint64_t
qcow2_compressed_entry(const struct qcow2_geometry *g, uint64_t offset,
		       uint64_t bytes)
{
	unsigned x = offset_bits(g);
	uint64_t more = (offset + bytes - 1) / 512 - offset / 512;

	if (offset >> (x < QCOW2_OFFSET_BITS ? x : QCOW2_OFFSET_BITS) ||
	    more >> (62 - x))
		return 0;
	return QCOW2_COMPRESSED | more << x | offset;
}

void
qcow2_snapshot_clear(struct qcow2_snapshot *s)
{
	free(s->id);
	free(s->name);
	free(s->extra);
	memset(s, 0, sizeof *s);
}

static char *
copy_string(const uint8_t *p, size_t len)
{
	char *s = malloc(len + 1);

	if (s) {
		memcpy(s, p, len);
		s[len] = '\0';
	}
	return s;
}

#define SNAPSHOT_KNOWN 24 /* bytes of extra data that we know */

static bool
parse_fixed(struct qcow2_snapshot *s, const struct qcow2_geometry *g,
	    const uint8_t *p, struct err *e)
{
	s->l1_offset = be64_get(p);
	s->l1_size = be32_get(p + 8);
	s->date_s = be32_get(p + 16);
	s->date_ns = be32_get(p + 20);
	s->vm_clock_ns = be64_get(p + 24);
	s->vm_state_size = be32_get(p + 32);
	if (s->l1_offset % g->cluster_size || s->l1_offset > INT64_MAX / 2 ||
	    (s->l1_size && !s->l1_offset))
		return err_set(e, ERR_GENERIC, 0,
			       "Snapshot L1 table offset invalid");
	if ((uint64_t)s->l1_size * 8 > QCOW2_L1_BYTES_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "Snapshot L1 table too large");
	return true;
}

static void
parse_extra(struct qcow2_snapshot *s, const uint8_t *x, uint32_t len)
{
	if (len >= 8)
		s->vm_state_size = be64_get(x);
	if (len >= 16)
		s->disk_size = be64_get(x + 8);
	s->has_icount = len >= 24;
	if (s->has_icount)
		s->icount = be64_get(x + 16);
}

uint64_t
qcow2_snapshot_bytes(const void *fixed)
{
	const uint8_t *p = fixed;

	return QCOW2_SNAPSHOT_FIXED + (uint64_t)be32_get(p + 36) +
	       be16_get(p + 12) + be16_get(p + 14);
}

bool
qcow2_snapshot_parse(struct qcow2_snapshot *s, const struct qcow2_geometry *g,
		     const void *entry, size_t len, uint64_t disk_size,
		     size_t *used, struct err *e)
{
	const uint8_t *p = entry;
	uint32_t extra;
	size_t id, name;

	memset(s, 0, sizeof *s);
	if (len < QCOW2_SNAPSHOT_FIXED)
		return err_set(e, ERR_GENERIC, 0, "Snapshot table is cut off");
	if (!parse_fixed(s, g, p, e))
		return false;
	id = be16_get(p + 12);
	name = be16_get(p + 14);
	extra = be32_get(p + 36);
	if (extra > QCOW2_SNAPSHOT_EXTRA_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "Too much extra metadata in snapshot table");
	*used = round_up(QCOW2_SNAPSHOT_FIXED + extra + id + name, 8);
	if (QCOW2_SNAPSHOT_FIXED + extra + id + name > len)
		return err_set(e, ERR_GENERIC, 0, "Snapshot table is cut off");
	s->disk_size = disk_size;
	parse_extra(s, p + QCOW2_SNAPSHOT_FIXED, extra);
	if (extra > SNAPSHOT_KNOWN) {
		s->extra_size = extra - SNAPSHOT_KNOWN;
		s->extra = malloc(s->extra_size);
		if (s->extra)
			memcpy(s->extra,
			       p + QCOW2_SNAPSHOT_FIXED + SNAPSHOT_KNOWN,
			       s->extra_size);
	}
	s->id = copy_string(p + QCOW2_SNAPSHOT_FIXED + extra, id);
	s->name = copy_string(p + QCOW2_SNAPSHOT_FIXED + extra + id, name);
	if (!s->id || !s->name || (s->extra_size && !s->extra)) {
		qcow2_snapshot_clear(s);
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot load the snapshot table");
	}
	return true;
}

static uint32_t
extra_length(const struct qcow2_snapshot *s)
{
	return (s->has_icount || s->extra_size ? SNAPSHOT_KNOWN : 16) +
	       s->extra_size;
}

size_t
qcow2_snapshot_length(const struct qcow2_snapshot *s)
{
	return round_up(QCOW2_SNAPSHOT_FIXED + extra_length(s) + strlen(s->id) +
				strlen(s->name),
			8);
}

void
qcow2_snapshot_serialise(const struct qcow2_snapshot *s, void *to)
{
	uint8_t *p = to;
	size_t id = strlen(s->id), name = strlen(s->name);
	uint32_t extra = extra_length(s);

	memset(p, 0, qcow2_snapshot_length(s));
	be64_put(p, s->l1_offset);
	be32_put(p + 8, s->l1_size);
	be16_put(p + 12, (uint16_t)id);
	be16_put(p + 14, (uint16_t)name);
	be32_put(p + 16, s->date_s);
	be32_put(p + 20, s->date_ns);
	be64_put(p + 24, s->vm_clock_ns);
	be32_put(p + 32, s->vm_state_size > UINT32_MAX
				 ? 0
				 : (uint32_t)s->vm_state_size);
	be32_put(p + 36, extra);
	p += QCOW2_SNAPSHOT_FIXED;
	be64_put(p, s->vm_state_size);
	be64_put(p + 8, s->disk_size);
	if (extra >= SNAPSHOT_KNOWN)
		be64_put(p + 16, s->icount);
	if (s->extra_size)
		memcpy(p + SNAPSHOT_KNOWN, s->extra, s->extra_size);
	p += extra;
	memcpy(p, s->id, id);
	memcpy(p + id, s->name, name);
}

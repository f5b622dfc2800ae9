/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2/bitmap-format: what the bytes of the bitmaps extension's directory
 * and tables mean ("Bitmaps" of the specification), and nothing else.
 * Untrusted; pure functions, any thread.
 */
#ifndef BLOCK_QCOW2_BITMAP_FORMAT_H
#define BLOCK_QCOW2_BITMAP_FORMAT_H

#include "block/qcow2/format.h"

/* Limits, QEMU's: 65535 bitmaps, a directory of 1024 bytes for each. */
#define QCOW2_BITMAP_NAME_MAX        1023
#define QCOW2_BITMAP_GRANULARITY_MIN 9 /* log2 */
#define QCOW2_BITMAP_GRANULARITY_MAX 31
#define QCOW2_BITMAP_TABLE_MAX       (UINT32_C(1) << 27) /* entries */
#define QCOW2_BITMAP_BYTES_MAX       (UINT64_C(512) << 20) /* of its bits */

/* flags */
#define QCOW2_BITMAP_IN_USE           UINT32_C(1)
#define QCOW2_BITMAP_AUTO             UINT32_C(2)
#define QCOW2_BITMAP_EXTRA_COMPATIBLE UINT32_C(4)
#define QCOW2_BITMAP_FLAGS_KNOWN      UINT32_C(7)

#define QCOW2_BITMAP_TYPE_DIRTY 1

/* Table entries */
#define QCOW2_BITMAP_OFFSET   UINT64_C(0x00fffffffffffe00)
#define QCOW2_BITMAP_ALL_ONES UINT64_C(1) /* when the offset is 0 */

/* The fixed part of a directory entry. */
#define QCOW2_BITMAP_FIXED    24
#define QCOW2_BITMAP_AT_FLAGS 12 /* within the entry */

struct qcow2_bitmap_entry {
	uint64_t table_offset;
	uint32_t table_size; /* entries */
	uint32_t flags;
	uint8_t type, granularity_bits;
	uint16_t name_size;
	uint32_t extra_size;
};

/* Parse the fixed part at @p of an entry that has @left bytes at most, of an
 * image of this geometry; *used is the padded length of the whole entry.
 * False when it makes no sense or is not of a kind that we know.
 */
bool qcow2_bitmap_entry_parse(struct qcow2_bitmap_entry *b,
			      const struct qcow2_geometry *g, const void *p,
			      uint64_t left, uint64_t *used, struct err *e)
	MUST_CHECK;

/* The padded length of the whole entry, and its fixed part at @p. */
uint64_t qcow2_bitmap_entry_length(const struct qcow2_bitmap_entry *b);
void qcow2_bitmap_entry_put(const struct qcow2_bitmap_entry *b, void *p);

/* Is it an entry of a bitmap table that keeps the specification? */
bool qcow2_bitmap_table_entry_valid(const struct qcow2_geometry *g,
				    uint64_t entry);

#endif

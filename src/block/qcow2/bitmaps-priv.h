/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What bitmaps.c (loading) and bitmap-store.c (storing) share.
 */
#ifndef BLOCK_QCOW2_BITMAPS_PRIV_H
#define BLOCK_QCOW2_BITMAPS_PRIV_H

#include "block/qcow2/bitmap-format.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/qcow2-priv.h"

struct qcow2_stored_bitmap {
	struct qcow2_bitmap_entry entry;
	uint64_t at; /* bytes: of the entry within the directory */
	uint64_t length; /* of the entry, padded */
	char *name; /* owned */
	bool inconsistent;
	bool kept; /* it is in the directory that is being written */
};

struct qcow2_bitmaps {
	struct qcow2_stored_bitmap *bitmap; /* owned */
	size_t n;
	uint8_t *directory; /* as in the file; owned, NULL when n is 0 */
	struct qcow2_bitmaps_ext place; /* where it is; count 0: nowhere */
	bool claimed; /* its clusters are in the image's claims */
};

/* Bytes of the bits of one bitmap for a disk of @size. */
static inline uint64_t
qcow2_bitmap_bytes(uint64_t size, unsigned granularity_bits)
{
	uint64_t bits = div_up(size, UINT64_C(1) << granularity_bits);

	return div_up(bits, 8);
}

/* Call @each for all runs of clusters of a bitmap: its table and its bits.
 * 0 or an errno value.
 */
int qcow2_bitmap_clusters(struct qcow2 *q, const struct qcow2_stored_bitmap *s,
			  int (*each)(struct qcow2 *q, uint64_t off,
				      uint64_t bytes));

/* Parse l->directory, l->place.directory_size bytes of l->place.count
 * entries.
 */
bool qcow2_bitmaps_parse(const struct qcow2 *q, struct qcow2_bitmaps *l,
			 struct err *e) MUST_CHECK;
/* Forget what was parsed, and the directory. */
void qcow2_bitmaps_clear(struct qcow2_bitmaps *l);

#endif

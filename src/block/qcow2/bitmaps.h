/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2/bitmaps: the dirty bitmaps that are stored in an image ("Bitmaps" of
 * the specification), as sets of dirty ranges.
 *
 * Rules:
 *
 *  1. Before the first write of whoever opened the image to write, all stored
 *     bitmaps are marked in_use, durably (qcow2_bitmaps_take).
 *  2. What is marked in_use when it is loaded is inconsistent: it is shown,
 *     can be kept or dropped, and has no ranges.
 *  3. Storing writes everything anew beside the old: bits, tables, directory.
 *     After a flush the header changes to the new directory in one write
 *     within a sector.  So a crash at any moment leaves the old directory, in
 *     which all are in_use, or the new one.
 *  4. Where such a write cannot do it (the extension is new, or lies across
 *     two sectors) the autoclear flag is taken away before and set again
 *     after, each behind a flush: a crash leaves no bitmap rather than a
 *     wrong one.
 *  5. Clusters of the old directory are given up after the new one is durable.
 *
 * Limits, which are QEMU's and are checked before anything is believed: 65535
 * bitmaps, names of 1 to 1023 bytes, a directory of 64 MiB, granularities of
 * 512 bytes to 2 GiB, 512 MiB of bits in one bitmap.  Memory: the directory,
 * and a few clusters while bits are read or stored.
 *
 * The image is open as qcow2.h says, with keep_bitmaps or read only.  One
 * thread at a time; the functions block.  The caller makes sure that no write
 * is in flight while bitmaps are stored.
 */
#ifndef BLOCK_QCOW2_BITMAPS_H
#define BLOCK_QCOW2_BITMAPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "block/block.h"

struct qcow2_bitmaps;

struct qcow2_bitmap_info {
	const char *name; /* borrowed from the list */
	uint64_t granularity; /* bytes */
	bool enabled; /* flag auto: it records */
	bool inconsistent; /* rule 2, or nothing that we know how to use */
};

/* The bitmaps of @b; none when there are none or the autoclear flag says that
 * they are stale.  False when the directory makes no sense.
 */
bool qcow2_bitmaps_load(struct block *b, struct qcow2_bitmaps **out,
			struct err *e) MUST_CHECK;
void qcow2_bitmaps_free(struct qcow2_bitmaps *l);
DEFINE_CLEANUP(struct qcow2_bitmaps, qcow2_bitmaps_free);

size_t qcow2_bitmaps_count(const struct qcow2_bitmaps *l);
void qcow2_bitmaps_get(const struct qcow2_bitmaps *l, size_t i,
		       struct qcow2_bitmap_info *out);

/* Call @each for runs of dirty bytes of bitmap @i, in ascending order and
 * inside the disk; it returns 0, or an errno value that ends the walk.  Works
 * before and after qcow2_bitmaps_take().
 */
bool qcow2_bitmap_ranges(struct block *b, const struct qcow2_bitmaps *l,
			 size_t i,
			 int (*each)(void *opaque, uint64_t off, uint64_t len),
			 void *opaque, struct err *e) MUST_CHECK;

/* Rule 1.  @b is open for writing. */
bool qcow2_bitmaps_take(struct block *b, struct qcow2_bitmaps *l, struct err *e)
	MUST_CHECK;

/* Can a bitmap of this name and granularity be stored in @b beside @others?
 * The message is QEMU's, to be put behind "Can't make bitmap 'X' persistent in
 * 'N': ".
 */
bool qcow2_bitmap_can_store(const struct block *b, const char *name,
			    uint64_t granularity, size_t others, struct err *e)
	MUST_CHECK;

/* What is to be stored. */
struct qcow2_bitmap_source {
	const char *name; /* borrowed */
	/* The stored one of this name stays as it is in the file, in_use
	 * included; the rest of this is not looked at.
	 */
	bool keep;
	uint64_t granularity; /* bytes */
	bool enabled;
	/* The first dirty range that ends behind @from: [*start, *end), which
	 * may begin before @from; false when there is none.
	 */
	bool (*next)(void *opaque, uint64_t from, uint64_t *start,
		     uint64_t *end);
	void *opaque;
};

/* Rules 3 to 5: from now on @b has these @n bitmaps and no others.  @l, which
 * was taken, becomes the list of them.  Names are unique.
 */
bool qcow2_bitmaps_store(struct block *b, struct qcow2_bitmaps *l,
			 const struct qcow2_bitmap_source *s, size_t n,
			 struct err *e) MUST_CHECK;

#endif

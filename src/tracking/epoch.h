/* SPDX-License-Identifier: BSD-3-Clause
 *
 * tracking: who wrote where, and when it is safe to cut.  It may use base
 * only.
 *
 * epoch.h: the clusters written between two cuts, as bits in a file on tmpfs
 * that both processes map.  An epoch outlives either of them.
 *
 * The file: a header page (struct epoch_header), a summary of one byte for
 * each chunk, padded to a page, then one page of bits for each chunk.  A chunk
 * is 32768 granules.  Summary and header are allocated when the file is made;
 * a page of bits is allocated before its first bit is set.  When that fails
 * the chunk becomes "all changed": a full tmpfs costs precision and never a
 * SIGBUS.
 *
 * Rules:
 * 1. A bit is set before the write that it stands for may begin.
 * 2. A page of bits is touched only after its allocation succeeded.
 * 3. A summary moves EMPTY -> BITS -> ALL or EMPTY -> ALL, never back.
 * 4. Bits are only ever set.  A reader of a closed epoch sees all of them; a
 *    reader of an open one may miss the latest.
 *
 * Offsets, lengths and sizes are bytes of the disk.
 */
#ifndef TRACKING_EPOCH_H
#define TRACKING_EPOCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define EPOCH_MIN_GRANULARITY UINT64_C(512)
#define EPOCH_MAX_GRANULARITY (UINT64_C(1) << 31)

struct epoch;

/* Lay out an epoch in the empty file @fd (borrowed), which becomes as long as
 * it will ever be.  Any thread; blocks for the allocation of the summary.
 */
bool epoch_format(int fd, uint64_t size, uint64_t granularity, struct err *e)
	MUST_CHECK;

/* Map an epoch; checks magic, version and geometry against the file's size.
 * @fd is consumed, also on failure.  The caller holds the one reference.
 */
bool epoch_open(int fd, struct epoch **out, struct err *e) MUST_CHECK;

struct epoch *epoch_ref(struct epoch *ep);
void epoch_unref(struct epoch *ep);
DEFINE_CLEANUP(struct epoch, epoch_unref);

uint64_t epoch_size(const struct epoch *ep);
uint64_t epoch_granularity(const struct epoch *ep);
/* Borrowed from @ep; for handing the file to the other process. */
int epoch_fd(const struct epoch *ep);

/* Any thread, any number of them.  Set the bits of all granules that the
 * range touches.  Cannot fail.
 */
void epoch_set(struct epoch *ep, uint64_t off, uint64_t len);

/* Is any granule that the range touches dirty? */
bool epoch_any(const struct epoch *ep, uint64_t off, uint64_t len);

/* The first dirty (clean) byte in [off, end), by whole granules; @end when
 * there is none.  Looks no further than @end.
 */
uint64_t epoch_next_dirty(const struct epoch *ep, uint64_t off, uint64_t end);
uint64_t epoch_next_clean(const struct epoch *ep, uint64_t off, uint64_t end);

/* Set in @to what is set in @from, as far as both reach; granularities need not
 * be (a coarser @to is rounded outwards).
 */
void epoch_merge(struct epoch *to, const struct epoch *from);

/* --- several epochs seen as one ------------------------------------------ */

/* The union of @n epochs of one disk, rounded outwards to @unit bytes (a
 * power of two).  The array is borrowed while it is in use.
 */
struct dirty {
	struct epoch *const *v; /* borrowed */
	size_t n;
	uint64_t size;
	uint64_t unit;
};

/* The next dirty range at or after @from: [*start, *end), cut at the size of
 * the disk.  False when there is none.
 */
bool dirty_next(const struct dirty *d, uint64_t from, uint64_t *start,
		uint64_t *end);

/* The same, looking no further than @limit: ranges that begin at or behind it
 * are not found, and *end is at most @limit rounded up to a unit.
 */
bool dirty_next_in(const struct dirty *d, uint64_t from, uint64_t limit,
		   uint64_t *start, uint64_t *end);

bool dirty_any(const struct dirty *d, uint64_t off, uint64_t len);

/* How many units are dirty. */
uint64_t dirty_count(const struct dirty *d);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2/check: does an image's metadata agree with itself, and repair.
 *
 * Rules:
 *
 *  1. Without @fix not a byte is written.
 *  2. A leak is a cluster whose refcount is higher than the number of its
 *     users: it costs space.  Everything else is a corruption.
 *  3. What cannot be read (an I/O error, a snapshot table or a bitmap
 *     directory that makes no sense) is a check error; then nothing is
 *     repaired, because the users that it hides would lose their clusters.
 *  4. QCOW2_FIX_LEAKS lowers refcounts, and only where there is no corruption:
 *     what a damaged entry does not reach any more is not lost twice.
 *  5. QCOW2_FIX_ERRORS makes refcounts and the "copied" flags of the active
 *     tables right.  Where the refcount structure itself is damaged or has no
 *     room, a new one is written behind all clusters in use, and the header
 *     changes to it at once (one sector) after a flush.
 *  6. After a repair all is checked again; only when that finds nothing are the
 *     dirty and the corrupt bits cleared, after a flush.
 *
 * A user is counted once for each time that an L1 table names it, and an L2
 * table is read once for all L1 tables that share it.  Memory is bounded:
 * @memory for counters (below), the refcount table (at most 8 MiB) and about
 * 12 MiB of buffers.  The counters cover what is in use and not the holes of a
 * sparse file; when there are too many for the memory, all tables are read
 * again for the next part.  64 MiB are enough for 1 TiB of clusters in use
 * (with 64 KiB clusters) in one reading.
 *
 * The image must not be open for writing anywhere, and with @fix nowhere else.
 * Blocks; any thread.
 */
#ifndef BLOCK_QCOW2_CHECK_H
#define BLOCK_QCOW2_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "block/block.h"

enum qcow2_fix {
	QCOW2_FIX_LEAKS = 1,
	QCOW2_FIX_ERRORS = 2, /* and leaks, when both are given */
};

#define QCOW2_CHECK_MEMORY_DEFAULT (64u << 20)
#define QCOW2_CHECK_MEMORY_MIN     (64u << 10)

struct qcow2_check_options {
	unsigned fix; /* enum qcow2_fix, or 0 */
	size_t memory; /* bytes for counters; 0: the default */
	/* Asked before each table is read; true ends the check (ECANCELED).
	 * May be NULL.
	 */
	bool (*cancelled)(void *opaque);
	/* One finding: a phrase, no newline.  May be NULL. */
	void (*report)(void *opaque, const char *text);
	void *opaque;
};

/* As qemu-img check prints it.  After a repair the first three are what is
 * left.
 */
struct qcow2_check_result {
	uint64_t corruptions, leaks, check_errors;
	uint64_t corruptions_fixed, leaks_fixed;
	uint64_t image_end; /* bytes: behind the last cluster in use */
	/* guest clusters of the active image */
	uint64_t total_clusters, allocated_clusters;
	uint64_t fragmented_clusters, compressed_clusters;
};

/* False when there is no result: the header is refused, the check was
 * cancelled, memory is gone or a repair could not be written.  @file is
 * borrowed.
 */
bool qcow2_check(struct block *file, const struct qcow2_check_options *o,
		 struct qcow2_check_result *res, struct err *e) MUST_CHECK;

/* Before an image is opened for writing: when its dirty bit is set (who had it
 * open postponed refcounts, and died) it is repaired, leaks included; else
 * nothing happens.  @file is borrowed.  False when the image is not clean
 * afterwards.
 */
bool qcow2_repair_dirty(struct block *file, struct err *e) MUST_CHECK;

#endif

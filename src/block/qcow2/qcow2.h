/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2: the driver for QEMU's image format, below struct block.
 *
 * What it promises, and the rules by which it keeps it, is at the head of
 * qcow2-priv.h.  It opens versions 2 and 3 with all that the format defines
 * but encryption: every cluster size and refcount width, backing files,
 * zero and compressed clusters (deflate and zstd), extended L2 entries,
 * external data files, internal snapshots.  format.h has the limits of what
 * is accepted; memory for one open image is bounded by
 *
 *   - its L1 table (at most 32 MiB) and refcount table (at most 8 MiB), and
 *     for an image that is open for writing 16 bytes for each L2 table and
 *     refcount block;
 *   - QCOW2_CACHE_DEFAULT for parts of L2 tables and refcount blocks, or the
 *     option cache_size, but never more than the tables' own size;
 *   - QCOW2_UNPACKED clusters that were decompressed last;
 *   - QCOW2_HELD_MAX runs of space that was given up and not yet freed (24
 *     bytes each); what does not fit stays allocated, and check finds it.
 *
 * Functions that open block; call them in a worker thread.  The object that
 * they make is thread-safe as block.h says.
 */
#ifndef BLOCK_QCOW2_QCOW2_H
#define BLOCK_QCOW2_QCOW2_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "block/block.h"
#include "block/qcow2/format.h"

/* Bytes.  QEMU's default for L2 tables is the same 32 MiB on Linux. */
#define QCOW2_CACHE_DEFAULT (UINT64_C(32) << 20)
#define QCOW2_CACHE_MIN     (UINT64_C(64) << 10)
#define QCOW2_CACHE_MAX     (UINT64_C(64) << 30)

#define QCOW2_UNPACKED 4u
#define QCOW2_HELD_MAX (UINT32_C(1) << 20)

/* What the image says that it needs, so that its children can be opened
 * before it is.  Only the header is read; nothing is probed.
 */
struct qcow2_info {
	struct qcow2_header header;
	bool needs_data_file; /* an external one */
};

bool qcow2_probe(struct block *file, struct qcow2_info *out, struct err *e)
	MUST_CHECK;

struct qcow2_options {
	/* The children are consumed, also on failure. */
	struct block *file;
	struct block *backing; /* NULL: none, whatever the header says */
	struct block *data; /* required when the image needs a data file,
			     * else NULL */
	bool read_only;
	/* Another process writes to the image while it is open here; read_only
	 * is set.  What was read of the tables is dropped by qcow2_refresh(),
	 * and an entry that makes no sense is read again before it is believed.
	 */
	bool live;
	/* The caller loads and stores the image's bitmaps (bitmaps.h).  If
	 * not, opening it for writing marks them inconsistent, as the
	 * specification asks.
	 */
	bool keep_bitmaps;
	uint64_t cache_size; /* bytes; 0: QCOW2_CACHE_DEFAULT */
};

/* An image whose dirty bit is set is checked and repaired before it is opened
 * for writing, as QEMU does it; refused is one whose corrupt bit is set, or
 * whose metadata overlap.
 */
bool qcow2_open(const struct qcow2_options *o, struct block **out,
		struct err *e) MUST_CHECK;

/* Nobody is inside: another size for the tables in memory, as cache_size. */
void qcow2_set_cache(struct block *b, uint64_t bytes);

/* Is @b a qcow2 image that is open here? */
bool qcow2_is(const struct block *b);

/* The header as it is now; borrowed until the next change of size, snapshots
 * or features.
 */
const struct qcow2_header *qcow2_header_of(const struct block *b);

/* For an image that is open with options.live: forget what was read of its
 * tables.  Called at a cut, after which it is read as it is then or later.
 * 0 or an errno value.
 */
int qcow2_refresh(struct block *b);

/* --- internal snapshots ------------------------------------------------------ */

struct qcow2_snapshot_info {
	const char *name; /* borrowed for the call */
	const char *id; /* borrowed for the call; NULL: the next number */
	uint32_t date_s, date_ns; /* since the epoch */
	uint64_t vm_clock_ns;
};

/* Of an image that is open for writing; borrowed until the next change. */
const struct qcow2_snapshot *qcow2_snapshots(const struct block *b,
					     uint32_t *n);

/* Nobody writes meanwhile; reads may go on.  0 or an errno value: ENOTSUP with
 * an external data file, EOVERFLOW when refcounts are too narrow (nothing has
 * changed then).  All tables of the image are read.
 */
int qcow2_snapshot_create(struct block *b,
			  const struct qcow2_snapshot_info *info);
/* Number @i of qcow2_snapshots(); requests wait meanwhile. */
int qcow2_snapshot_delete(struct block *b, uint32_t i);

#endif

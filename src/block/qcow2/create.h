/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2/create: a new, empty image (or one whose clusters are all allocated)
 * in an opened file.
 *
 * The layout follows from the options alone, so that no allocator takes part:
 * header, refcount table, refcount blocks, L1 table, L2 tables, guest
 * clusters, one after the other and each in use exactly once.  The header is
 * written last, after a flush: what a power cut leaves behind is a whole
 * image, or no image.
 *
 * The functions block; any thread.
 */
#ifndef BLOCK_QCOW2_CREATE_H
#define BLOCK_QCOW2_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "block/block.h"
#include "block/qcow2/format.h"

/* QEMU's PreallocMode. */
enum qcow2_preallocation {
	QCOW2_PREALLOC_OFF,
	QCOW2_PREALLOC_METADATA, /* L2 tables; the data is a hole */
	QCOW2_PREALLOC_FALLOC, /* and the data is allocated */
	QCOW2_PREALLOC_FULL, /* and zeroes are written there */
};

/* QEMU's BlockdevCreateOptionsQcow2 without encryption.  A number that is 0
 * means QEMU's default.
 */
struct qcow2_create_options {
	uint64_t size; /* bytes, a multiple of 512 */
	unsigned version; /* 2 or 3; default 3 */
	uint64_t cluster_size; /* 512 to 2 MiB; default 64 KiB */
	unsigned refcount_bits; /* 1 to 64; default 16 */
	bool lazy_refcounts, extended_l2, data_file_raw;
	enum qcow2_compression compression;
	enum qcow2_preallocation preallocation;
	const char *backing_file, *backing_format; /* borrowed; or NULL */
	const char *data_file; /* the name to store; borrowed; or NULL */
};

/* Can there be such an image?  Without I/O, so that it can be asked before a
 * file is made.
 */
bool qcow2_create_check(const struct qcow2_create_options *o, struct err *e)
	MUST_CHECK;

/* Make the image in @file, whose content is lost; @data is given exactly when
 * o->data_file is.  @data grows to o->size and keeps its content.  Both are
 * borrowed and flushed.  After a failure @file is not an image.
 */
bool qcow2_create(struct block *file, struct block *data,
		  const struct qcow2_create_options *o, struct err *e)
	MUST_CHECK;

#endif

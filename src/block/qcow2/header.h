/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2/header: the first cluster of an image is written anew.
 *
 * 1. After a power cut at any moment the file has the old header or the new
 *    one, whole: what lies behind the first sector is written where the header
 *    of that moment does not look, and the first sector alone says where to
 *    look.
 *
 * That needs room: the extensions (but our feature names) and the structure in
 * one sector, and a free place for the backing file's name.  Where there is
 * none, which takes extensions of others or clusters of 1 KiB with long names,
 * the cluster is one write.
 *
 * Blocks; any thread.
 */
#ifndef BLOCK_QCOW2_HEADER_H
#define BLOCK_QCOW2_HEADER_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "block/qcow2/format.h"

/* Where it is written to; functions return 0 or an errno value. */
struct qcow2_header_file {
	int (*write)(void *opaque, const void *buf, size_t len, uint64_t off);
	int (*flush)(void *opaque);
	void *opaque;
	uint32_t sector; /* bytes that are written as a whole: 512 or more */
};

/* Durable on return.  @old is the first cluster as it is; h->length and
 * h->backing_offset are set.  0, EMSGSIZE when it does not fit, or the errno
 * value of a write.
 */
int qcow2_header_replace(const struct qcow2_header_file *f,
			 struct qcow2_header *h, const void *old);

#endif

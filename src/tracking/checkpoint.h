/* SPDX-License-Identifier: BSD-3-Clause
 *
 * checkpoint.h: an epoch in a file on a disk, for a time when its memory is
 * gone.  Any thread; what is saved or loaded is not written to meanwhile.
 *
 * The file: a head (struct head), then for each chunk of 32768 granules in
 * which something is dirty, in order, a record of its number and either "all
 * of it" or a page of bits, then an end with a checksum of all before it.
 *
 * Rules:
 * 1. What is loaded is what was saved, granule by granule.
 * 2. A file that is not whole, not of this epoch, or holds other bytes than
 *    were written is refused.
 */
#ifndef TRACKING_CHECKPOINT_H
#define TRACKING_CHECKPOINT_H

#include "tracking/epoch.h"

/* What a checkpoint is of. */
struct checkpoint {
	uint64_t id; /* a number of the caller's */
	uint64_t size, granularity;
};

/* Write @ep into the empty file @fd (borrowed).  Nothing is synced. */
bool checkpoint_save(int fd, uint64_t id, const struct epoch *ep, struct err *e)
	MUST_CHECK;

/* Read the head of @fd (borrowed). */
bool checkpoint_look(int fd, struct checkpoint *c, struct err *e) MUST_CHECK;

/* Set in the empty epoch @to, which has the geometry of the head, what @fd
 * (borrowed) says.  After a failure @to is to be thrown away.
 */
bool checkpoint_load(int fd, struct epoch *to, struct err *e) MUST_CHECK;

#endif

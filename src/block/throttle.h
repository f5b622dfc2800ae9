/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The throttle driver: passes requests on to @file no faster than the limits
 * of a group allow, which any number of images of this process share.
 *
 * 1. Over any time a group lets through no more than its limits say, plus what
 *    a bucket holds: a tenth of a second's worth, or what a burst was given.
 * 2. A request is delayed, never failed.
 * 3. Requests of one image and direction keep their order; the images of a
 *    group take turns.
 * 4. Reads, writes, zeroes and discards count; flushes pass.
 *
 * Waiting happens in block_admit() for images of which block_admit_outside()
 * was said, so that nobody waits inside a gate; for others in the request
 * itself.
 */
#ifndef BLOCK_THROTTLE_H
#define BLOCK_THROTTLE_H

#include "block/block.h"
#include "block/buckets.h"

/* May a group have these limits?  QEMU's messages. */
bool throttle_config_check(const struct throttle_config *l, struct err *e)
	MUST_CHECK;

/* The group @name of this process, which exists while an image belongs to it,
 * has @l from now on.  Any thread.  Without such a group nothing happens.
 */
void throttle_group_set(const char *name, const struct throttle_config *l);

/* @file is consumed, also on failure.  The group is made if there is none. */
bool block_throttle_open(struct block *file, const char *group,
			 const struct throttle_config *l, struct block **out,
			 struct err *e) MUST_CHECK;

/* Another group, in two steps: the first one may fail, and the second one takes
 * the group of the last first one.  Nobody is inside for the second one.
 */
bool block_throttle_prepare(struct block *b, const char *group, struct err *e)
	MUST_CHECK;
void block_throttle_regroup(struct block *b, const struct throttle_config *l);

/* --- waiting outside ------------------------------------------------------- */

/* From now on whoever makes requests to @b calls block_admit first.  False:
 * nothing in @b ever waits, and there is no need to.
 */
bool block_admit_outside(struct block *b);

/* Wait for a request's turn in every layer of @b. */
void block_admit(struct block *b, bool write, uint64_t len);

/* Who waits, waits no longer, and nobody waits until it is called with false:
 * something is about to wait for the requests to end.  Calls nest.
 */
void block_admit_all(struct block *b, bool all);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The blkdebug driver: passes requests on to @image, and fails those that its
 * rules choose.  For tests, and for operators who rehearse.
 *
 * 1. A rule with an event wakes when the event happens in its state; all rules
 *    that wake with one event take the place of those that were awake.
 * 2. A rule with the event "none" is awake at every request in its state.
 * 3. The first rule that is awake and fits a request (kind, sector) fails it;
 *    with once it is gone after that.
 * 4. New states take effect when all rules of an event have been looked at.
 *
 * Events come from the driver above (block_event).  A driver above that never
 * says anything, or none at all: every read counts as read_aio and every write
 * as write_aio.  A flush is flush_to_disk in any case; a write is also pwritev
 * before and pwritev_done after it, a request to zero pwritev_zero.
 */
#ifndef BLOCK_BLKDEBUG_H
#define BLOCK_BLKDEBUG_H

#include "block/block.h"
#include "block/event.h"

/* Kinds of requests, QEMU's BlkdebugIOType; bits of a mask. */
enum blkdebug_kind {
	BLKDEBUG_READ = 1,
	BLKDEBUG_WRITE = 2,
	BLKDEBUG_ZERO = 4,
	BLKDEBUG_DISCARD = 8,
	BLKDEBUG_FLUSH = 16,
	BLKDEBUG_STATUS = 32,
	BLKDEBUG_DEFAULT = 31, /* all but status */
};

struct blkdebug_rule {
	enum block_event event;
	uint32_t state; /* 0: any */
	bool sets; /* it sets @new_state, or else it injects an error: */
	uint32_t new_state;
	unsigned kinds; /* of requests that it fails */
	int os; /* with this errno value; 0: it fits and does nothing */
	int64_t sector; /* only requests that touch it; -1: all */
	bool once;
};

struct blkdebug_options {
	const struct blkdebug_rule *rules; /* copied */
	size_t n;
	uint32_t align; /* of requests, as told to guests; 0: the image's */
	uint32_t max_transfer; /* longer requests are cut; 0: no limit */
	uint32_t max_zero, max_discard; /* likewise */
};

#define BLKDEBUG_MAX_RULES 256

/* @image is consumed, also on failure. */
bool block_blkdebug_open(struct block *image, const struct blkdebug_options *o,
			 struct block **out, struct err *e) MUST_CHECK;

#endif

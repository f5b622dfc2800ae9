/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The model of a disk: what every sector may hold at an instant.
 *
 * Knows nothing of Stillpoint.  It is told when each request was sent and
 * when its answer came, and judges an image of the disk by two rules:
 *
 *   register  A value can be there at instant T if its request was sent
 *	       before T, and no request that was sent after the value's answer
 *	       was itself answered before T.  All sectors of all disks of one
 *	       cut must share one such T.
 *   whole     A write is in a cut with all its sectors or with none: a sector
 *	       of a write that the image shows elsewhere cannot hold what was
 *	       answered before that write was sent.
 *
 * Every written sector repeats one 64-bit word that names the write, the disk
 * and the sector, so torn and misdirected writes show as well.
 *
 * Times are nanoseconds of CLOCK_MONOTONIC.  One thread.
 */
#ifndef MODEL_HISTORY_H
#define MODEL_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SECTOR = 512, HISTORY_TEXT = 1024 };

struct history;
struct op;

/* The word that write @seq (at least 1, below 2^36) puts into a sector. */
uint64_t history_word(uint64_t seq, unsigned disk, uint64_t sector);

/* @disk is below 16, @sectors at most 2^24.  What the disk holds before the
 * first request is copied from @image, of @sectors sectors; each must repeat
 * one word.  Never NULL; exits when @image is not like that.
 */
struct history *history_new(unsigned disk, uint64_t sectors,
			    const uint8_t *image);
void history_free(struct history *h);

/* A request for sectors [@first, @first + @n) leaves at @now: the write @seq,
 * or with @seq 0 one that zeroes.  Returns a borrowed handle for history_end
 * or history_lost, exactly one of which must follow.
 */
struct op *history_begin(struct history *h, uint64_t seq, uint64_t first,
			 uint64_t n, int64_t now);

/* It was answered with success. */
void history_end(struct history *h, struct op *o, int64_t now);

/* Nobody knows whether it was done; after @now it is not done any more. */
void history_lost(struct history *h, struct op *o, int64_t now);

/* Nothing before @when will be asked about any more. */
void history_set_horizon(struct history *h, int64_t when);

/* The times at which a set of images can not have been taken. */
struct gaps {
	int64_t from, to; /* asked about, both ends included */
	struct gap *v; /* owned */
	size_t n, room;
};

void gaps_init(struct gaps *g, int64_t from, int64_t to);
void gaps_clear(struct gaps *g);

/* Judge sectors [@first, @first + @n), whose content is @data.  Adds to @g;
 * false, with the reason in @text, when they cannot be right at any time from
 * g->from to g->to.  @whole: it is a cut, so the second rule applies;
 * otherwise it is what a guest read, and a sector may be torn while it was
 * being written.
 */
bool history_check(const struct history *h, const uint8_t *data, uint64_t first,
		   uint64_t n, bool whole, struct gaps *g,
		   char text[HISTORY_TEXT]);

/* One instant for all that was judged with @g: sets @when; false with the
 * sectors that contradict each other in @text.
 */
bool gaps_instant(struct gaps *g, int64_t *when, char text[HISTORY_TEXT]);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What a stream has to copy, in order of offset: runs of the copy set, each
 * data or zero.  A plan that follows has no copy set: it looks, in rounds, for
 * what guests have overwritten since the cut (SAVED in the view).  Looking for them may block (a disk is asked for its holes),
 * so it is done by one thread at a time without a lock: plan_look() by
 * whoever has the planner's role, everything else under the stream's lock.
 */
#ifndef STREAM_PLAN_H
#define STREAM_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "stream/ranges.h"
#include "tracking/epoch.h"
#include "view/reader.h"

#define PLAN_RUNS 64

/* Zeroes that are shorter than this travel with the data around them: a
 * request costs about as much as sending so many bytes.  Measured with nbdkit
 * on tmpfs over loopback (time and CPU of both sides against 32 KiB, data of
 * 64 KiB each with one run of zeroes): runs of 4 KiB as requests cost 33 % more
 * of both, runs of 16 KiB 15 %, runs of 28 KiB about the same.
 */
#define PLAN_MIN_ZERO (UINT64_C(32) << 10)

struct plan {
	/* set at the start */
	const struct view_reader *reader; /* borrowed */
	struct dirty copy; /* unit is the job's cluster, or larger */
	uint64_t limit; /* nothing at or beyond it is copied */
	uint64_t align; /* a zero run begins and ends at multiples of it */
	bool top; /* units of @copy that the image's top layer has nothing of
		   * are left out */
	struct taken *taken; /* owned; NULL: it does not follow */

	/* the planner's */
	uint64_t at; /* everything before was looked at */
	uint64_t dirty_end; /* of the dirty range that @at is in */
	uint64_t here_end; /* with @top: it is known up to here */
	uint64_t saves; /* view_saves() before this round */
	struct run found[PLAN_RUNS];
	unsigned nfound;

	/* under the stream's lock */
	struct run run[PLAN_RUNS];
	unsigned first, n;
	uint64_t left_out; /* units, of this look */
	bool complete; /* nothing will be found any more */
	bool looking; /* somebody has the planner's role */
	uint64_t ahead; /* readahead was asked for up to here */
};

/* Follow: @unit is what is taken at once when any of it was overwritten (a
 * multiple of the view's granule).  False: no memory.
 */
bool plan_follow(struct plan *p, uint64_t unit);
void plan_destroy(struct plan *p);

/* Begin a round of following.  Locked; nobody looks. */
void plan_rewind(struct plan *p);

/* Has a plan that follows come to the end of its round? */
bool plan_round_is_over(const struct plan *p);

/* Is there anything new since the last round began? */
bool plan_has_news(const struct plan *p);

/* Find the next runs; planner only. */
void plan_look(struct plan *p);

/* Make what was found available.  Locked; gives up the planner's role. */
void plan_publish(struct plan *p);

/* Cut the next piece: at most @max_data (a power of two that pieces do not
 * cross) or @max_zero bytes.  False when there is nothing (yet).  Locked.
 */
bool plan_take(struct plan *p, uint64_t max_data, uint64_t max_zero,
	       struct run *out);

/* What to read ahead after a piece was taken: false when nothing.  Locked. */
bool plan_ahead(struct plan *p, const struct run *taken, struct run *out);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stream: moving a view to a target, and nothing twice.  A target is an export
 * of a remote NBD server, or an image that this process has open.  It may use
 * base, block, tracking and view; libnbd and libev are used directly.
 *
 * The shape is lanes (lane.c says why): a lane is a thread with a loop, one
 * way to the target and reads of its own.  Work is handed out in order of
 * offset (plan.c).  What the daemon sees is here.
 *
 * Rules (tests/mutate/table.py names the tests of each):
 * 1. A range is reported to the view (view_reader_done) only after a flush
 *    was acknowledged on the connection (by the image) that had acknowledged
 *    the range's write before that flush was sent.
 * 2. When a connection is lost, whatever it carried and was not flushed is
 *    sent again; nothing is lost and no byte counts twice in the progress.
 * 3. After stream_cancel the stream is done within 0.2 s, whatever a server
 *    does.  A call into the kernel for an image of ours cannot be taken back:
 *    then it is done when that one call (at most 32 MiB, or one flush)
 *    returns.
 * 4. Zeroes travel as requests, never as bytes, where the target can zero.
 * 5. No request is smaller than or not aligned to the target's minimum block,
 *    except for the tail of a disk that cannot be written otherwise.
 * 6. What a stream that follows is told of when it is drained is durable at
 *    the target when it has ended well, and no cluster was sent twice.
 * 7. The callbacks run on the loop that was given, @done exactly once.
 * 8. An error that the owner wants to go on after loses nothing and counts
 *    nothing twice: what failed is sent again.  The owner is asked once for
 *    each time that the stream went on and failed again.
 * 9. A stream that is paused or rests after an error hands out no work, and
 *    does not end well.
 * 10. Nothing of the source is discarded before it is durable at the target.
 *
 * Offsets, lengths and sizes are bytes.
 */
#ifndef STREAM_STREAM_H
#define STREAM_STREAM_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"
#include "block/block.h"
#include "tracking/epoch.h"
#include "view/reader.h"

/* --- an opened target -------------------------------------------------------
 *
 * One on an NBD server keeps one connection open for its life, because
 * qemu-nbd goes away with its last client.  A stream borrows that connection
 * for its first lane.
 */
struct target;

struct target_options {
	/* Copied.  reconnect_delay_s, open_timeout_s and connections (0: no
	 * limit of its own) count; read_only does not.
	 */
	struct block_nbd_options server;
	unsigned response_timeout_s; /* a server that does not answer for so
				      * long is gone; 0: 60 */
};

/* Connects (blocks: worker thread).  Errors: "Failed to connect to
 * 'host:port': Connection refused" and the like.
 */
bool target_open(const struct target_options *o, struct target **out,
		 struct err *e) MUST_CHECK;

/* An image that is open for writing.  @b is consumed, also on failure; @name
 * is for messages, and copied.  Any thread.
 */
bool target_open_block(struct block *b, const char *name, struct target **out,
		       struct err *e) MUST_CHECK;

/* No stream uses it any more.  Does not wait for a server; closes an image,
 * which may block.
 */
void target_free(struct target *t);
DEFINE_CLEANUP(struct target, target_free);

/* Any thread. */
uint64_t target_size(const struct target *t);
uint32_t target_min_block(const struct target *t); /* 1 or a power of two */
uint32_t target_cluster(const struct target *t); /* of an image; or 0 */
uint32_t target_pref_block(const struct target *t); /* 0: not said */
bool target_read_only(const struct target *t);
bool target_can_multi_conn(const struct target *t);
bool target_can_zero(const struct target *t);
bool target_can_flush(const struct target *t);
const char *target_address(const struct target *t); /* borrowed from @t */
struct block *target_block(const struct target *t); /* borrowed; or NULL */

/* --- a stream --------------------------------------------------------------- */

struct stream;

enum stream_side {
	STREAM_NEITHER,
	STREAM_SOURCE, /* reading failed */
	STREAM_TARGET, /* writing failed */
};

/* What to do about a request that failed. */
enum stream_action {
	STREAM_FAIL, /* the stream ends with the error */
	STREAM_RETRY, /* it goes on after a short while */
	STREAM_HOLD, /* it rests until stream_resume */
};

struct stream_result {
	struct err error; /* not set: success (or cancelled) */
	enum stream_side side; /* of the error */
	bool cancelled;
	uint64_t bytes_sent; /* as data */
	uint64_t bytes_zeroed; /* as requests to zero */
	uint64_t requests; /* writes and zeroes */
	uint64_t flushes;
	uint64_t reconnects;
	unsigned lanes; /* most connections at once */
};

struct stream_options {
	struct loop *loop; /* where the callbacks run; borrowed */
	const struct view_reader *reader; /* borrowed until done */
	uint64_t size; /* of the disk */
	struct dirty copy; /* what to copy; n == 0: everything.  The array is
			    * borrowed until done; unit is a power of two, and
			    * made no smaller than @cluster */
	uint64_t cluster; /* of the job: what progress counts in; a power of
			    * two, made larger where the target needs it */
	struct target *target; /* borrowed until done */
	/* What is durable at the target is discarded here; borrowed until done,
	 * or NULL.  A discard that fails is no failure.
	 */
	struct block *discard;
	/* The disk is at @at of the target, and @room bytes are its own (0: all
	 * that follow).  @at is a multiple of the target's minimum block.
	 */
	uint64_t at, room;
	/* Copy no set, but what guests overwrite while they do so: a cluster of
	 * which the reader's view has something SAVED is sent, as it was at the
	 * cut, and becomes DONE.  Ends by stream_drain or stream_cancel; @speed
	 * does not hold it back.
	 */
	bool follow;
	/* Leave out the clusters of which the top layer of the reader's image
	 * has nothing.
	 */
	bool top;
	/* Write compressed; the target is an image that can do that.  One
	 * cluster of the target at a time.
	 */
	bool compress;
	uint64_t speed; /* bytes of the disk per second; 0: no limit */
	unsigned max_lanes; /* 0: as many as are good */
	unsigned max_workers; /* pieces in flight at once; 0: no limit */
	uint64_t max_chunk; /* the largest piece; at least a cluster, or 0:
			     * no limit */
	const char *name; /* for log lines; copied */
	void *opaque;
	/* Loop.  All threads have ended; stream_free may be called. */
	void (*done)(struct stream *s, void *opaque);
	/* Loop.  Nothing is in flight after stream_pause; may be NULL. */
	void (*paused)(struct stream *s, void *opaque);
	/* Loop.  A read of the source or a write to the target failed, also
	 * after all tries to reconnect.  Nothing is handed out meanwhile.
	 * Not asked about: a view that was given up, and a target that may
	 * have lost what it had acknowledged.  NULL: STREAM_FAIL.
	 */
	enum stream_action (*error)(struct stream *s, enum stream_side side,
				    const struct err *e, void *opaque);
};

#define STREAM_MIN_CLUSTER (UINT64_C(64) << 10)

/* The cluster that a job with these options counts in. */
uint64_t stream_cluster(const struct target *t, uint64_t wanted);

/* Loop.  False: nothing was started and no callback will run. */
bool stream_start(const struct stream_options *o, struct stream **out,
		  struct err *e) MUST_CHECK;

/* Any thread.  Bytes of clusters; @len is 0 until it is known (soon). */
void stream_progress(const struct stream *s, uint64_t *offset, uint64_t *len);

/* Loop. */
void stream_set_speed(struct stream *s, uint64_t speed);
void stream_pause(struct stream *s);
void stream_resume(struct stream *s); /* also from STREAM_HOLD */
void stream_cancel(struct stream *s);

/* Loop.  For a stream that follows: send what guests have overwritten by now,
 * flush it, and end well.  Goes on when it is paused or rests.
 */
void stream_drain(struct stream *s);

/* Loop, in @done or later; borrowed from @s. */
const struct stream_result *stream_result(const struct stream *s);
void stream_free(struct stream *s);

#endif

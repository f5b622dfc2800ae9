/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The inside of a stream: what its lanes share (stream.c, account.c, lanes.c,
 * trouble.c) and what each has for itself (lane.c, lane-io.c).
 */
#ifndef STREAM_STREAM_PRIV_H
#define STREAM_STREAM_PRIV_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/mtx.h"
#include "stream/buffers.h"
#include "stream/pace.h"
#include "stream/plan.h"
#include "stream/stream.h"
#include "stream/target-priv.h"
#include "stream/window.h"

#define STREAM_LANES 4 /* at most, of one stream */
#define LANE_PIECES  16 /* in flight of one lane, at most */
#define PIECE_OPS    8 /* requests that one piece may become */

struct lane;

/* One request at the target.  Belongs to the lane_ops from its submission
 * until it appears in lane->completed.
 */
struct op {
	struct lane *lane; /* borrowed */
	struct piece *piece; /* borrowed; NULL: the lane's flush */
	int error; /* errno value */
	bool answered; /* it is or was in lane->completed */
	struct op *next; /* while in lane->completed */
};

/* A piece of work of one lane, from its being taken until every request it
 * became is completed.
 */
struct piece {
	struct run run;
	unsigned nops; /* submitted */
	unsigned pending; /* of them not completed */
	int error; /* first errno of them */
	uint64_t zeroed; /* bytes of it that are sent as requests to zero */
	void *buf; /* owned; NULL for zeroes */
	uint64_t sent; /* when it was submitted */
	struct op ops[PIECE_OPS];
	struct piece *next; /* while free */
};

/* How a lane's requests reach its target: over a connection (lane-nbd.c) or
 * by calls that block (lane-block.c).  All on the lane's thread.  Each op
 * ends with exactly one lane_answered(), perhaps before the call returns.
 */
struct lane_ops {
	void (*write)(struct lane *l, struct op *op, const void *buf,
		      size_t len, uint64_t off);
	void (*zero)(struct lane *l, struct op *op, uint64_t len, uint64_t off);
	void (*flush)(struct lane *l, struct op *op);
	/* What is submitted now would only wait in this process. */
	bool (*is_full)(const struct lane *l);
	/* False: what was submitted is lost, and so is what comes. */
	bool (*is_alive)(const struct lane *l);
	bool immediate; /* ops are answered before the calls return */
};

extern const struct lane_ops lane_nbd, lane_block;

enum lane_state {
	LANE_START, /* no connection yet */
	LANE_CONNECTING, /* the handshake is under way */
	LANE_READY,
	LANE_WAITING, /* for the next try to connect */
	LANE_RESTING, /* without a connection until the stream goes on after
		       * an error or a pause; others may have one */
	LANE_LEFT, /* nothing happens any more */
};

struct lane {
	struct stream *s; /* borrowed */
	const struct lane_ops *ops;
	unsigned number;
	pthread_t thread;
	struct loop loop; /* the thread's own, while @live */
	bool live; /* under s->lock: the loop can be posted to */
	bool hungry; /* under s->lock: waits for the planner */
	atomic_bool kicked; /* @kick is posted and did not run yet */
	struct task kick;
	struct task again; /* deferred: there is more to do at once */
	struct buffers_waiter waiter;

	/* The rest is the thread's. */
	enum lane_state state;
	struct nbd_handle *h; /* owned; NULL without a connection */
	bool usable; /* can reach the target: counted in s->usable, and
		      * written under s->lock */
	bool ever; /* was connected before */
	ev_io io;
	int io_events;
	ev_timer timer;
	uint64_t wake_at; /* when the timer runs; 0: it does not */
	uint64_t connect_until, give_up_at, next_try; /* while not READY */
	uint64_t went_on; /* s->went_on when it lost its connection, or last
			   * began to connect */

	struct piece pieces[LANE_PIECES];
	struct piece *free;
	unsigned in_flight; /* pieces */
	struct window window; /* how many there may be */
	unsigned unsent; /* pieces taken since the socket is full */
	void *spare; /* owned: a buffer for the next piece */
	struct op *completed, **completed_tail;
	bool nothing_left; /* the last try to take said so */

	struct ranges acked; /* acknowledged since the last flush was sent */
	uint64_t acked_data; /* bytes of @acked that travelled */
	struct ranges flushing; /* covered by the flush in flight */
	struct op flush_op;
	bool flush_in_flight;
	uint64_t flush_sent, next_flush, last_answer;
	uint64_t stop_at; /* when draining ends */
};

enum trouble {
	TROUBLE_NONE,
	TROUBLE_ASKING, /* the owner is about to be asked */
	TROUBLE_RESTING, /* for a while, or until stream_resume */
};

enum stop_reason { STOP_NOT, STOP_SUCCESS, STOP_FAILED, STOP_CANCELLED };

struct stream {
	struct stream_options o; /* name is owned */
	uint64_t limit; /* end of what is copied */
	uint64_t room; /* bytes of the target that are ours to write */
	uint64_t piece; /* size of pieces of data, a power of two */
	struct buffers_share buffers;

	_Atomic uint64_t offset, length; /* of stream_progress */
	atomic_int stop; /* enum stop_reason; moves once, locked */

	struct mtx lock; /* LOCK_STREAM; guards the following */
	struct plan plan;
	struct ranges again; /* to be sent once more */
	struct pace pace;
	uint64_t max_zero;
	uint64_t outstanding; /* bytes taken, and not durable or given back */
	unsigned in_flight; /* pieces and flushes of all lanes */
	unsigned pieces; /* of them */
	unsigned usable; /* lanes with a connection */
	unsigned running; /* lanes whose threads have not finished */
	unsigned started; /* lanes whose threads were started */
	bool any_acked;
	bool pausing, paused_posted;
	bool draining; /* stream_drain was called */
	bool last_round; /* of a plan that follows */
	enum trouble trouble;
	uint64_t went_on; /* how often it did, after trouble or a pause */
	enum stream_side trouble_side;
	struct err trouble_error;
	struct stream_result result;

	/* for o.loop */
	struct task paused_task, finished_task, trouble_task;
	ev_timer retry; /* ends TROUBLE_RESTING; loop */
	double retry_s; /* how long it ran last; loop */
	uint64_t retry_requests; /* that had succeeded then; loop */
	struct lane lanes[STREAM_LANES];
};

uint64_t stream_now(void); /* monotonic, nanoseconds */

/* --- stream.c: any thread ----------------------------------------------------- */

/* Ends the stream with @e unless it is ending already. */
void stream_fail(struct stream *s, enum stream_side side, const struct err *e);
void stream_stop_locked(struct stream *s, enum stop_reason why) NEEDS(s->lock);

/* If a pause is wanted and nothing is in flight, tell the owner. */
void stream_maybe_paused_locked(struct stream *s) NEEDS(s->lock);

/* --- account.c: any thread ---------------------------------------------------- */

enum take {
	TAKE_WORK,
	TAKE_WAIT, /* the lane will be kicked */
	TAKE_LATER, /* not before *later (nanoseconds, monotonic) */
	TAKE_NOTHING, /* all is handed out; some may come back (kick) */
	TAKE_BROKEN, /* the view was given up */
};

enum take stream_take(struct lane *l, struct run *out, struct run *ahead,
		      uint64_t *later);

/* The whole piece was acknowledged (before it is durable). */
void stream_acked(struct stream *s, const struct run *r, unsigned requests,
		  uint64_t zeroed);

/* @r is safe at the target: the view, and perhaps the source, let go of it. */
void stream_release(const struct stream *s, const struct run *r);
/* The whole copy set is: for targets without flushes, at the end. */
void stream_release_all(const struct stream *s);

/* @bytes are safe at the target. */
void stream_durable(struct stream *s, uint64_t bytes);

/* A flush goes out (+1), or is answered (-1). */
void stream_flush_moves(struct stream *s, int by);

/* A piece that was in flight, or ranges that were not flushed, are to be
 * sent again.
 */
void stream_give_back(struct stream *s, const struct run *r);
void stream_give_back_ranges(struct stream *s, struct ranges *r);

/* Bytes of clusters; may take its time. */
uint64_t stream_bytes_to_copy(const struct stream *s);

/* All is handed out and durable: the stream ends well. */
void stream_maybe_finish(struct stream *s);

/* --- trouble.c: any thread ---------------------------------------------------- */

/* A request failed with @e; what it was for is given back.  False: that was
 * the end of the stream (stream_fail).  True: the stream rests, or goes on.
 */
bool stream_error(struct stream *s, enum stream_side side, const struct err *e);

/* Is it paused, or does it rest after an error?  The lanes are kicked when
 * that is over.
 */
bool stream_rests(struct stream *s);
/* How often that was over. */
uint64_t stream_went_on(struct stream *s);

/* Loop; before the first lane starts, and when all have ended. */
void stream_trouble_init(struct stream *s);
void stream_trouble_end(struct stream *s);

/* --- lanes.c: any thread ------------------------------------------------------ */

/* Start the first lane; returns 0 or an errno value (loop). */
int stream_start_first_lane(struct stream *s);

/* Start the other lanes that are worth it (first lane's thread). */
void stream_start_lanes(struct stream *s);

/* All have finished (loop). */
void stream_join_lanes(struct stream *s);

/* Have the lanes look for work, or only those that found none. */
void stream_kick_locked(struct stream *s, bool hungry_only) NEEDS(s->lock);
void stream_kick_all(struct stream *s);

/* @l has a connection from now on, or none; returns how many have one. */
unsigned stream_usable(struct lane *l, bool usable);
void stream_reconnected(struct stream *s);

/* The last thing that a lane's thread does. */
void stream_lane_finished(struct stream *s);

/* --- lane.c ------------------------------------------------------------------ */

void *lane_run(void *arg); /* the thread */
void lane_init(struct lane *l, struct stream *s, unsigned number);

/* Wake the lane's thread.  s->lock or the pool's is held: the lane is live. */
void lane_kick(struct lane *l);

/* The connection is gone.  @os says why (an errno value). */
void lane_lost(struct lane *l, int os);

/* --- lane-io.c: the lane's thread -------------------------------------------- */

/* @op is over, with 0 or an errno value: put it into l->completed.  Also from
 * inside of libnbd.
 */
void lane_answered(struct lane *l, struct op *op, int os);

/* Handle what has completed.  False: the connection was lost meanwhile. */
bool lane_reap(struct lane *l);

/* Take work, read it and submit it, as much as is good now.  *later: when to
 * try again by the clock, 0: when kicked or when something completes.
 */
void lane_feed(struct lane *l, uint64_t *later);
void lane_flush(struct lane *l);

/* Is it time for a flush?  *later as above. */
bool lane_flush_due(const struct lane *l, uint64_t *later);

/* Nothing of this lane is in flight any more: return everything. */
void lane_abandon(struct lane *l);

#endif

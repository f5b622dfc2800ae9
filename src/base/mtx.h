/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Every lock of both programs.  A thread takes them top to bottom of this
 * table only, and never two of one row; mtx_lock() aborts on any other order.
 * Nothing may block on the network or on a disk while holding one, except
 * where the row says so.
 */
#ifndef BASE_MTX_H
#define BASE_MTX_H

#include <pthread.h>
#include <stdbool.h>

#define LOCK_TABLE(X)                                                         \
	X(DEVICES, "the plugin's tables of nodes and exports")                \
	X(REMOTE, "connections of one remote image and who waits for them")   \
	X(STREAM, "what is left to copy and what is in flight of one stream") \
	X(GATE, "a closed gate and who waits for it to open")                 \
	X(CBW, "who waits for a granule that another thread saves")           \
	X(EPOCH, "allocation of a chunk of an epoch's bits (may fallocate)")  \
	X(VIEW, "allocation of a chunk of a view's states (may fallocate)")   \
	X(QCOW2_FLUSH, "who flushes a qcow2 image, and who waits for it")     \
	X(QCOW2_HELD, "space of a qcow2 image that was given up")             \
	X(QCOW2_CACHE, "a part of a qcow2 image's cache of tables")           \
	X(QCOW2_UNPACKED, "clusters of a qcow2 image decompressed last")      \
	X(BUFFERS, "the pool of stream buffers")                              \
	X(BLKDEBUG, "rules and state of one blkdebug image")                  \
	X(THROTTLE, "who waits for a group's turn (timed waits)")             \
	X(WORK, "the queue of a pool of worker threads")                      \
	X(MAILBOX, "tasks that other threads post to a loop")                 \
	X(STATS, "figures that are only reported")

enum lock_class {
#define X(name, text) LOCK_##name,
	LOCK_TABLE(X)
#undef X
		LOCK_N
};

#if defined(__clang__)
#define TSA(x) __attribute__((x))
#else
#define TSA(x)
#endif
#define ACQUIRES(...) TSA(acquire_capability(__VA_ARGS__))
#define RELEASES(...) TSA(release_capability(__VA_ARGS__))
#define NEEDS(...)    TSA(requires_capability(__VA_ARGS__))
#define NO_TSA        TSA(no_thread_safety_analysis)

struct TSA(capability("mutex")) mtx {
	pthread_mutex_t m;
	enum lock_class cls;
};

/* Any thread. */
void mtx_init(struct mtx *m, enum lock_class cls);
void mtx_destroy(struct mtx *m);
void mtx_lock(struct mtx *m) ACQUIRES(*m);
void mtx_unlock(struct mtx *m) RELEASES(*m);

/* Wait for @c, as pthread_cond_wait; the lock is held again on return. */
void mtx_wait(struct mtx *m, pthread_cond_t *c) NEEDS(*m);

/* As mtx_wait, but no longer than @ms milliseconds; false when time is up.
 * @c was made by cond_init (monotonic clock).
 */
bool mtx_wait_ms(struct mtx *m, pthread_cond_t *c, unsigned ms) NEEDS(*m);

void cond_init(pthread_cond_t *c);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A write claims the granules that it would overwrite (NEEDED -> SAVING),
 * copies each run of them in one go and publishes them as SAVED.  Granules
 * that another thread is saving are waited for, always after our own are
 * published, so that two writes never wait for each other.
 */
#include "view/cbw.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/mtx.h"
#include "base/park.h"

/* The largest run that is copied at once, through a buffer on the stack. */
#define COPY_MAX (64 * KiB)

struct cbw {
	struct view *view; /* reference owned */
	int store; /* owned */
	struct block *image; /* borrowed */
	struct epoch *mask[2]; /* references owned */
	struct dirty dirty; /* over @mask */
	enum cbw_policy policy;
	unsigned timeout_ms;
	void (*on_broken)(void *, int);
	void *opaque;
	_Atomic uint64_t saved_bytes;
	_Atomic bool told; /* on_broken was called */
	struct mtx lock; /* LOCK_CBW */
	pthread_cond_t saved; /* some granule left SAVING */
	_Atomic unsigned waiting; /* threads in wait_saved() */
};

bool
cbw_new(const struct cbw_options *o, struct cbw **out, struct err *e)
{
	struct cbw *c = calloc(1, sizeof *c);

	if (!c) {
		view_unref(o->view);
		for (size_t i = 0; i < o->n; i++)
			epoch_unref(o->mask[i]);
		(void)close(o->store);
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot attach a view");
	}
	c->view = o->view;
	c->store = o->store;
	c->image = o->image;
	for (size_t i = 0; i < o->n; i++)
		c->mask[i] = o->mask[i];
	c->dirty = (struct dirty){ .v = c->mask,
				   .n = o->n,
				   .size = view_size(o->view),
				   .unit = o->unit };
	c->policy = o->policy;
	c->timeout_ms = o->timeout_ms;
	c->on_broken = o->broken;
	c->opaque = o->opaque;
	mtx_init(&c->lock, LOCK_CBW);
	cond_init(&c->saved);
	*out = c;
	return true;
}

void
cbw_free(struct cbw *c)
{
	view_unref(c->view);
	for (size_t i = 0; i < c->dirty.n; i++)
		epoch_unref(c->mask[i]);
	(void)close(c->store);
	(void)pthread_cond_destroy(&c->saved);
	mtx_destroy(&c->lock);
	free(c);
}

uint64_t
cbw_saved_bytes(const struct cbw *c)
{
	return atomic_load(&c->saved_bytes);
}

void
cbw_give_up(struct cbw *c)
{
	atomic_store(&c->told, true);
	view_break(c->view, ECANCELED);
}

/* What happens when saving fails: the one place that knows the policy.
 * Returns what cbw_before_write returns.
 */
static int
save_failed(struct cbw *c, int os)
{
	if (c->policy == CBW_BREAK_GUEST_WRITE)
		return os;
	view_break(c->view, os); /* rule 6: before the image changes */
	if (!atomic_exchange(&c->told, true) && c->on_broken)
		c->on_broken(c->opaque, view_broken(c->view));
	return 0;
}

static int
write_full(int fd, const char *p, size_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pwrite(fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? errno : EIO;
		p += n;
		len -= (size_t)n;
		off += (uint64_t)n;
	}
	return 0;
}

/* Copy [off, end) from the image to the store.  What is zero stays a hole:
 * a granule is saved once, so its place in the store is a hole until then.
 */
static int
copy_range(struct cbw *c, uint64_t off, uint64_t end)
{
	_Alignas(4096) char buf[COPY_MAX];

	while (off < end) {
		size_t n = (size_t)min_u64(end - off, COPY_MAX);
		int r = block_pread(c->image, buf, n, off);

		if (!r && !buf_is_zero(buf, n))
			r = write_full(c->store, buf, n, off);
		if (r)
			return r;
		off += n;
	}
	return 0;
}

static unsigned
elapsed_ms(const struct timespec *since)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (unsigned)((now.tv_sec - since->tv_sec) * 1000 +
			  (now.tv_nsec - since->tv_nsec) / 1000000);
}

static void
publish(struct cbw *c, uint64_t g, uint64_t end, enum view_state state)
{
	int os;

	for (; g < end; g++)
		(void)view_move(c->view, g, VIEW_SAVING, state, &os);
	/* Sequentially consistent with wait_saved: it counts itself before it
	 * looks at the state.
	 */
	if (atomic_load(&c->waiting)) {
		mtx_lock(&c->lock);
		(void)pthread_cond_broadcast(&c->saved);
		mtx_unlock(&c->lock);
	}
}

/* Granules [g, end) are ours in SAVING: copy and publish them. */
static int
save_claimed(struct cbw *c, uint64_t g, uint64_t end)
{
	uint64_t granule = view_granule(c->view);
	uint64_t off = g * granule;
	uint64_t stop = min_u64(end * granule, view_size(c->view));
	struct timespec start;
	int r;

	PARK("cbw.claimed");
	if (c->timeout_ms)
		(void)clock_gettime(CLOCK_MONOTONIC, &start);
	r = copy_range(c, off, stop);
	if (!r && c->timeout_ms && elapsed_ms(&start) > c->timeout_ms)
		r = ETIMEDOUT;
	PARK("cbw.copied");
	if (!r) {
		atomic_fetch_add_explicit(&c->saved_bytes, stop - off,
					  memory_order_relaxed);
		publish(c, g, end, VIEW_SAVED);
		view_count_save(c->view);
		return 0;
	}
	r = save_failed(c, r);
	publish(c, g, end, VIEW_NEEDED);
	return r;
}

/* Wait until nobody saves granule @g. */
static void
wait_saved(struct cbw *c, uint64_t g)
{
	mtx_lock(&c->lock);
	atomic_fetch_add(&c->waiting, 1);
	atomic_thread_fence(memory_order_seq_cst);
	PARK("cbw.wait");
	while (view_get(c->view, g) == VIEW_SAVING)
		mtx_wait(&c->lock, &c->saved);
	atomic_fetch_sub(&c->waiting, 1);
	mtx_unlock(&c->lock);
}

/* Claim as many granules from *g on as are NEEDED, in one run, and save
 * them.  Moves *g behind them.
 */
static int
save_run(struct cbw *c, uint64_t *g, uint64_t end)
{
	uint64_t first = *g;
	uint64_t max = COPY_MAX / view_granule(c->view);
	int os = 0;

	end = min_u64(end, first + max_u64(max, 1));
	while (*g < end &&
	       view_move(c->view, *g, VIEW_NEEDED, VIEW_SAVING, &os))
		(*g)++;
	if (*g > first)
		return save_claimed(c, first, *g);
	return os ? save_failed(c, os) : 0;
}

/* Make granules [g, end), which belong to the view, safe to overwrite. */
static int
save_granules(struct cbw *c, uint64_t g, uint64_t end)
{
	while (g < end && !view_broken(c->view)) {
		int r = 0;

		switch (view_get(c->view, g)) {
		case VIEW_NEEDED: r = save_run(c, &g, end); break;
		case VIEW_SAVING: wait_saved(c, g); break;
		case VIEW_SAVED:
		case VIEW_DONE: g++; break;
		}
		if (r)
			return r;
	}
	return 0;
}

int
cbw_before_write(struct cbw *c, uint64_t off, uint64_t len)
{
	uint64_t granule = view_granule(c->view);
	uint64_t end = min_u64(round_up(off + len, granule), c->dirty.size);
	uint64_t start, stop, at = round_down(off, granule);
	int r;

	if (view_broken(c->view))
		return 0;
	if (c->dirty.n == 0)
		return save_granules(c, at / granule, div_up(end, granule));
	while (at < end && dirty_next_in(&c->dirty, at, end, &start, &stop)) {
		r = save_granules(c, start / granule,
				  div_up(min_u64(stop, end), granule));
		if (r)
			return r;
		at = max_u64(stop, round_up(stop, granule));
	}
	return 0;
}

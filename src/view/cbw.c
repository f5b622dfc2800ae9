/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A write claims the granules that it would overwrite (NEEDED -> SAVING),
 * copies each run of them in one go and publishes them as SAVED.  Granules
 * that another thread is saving are waited for, always after our own are
 * published, so that two writes never wait for each other.
 *
 * With a time limit each run is copied by a thread of its own, so that the
 * write can stop waiting for a disk that hangs.  The granules stay SAVING
 * until the copy ends, whenever that is.
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
	unsigned helpers; /* threads of limited copies; under @lock */
};

/* A copy with a time limit. */
struct copy {
	struct cbw *c; /* borrowed: cbw_free waits for it */
	uint64_t g, end;
	int error;
	bool over; /* under c->lock */
	bool left; /* under c->lock: the write did not wait for the end */
};

static bool wait_until_locked(struct cbw *c, uint64_t deadline) NEEDS(c->lock);

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
	PARK("cbw.ending");
	mtx_lock(&c->lock);
	while (c->helpers)
		mtx_wait(&c->lock, &c->saved);
	mtx_unlock(&c->lock);
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

/* Monotonic, never 0. */
static uint64_t
now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000 + 1;
}

/* Wait for news.  False: it is @deadline (0: there is none). */
static bool
wait_until_locked(struct cbw *c, uint64_t deadline)
{
	uint64_t now;

	if (!deadline) {
		mtx_wait(&c->lock, &c->saved);
		return true;
	}
	now = now_ms();
	if (now >= deadline)
		return false;
	(void)mtx_wait_ms(&c->lock, &c->saved,
			  (unsigned)min_u64(deadline - now, 1000));
	return true;
}

bool
cbw_is_quiet(struct cbw *c, unsigned ms)
{
	uint64_t deadline = now_ms() + ms;
	bool quiet;

	mtx_lock(&c->lock);
	while (c->helpers && wait_until_locked(c, deadline))
		;
	quiet = c->helpers == 0;
	mtx_unlock(&c->lock);
	return quiet;
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

/* Granules [g, end), which are ours in SAVING, to the store. */
static int
copy_granules(struct cbw *c, uint64_t g, uint64_t end)
{
	uint64_t granule = view_granule(c->view);
	int r;

	PARK("cbw.claimed");
	r = copy_range(c, g * granule,
		       min_u64(end * granule, view_size(c->view)));
	PARK("cbw.copied");
	return r;
}

static void
publish_saved(struct cbw *c, uint64_t g, uint64_t end)
{
	uint64_t granule = view_granule(c->view);

	atomic_fetch_add_explicit(&c->saved_bytes,
				  min_u64(end * granule, view_size(c->view)) -
					  g * granule,
				  memory_order_relaxed);
	publish(c, g, end, VIEW_SAVED);
	view_count_save(c->view);
}

static void *
copy_thread(void *arg)
{
	struct copy *p = arg;
	struct cbw *c = p->c;
	int r = copy_granules(c, p->g, p->end);
	bool left;

	mtx_lock(&c->lock);
	p->error = r;
	p->over = true;
	left = p->left;
	(void)pthread_cond_broadcast(&c->saved);
	mtx_unlock(&c->lock);
	if (left) {
		if (r)
			publish(c, p->g, p->end, VIEW_NEEDED);
		else
			publish_saved(c, p->g, p->end);
		free(p);
	}
	mtx_lock(&c->lock);
	c->helpers--;
	(void)pthread_cond_broadcast(&c->saved);
	mtx_unlock(&c->lock);
	return NULL;
}

static bool
start_copy(struct copy *p)
{
	pthread_attr_t attr;
	pthread_t thread;
	bool ok;

	if (pthread_attr_init(&attr))
		return false;
	(void)pthread_attr_setstacksize(&attr, 4 * COPY_MAX);
	(void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	mtx_lock(&p->c->lock);
	p->c->helpers++;
	ok = pthread_create(&thread, &attr, copy_thread, p) == 0;
	p->c->helpers -= !ok;
	mtx_unlock(&p->c->lock);
	(void)pthread_attr_destroy(&attr);
	return ok;
}

/* As copy_granules, but at @deadline it is ETIMEDOUT, and *left when the copy
 * still goes on: whoever makes it publishes the granules.
 */
static int
copy_in_time(struct cbw *c, uint64_t g, uint64_t end, uint64_t deadline,
	     bool *left)
{
	struct copy *p = calloc(1, sizeof *p);
	int r;

	if (p)
		*p = (struct copy){ .c = c, .g = g, .end = end };
	if (!p || !start_copy(p)) { /* so it is judged when it is over */
		free(p);
		r = copy_granules(c, g, end);
		return r == 0 && now_ms() >= deadline ? ETIMEDOUT : r;
	}
	mtx_lock(&c->lock);
	while (!p->over && wait_until_locked(c, deadline))
		;
	*left = p->left = !p->over;
	r = p->error;
	mtx_unlock(&c->lock);
	if (*left)
		return ETIMEDOUT;
	free(p);
	return r;
}

/* Granules [g, end) are ours in SAVING: copy and publish them. */
static int
save_claimed(struct cbw *c, uint64_t g, uint64_t end, uint64_t deadline)
{
	bool left = false;
	int r = deadline ? copy_in_time(c, g, end, deadline, &left)
			 : copy_granules(c, g, end);

	if (!r) {
		publish_saved(c, g, end);
		return 0;
	}
	r = save_failed(c, r);
	if (!left)
		publish(c, g, end, VIEW_NEEDED);
	return r;
}

/* Wait until nobody saves granule @g; as long as a save of our own may take. */
static int
wait_saved(struct cbw *c, uint64_t g, uint64_t deadline)
{
	int r = 0;

	mtx_lock(&c->lock);
	atomic_fetch_add(&c->waiting, 1);
	atomic_thread_fence(memory_order_seq_cst);
	PARK("cbw.wait");
	while (!r && view_get(c->view, g) == VIEW_SAVING)
		if (!wait_until_locked(c, deadline))
			r = ETIMEDOUT;
	atomic_fetch_sub(&c->waiting, 1);
	mtx_unlock(&c->lock);
	return r ? save_failed(c, r) : 0;
}

/* Claim as many granules from *g on as are NEEDED, in one run, and save
 * them.  Moves *g behind them.
 */
static int
save_run(struct cbw *c, uint64_t *g, uint64_t end, uint64_t deadline)
{
	uint64_t first = *g;
	uint64_t max = COPY_MAX / view_granule(c->view);
	int os = 0;

	end = min_u64(end, first + max_u64(max, 1));
	while (*g < end &&
	       view_move(c->view, *g, VIEW_NEEDED, VIEW_SAVING, &os))
		(*g)++;
	if (*g > first)
		return save_claimed(c, first, *g, deadline);
	return os ? save_failed(c, os) : 0;
}

/* Make granules [g, end), which belong to the view, safe to overwrite. */
static int
save_granules(struct cbw *c, uint64_t g, uint64_t end, uint64_t deadline)
{
	while (g < end && !view_broken(c->view)) {
		int r = 0;

		switch (view_get(c->view, g)) {
		case VIEW_NEEDED: r = save_run(c, &g, end, deadline); break;
		case VIEW_SAVING: r = wait_saved(c, g, deadline); break;
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
	uint64_t deadline = 0;
	int r;

	if (view_broken(c->view))
		return 0;
	if (c->timeout_ms)
		deadline = now_ms() + c->timeout_ms;
	if (c->dirty.n == 0)
		return save_granules(c, at / granule, div_up(end, granule),
				     deadline);
	while (at < end && dirty_next_in(&c->dirty, at, end, &start, &stop)) {
		r = save_granules(c, start / granule,
				  div_up(min_u64(stop, end), granule),
				  deadline);
		if (r)
			return r;
		at = max_u64(stop, round_up(stop, granule));
	}
	return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "stream/target-priv.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>

#include "base/bits.h"
#include "stream/buffers.h"

#define DEFAULT_RESPONSE_S 60
#define SECOND_NS          UINT64_C(1000000000)

static bool
check_info(const struct target *t, const struct remote_info *i, struct err *e)
{
	if (i->min_block > BUFFER_SIZE)
		return err_set(e, ERR_GENERIC, 0,
			       "the target '%s' wants blocks of %" PRIu32
			       " bytes; at most %zu are supported",
			       target_address(t), i->min_block, BUFFER_SIZE);
	return true;
}

bool
target_open(const struct target_options *o, struct target **out, struct err *e)
{
	unsigned timeout = o->response_timeout_s;
	struct target *t = xzalloc(sizeof *t);

	mtx_init(&t->lock, LOCK_REMOTE);
	t->max_lanes = o->server.connections;
	t->reconnect_ns = o->server.reconnect_delay_s * SECOND_NS;
	t->response_timeout_ns =
		(timeout ? timeout : DEFAULT_RESPONSE_S) * SECOND_NS;
	t->max_zero = TARGET_MAX_ZERO_REMOTE;
	if (!remote_new(&o->server, &t->remote, e) ||
	    !remote_connect(t->remote, &t->idle, e) ||
	    !remote_get_info(t->remote, t->idle, &t->info, e) ||
	    !check_info(t, &t->info, e)) {
		target_free(t);
		return false;
	}
	*out = t;
	return true;
}

bool
target_open_block(struct block *b, const char *name, struct target **out,
		  struct err *e)
{
	struct target *t = xzalloc(sizeof *t);

	mtx_init(&t->lock, LOCK_REMOTE);
	t->block = b;
	t->name = xstrdup(name);
	t->response_timeout_ns = DEFAULT_RESPONSE_S * SECOND_NS;
	t->max_zero = TARGET_MAX_ZERO_BLOCK;
	t->info = (struct remote_info){
		.size = b->size,
		.min_block = b->min_block,
		.pref_block = b->pref_block,
		.max_block = BUFFER_SIZE,
		.read_only = b->read_only,
		.rotational = b->rotational,
		.can_flush = true,
		.can_zero = true,
		.can_multi_conn = true, /* drivers take any number of threads */
	};
	if (!check_info(t, &t->info, e)) {
		target_free(t);
		return false;
	}
	*out = t;
	return true;
}

void
target_hang_up(struct nbd_handle *h)
{
	if (nbd_aio_is_ready(h) > 0)
		(void)nbd_aio_disconnect(h, 0);
	nbd_close(h);
}

void
target_free(struct target *t)
{
	if (t->idle)
		target_hang_up(t->idle);
	if (t->remote)
		remote_free(t->remote);
	if (t->block)
		block_free(t->block);
	free(t->name);
	mtx_destroy(&t->lock);
	free(t);
}

/* A server has nothing to say while nothing is in flight: whatever comes
 * means that it went away.
 */
static bool
is_quiet(struct nbd_handle *h)
{
	struct pollfd p = { .fd = nbd_aio_get_fd(h),
			    .events = POLLIN | POLLRDHUP };

	return nbd_aio_is_ready(h) > 0 && poll(&p, 1, 0) == 0;
}

struct nbd_handle *
target_take(struct target *t)
{
	struct nbd_handle *h;

	mtx_lock(&t->lock);
	h = t->idle;
	t->idle = NULL;
	mtx_unlock(&t->lock);
	if (h && !is_quiet(h)) {
		nbd_close(h);
		h = NULL;
	}
	return h;
}

void
target_give(struct target *t, struct nbd_handle *h)
{
	mtx_lock(&t->lock);
	if (!t->idle) {
		t->idle = h;
		h = NULL;
	}
	mtx_unlock(&t->lock);
	if (h)
		target_hang_up(h);
}

bool
target_check(const struct target *t, struct nbd_handle *h, struct err *e)
{
	const struct remote_info *was = &t->info;
	struct remote_info is;

	if (!remote_get_info(t->remote, h, &is, e))
		return false;
	if (is.size != was->size || is.min_block > was->min_block ||
	    is.max_block < was->max_block || is.read_only != was->read_only ||
	    is.can_zero != was->can_zero || is.can_flush != was->can_flush)
		return err_set(e, ERR_GENERIC, 0,
			       "the target '%s' is not the one that was opened",
			       remote_address(t->remote));
	return true;
}

uint64_t
target_size(const struct target *t)
{
	return t->info.size;
}

uint32_t
target_min_block(const struct target *t)
{
	return t->info.min_block;
}

uint32_t
target_cluster(const struct target *t)
{
	return t->block ? t->block->cluster : 0;
}

uint32_t
target_pref_block(const struct target *t)
{
	return t->info.pref_block;
}

bool
target_read_only(const struct target *t)
{
	return t->info.read_only;
}

bool
target_can_multi_conn(const struct target *t)
{
	return t->info.can_multi_conn;
}

bool
target_can_zero(const struct target *t)
{
	return t->info.can_zero;
}

bool
target_can_flush(const struct target *t)
{
	return t->info.can_flush;
}

const char *
target_address(const struct target *t)
{
	return t->remote ? remote_address(t->remote) : t->name;
}

struct block *
target_block(const struct target *t)
{
	return t->block;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A lane's requests on a connection of libnbd.  Completions note their result
 * and leave: libnbd holds the handle's lock while it calls them.
 */
#include <errno.h>

#include "stream/stream-priv.h"

/* Called by libnbd, perhaps inside of a submit call. */
static int
on_complete(void *opaque, int *error)
{
	struct op *op = opaque;

	lane_answered(op->lane, op, *error);
	return 1;
}

static nbd_completion_callback
completion(struct op *op)
{
	return (nbd_completion_callback){ .callback = on_complete,
					  .user_data = op };
}

static bool
is_alive(const struct lane *l)
{
	return nbd_aio_is_dead(l->h) <= 0 && nbd_aio_is_closed(l->h) <= 0;
}

/* @cookie is what a submit call returned.  When that failed, no completion
 * will come, so this is it.  (A completion that came during the call counts
 * first: libnbd 1.14 has freed the command by then, and the cookie that it
 * returns is whatever is left there.)
 */
static void
submitted(struct lane *l, struct op *op, int64_t cookie)
{
	int os;

	if (cookie != -1 || op->answered)
		return;
	os = nbd_get_errno();
	/* a connection that is gone refuses everything as invalid */
	if (!is_alive(l))
		os = ENOTCONN;
	lane_answered(l, op, os ? os : EINVAL);
}

static void
submit_write(struct lane *l, struct op *op, const void *buf, size_t len,
	     uint64_t off)
{
	submitted(l, op,
		  nbd_aio_pwrite(l->h, buf, len, off + l->s->o.at,
				 completion(op), 0));
}

static void
submit_zero(struct lane *l, struct op *op, uint64_t len, uint64_t off)
{
	submitted(l, op,
		  nbd_aio_zero(l->h, len, off + l->s->o.at, completion(op), 0));
}

static void
submit_flush(struct lane *l, struct op *op)
{
	submitted(l, op, nbd_aio_flush(l->h, completion(op), 0));
}

/* The socket is full. */
static bool
is_full(const struct lane *l)
{
	return nbd_aio_get_direction(l->h) & LIBNBD_AIO_DIRECTION_WRITE;
}

const struct lane_ops lane_nbd = {
	.write = submit_write,
	.zero = submit_zero,
	.flush = submit_flush,
	.is_full = is_full,
	.is_alive = is_alive,
};

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The thread that drives the connections, and the callers that sleep until it
 * has done what they queued.
 */
#include "block/nbd-io.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "block/nbd-io-priv.h"

/* --- the thread --------------------------------------------------------------------------- */

/* Take what callers queued.  False: stop. */
static bool
take_pending(struct remote_io *io)
{
	bool stop;

	mtx_lock(&io->lock);
	if (io->pending.head) {
		*io->todo.tail = io->pending.head;
		io->todo.tail = io->pending.tail;
		request_list_init(&io->pending);
	}
	io->asleep = false;
	stop = io->stop;
	mtx_unlock(&io->lock);
	return !stop;
}

static bool
fall_asleep(struct remote_io *io)
{
	bool asleep;

	mtx_lock(&io->lock);
	asleep = io->asleep = !io->pending.head && !io->stop;
	mtx_unlock(&io->lock);
	return asleep;
}

static void *
io_thread(void *arg)
{
	struct remote_io *io = arg;

	(void)pthread_setname_np(pthread_self(), "nbd-image");
	while (take_pending(io)) {
		remote_conns_step(io);
		remote_conns_wait(io, fall_asleep(io));
	}
	return NULL;
}

/* --- for callers --------------------------------------------------------------------------- */

/* The eventfd counts; it can only be full when the thread is being woken. */
static void
wake_locked(struct remote_io *io)
{
	uint64_t one = 1;

	if (io->asleep)
		(void)!write(io->wakeup, &one, sizeof one);
	io->asleep = false;
}

int
remote_io_submit(struct remote_io *io, struct remote_request *rq)
{
	rq->io = io;
	rq->done = false;
	rq->give_up_at = 0;
	(void)pthread_cond_init(&rq->changed, NULL);
	mtx_lock(&io->lock);
	request_list_append(&io->pending, rq);
	wake_locked(io);
	while (!rq->done)
		mtx_wait(&io->lock, &rq->changed);
	mtx_unlock(&io->lock);
	(void)pthread_cond_destroy(&rq->changed);
	return rq->error;
}

static void
release(struct remote_io *io)
{
	for (unsigned i = 0; i < io->nconn; i++) {
		struct nbd_handle *h = steal(&io->conn[i].h);

		if (h && nbd_aio_is_ready(h) > 0)
			(void)nbd_aio_disconnect(h, 0);
		if (h)
			nbd_close(h);
	}
	if (io->wakeup >= 0)
		(void)close(io->wakeup);
	remote_free(io->remote);
	mtx_destroy(&io->lock);
	free(io);
}

static int
start_thread(struct remote_io *io)
{
	sigset_t all, old;
	int r;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&io->thread, NULL, io_thread, io);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

void
remote_io_set_delay(struct remote_io *io, unsigned seconds)
{
	atomic_store(&io->delay_ms, (uint64_t)seconds * 1000);
}

bool
remote_io_new(struct remote *r, struct nbd_handle *h,
	      const struct remote_info *info, unsigned connections,
	      unsigned reconnect_delay_s, struct remote_io **out, struct err *e)
{
	struct remote_io *io = calloc(1, sizeof *io);
	int os;

	if (!io) {
		nbd_close(h);
		remote_free(r);
		return err_set(e, ERR_GENERIC, ENOMEM, "NBD image");
	}
	io->remote = r;
	io->info = *info;
	io->delay_ms = (uint64_t)reconnect_delay_s * 1000;
	io->nconn = info->can_multi_conn ? connections : 1;
	io->conn[0].h = h;
	remote_conn_ready(io, &io->conn[0]);
	mtx_init(&io->lock, LOCK_REMOTE);
	request_list_init(&io->pending);
	request_list_init(&io->todo);
	request_list_init(&io->completed);
	io->wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	os = io->wakeup < 0 ? errno : start_thread(io);
	if (os) {
		release(io);
		return err_set(e, ERR_GENERIC, os, "NBD image");
	}
	*out = io;
	return true;
}

void
remote_io_free(struct remote_io *io)
{
	mtx_lock(&io->lock);
	io->stop = true;
	wake_locked(io);
	mtx_unlock(&io->lock);
	(void)pthread_join(io->thread, NULL);
	assert(!io->todo.head && !io->pending.head);
	release(io);
}

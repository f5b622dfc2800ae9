/* SPDX-License-Identifier: BSD-3-Clause
 *
 * blockdev-create: a job that makes an image.  The work runs on a worker and
 * is not interrupted: it ends by itself.  Loop only, except where it says
 * worker.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "base/park.h"
#include "block/lock.h"
#include "daemon/create-qcow2.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "daemon/paths.h"
#include "daemon/pending.h"
#include "daemon/qmp-server.h"
#include "schema/qmp-commands.h"

/* What is written at once where zeroes are asked for. */
#define PIECE (1 * MiB)

struct create {
	struct job job;
	struct blockdev_create_options *options; /* owned */
	struct create_qcow2 *qcow2; /* owned until it has run; or NULL */
	struct work work;
	bool unplanned; /* @e says why */
	bool done;
	struct err e;
};

static struct create *
to_create(const struct job *j)
{
	return container_of(j, struct create, job);
}

/* --- file (worker) ------------------------------------------------------------- */

static bool
lock(int fd, const char *name, struct err *e)
{
	struct err why = ERR_INIT;

	if (image_lock(fd, true, &why))
		return true;
	return err_set(e, why.cls, 0,
		       "%s: Is another process using the image [%s]?", why.msg,
		       name);
}

static int
write_zeroes(int fd, uint64_t size)
{
	AUTO(free) char *zeroes = calloc(1, PIECE);
	uint64_t at = 0;

	if (!zeroes)
		return ENOMEM;
	while (at < size) {
		ssize_t n = pwrite(fd, zeroes, min_u64(PIECE, size - at),
				   (off_t)at);

		if (n < 0 && errno != EINTR)
			return errno;
		at += n > 0 ? (uint64_t)n : 0;
	}
	return fsync(fd) < 0 ? errno : 0;
}

static int
set_size(int fd, uint64_t size, enum prealloc_mode how)
{
	if (ftruncate(fd, 0) < 0 || ftruncate(fd, (off_t)size) < 0)
		return errno;
	if (how == PREALLOC_MODE_FALLOC && size)
		return posix_fallocate(fd, 0, (off_t)size);
	return how == PREALLOC_MODE_FULL ? write_zeroes(fd, size) : 0;
}

static bool
fill(int fd, const struct blockdev_create_options_file *o, struct err *e)
{
	struct stat st;
	int os;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return err_set(e, ERR_GENERIC, 0, "'%s' is not a regular file",
			       o->filename);
	if (!lock(fd, o->filename, e))
		return false;
	PARK("create.locked");
	os = set_size(fd, o->size,
		      o->has_preallocation ? o->preallocation
					   : PREALLOC_MODE_OFF);
	return os == 0 || err_set(e, ERR_GENERIC, os,
				  "Could not resize file '%s'", o->filename);
}

/* An image that was there is lost; a new one that cannot have its size is
 * taken away again.
 */
static bool
create_file(struct daemon *d, const struct blockdev_create_options_file *o,
	    struct err *e)
{
	struct made_file made = MADE_FILE_INIT;
	AUTO(close) int fd = -1;
	bool ok;

	if (!paths_create(d->paths, o->filename, &made, &fd, e))
		return false;
	ok = fill(fd, o, e);
	if (ok)
		made_file_keep(&made);
	else
		made_file_remove(&made);
	return ok;
}

/* --- the job ------------------------------------------------------------------- */

static void
run(struct work *w)
{
	struct create *c = container_of(w, struct create, work);

	if (c->unplanned)
		return;
	if (c->qcow2)
		(void)!create_qcow2_run(c->qcow2, &c->e);
	else
		(void)!create_file(c->job.d, c->options->u.file, &c->e);
}

static void
ran(struct work *w)
{
	struct create *c = container_of(w, struct create, work);
	struct daemon *d = c->job.d;
	struct err e = c->e;

	c->done = true;
	if (c->qcow2)
		create_qcow2_finish(steal(&c->qcow2));
	job_completed(&c->job, err_is_set(&e) ? &e : NULL);
	pending_end(d);
}

static void
start(struct job *j)
{
	struct create *c = to_create(j);

	pending_begin(j->d);
	c->work = (struct work){ .run = run, .done = ran };
	work_submit(j->d->work, &j->d->loop, &c->work);
}

static void
cancel(struct job *j)
{
	(void)j; /* it ends by itself */
}

static void
progress(const struct job *j, uint64_t *offset, uint64_t *len)
{
	*offset = to_create(j)->done;
	*len = 1;
}

static void
settle(struct job *j, bool success)
{
	(void)j;
	(void)success;
}

static void
create_free(struct job *j)
{
	if (to_create(j)->qcow2)
		create_qcow2_finish(to_create(j)->qcow2);
	blockdev_create_options_free(to_create(j)->options);
	free(to_create(j));
}

static const struct job_ops create_ops = {
	.type = JOB_TYPE_CREATE,
	.start = start,
	.cancel = cancel,
	.progress = progress,
	.settle = settle,
	.free = create_free,
};

static bool
check(const struct blockdev_create_options *o, struct err *e)
{
	const struct blockdev_create_options_file *f = o->u.file;

	if (o->driver == BLOCKDEV_DRIVER_QCOW2)
		return true; /* its job says what is wrong */
	if (o->driver != BLOCKDEV_DRIVER_FILE)
		return err_set(e, ERR_GENERIC, 0,
			       "Driver does not support blockdev-create");
	if (f->size > INT64_MAX - 511)
		return err_set(e, ERR_GENERIC, 0, "Image size is too large");
	if (f->has_preallocation && f->preallocation == PREALLOC_MODE_METADATA)
		return err_set(e, ERR_GENERIC, 0,
			       "Unsupported preallocation mode 'metadata'");
	return true;
}

bool
qmp_blockdev_create(struct qmp_call *call,
		    const struct qmp_blockdev_create_args *arg, struct err *e)
{
	struct create *c;

	if (!check(arg->options, e))
		return false;
	c = xzalloc(sizeof *c);
	if (!job_create(&c->job, qmp_call_opaque(call), arg->job_id,
			&create_ops, NULL, e)) {
		free(c);
		return false;
	}
	c->options = blockdev_create_options_clone(arg->options);
	if (c->options->driver == BLOCKDEV_DRIVER_QCOW2 &&
	    !create_qcow2_plan(c->job.d->graph, &c->job, c->options->u.qcow2,
			       &c->qcow2, &c->e))
		c->unplanned = true;
	c->job.auto_finalize = true;
	c->job.auto_dismiss = false;
	job_start(&c->job);
	return true;
}

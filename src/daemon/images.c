/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/images.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "block/lock.h"
#include "block/qcow2/qcow2.h"
#include "daemon/chain.h"
#include "daemon/daemon.h"
#include "daemon/describe.h"
#include "daemon/paths.h"
#include "link/image.h"
#include "stream/stream.h"

/* --- options that every driver has -------------------------------------------- */

static bool
common_check(const struct node *n, struct err *e)
{
	const struct blockdev_options *o = n->options;

	if (o->has_detect_zeroes &&
	    o->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP &&
	    !(o->has_discard && o->discard == BLOCKDEV_DISCARD_OPTIONS_UNMAP))
		return err_set(e, ERR_GENERIC, 0,
			       "setting detect-zeroes to unmap is not allowed "
			       "without setting discard operation to unmap");
	if (o->has_active && !o->active)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' cannot be inactive: nobody hands "
			       "images over to this process",
			       n->name);
	if (o->force_share && !o->read_only)
		return err_set(e, ERR_GENERIC, 0,
			       "force-share=on can only be used with read-only "
			       "images");
	return true;
}

static bool
direct(const struct blockdev_options *o)
{
	return o->cache && o->cache->direct;
}

/* --- file and host_device -------------------------------------------------------- */

static const struct blockdev_options_file *
file_options(const struct blockdev_options *o)
{
	return o->driver == BLOCKDEV_DRIVER_FILE ? o->u.file : o->u.host_device;
}

static bool
kind_check(const struct blockdev_options *o, int fd, struct err *e)
{
	const char *name = file_options(o)->filename;
	bool want_device = o->driver == BLOCKDEV_DRIVER_HOST_DEVICE;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno, "Could not open '%s'",
			       name);
	if (want_device == (bool)S_ISBLK(st.st_mode))
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       want_device ? "'host_device' driver requires '%s' to be "
				     "either a character or block device"
				   : "'file' driver requires '%s' to be a "
				     "regular file",
		       name);
}

static bool
lock(const struct node *n, int fd, struct err *e)
{
	const struct blockdev_options *o = n->options;
	const struct blockdev_options_file *f = file_options(o);

	if (o->force_share ||
	    (f->has_locking && f->locking == ON_OFF_AUTO_OFF) ||
	    image_lock(fd, !n->read_only, e))
		return true;
	if (err_is_set(e)) {
		struct err why = *e;

		err_clear(e);
		(void)err_set(e, why.cls, 0,
			      "%s: is another process using the image [%s]?",
			      why.msg, f->filename);
	}
	return false;
}

/* The kernel lets a device that cannot be written be opened for writing. */
static bool
open_to_write(struct daemon *d, const char *name, int flags, int *out,
	      struct err *e)
{
	AUTO(close) int fd = -1;
	int read_only = 0;

	if (!paths_open(d->paths, name, flags | O_RDWR, &fd, e))
		return false;
	if (ioctl(fd, BLKROGET, &read_only) == 0 && read_only)
		return err_set(e, ERR_GENERIC, EACCES, "Could not open '%s'",
			       name);
	*out = steal_fd(&fd);
	return true;
}

static bool
open_path(struct daemon *d, struct node *n, int *fd, struct err *e)
{
	const struct blockdev_options *o = n->options;
	const char *name = file_options(o)->filename;
	int flags = direct(o) ? O_DIRECT : 0;
	struct err first = ERR_INIT;

	if (n->read_only)
		return paths_open(d->paths, name, flags | O_RDONLY, fd, e);
	if (open_to_write(d, name, flags, fd, &first))
		return true;
	if (o->auto_read_only && (first.os == EACCES || first.os == EROFS)) {
		n->read_only = true;
		return paths_open(d->paths, name, flags | O_RDONLY, fd, e);
	}
	return err_move(e, &first);
}

struct link_image *
image_plan(const struct node *n, struct link_msg *msg)
{
	int fds[LINK_MAX_FDS];
	unsigned nfds = 0;
	struct link_image *i = describe_node(n, fds, &nfds);

	while (msg->nfds < nfds) {
		msg->fds[msg->nfds] = fcntl(fds[msg->nfds], F_DUPFD_CLOEXEC, 0);
		msg->nfds++;
	}
	return i;
}

/* A reader never writes, whatever layer it looks at. */
static void
make_read_only(struct link_image *i)
{
	i->read_only = true;
	switch (i->driver) {
	case LINK_DRIVER_RAW: make_read_only(i->u.raw->file); break;
	case LINK_DRIVER_THROTTLE: make_read_only(i->u.throttle->file); break;
	case LINK_DRIVER_BLKDEBUG: make_read_only(i->u.blkdebug->image); break;
	case LINK_DRIVER_QCOW2:
		i->u.qcow2->live = true;
		make_read_only(i->u.qcow2->file);
		if (i->u.qcow2->backing)
			make_read_only(i->u.qcow2->backing);
		if (i->u.qcow2->data_file)
			make_read_only(i->u.qcow2->data_file);
		break;
	default: break;
	}
}

static bool
open_to_look(const struct node *n, struct block **out, struct err *e)
{
	struct link_msg m = { 0 };
	AUTO(link_image_free) struct link_image *i = image_plan(n, &m);
	bool ok;

	make_read_only(i);
	ok = link_image_open(i, &m, out, e);
	link_msg_clear(&m);
	return ok;
}

/* The size that an image with the node's description has.  The data plane may
 * have it open for writing: look only.
 */
static bool
try_open(struct node *n, struct err *e)
{
	struct block *b;

	if (!open_to_look(n, &b, e))
		return false;
	n->size = b->size;
	n->cluster = b->cluster;
	block_free(b);
	return true;
}

static bool
file_check(const struct blockdev_options *o, struct err *e)
{
	const struct blockdev_options_file *f = file_options(o);

	if (!f->filename[0])
		return err_set(e, ERR_GENERIC, 0,
			       "The '%s' block driver requires a file name",
			       blockdev_driver_str(o->driver));
	if (f->has_aio && f->aio == BLOCKDEV_AIO_OPTIONS_NATIVE && !direct(o))
		return err_set(e, ERR_GENERIC, 0,
			       "aio=native was specified, but it requires "
			       "cache.direct=on, which was not specified.");
	if (f->pr_manager)
		return err_set(e, ERR_GENERIC, 0,
			       "No persistent reservation manager with id '%s'",
			       f->pr_manager);
	return true;
}

static bool
open_file(struct daemon *d, struct node *n, struct err *e)
{
	AUTO(close) int fd = -1;

	if (!file_check(n->options, e))
		return false;
	/* a descriptor that the data plane kept is locked already */
	if (n->fd < 0) {
		if (!open_path(d, n, &fd, e) ||
		    !kind_check(n->options, fd, e) ||
		    !chain_check_loop(n, fd, e) || !lock(n, fd, e))
			return false;
		n->fd = steal_fd(&fd);
	} else if ((fcntl(n->fd, F_GETFL) & O_ACCMODE) == O_RDONLY) {
		n->read_only = true; /* auto-read-only, then */
	}
	return try_open(n, e);
}

/* --- on top of another node -------------------------------------------------------- */

/* A node that is written writes to @child. */
static bool
needs_writing(struct node *n, const struct node *child, struct err *e)
{
	if (!child->read_only || n->read_only)
		return true;
	if (!n->options->auto_read_only)
		return err_set(e, ERR_GENERIC, 0, "Block node is read-only");
	n->read_only = true;
	return true;
}

static bool
open_raw(struct node *n, struct err *e)
{
	const struct blockdev_options_raw *r = n->options->u.raw;

	if ((r->has_offset && r->offset < 0) || (r->has_size && r->size < 0))
		return err_set(e, ERR_GENERIC, 0,
			       "offset and size of a raw node cannot be "
			       "negative");
	node_look_below(n);
	return try_open(n, e);
}

/* --- blkdebug ----------------------------------------------------------------------- */

static bool
in_range(const char *name, int64_t v, int64_t min, int64_t max, struct err *e)
{
	return (v >= min && v <= max) ||
	       err_set(e, ERR_GENERIC, 0,
		       "Parameter '%s' expects a value from %" PRId64
		       " to %" PRId64,
		       name, min, max);
}

static bool
rules_check(const struct blockdev_options_blkdebug *o, struct err *e)
{
	bool ok = true;

	for (size_t i = 0; ok && i < o->inject_error.n; i++) {
		const struct blkdebug_inject_error_options *r =
			o->inject_error.v[i];

		ok = in_range("state", r->state, 0, INT32_MAX, e) &&
		     in_range("errno", r->q_errno, 0, 4095, e) &&
		     in_range("sector", r->sector, r->has_sector ? -1 : 0,
			      INT64_MAX / 512, e);
	}
	for (size_t i = 0; ok && i < o->set_state.n; i++)
		ok = in_range("state", o->set_state.v[i]->state, 0, INT32_MAX,
			      e) &&
		     in_range("new_state", o->set_state.v[i]->new_state, 1,
			      INT32_MAX, e);
	return ok;
}

static bool
open_blkdebug(struct daemon *d, struct node *n, struct err *e)
{
	const struct blockdev_options_blkdebug *o = n->options->u.blkdebug;

	node_look_below(n);
	if (!d->cfg.allow_fault_injection)
		return err_set(e, ERR_GENERIC, 0,
			       "Driver 'blkdebug' needs a server that was "
			       "started with --allow-fault-injection");
	return in_range("align", o->align, 0, 64 * MiB, e) &&
	       in_range("max-transfer", o->max_transfer, 0, INT32_MAX, e) &&
	       in_range("max-write-zero", o->max_write_zero, 0, INT32_MAX, e) &&
	       in_range("max-discard", o->max_discard, 0, INT32_MAX, e) &&
	       rules_check(o, e) && try_open(n, e);
}

/* --- throttle ----------------------------------------------------------------------- */

static bool
open_throttle(struct node *n, struct err *e)
{
	node_look_below(n);
	return try_open(n, e);
}

/* --- qcow2 ------------------------------------------------------------------------- */

bool
image_probe(struct node *n, struct err *e)
{
	AUTO(free) struct qcow2_info *info = xzalloc(sizeof *info);
	struct block *b;
	bool ok;

	if (!open_to_look(n->child[CHILD_FILE], &b, e))
		return false;
	ok = qcow2_probe(b, info, e);
	block_free(b);
	if (!ok)
		return err_prefix(e, "Could not open '%s': ", node_filename(n));
	n->qcow2 = xzalloc(sizeof *n->qcow2);
	*n->qcow2 = info->header;
	return true;
}

static bool
cache_check(const struct blockdev_options_qcow2 *o, struct err *e)
{
	int64_t whole = o->has_cache_size ? o->cache_size : INT64_MAX;

	if ((o->has_cache_size && o->cache_size < 0) ||
	    (o->has_l2_cache_size && o->l2_cache_size < 0) ||
	    (o->has_refcount_cache_size && o->refcount_cache_size < 0))
		return err_set(e, ERR_GENERIC, 0,
			       "the size of a cache cannot be negative");
	if (o->has_cache_size && o->has_l2_cache_size &&
	    o->has_refcount_cache_size)
		return err_set(e, ERR_GENERIC, 0,
			       "cache-size, l2-cache-size and "
			       "refcount-cache-size may not be set at the same "
			       "time");
	if (o->has_l2_cache_size && o->l2_cache_size > whole)
		return err_set(e, ERR_GENERIC, 0,
			       "l2-cache-size may not exceed cache-size");
	if (o->has_refcount_cache_size && o->refcount_cache_size > whole)
		return err_set(e, ERR_GENERIC, 0,
			       "refcount-cache-size may not exceed cache-size");
	return true;
}

static bool
qcow2_check(const struct blockdev_options_qcow2 *o, const struct node *n,
	    struct err *e)
{
	uint64_t entry = (uint64_t)o->l2_cache_entry_size;
	uint64_t cluster = UINT64_C(1) << n->qcow2->cluster_bits;

	if (!cache_check(o, e))
		return false;
	if (o->has_l2_cache_entry_size &&
	    (!is_pow2(entry) || entry < 512 || entry > cluster))
		return err_set(e, ERR_GENERIC, 0,
			       "L2 cache entry size must be a power of two "
			       "between 512 and the cluster size (%" PRIu64 ")",
			       cluster);
	if (o->has_cache_clean_interval &&
	    (uint64_t)o->cache_clean_interval > UINT32_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "Cache clean interval too big");
	if (o->has_discard_no_unref && o->discard_no_unref)
		return err_set(e, ERR_GENERIC, 0,
			       "discard-no-unref is not supported");
	if (o->has_lazy_refcounts && o->lazy_refcounts && n->qcow2->version < 3)
		return err_set(e, ERR_GENERIC, 0,
			       "Lazy refcounts require a qcow2 image with at "
			       "least qemu 1.1 compatibility level");
	return true;
}

/* This layer alone: those below were opened before. */
static bool
try_layer(struct node *n, struct err *e)
{
	struct node *backing = n->child[CHILD_BACKING];
	bool ok;

	n->child[CHILD_BACKING] = NULL;
	ok = try_open(n, e);
	n->child[CHILD_BACKING] = backing;
	return ok;
}

static bool
open_qcow2(struct node *n, struct err *e)
{
	const struct node *data = n->child[CHILD_DATA_FILE];

	if (!qcow2_check(n->options->u.qcow2, n, e) ||
	    !needs_writing(n, n->child[CHILD_FILE], e) ||
	    (data && !needs_writing(n, data, e)))
		return false;
	if (!n->read_only && n->qcow2->incompat & QCOW2_CORRUPT)
		return err_set(e, ERR_GENERIC, 0,
			       "qcow2: Image is corrupt; cannot be opened "
			       "read/write");
	return try_layer(n, e) ||
	       err_prefix(e, "Could not open '%s': ", node_filename(n));
}

/* --- null-co ------------------------------------------------------------------------ */

static bool
open_null(struct node *n, struct err *e)
{
	const struct blockdev_options_null *o = null_options(n->options);

	if (o->has_size && o->size < 0)
		return err_set(e, ERR_GENERIC, 0,
			       "the size of a null-co node cannot be negative");
	if (o->has_latency_ns && o->latency_ns > INT64_MAX)
		return err_set(e, ERR_GENERIC, 0, "latency-ns is invalid");
	return try_open(n, e);
}

/* --- nbd ------------------------------------------------------------------------------ */

/* The protocol's. */
#define NBD_MAX_STRING 4096

static bool
open_nbd(struct daemon *d, struct node *n, struct err *e)
{
	AUTO(link_image_free) struct link_image *image = NULL;
	const char *creds = n->options->u.nbd->tls_creds;
	struct target_options o = { 0 };
	const struct link_image_nbd *i;
	unsigned nfds = 0;

	if (creds)
		return err_set(e, ERR_GENERIC, 0,
			       "No TLS credentials with id '%s'", creds);
	image = describe_node(n, NULL, &nfds);
	i = image->u.nbd;
	if (strlen(i->export) > NBD_MAX_STRING)
		return err_set(e, ERR_GENERIC, 0,
			       "export name too long to send to server");
	if (i->context && strlen(i->context) > NBD_MAX_STRING)
		return err_set(e, ERR_GENERIC, 0,
			       "x-dirty-bitmap query too long to send to "
			       "server");
	o.server = (struct block_nbd_options){
		.unix_path = i->path,
		.host = i->host,
		.port = i->port,
		.export_name = i->export,
		.context = i->context,
		.tls = i->tls,
		.tls_certificates = i->tls_certificates,
		.tls_psk_file = i->tls_psk_file,
		.tls_username = i->tls_username,
		.tls_hostname = i->tls_hostname,
		.reconnect_delay_s = i->reconnect_delay,
		.open_timeout_s = i->open_timeout,
	};
	o.response_timeout_s = d->cfg.target_timeout;
	if (!target_open(&o, &n->target, e))
		return false;
	n->size = target_size(n->target);
	if (target_read_only(n->target) && !n->read_only) {
		if (!n->options->auto_read_only)
			return err_set(e, ERR_GENERIC, 0,
				       "Could not open '%s': the server's "
				       "export is read-only",
				       node_filename(n));
		n->read_only = true;
	}
	return true;
}

/* --- all of them ------------------------------------------------------------------------ */

bool
image_open(struct daemon *d, struct node *n, struct err *e)
{
	n->read_only = n->options->read_only;
	if (!common_check(n, e))
		return false;
	switch (n->options->driver) {
	case BLOCKDEV_DRIVER_FILE:
	case BLOCKDEV_DRIVER_HOST_DEVICE: return open_file(d, n, e);
	case BLOCKDEV_DRIVER_RAW: return open_raw(n, e);
	case BLOCKDEV_DRIVER_NULL_AIO:
	case BLOCKDEV_DRIVER_NULL_CO: return open_null(n, e);
	case BLOCKDEV_DRIVER_NBD: return open_nbd(d, n, e);
	case BLOCKDEV_DRIVER_BLKDEBUG: return open_blkdebug(d, n, e);
	case BLOCKDEV_DRIVER_THROTTLE: return open_throttle(n, e);
	case BLOCKDEV_DRIVER_QCOW2: return open_qcow2(n, e);
	case BLOCKDEV_DRIVER_N: break;
	}
	return err_set(e, ERR_GENERIC, 0, "unknown driver");
}

struct link_image *
image_reader_plan(const struct node *n, struct link_msg *msg)
{
	struct link_image *i = image_plan(n, msg);

	make_read_only(i);
	return i;
}

/* Descriptors that share a position and a lock with the writer's are of no
 * use to a reader: open the same files once more.
 */
static bool
reopen(int *fd, struct err *e)
{
	int flags = fcntl(*fd, F_GETFL);
	char path[64];
	int again;

	(void)snprintf(path, sizeof path, "/proc/self/fd/%d", *fd);
	again = open(path, O_RDONLY | O_CLOEXEC | (flags & O_DIRECT));
	if (again < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot open the image for reading");
	(void)close(*fd);
	*fd = again;
	return true;
}

bool
image_reader_open(const struct link_image *i, struct link_msg *msg,
		  struct block **out, struct err *e)
{
	for (unsigned k = 0; k < msg->nfds; k++)
		if (!reopen(&msg->fds[k], e))
			return false;
	return link_image_open(i, msg, out, e);
}

/* --- other options ------------------------------------------------------------------- */

static bool
uses_locks(const struct node *n)
{
	const struct blockdev_options_file *f = file_options(n->options);

	return !n->options->force_share &&
	       !(f->has_locking && f->locking == ON_OFF_AUTO_OFF);
}

static bool
reopen_file(struct daemon *d, const struct node *now, struct node *then,
	    struct err *e)
{
	if (then->read_only == now->read_only &&
	    direct(then->options) == direct(now->options)) {
		then->fd = fcntl(now->fd, F_DUPFD_CLOEXEC, 0);
		return then->fd >= 0 ||
		       err_set(e, ERR_GENERIC, errno, "Could not open '%s'",
			       node_filename(now));
	}
	return open_path(d, then, &then->fd, e) &&
	       kind_check(then->options, then->fd, e) &&
	       (!uses_locks(then) ||
		image_lock_again(now->fd, then->fd, !then->read_only, e));
}

static bool
reopen_nbd(const struct node *now, const struct node *then, struct err *e)
{
	return then->read_only || !target_read_only(now->target) ||
	       err_set(e, ERR_GENERIC, 0,
		       "Can't reopen read-only NBD mount as read/write");
}

bool
image_reopen(struct daemon *d, const struct node *now, struct node *then,
	     struct err *e)
{
	then->read_only = then->options->read_only;
	then->read_only_below = false;
	if (!common_check(then, e))
		return false;
	switch (then->options->driver) {
	case BLOCKDEV_DRIVER_NBD: return reopen_nbd(now, then, e);
	case BLOCKDEV_DRIVER_FILE:
	case BLOCKDEV_DRIVER_HOST_DEVICE:
		return file_check(then->options, e) &&
		       reopen_file(d, now, then, e) && try_open(then, e);
	case BLOCKDEV_DRIVER_QCOW2:
		return qcow2_check(then->options->u.qcow2, then, e) &&
		       try_open(then, e);
	default: return try_open(then, e);
	}
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/drive-target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "base/park.h"
#include "block/lock.h"
#include "block/qcow2/create.h"
#include "daemon/daemon.h"
#include "daemon/nodes.h"
#include "daemon/paths.h"
#include "daemon/uri.h"

struct drive_target {
	struct daemon *d; /* borrowed */
	struct node_add add; /* until it is started */
	struct node *node; /* the top; borrowed */
	char *path; /* owned; NULL: an address */
	const struct format *format;
	char *backing, *backing_format; /* owned: of a new image; or NULL */
	bool existing, guessed;
	uint64_t size;
	struct made_file made;
	bool started;
};

/* --- formats ------------------------------------------------------------------------ */

static bool
make_qcow2(const struct drive_target *t, struct block *file, struct err *e)
{
	struct qcow2_create_options o = { .size = t->size,
					  .backing_file = t->backing,
					  .backing_format = t->backing_format };

	return qcow2_create(file, NULL, &o, e);
}

/* The drivers that a target can be opened with.  A format that has a driver
 * gets a line here.
 */
static const struct format {
	const char *name;
	enum blockdev_driver driver;
	bool protocol; /* stands on nothing */
	bool backing;
	/* Make an empty image in @file, which is empty; NULL: a size is all it
	 * needs.
	 */
	bool (*make)(const struct drive_target *t, struct block *file,
		     struct err *e);
} formats[] = {
	{ "raw", BLOCKDEV_DRIVER_RAW, false, false, NULL },
	{ "file", BLOCKDEV_DRIVER_FILE, true, false, NULL },
	{ "qcow2", BLOCKDEV_DRIVER_QCOW2, false, true, make_qcow2 },
};

/* Drivers that we have and that make no images. */
static const char *const no_images[] = { "nbd", "null-co", "host_device",
					 "blkdebug", "throttle" };

static void
no_format(const struct drive_options *o, struct err *e)
{
	bool known = false;

	for (size_t i = 0; i < ARRAY_SIZE(no_images); i++)
		known |= strcmp(o->format, no_images[i]) == 0;
	if (o->existing)
		(void)err_set(e, ERR_GENERIC, 0, "Unknown driver: '%s'",
			      o->format);
	else if (known)
		(void)err_set(e, ERR_GENERIC, 0,
			      "Format driver '%s' does not support image "
			      "creation",
			      o->format);
	else
		(void)err_set(e, ERR_GENERIC, 0, "Unknown file format '%s'",
			      o->format);
}

static const struct format *
find_format(const struct drive_options *o, struct err *e)
{
	const char *name = o->format ? o->format : "raw";

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		if (strcmp(formats[i].name, name) == 0)
			return &formats[i];
	no_format(o, e);
	return NULL;
}

static bool
backing_check(const struct drive_options *o, const struct format *f,
	      const struct node *n, struct err *e)
{
	if (!o->backing || f->backing)
		return true;
	if (o->existing)
		return err_set(e, ERR_GENERIC, 0,
			       "Driver '%s' of node '%s' does not support "
			       "backing files",
			       f->name, n->name);
	return err_set(e, ERR_GENERIC, 0,
		       "Backing file not supported for file format '%s'",
		       f->name);
}

/* --- planning (loop) ------------------------------------------------------------------ */

/* "x:" before the first slash is a protocol's name. */
static bool
protocol_check(const char *name, struct err *e)
{
	size_t n = strcspn(name, ":/");

	if (name[n] != ':')
		return true;
	return err_set(e, ERR_GENERIC, 0, "Unknown protocol '%.*s'", (int)n,
		       name);
}

static struct blockdev_options *
driver(enum blockdev_driver which)
{
	struct blockdev_options *o = xzalloc(sizeof *o);

	o->driver = which;
	return o;
}

/* What the image's bytes are in. */
static bool
storage(struct drive_target *t, const char *name, struct blockdev_options **out,
	struct err *e)
{
	AUTO(blockdev_options_free) struct blockdev_options *o = NULL;

	if (uri_is_nbd(name)) {
		o = driver(BLOCKDEV_DRIVER_NBD);
		if (!uri_parse_nbd(name, &o->u.nbd, e))
			return false;
	} else {
		if (strncmp(name, "file:", 5) == 0)
			name += 5;
		else if (!protocol_check(name, e))
			return false;
		t->path = xstrdup(name);
		o = driver(BLOCKDEV_DRIVER_FILE);
		o->u.file = xzalloc(sizeof *o->u.file);
		o->u.file->filename = xstrdup(name);
	}
	*out = steal(&o);
	return true;
}

/* As QEMU opens a target: zeroes give their space back. */
static struct blockdev_options *
image(const struct format *f, struct blockdev_options *below, bool live)
{
	struct blockdev_options *o = below;

	if (!f->protocol)
		o = driver(f->driver);
	if (f->driver == BLOCKDEV_DRIVER_RAW) {
		o->u.raw = xzalloc(sizeof *o->u.raw);
		o->u.raw->file = children_definition(below);
	} else if (f->driver == BLOCKDEV_DRIVER_QCOW2) {
		o->u.qcow2 = xzalloc(sizeof *o->u.qcow2);
		o->u.qcow2->file = children_definition(below);
		if (live) {
			o->u.qcow2->backing =
				xzalloc(sizeof *o->u.qcow2->backing);
			o->u.qcow2->backing->type = JSON_NULL;
		}
	}
	o->has_discard = true;
	o->discard = BLOCKDEV_DISCARD_OPTIONS_UNMAP;
	o->has_detect_zeroes = true;
	o->detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP;
	return o;
}

bool
drive_target_plan(struct drive_target **out, struct daemon *d,
		  const struct drive_options *o, struct err *e)
{
	AUTO(drive_target_free) struct drive_target *t = xzalloc(sizeof *t);
	AUTO(blockdev_options_free) struct blockdev_options *options = NULL;
	const struct format *f = find_format(o, e);

	t->d = d;
	t->existing = o->existing;
	t->guessed = !o->format;
	t->size = o->size;
	t->made = (struct made_file)MADE_FILE_INIT;
	if (!f || !storage(t, o->target, &options, e))
		return false;
	if (!t->path && (f->protocol || (f->make && !o->existing)))
		return err_set(e, ERR_GENERIC, 0,
			       "The target of format '%s' must be a file",
			       f->name);
	t->format = f;
	options = image(f, steal(&options), o->live);
	if (!node_add_plan_anonymous(&t->add, d, options, e))
		return false;
	t->node = t->add.v[t->add.n - 1];
	t->node->size = o->size;
	if (!backing_check(o, f, t->node, e))
		return false;
	if (o->backing) {
		t->backing = xstrdup(node_filename(o->backing));
		t->backing_format = xstrdup(
			blockdev_driver_str(o->backing->options->driver));
	}
	*out = steal(&t);
	return true;
}

struct node *
drive_target_node(const struct drive_target *t)
{
	return t->node;
}

/* --- opening (worker) ------------------------------------------------------------------- */

static bool
lock(const struct drive_target *t, int fd, struct err *e)
{
	struct err why = ERR_INIT;

	if (image_lock(fd, true, &why))
		return true;
	return err_set(e, why.cls, 0,
		       "%s: is another process using the image [%s]?", why.msg,
		       t->path);
}

/* A header names files by where they are, whatever our directory is. */
static void
make_absolute(char **name)
{
	char *real = realpath(*name, NULL);

	if (!real)
		return;
	free(*name);
	*name = real;
}

static bool
make_image(struct drive_target *t, int fd, struct err *e)
{
	AUTO(block_free) struct block *b = NULL;
	struct block_file_options o = { .name = t->path };

	if (t->backing)
		make_absolute(&t->backing);
	o.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return block_file_open(&o, &b, e) && t->format->make(t, b, e);
}

/* Empty, and as large as the disk. */
static bool
cut(struct drive_target *t, int fd, bool device, struct err *e)
{
	off_t size = t->format->make ? 0 : (off_t)t->size;

	if (!device && (ftruncate(fd, 0) < 0 || ftruncate(fd, size) < 0))
		return err_set(e, ERR_GENERIC, errno,
			       "Could not resize image: '%s'", t->path);
	return !t->format->make || make_image(t, fd, e);
}

static bool
looks_raw(const struct drive_target *t, int fd, struct err *e)
{
	static const char qcow2[4] = { 'Q', 'F', 'I', (char)0xfb };
	char head[sizeof qcow2];

	if (!t->guessed || pread(fd, head, sizeof head, 0) != sizeof head ||
	    memcmp(head, qcow2, sizeof head) != 0)
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "'%s' looks like an image of another format than raw: "
		       "say which 'format' it has",
		       t->path);
}

static bool
open_path(struct drive_target *t, struct err *e)
{
	struct node *file = t->add.v[0];
	AUTO(close) int fd = -1;
	struct stat st;

	if (!(t->existing
		      ? paths_open(t->d->paths, t->path, O_RDWR, &fd, e)
		      : paths_create(t->d->paths, t->path, &t->made, &fd, e)))
		return false;
	PARK("drive.made");
	if (!lock(t, fd, e))
		return false;
	if (fstat(fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno, "Could not open '%s'",
			       t->path);
	if (S_ISBLK(st.st_mode)) /* it has the same options */
		file->options->driver = BLOCKDEV_DRIVER_HOST_DEVICE;
	if (!t->existing && !cut(t, fd, S_ISBLK(st.st_mode), e))
		return false;
	if (t->existing && !looks_raw(t, fd, e))
		return false;
	file->fd = steal_fd(&fd);
	return true;
}

bool
drive_target_open(struct drive_target *t, struct err *e)
{
	if ((t->path && !open_path(t, e)) || !node_add_open(&t->add, e))
		return false;
	if (round_up(t->node->size, 512) != t->size)
		return err_set(e, ERR_GENERIC, 0,
			       "Source and target image have different sizes");
	return true;
}

/* --- its life (loop) ------------------------------------------------------------------------ */

void
drive_target_start(struct drive_target *t)
{
	struct node *n = node_add_finish(&t->add);

	n->monitor_owned = false; /* it goes with the job */
	t->started = true;
	made_file_keep(&t->made);
}

void
drive_target_free(struct drive_target *t)
{
	if (t->started)
		graph_remove_node(t->d->graph, t->node);
	node_add_clear(&t->add);
	made_file_remove(&t->made);
	free(t->backing);
	free(t->backing_format);
	free(t->path);
	free(t);
}

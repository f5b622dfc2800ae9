/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/chain.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "block/qcow2/format.h"
#include "daemon/images.h"

/* --- names ------------------------------------------------------------------------ */

char *
chain_filename(const struct node *n, const char *name, struct err *e)
{
	const char *image = node_filename(n), *slash = strrchr(image, '/');

	if (strncmp(name, "file:", 5) == 0)
		name += 5;
	if (name[strcspn(name, ":/")] == ':') {
		(void)err_set(e, ERR_GENERIC, 0,
			      "the header of '%s' names '%s', and only plain "
			      "files are opened for a header: name the node in "
			      "the options",
			      image, name);
		return NULL;
	}
	if (name[0] == '/' || node_fd(n) < 0 || !slash)
		return xstrdup(name);
	return xasprintf("%.*s/%s", (int)(slash - image), image, name);
}

static struct blockdev_options *
file_definition(const char *filename)
{
	struct blockdev_options *o = xzalloc(sizeof *o);
	struct blockdev_options_file *f = xzalloc(sizeof *f);
	struct stat st;
	bool device = stat(filename, &st) == 0 && S_ISBLK(st.st_mode);

	f->filename = xstrdup(filename);
	if (device) {
		o->driver = BLOCKDEV_DRIVER_HOST_DEVICE;
		o->u.host_device = f;
	} else {
		o->driver = BLOCKDEV_DRIVER_FILE;
		o->u.file = f;
	}
	return o;
}

static struct blockdev_options *
format_definition(const struct node *n, const char *format,
		  const char *filename, struct err *e)
{
	struct blockdev_options *file = file_definition(filename), *o;

	if (strcmp(format, blockdev_driver_str(file->driver)) == 0)
		return file;
	o = xzalloc(sizeof *o);
	if (strcmp(format, "raw") == 0) {
		o->driver = BLOCKDEV_DRIVER_RAW;
		o->u.raw = xzalloc(sizeof *o->u.raw);
		o->u.raw->file = children_definition(file);
		return o;
	}
	if (strcmp(format, "qcow2") == 0) {
		o->driver = BLOCKDEV_DRIVER_QCOW2;
		o->u.qcow2 = xzalloc(sizeof *o->u.qcow2);
		o->u.qcow2->file = children_definition(file);
		return o;
	}
	free(o);
	blockdev_options_free(file);
	(void)err_set(e, ERR_GENERIC, 0,
		      "the backing file of '%s' has the unknown format '%s'",
		      node_filename(n), format);
	return NULL;
}

/* --- what a header names ------------------------------------------------------------- */

static struct blockdev_options *
backing_definition(const struct node *n, struct err *e)
{
	const struct qcow2_header *h = n->qcow2;
	AUTO(free) char *name = NULL;

	if (!h->has_backing_format) {
		(void)err_set(e, ERR_GENERIC, 0,
			      "the header of '%s' names the backing file '%s' "
			      "without its format, and formats are never "
			      "probed: name the node in the options",
			      node_filename(n), h->backing);
		return NULL;
	}
	name = chain_filename(n, h->backing, e);
	return name ? format_definition(n, h->backing_format, name, e) : NULL;
}

static struct blockdev_options *
data_definition(const struct node *n, struct err *e)
{
	const struct qcow2_header *h = n->qcow2;
	AUTO(free) char *name = NULL;

	if (!h->has_data_file) {
		(void)err_set(e, ERR_GENERIC, 0,
			      "'data-file' is required for this image");
		return NULL;
	}
	name = chain_filename(n, h->data_file, e);
	return name ? file_definition(name) : NULL;
}

static bool
add(struct node_add *a, size_t *at, enum child_role role,
    struct blockdev_options *(*define)(const struct node *, struct err *),
    struct err *e)
{
	AUTO(blockdev_options_free)
	struct blockdev_options *o = define(a->v[*at], e);
	size_t had = a->n;
	bool ok;

	if (!o)
		return false;
	if (a->n >= NODE_MAX_LAYERS)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' has more than %d nodes below it",
			       a->v[a->n - 1]->name, NODE_MAX_LAYERS - 1);
	ok = node_add_named(a, *at, role, o, e);
	*at += a->n - had;
	return ok;
}

bool
chain_look(struct node_add *a, size_t at, struct err *e)
{
	struct node *n = a->v[at];
	const struct qcow2_header *h;

	if (n->options->driver != BLOCKDEV_DRIVER_QCOW2 || n->qcow2)
		return true;
	if (!image_probe(n, e))
		return false;
	h = n->qcow2;
	if (h->has_backing && children_say_nothing(n->options, CHILD_BACKING) &&
	    !add(a, &at, CHILD_BACKING, backing_definition, e))
		return false;
	return !(h->incompat & QCOW2_DATA_FILE) ||
	       !children_say_nothing(n->options, CHILD_DATA_FILE) ||
	       add(a, &at, CHILD_DATA_FILE, data_definition, e);
}

/* --- rule 3 --------------------------------------------------------------------------- */

bool
chain_check_loop(const struct node *n, int fd, struct err *e)
{
	struct stat a, b;

	if (fstat(fd, &a) < 0)
		return true;
	for (const struct node *p = n->above; p; p = p->above) {
		int other = node_fd(p);

		if (other >= 0 && fstat(other, &b) == 0 &&
		    a.st_dev == b.st_dev && a.st_ino == b.st_ino)
			return err_set(e, ERR_GENERIC, 0,
				       "the image '%s' is below itself in its "
				       "chain",
				       node_filename(n));
	}
	return true;
}

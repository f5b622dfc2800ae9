/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/create-qcow2.h"

#include <stdlib.h>

#include "base/bits.h"
#include "block/qcow2/create.h"
#include "daemon/images.h"
#include "link/image.h"

/* A node that the image, or its data, is put into. */
struct place {
	struct node *node; /* borrowed; it is the job's; or NULL */
	struct link_image *image; /* owned */
	struct link_msg fds;
	uint64_t size; /* afterwards */
};

struct create_qcow2 {
	const struct blockdev_create_options_qcow2 *o; /* borrowed */
	struct place file, data;
};

/* --- planning ---------------------------------------------------------------------- */

static bool
check_node(const struct node *n, struct err *e)
{
	if (!node_check_idle(n, e) || !node_check_closed(n, e))
		return false;
	if (n->exports || n->views || n->parents)
		return err_set(e, ERR_GENERIC, 0, "Node '%s' is in use",
			       n->name);
	/* nobody records what we write, and its size changes */
	if (n->bitmaps)
		return err_set(e, ERR_GENERIC, 0, "Node '%s' has bitmaps",
			       n->name);
	if (n->read_only)
		return err_set(e, ERR_GENERIC, 0, "Block node is read-only");
	return true;
}

static bool
plan_place(struct graph *g, struct place *p, const struct blockdev_ref *r,
	   struct job *job, struct err *e)
{
	struct node *n;

	if (r->type != JSON_STRING)
		return err_set(e, ERR_GENERIC, 0,
			       "Images are made in nodes that are there: add "
			       "the node first, and give its name");
	n = graph_node(g, r->u.reference);
	if (!n)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot find device='%s' nor node-name='%s'",
			       r->u.reference, r->u.reference);
	if (!check_node(n, e))
		return false;
	p->node = n;
	n->target_of = job;
	p->image = image_plan(n, &p->fds);
	return true;
}

static void
place_clear(struct place *p)
{
	if (!p->node)
		return;
	p->node->target_of = NULL;
	if (p->size)
		p->node->size = p->size;
	link_image_free(p->image);
	link_msg_clear(&p->fds);
}

bool
create_qcow2_plan(struct graph *g, struct job *job,
		  const struct blockdev_create_options_qcow2 *o,
		  struct create_qcow2 **out, struct err *e)
{
	struct create_qcow2 *c = xzalloc(sizeof *c);

	c->o = o;
	if (plan_place(g, &c->file, o->file, job, e) &&
	    (!o->data_file || plan_place(g, &c->data, o->data_file, job, e))) {
		*out = c;
		return true;
	}
	create_qcow2_finish(c);
	return false;
}

void
create_qcow2_finish(struct create_qcow2 *c)
{
	place_clear(&c->file);
	place_clear(&c->data);
	free(c);
}

/* --- making (worker) ------------------------------------------------------------------ */

static bool
get_options(const struct create_qcow2 *c, struct qcow2_create_options *to,
	    struct err *e)
{
	const struct blockdev_create_options_qcow2 *o = c->o;

	if (o->has_refcount_bits &&
	    (o->refcount_bits < 1 || o->refcount_bits > 64))
		return err_set(e, ERR_GENERIC, 0,
			       "Refcount width must be a power of two and may "
			       "not exceed 64 bits");
	if (o->has_cluster_size && o->cluster_size == 0)
		return err_set(e, ERR_GENERIC, 0,
			       "Cluster size must be a power of two between "
			       "512 and 2048k");
	*to = (struct qcow2_create_options){
		.size = o->size,
		.version = o->version == BLOCKDEV_QCOW2_VERSION_V2 &&
					   o->has_version
				   ? 2
				   : 3,
		.cluster_size = o->cluster_size,
		.refcount_bits = (unsigned)o->refcount_bits,
		.lazy_refcounts = o->lazy_refcounts,
		.extended_l2 = o->extended_l2,
		.data_file_raw = o->data_file_raw,
		.compression =
			o->has_compression_type &&
					o->compression_type ==
						QCOW2_COMPRESSION_TYPE_ZSTD
				? QCOW2_ZSTD
				: QCOW2_ZLIB,
		.preallocation =
			o->has_preallocation
				? (enum qcow2_preallocation)o->preallocation
				: QCOW2_PREALLOC_OFF,
		.backing_file = o->backing_file,
		.backing_format = o->has_backing_fmt
					  ? blockdev_driver_str(o->backing_fmt)
					  : NULL,
		.data_file = c->data.node ? node_filename(c->data.node) : NULL,
	};
	return true;
}

_Static_assert((int)PREALLOC_MODE_OFF == (int)QCOW2_PREALLOC_OFF &&
		       (int)PREALLOC_MODE_METADATA ==
			       (int)QCOW2_PREALLOC_METADATA &&
		       (int)PREALLOC_MODE_FALLOC ==
			       (int)QCOW2_PREALLOC_FALLOC &&
		       (int)PREALLOC_MODE_FULL == (int)QCOW2_PREALLOC_FULL,
	       "the two are the same list");

static bool
make(struct create_qcow2 *c, struct block *file, struct block *data,
     struct err *e)
{
	struct qcow2_create_options o;

	if (!get_options(c, &o, e) || !qcow2_create_check(&o, e) ||
	    !qcow2_create(file, data, &o, e))
		return false;
	c->file.size = round_up(file->size, 512);
	if (data)
		c->data.size = round_up(data->size, 512);
	return true;
}

bool
create_qcow2_run(struct create_qcow2 *c, struct err *e)
{
	struct block *file, *data = NULL;
	bool ok;

	if (!link_image_open(c->file.image, &c->file.fds, &file, e))
		return false;
	ok = !c->data.node ||
	     link_image_open(c->data.image, &c->data.fds, &data, e);
	if (ok)
		ok = make(c, file, data, e);
	if (data)
		block_free(data);
	block_free(file);
	return ok;
}

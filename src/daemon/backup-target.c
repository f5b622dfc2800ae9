/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/backup.h"

#include "base/bits.h"
#include "daemon/graph.h"
#include "daemon/images.h"
#include "link/image.h"

/* The connection by which @n is reached, if it is an export of a server or a
 * part of one (@at says where that begins).  A stream looks after connections
 * itself: what a server had acknowledged, and lost because it was not flushed,
 * is sent again.  A driver that is called cannot do that.
 */
static struct target *
remote(const struct node *n, uint64_t *at)
{
	*at = 0;
	while (!n->target && n->options->driver == BLOCKDEV_DRIVER_RAW) {
		*at += (uint64_t)n->options->u.raw->offset;
		n = n->child[CHILD_FILE];
	}
	return n->target;
}

void
backup_target_plan(struct backup_target *t, const struct node *n)
{
	t->name = n->name;
	t->target = remote(n, &t->at);
	if (t->target)
		return;
	t->at = 0;
	t->image = image_plan(n, &t->fds);
}

bool
backup_target_open(struct backup_target *t, struct err *e)
{
	struct block *b;

	if (!t->image)
		return true;
	if (!link_image_open(t->image, &t->fds, &b, e) ||
	    !target_open_block(b, t->name, &t->own, e))
		return false;
	t->target = t->own;
	return true;
}

void
backup_target_close(struct backup_target *t)
{
	if (t->own)
		target_free(steal(&t->own));
	link_image_free(steal(&t->image));
	link_msg_clear(&t->fds);
}

uint64_t
backup_target_cluster(const struct node *n, uint64_t wanted)
{
	uint64_t at;
	const struct target *t = remote(n, &at);

	if (t)
		return stream_cluster(t, wanted);
	return max_u64(max_u64(STREAM_MIN_CLUSTER, wanted), n->cluster);
}

bool
backup_target_can_compress(const struct node *n)
{
	return n->options->driver == BLOCKDEV_DRIVER_QCOW2;
}

void
backup_discard_plan(struct backup_discard *d, const struct node *n)
{
	d->image = image_plan(n, &d->fds);
}

bool
backup_discard_open(struct backup_discard *d, struct err *e)
{
	return !d->image || link_image_open(d->image, &d->fds, &d->block, e);
}

void
backup_discard_close(struct backup_discard *d)
{
	if (d->block)
		block_free(steal(&d->block));
	link_image_free(steal(&d->image));
	link_msg_clear(&d->fds);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * drive-backup: a backup whose target is named by a path or an address.
 *
 * QEMU makes the target before it checks the other arguments; here they are
 * checked first, so that a command which is refused leaves nothing behind.
 */
#include "daemon/backup.h"

#include <string.h>

#include "daemon/daemon.h"

/* Members of a base come first, in the same order: this is all of it. */
#define COMMON_BYTES offsetof(struct drive_backup, target)
_Static_assert(COMMON_BYTES == offsetof(struct blockdev_backup, target),
	       "the two have one base, and their own members behind it");

/* What both kinds of backup have; borrowed from @a. */
static struct blockdev_backup
common(const struct drive_backup *a)
{
	struct blockdev_backup b = { .target = NULL };

	memcpy(&b, a, COMMON_BYTES);
	return b;
}

/* The node whose data a target that is an overlay would not have. */
static const struct node *
backing(const struct node *source, enum mirror_sync_mode sync)
{
	if (sync == MIRROR_SYNC_MODE_TOP)
		return source->child[CHILD_BACKING];
	return sync == MIRROR_SYNC_MODE_NONE ? source : NULL;
}

bool
action_drive_backup(struct transaction *t, const struct drive_backup *a,
		    struct err *e)
{
	struct daemon *d = transaction_daemon(t);
	struct blockdev_backup b = common(a);
	struct backup_plan p = { .a = &b };
	struct drive_options o = { .target = a->target, .format = a->format };
	const struct node *below;
	bool ok;

	if (!backup_plan_source(&p, d, e) || !node_check_idle(p.source, e))
		return false;
	below = backing(p.source, b.sync);
	if (b.sync == MIRROR_SYNC_MODE_TOP && !below)
		b.sync = MIRROR_SYNC_MODE_FULL;
	o.backing = below;
	o.live = below && b.sync == MIRROR_SYNC_MODE_NONE;
	o.existing = a->has_mode && a->mode == NEW_IMAGE_MODE_EXISTING;
	o.size = p.source->size;
	if (!o.format && !o.existing)
		o.format = blockdev_driver_str(p.source->options->driver);
	if (!drive_target_plan(&p.drive, d, &o, e))
		return false;
	p.target = drive_target_node(p.drive);
	ok = backup_plan_check(&p, d, e) && backup_create(t, &p, e);
	if (p.drive)
		drive_target_free(p.drive);
	return ok;
}

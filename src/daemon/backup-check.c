/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The checks of a backup's arguments.  Their order is QEMU's (the numbers are
 * those of its sequence): clients see the first that fails.
 */
#include "daemon/backup.h"

#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "base/bits.h"
#include "daemon/daemon.h"
#include "daemon/filters.h"
#include "daemon/graph.h"

static struct node *
resolve(struct daemon *d, const char *name, struct err *e)
{
	struct node *n = graph_device_or_node(d->graph, name);

	if (!n && filter_check(d->graph, name, e))
		(void)err_set(e, ERR_GENERIC, 0,
			      "Cannot find device='%s' nor node-name='%s'",
			      name, name);
	return n;
}

/* Check 1 to 4. */
static bool
check_bitmap(struct backup_plan *p, struct err *e)
{
	const struct blockdev_backup *a = p->a;
	bool needs = a->sync == MIRROR_SYNC_MODE_BITMAP ||
		     a->sync == MIRROR_SYNC_MODE_INCREMENTAL;
	bool has_mode = a->has_bitmap_mode;

	p->sync = a->sync;
	p->mode = a->bitmap_mode;
	if (needs && !a->bitmap)
		return err_set(e, ERR_GENERIC, 0,
			       "must provide a valid bitmap name for '%s' sync "
			       "mode",
			       mirror_sync_mode_str(a->sync));
	if (a->sync == MIRROR_SYNC_MODE_INCREMENTAL) {
		if (has_mode && a->bitmap_mode != BITMAP_SYNC_MODE_ON_SUCCESS)
			return err_set(e, ERR_GENERIC, 0,
				       "Bitmap sync mode must be 'on-success' "
				       "when using sync mode 'incremental'");
		has_mode = true;
		p->sync = MIRROR_SYNC_MODE_BITMAP;
		p->mode = BITMAP_SYNC_MODE_ON_SUCCESS;
	}
	if (!a->bitmap) {
		if (has_mode)
			return err_set(e, ERR_GENERIC, 0,
				       "Cannot specify bitmap sync mode "
				       "without a bitmap");
		return true;
	}
	p->bitmap = node_bitmap(p->source, a->bitmap);
	if (!p->bitmap)
		return err_set(e, ERR_GENERIC, 0,
			       "Bitmap '%s' could not be found", a->bitmap);
	if (!has_mode)
		return err_set(e, ERR_GENERIC, 0,
			       "Bitmap sync mode must be given when providing "
			       "a bitmap");
	if (!bitmap_check(p->bitmap, BITMAP_BUSY | BITMAP_INCONSISTENT, e))
		return false;
	if (a->sync == MIRROR_SYNC_MODE_NONE)
		return err_set(e, ERR_GENERIC, 0,
			       "sync mode 'none' does not produce meaningful "
			       "bitmap outputs");
	if (p->mode == BITMAP_SYNC_MODE_NEVER &&
	    p->sync != MIRROR_SYNC_MODE_BITMAP)
		return err_set(e, ERR_GENERIC, 0,
			       "Bitmap sync mode 'never' has no meaningful "
			       "effect when combined with sync mode '%s'",
			       mirror_sync_mode_str(a->sync));
	return true;
}

static bool
check_target(struct backup_plan *p, struct graph *graph, struct err *e)
{
	AUTO(free)
	char *filter = p->a->filter_node_name
			       ? xstrdup(p->a->filter_node_name)
			       : xasprintf("#block%03u", graph->next_anonymous);
	const struct permission wanted = {
		.what = "write", .who = "node", .name = filter, .as = "target"
	};
	const struct node *t = p->target;

	if (p->source == t)
		return err_set(e, ERR_GENERIC, 0,
			       "Source and target cannot be the same");
	if (p->a->compress && !backup_target_can_compress(t))
		return err_set(e, ERR_GENERIC, 0,
			       "Compression is not supported for this drive %s",
			       "");
	if (!node_check_idle(p->source, e) || !node_check_idle(t, e) ||
	    !node_check_closed(t, e))
		return false;
	if (p->source->parents)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: it is part of another node",
			       p->source->name);
	if (!node_check_permission(graph, t, &wanted, e))
		return false;
	if (t->exports || t->views)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: it is in use and cannot be "
			       "the target of a backup",
			       t->name);
	return true;
}

/* QEMU would discard what guests use. */
static bool
check_discard(const struct backup_plan *p, struct err *e)
{
	const struct node *n = p->source;

	if (!p->a->discard_source)
		return true;
	if (n->read_only)
		return err_set(e, ERR_GENERIC, 0,
			       "Could not create node: Block node is "
			       "read-only");
	if (n->exports)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: it is exported, and "
			       "discard-source would discard what is in use",
			       n->name);
	if (n->views)
		return err_set(e, ERR_GENERIC, 0,
			       "Node '%s' is busy: block device is in use by "
			       "block job: backup",
			       n->name);
	return true;
}

/* Check 8 to 12. */
static bool
check_sizes(struct backup_plan *p, struct graph *graph, struct err *e)
{
	const struct backup_perf *perf = p->a->x_perf;
	uint64_t wanted = 0;

	if (perf && perf->has_max_workers &&
	    (perf->max_workers < 1 || perf->max_workers > INT_MAX))
		return err_set(e, ERR_GENERIC, 0,
			       "max-workers must be between 1 and %d", INT_MAX);
	if (perf && perf->has_max_chunk && perf->max_chunk < 0)
		return err_set(e, ERR_GENERIC, 0,
			       "max-chunk must be zero (which means no limit) "
			       "or positive");
	if (p->bitmap && p->mode != BITMAP_SYNC_MODE_NEVER &&
	    !bitmap_check(p->bitmap, BITMAP_READONLY, e))
		return false;
	if (round_up(p->target->size, 512) != p->source->size)
		return err_set(e, ERR_GENERIC, 0,
			       "Source and target image have different sizes");
	if (p->a->filter_node_name &&
	    !graph_name_check(graph, p->a->filter_node_name, e))
		return err_prefix(e, "Could not create node: ");
	if (p->target->read_only)
		return err_set(e, ERR_GENERIC, 0,
			       "Could not create node: Block node is "
			       "read-only");
	if (!check_discard(p, e))
		return false;
	if (perf && perf->has_min_cluster_size && perf->min_cluster_size) {
		wanted = perf->min_cluster_size;
		if (!is_pow2(wanted))
			return err_set(e, ERR_GENERIC, 0,
				       "Could not create node: Cannot create "
				       "block-copy-state: min-cluster-size "
				       "needs to be a power of 2");
	}
	p->cluster = backup_target_cluster(p->target, wanted);
	if (perf && perf->has_max_chunk && perf->max_chunk > 0 &&
	    (uint64_t)perf->max_chunk < p->cluster)
		return err_set(e, ERR_GENERIC, 0,
			       "Required max-chunk (%" PRIi64
			       ") is less than backup cluster size (%" PRIu64
			       ")",
			       perf->max_chunk, p->cluster);
	return true;
}

bool
backup_plan_source(struct backup_plan *p, struct daemon *d, struct err *e)
{
	p->source = resolve(d, p->a->device, e);
	return p->source != NULL;
}

bool
backup_plan_check(struct backup_plan *p, struct daemon *d, struct err *e)
{
	if (!p->drive)
		p->target = resolve(d, p->a->target, e);
	return p->target && check_bitmap(p, e) &&
	       check_target(p, d->graph, e) && check_sizes(p, d->graph, e);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The commands that are transactions: `transaction` itself, and each action
 * as a command of its own.
 */
#include "daemon/daemon.h"
#include "daemon/qmp-server.h"
#include "daemon/transaction.h"
#include "schema/qmp-commands.h"

#include <stdlib.h>

static void
on_transaction_done(void *opaque, const struct err *e)
{
	if (e)
		qmp_call_fail(opaque, e);
	else
		qmp_transaction_return(opaque);
}

void
qmp_transaction(struct qmp_call *call, struct qmp_transaction_args *arg)
{
	bool grouped = arg->properties &&
		       arg->properties->has_completion_mode &&
		       arg->properties->completion_mode ==
			       ACTION_COMPLETION_MODE_GROUPED;

	transaction_run(qmp_call_opaque(call), &arg->actions, grouped,
			on_transaction_done, call);
	qmp_transaction_args_free(arg);
}

/* A command without a result is answered as `transaction` is. */
static void
run_one(struct qmp_call *call, struct transaction_action *a)
{
	struct transaction_action_list l = { 0 };

	xassert_memory(transaction_action_list_append(&l, a));
	transaction_run(qmp_call_opaque(call), &l, false, on_transaction_done,
			call);
}

static struct transaction_action *
action(enum transaction_action_kind kind)
{
	struct transaction_action *a = xzalloc(sizeof *a);

	a->type = kind;
	return a;
}

void
qmp_block_dirty_bitmap_add(struct qmp_call *call,
			   struct block_dirty_bitmap_add *arg)
{
	struct transaction_action *a =
		action(TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ADD);

	a->u.block_dirty_bitmap_add =
		xzalloc(sizeof *a->u.block_dirty_bitmap_add);
	a->u.block_dirty_bitmap_add->data = arg;
	run_one(call, a);
}

/* remove, clear, enable and disable have the same argument */
static void
run_named(struct qmp_call *call, enum transaction_action_kind kind,
	  struct block_dirty_bitmap *arg)
{
	struct transaction_action *a = action(kind);
	struct block_dirty_bitmap_wrapper *w = xzalloc(sizeof *w);

	w->data = arg;
	switch (kind) {
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_REMOVE:
		a->u.block_dirty_bitmap_remove = w;
		break;
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_CLEAR:
		a->u.block_dirty_bitmap_clear = w;
		break;
	case TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ENABLE:
		a->u.block_dirty_bitmap_enable = w;
		break;
	default: a->u.block_dirty_bitmap_disable = w; break;
	}
	run_one(call, a);
}

void
qmp_block_dirty_bitmap_remove(struct qmp_call *call,
			      struct block_dirty_bitmap *arg)
{
	run_named(call, TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_REMOVE, arg);
}

void
qmp_block_dirty_bitmap_clear(struct qmp_call *call,
			     struct block_dirty_bitmap *arg)
{
	run_named(call, TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_CLEAR, arg);
}

void
qmp_block_dirty_bitmap_enable(struct qmp_call *call,
			      struct block_dirty_bitmap *arg)
{
	run_named(call, TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ENABLE, arg);
}

void
qmp_block_dirty_bitmap_disable(struct qmp_call *call,
			       struct block_dirty_bitmap *arg)
{
	run_named(call, TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_DISABLE,
		  arg);
}

void
qmp_block_dirty_bitmap_merge(struct qmp_call *call,
			     struct block_dirty_bitmap_merge *arg)
{
	struct transaction_action *a =
		action(TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_MERGE);

	a->u.block_dirty_bitmap_merge =
		xzalloc(sizeof *a->u.block_dirty_bitmap_merge);
	a->u.block_dirty_bitmap_merge->data = arg;
	run_one(call, a);
}

void
qmp_blockdev_backup(struct qmp_call *call, struct blockdev_backup *arg)
{
	struct transaction_action *a =
		action(TRANSACTION_ACTION_KIND_BLOCKDEV_BACKUP);

	a->u.blockdev_backup = xzalloc(sizeof *a->u.blockdev_backup);
	a->u.blockdev_backup->data = arg;
	run_one(call, a);
}

void
qmp_drive_backup(struct qmp_call *call, struct drive_backup *arg)
{
	struct transaction_action *a =
		action(TRANSACTION_ACTION_KIND_DRIVE_BACKUP);

	a->u.drive_backup = xzalloc(sizeof *a->u.drive_backup);
	a->u.drive_backup->data = arg;
	run_one(call, a);
}

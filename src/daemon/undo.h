/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The undo log of a transaction.  An entry is pushed before (or right after)
 * its side effect in memory; either undo_abort or undo_commit ends the log,
 * both from the newest entry to the oldest, as QEMU does.  Neither can fail.
 * Loop only.
 */
#ifndef DAEMON_UNDO_H
#define DAEMON_UNDO_H

/* Embed as the first member of what the two functions need; one of them runs
 * and frees the entry.  NULL: nothing to do but free().
 */
struct undo_entry {
	struct undo_entry *next;
	void (*commit)(struct undo_entry *u);
	void (*abort)(struct undo_entry *u);
};

struct undo {
	struct undo_entry *newest;
};

void undo_push(struct undo *u, struct undo_entry *entry);
void undo_commit(struct undo *u);
void undo_abort(struct undo *u);

#endif

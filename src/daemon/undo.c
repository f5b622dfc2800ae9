/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/undo.h"

#include <stddef.h>
#include <stdlib.h>

void
undo_push(struct undo *u, struct undo_entry *entry)
{
	entry->next = u->newest;
	u->newest = entry;
}

static struct undo_entry *
pop(struct undo *u)
{
	struct undo_entry *entry = u->newest;

	if (entry)
		u->newest = entry->next;
	return entry;
}

void
undo_commit(struct undo *u)
{
	struct undo_entry *entry;

	while ((entry = pop(u))) {
		if (entry->commit)
			entry->commit(entry);
		else
			free(entry);
	}
}

void
undo_abort(struct undo *u)
{
	struct undo_entry *entry;

	while ((entry = pop(u))) {
		if (entry->abort)
			entry->abort(entry);
		else
			free(entry);
	}
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Internal snapshots ("Snapshots" of the specification): the table.
 */
#include <errno.h>
#include <stdlib.h>

#include "block/qcow2/qcow2-priv.h"

#define ENTRY_MAX (40 + QCOW2_SNAPSHOT_EXTRA_MAX + 2 * 65535 + 8)

void
qcow2_snapshots_free(struct qcow2 *q)
{
	for (uint32_t i = 0; q->snapshot && i < q->h.snapshots; i++)
		qcow2_snapshot_clear(&q->snapshot[i]);
	free(q->snapshot);
	q->snapshot = NULL;
}

bool
qcow2_snapshots_load(struct qcow2 *q, struct err *e)
{
	AUTO(free) uint8_t *raw = NULL;
	uint64_t at = 0;

	q->snapshots_bytes = 0;
	if (!q->h.snapshots)
		return true;
	raw = malloc(ENTRY_MAX);
	q->snapshot = calloc(q->h.snapshots, sizeof *q->snapshot);
	if (!raw || !q->snapshot)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot load the snapshot table");
	for (uint32_t i = 0; i < q->h.snapshots; i++) {
		size_t used;
		int r = qcow2_child_read(q->file, raw, ENTRY_MAX,
					 q->h.snapshots_offset + at);

		if (r)
			return err_set(e, ERR_GENERIC, r,
				       "Could not read snapshots");
		if (!qcow2_snapshot_parse(&q->snapshot[i], &q->g, raw,
					  ENTRY_MAX, q->h.size, &used, e))
			return err_prefix(e, "Could not read snapshots: ");
		at += used;
		if (at > QCOW2_SNAPSHOT_TABLE_MAX)
			return err_set(e, ERR_GENERIC, 0,
				       "Snapshot table too large");
	}
	q->snapshots_bytes = at;
	return true;
}

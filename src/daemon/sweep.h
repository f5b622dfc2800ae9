/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The files that an earlier daemon left: find the epochs that are still
 * wanted, remove what nobody names.  Loop only; touches tmpfs and the store's
 * directory.
 */
#ifndef DAEMON_SWEEP_H
#define DAEMON_SWEEP_H

#include "daemon/epochs.h"

struct daemon;
struct node;

/* The epoch with this number for disk @n: the one that a bitmap or node has
 * already, or its file, or, when @n was about to get another size, a copy of
 * the right size.  A reference, or NULL and *e says why not.
 */
struct epoch_file *sweep_find_epoch(struct daemon *d, uint64_t id,
				    const struct node *n, struct err *e);

/* Remove files of epochs and views that nothing in the graph refers to. */
void sweep_orphans(struct daemon *d);

#endif

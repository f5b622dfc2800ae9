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

/* The epoch with this number: the one that a bitmap or node has already, or
 * its file.  A reference, or NULL and *e says why not.
 */
struct epoch_file *sweep_find_epoch(struct daemon *d, uint64_t id,
				    uint64_t size, struct err *e);

/* Remove files of epochs and views that nothing in the graph refers to. */
void sweep_orphans(struct daemon *d);

/* A copy of a descriptor; aborts when there are none left. */
int dup_cloexec(int fd);

#endif

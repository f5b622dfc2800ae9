/* SPDX-License-Identifier: BSD-3-Clause
 *
 * merge: epochs that the same bitmaps use become one, in the background, so
 * that a bitmap which nobody backs up does not grow an epoch with every cut.
 *
 * Rules:
 * 1. Only closed epochs that nobody but bitmaps uses are merged: no open one,
 *    none that a job took or a view is limited by.
 * 2. The union says what its parts said, exactly: one that would say more (no
 *    memory for its bits) is dropped.
 * 3. A crash at any moment leaves a registry all of whose epochs have files:
 *    the union is made before a registry names it, and its parts go after a
 *    registry that does not name them is on the disk (see epochs.h).
 * 4. Bits are united on a worker, at most MERGE_MAX epochs at once; the sets
 *    change on the loop, and only when they still are what they were.
 *
 * Loop only.
 */
#ifndef DAEMON_MERGE_H
#define DAEMON_MERGE_H

#define MERGE_MIN 4 /* fewer are left alone */
#define MERGE_MAX 16 /* in one piece of work */

struct daemon;
struct merge;

struct merge *merge_new(struct daemon *d);
void merge_free(struct merge *m);

/* Sets have changed: is there anything to do? */
void merge_look(struct merge *m);

#endif

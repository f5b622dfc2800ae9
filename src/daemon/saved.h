/* SPDX-License-Identifier: BSD-3-Clause
 *
 * saved: persistent bitmaps of images that cannot hold them (raw files), over
 * an orderly restart of the host.  Their epochs are on tmpfs; at the end of
 * both programs they are written to STATE/epochs as well, and come back from
 * there when the memory is gone.
 *
 * Rules (each has a test of its name in tests/integration/test_saved.py):
 * 1. Epochs are saved when nobody can write any more, not when nbdkit goes on.
 * 2. The image is synced before: what a backup has, and a power failure then
 *    takes from the image, would be in no bitmap.
 * 3. Files are on the disk before the registry says that a bitmap is saved.
 *    One whose files could not be written is not.
 * 4. The registry does not say so any more before anybody can write again.
 * 5. What was saved counts only for the very image that was let go: the same
 *    file, with the same size and times of its last write and change.
 * 6. A bitmap of which a file is missing, or damaged, is inconsistent.
 */
#ifndef DAEMON_SAVED_H
#define DAEMON_SAVED_H

#include "daemon/graph.h"
#include "schema/registry-types.h"

struct saving;

/* One node that nobody writes to any more: plan (loop), run (worker; may
 * block), finish (loop): its bitmaps are marked as saved.
 */
struct saving *saved_plan(struct daemon *d, struct node *n); /* NULL: nothing */
void saved_run(struct saving *s);
void saved_finish(struct saving *s); /* frees it */

/* Worker; may block.  Add the epochs of a node's bitmaps that were saved and
 * that tmpfs does not have to @to, unless they are there.  @rebooted: tmpfs
 * has none.
 */
void saved_load(struct daemon *d, const struct registry_node *n, bool rebooted,
		struct epoch_set *to);

/* Loop.  Remove the files that no node which is lost may want. */
void saved_sweep(struct daemon *d);

#endif

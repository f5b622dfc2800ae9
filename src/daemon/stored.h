/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stored: bitmaps that live in a qcow2 image.
 *
 * Rules (each has a test in tests/integration/test_qcow2_bitmaps.py):
 * 1. While a node is open for writing, its image says that its bitmaps are in
 *    use; they are epochs then, and the registry has them.
 * 2. What the registry knows of a node that was not let go in order goes before
 *    what the image says.
 * 3. When a node is let go in order (blockdev-del, the end of both programs),
 *    its persistent bitmaps are in the image and nowhere else.  Those that
 *    could not be stored stay in the registry, or are inconsistent in the
 *    image.
 * 4. The bitmaps of an image that is open read-only are there and stay in the
 *    image.
 * 5. A node that shows the whole of a qcow2 node which was opened along with it
 *    (throttle, blkdebug, raw) has that one's bitmaps, since writes are
 *    recorded where guests make them.
 * 6. All other images with bitmaps that are open for writing below the node that
 *    was added say that these are in use, so that they are inconsistent and
 *    not stale when it is let go.  Backing images are not written.
 */
#ifndef DAEMON_STORED_H
#define DAEMON_STORED_H

#include "daemon/graph.h"

struct stored;

/* Worker; @n is open and in no graph.  Reads the bitmaps into n->stored, and
 * for a node that can be written makes the image say that they are in use.
 */
bool stored_load(struct daemon *d, struct node *n, struct err *e) MUST_CHECK;

/* Loop.  Like stored_load, but what the image says is known already: rule 2. */
void stored_assume(struct node *n);

/* Worker.  The same for a node that was let go, perhaps: its bitmaps may have
 * been stored in the image before somebody died, and are in use again.
 */
bool stored_take_again(struct node *n, struct err *e) MUST_CHECK;

/* Worker: rule 6 for @n, which is opened along with @top and below it.  When
 * the data plane has it open @elsewhere, its image says so already.
 */
bool stored_lose(const struct node *top, struct node *n, bool elsewhere,
		 struct err *e) MUST_CHECK;

/* Is @n part of a node with bitmaps that are in its image, or will be?  It
 * cannot change between reading and writing then.
 */
bool stored_is_inside(struct graph *g, const struct node *n);

/* Loop.  @n is in the graph: n->stored become bitmaps. */
void stored_adopt(struct node *n);
void stored_free(struct stored *s);

/* "Can't make bitmap 'X' persistent in 'N': ..." */
bool stored_check(const struct node *n, const char *name, uint64_t granularity,
		  struct err *e) MUST_CHECK;

/* Rule 3 for one node that nobody writes to any more.  Plan (loop), run
 * (worker; may block), finish (loop): the bitmaps that are in the image now
 * are marked so.
 */
struct store;
struct store *store_plan(struct node *n); /* NULL: nothing to do */
void store_run(struct store *s);
void store_finish(struct store *s); /* frees it */

/* For blockdev-reopen, which may have to go back. */
const struct err *store_error(const struct store *s); /* after store_run */
void store_again_in_use(struct store *s); /* worker: rule 1 once more */
void store_free(struct store *s);
/* Rule 1 for a node that was read-only and is not any more: @n has what it will
 * be opened with.  NULL: its image has no bitmaps.  Plan, run and finish as
 * above; the bitmaps are the registry's from then on.
 */
struct store *store_plan_take(struct node *n);

#endif

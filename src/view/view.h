/* SPDX-License-Identifier: BSD-3-Clause
 *
 * view: a node's content at one instant, readable while guests write: a
 * seqlock for disks.  It may use base, block and tracking.
 *
 * A view has one state per granule in a file on tmpfs that both processes
 * map, and a store: a sparse file of the disk's size in which the data plane
 * keeps what guests overwrite (same offsets, no index).
 *
 *   NEEDED --(guest write: copy old data to the store)--> SAVING --> SAVED
 *   NEEDED or SAVED --(consumer has it durably)--> DONE
 *
 * Rules (each has a test of its name in tests/unit/test-view.c):
 * 1. The image may change under a granule only when its state is SAVED or
 *    DONE, or when the granule is not part of the view, or when the view is
 *    broken.
 * 2. NEEDED -> SAVING is one compare-and-swap: one thread copies, the others
 *    wait for it.
 * 3. A reader looks at the state after its read of the image; NEEDED and
 *    SAVING make the data valid, SAVED sends it to the store.
 * 4. A view starts only when no write is in flight (the gate is closed).
 * 5. DONE, and punching the store, only after the consumer's flush was
 *    acknowledged.
 * 6. A broken view stays broken, and says so before the image changes under
 *    a granule that was not saved.
 *
 * The states file: a header page, a summary of one byte for each chunk, padded
 * to a page, then one page of two-bit states for each chunk (16384 granules).
 * A chunk's page exists (is allocated) only in summary DETAIL; a fresh page
 * says NEEDED throughout.
 *
 * Which granules belong to a view is not written down anywhere: for an
 * incremental it is the union of closed epochs ("the mask"), which does not
 * change any more, so both sides look it up (struct dirty).  What lies
 * outside of it counts as DONE from the start.
 */
#ifndef VIEW_VIEW_H
#define VIEW_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum view_state {
	VIEW_NEEDED = 0,
	VIEW_SAVING = 1,
	VIEW_SAVED = 2,
	VIEW_DONE = 3,
};

/* The states of one view, mapped. */
struct view;

/* The granule for a disk of @size bytes: 4 KiB while the states of the whole
 * disk fit VIEW_STATES_BUDGET, twice that for each doubling beyond.
 */
#define VIEW_MIN_GRANULE   UINT64_C(4096)
#define VIEW_STATES_BUDGET (UINT64_C(64) << 20)
uint64_t view_granule_for(uint64_t size);

/* Lay out states in the empty file @fd (borrowed): everything NEEDED. */
bool view_format(int fd, uint64_t size, struct err *e) MUST_CHECK;

/* Map them.  @fd is consumed, also on failure. */
bool view_open(int fd, struct view **out, struct err *e) MUST_CHECK;

struct view *view_ref(struct view *v);
void view_unref(struct view *v);
DEFINE_CLEANUP(struct view, view_unref);

uint64_t view_size(const struct view *v);
uint64_t view_granule(const struct view *v);
int view_fd(const struct view *v); /* borrowed */

/* Any thread, either process.  @g is the number of a granule. */
enum view_state view_get(const struct view *v, uint64_t g);

/* One compare-and-swap.  False when the state is not @from (any more), or
 * when the chunk's page cannot be allocated (*os is then its errno, else 0).
 */
bool view_move(struct view *v, uint64_t g, enum view_state from,
	       enum view_state to, int *os);

/* Granules [g, end) are DONE from now on, except those that are being saved
 * at this moment.  Calls @hole(opaque, g, end) for runs of them (all DONE now)
 * that contain what was SAVED.  A chunk that nobody has touched takes one step.
 */
void view_done(struct view *v, uint64_t g, uint64_t end,
	       void (*hole)(void *opaque, uint64_t g, uint64_t end),
	       void *opaque);

/* The length in bytes, from @off on and at most @len, of the run of granules
 * that are all SAVED (*saved true) or all not SAVED.
 */
uint64_t view_run(const struct view *v, uint64_t off, uint64_t len,
		  bool *saved);

/* The first byte in [off, end), by whole granules, that is not (is) DONE;
 * @end when there is none.
 */
uint64_t view_next_not_done(const struct view *v, uint64_t off, uint64_t end);
uint64_t view_next_done(const struct view *v, uint64_t off, uint64_t end);

/* The first byte in [off, end), by whole granules, that is SAVED; @end when
 * there is none.
 */
uint64_t view_next_saved(const struct view *v, uint64_t off, uint64_t end);

/* How often granules became SAVED: a number that moves soon after they did, so
 * that who waits for more need not look at all states again and again.  The
 * data plane counts.  (One that is older does not: nobody may rely on it for
 * more than being told early.)
 */
uint64_t view_saves(const struct view *v);
void view_count_save(struct view *v);

/* SAVING back to NEEDED everywhere: the data plane that was saving is dead.
 * Only while no data plane has the view.
 */
void view_recover(struct view *v);

/* Why the view cannot be read any more: an errno value, 0 while it is whole.
 * The first break wins.
 */
void view_break(struct view *v, int os);
int view_broken(const struct view *v);

#endif

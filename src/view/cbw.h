/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copy-before-write: the data plane's side of a view (rules 1, 2, 4 and 6 of
 * view.h).
 */
#ifndef VIEW_CBW_H
#define VIEW_CBW_H

#include "base/err.h"
#include "block/block.h"
#include "tracking/epoch.h"
#include "view/view.h"

/* What a guest's write does when what it overwrites cannot be saved (QEMU's
 * OnCbwError).
 */
enum cbw_policy {
	CBW_BREAK_SNAPSHOT, /* the view is given up (our default) */
	CBW_BREAK_GUEST_WRITE, /* the guest's write fails */
};

struct cbw;

struct cbw_options {
	struct view *view; /* a reference is consumed */
	int store; /* descriptor, consumed */
	struct block *image; /* borrowed; outlives the cbw */
	/* What belongs to the view; @n == 0: everything.  The references are
	 * consumed.
	 */
	struct epoch *mask[2];
	size_t n;
	uint64_t unit; /* the mask is rounded outwards to this */
	enum cbw_policy policy;
	/* A write that has waited so long for saves counts them as failed
	 * (ETIMEDOUT); 0: no limit.  With a limit every save costs a thread.
	 */
	unsigned timeout_ms;
	/* Called once, in the thread that broke the view. */
	void (*broken)(void *opaque, int os);
	void *opaque;
};

/* Everything in @o is consumed, also on failure. */
bool cbw_new(const struct cbw_options *o, struct cbw **out, struct err *e)
	MUST_CHECK;
/* Waits for copies that no write waits for any more. */
void cbw_free(struct cbw *c);
DEFINE_CLEANUP(struct cbw, cbw_free);

/* Guest threads, inside the gate, before the image changes in the range.
 * Saves what the view needs.  Returns 0 or, with CBW_BREAK_GUEST_WRITE, the
 * errno value with which the guest's write must fail.
 */
int cbw_before_write(struct cbw *c, uint64_t off, uint64_t len);

/* Any thread.  The view is of no use any more: writes save nothing for it from
 * now on, and its @broken is not called.
 */
void cbw_give_up(struct cbw *c);

/* Is there no such copy, or does the last end within @ms? */
bool cbw_is_quiet(struct cbw *c, unsigned ms);

/* How many bytes were copied to the store. */
uint64_t cbw_saved_bytes(const struct cbw *c);

#endif

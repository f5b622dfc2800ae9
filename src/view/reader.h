/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Reading a view while guests write (rules 3 and 5 of view.h).  No lock, no
 * message: the image is read first, then the states decide.
 */
#ifndef VIEW_READER_H
#define VIEW_READER_H

#include "base/err.h"
#include "block/block.h"
#include "tracking/epoch.h"
#include "view/view.h"

/* Any thread, any number of them at once. */
struct view_reader {
	struct block
		*image; /* borrowed: a read-only open of the node's image */
	struct view *view; /* borrowed; NULL: nobody writes, read the image */
	int store; /* borrowed descriptor, -1 without a view */
	struct dirty mask; /* what belongs to the view; n == 0: everything */
};

/* Read the content at the cut.  Returns 0, an errno value of the read, or
 * the errno that broke the view (view_broken says which of the two).
 */
int view_reader_pread(const struct view_reader *r, void *buf, size_t len,
		      uint64_t off);

/* Describe the run at @off: *n <= @len bytes of it; *zero when it reads as
 * zeroes at the cut without looking at data.
 */
int view_reader_extent(const struct view_reader *r, uint64_t off, uint64_t len,
		       uint64_t *n, bool *zero);

/* Is the run at @off kept in the image's top layer at the cut?  *n <= @len bytes
 * of it are or are not.  What guests have overwritten since then counts as
 * kept there.
 */
int view_reader_layer(const struct view_reader *r, uint64_t off, uint64_t len,
		      uint64_t *n, bool *here);

/* The consumer has [off, off + len) durably: rule 5.  Granules that are only
 * partly inside stay as they are.  Frees the store's space there.
 */
void view_reader_done(const struct view_reader *r, uint64_t off, uint64_t len);

#endif

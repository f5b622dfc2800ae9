/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changing nodes under their guests: another size, other options.
 *
 * 1. A node changes only while no request of a guest is in it, reads
 *    included: the gates of its exports are closed and empty.
 * 2. What can fail without touching an image is done before that, for all of
 *    the nodes: they change together or not at all.
 * 3. No node gets another size while a view of it exists.
 * 4. A node gets other images only while no view of it exists, and only such
 *    as have its size, ask for no larger blocks and can be written if its own
 *    can.  Neither its own nor the others have tables (qcow2): those must not
 *    be open twice, and the others are open before its own are closed.
 *
 * Link thread only.
 */
#ifndef PLUGIN_CHANGE_H
#define PLUGIN_CHANGE_H

#include "link/link.h"
#include "schema/link-types.h"
#include "table.h"

/* @epoch, for disks of the new size, takes the place of the open one; a
 * reference is consumed on success.  NULL: nothing is recorded from now on.
 */
bool change_size(struct table *t, struct node *n, uint64_t size,
		 struct epoch *epoch, uint64_t epoch_id, unsigned ms,
		 struct err *e) MUST_CHECK;

/* Must other images be opened before the @at-th node of @l is changed?  False
 * with *e: they cannot be.
 */
bool change_wants_image(struct table *t, const struct link_node_image_list *l,
			size_t at, bool *wants, struct err *e) MUST_CHECK;

/* @images: for each node of @l what was opened for it, or NULL; on success
 * what it was before, to be closed by the caller.  Descriptors are taken out
 * of @msg.
 */
bool change_options(struct table *t, const struct link_node_image_list *l,
		    struct block **images, struct link_msg *msg, unsigned ms,
		    struct err *e) MUST_CHECK;

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Changing nodes under their guests: another size, other options.
 *
 * 1. A node changes only while no request of a guest is in it, reads
 *    included: the gates of its exports are closed and empty.
 * 2. What can fail without touching an image is done before that, for all of
 *    the nodes: they change together or not at all.
 * 3. No node gets another size while a view of it exists.
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

/* Descriptors are taken out of @msg. */
bool change_options(struct table *t, const struct link_node_image_list *l,
		    struct link_msg *msg, unsigned ms, struct err *e)
	MUST_CHECK;

#endif

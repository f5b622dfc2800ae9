/* SPDX-License-Identifier: BSD-3-Clause
 *
 * From blockdev-add's options to an opened image: how each driver's options
 * are checked and carried out.
 */
#ifndef DAEMON_IMAGES_H
#define DAEMON_IMAGES_H

#include "block/block.h"
#include "daemon/graph.h"

struct daemon;

/* Worker thread; may block.  Open what n->options says (its children
 * are open already) and fill in n's descriptor, size and the like.
 */
bool image_open(struct daemon *d, struct node *n, struct err *e) MUST_CHECK;

/* Worker thread; may block.  Read the header of a qcow2 node whose file is open
 * into n->qcow2.
 */
bool image_probe(struct node *n, struct err *e) MUST_CHECK;

/* How to open @n, and copies of its descriptors.  Loop.  Free the image
 * yourself.
 */
struct link_image *image_plan(const struct node *n, struct link_msg *msg);

/* For a reader of our own beside the one that writes: a description of the
 * image and copies of its descriptors.  Loop.  Free the image yourself.
 */
struct link_image *image_reader_plan(const struct node *n,
				     struct link_msg *msg);

/* Worker thread.  Open it, read-only, with descriptors of its own. */
bool image_reader_open(const struct link_image *i, struct link_msg *msg,
		       struct block **out, struct err *e) MUST_CHECK;

/* Worker thread.  @then is a copy of @now with other options and without
 * descriptor or connection: check them, and open what must be opened anew.
 * Fills in its descriptor, size and read_only.  After a failure, too, the
 * descriptor is the caller's.
 */
bool image_reopen(struct daemon *d, const struct node *now, struct node *then,
		  struct err *e) MUST_CHECK;

#endif

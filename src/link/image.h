/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening an image from its description on the link: the one way in which
 * both processes open images.
 */
#ifndef LINK_IMAGE_H
#define LINK_IMAGE_H

#include "block/block.h"
#include "link/link.h"
#include "schema/link-types.h"

/* Any thread; may block (an NBD server).  Descriptors are taken out of @msg. */
bool link_image_open(const struct link_image *i, struct link_msg *msg,
		     struct block **out, struct err *e) MUST_CHECK;

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening an image from its description on the link: the one way in which
 * both processes open images.
 */
#ifndef LINK_IMAGE_H
#define LINK_IMAGE_H

#include "block/throttle.h"
#include "link/link.h"
#include "schema/link-types.h"

/* Any thread; may block (an NBD server).  Descriptors are taken out of @msg. */
bool link_image_open(const struct link_image *i, struct link_msg *msg,
		     struct block **out, struct err *e) MUST_CHECK;

/* False: the message is not well-formed. */
bool link_throttle_config_get(const struct link_throttle_limits *from,
			      struct throttle_config *to, struct err *e)
	MUST_CHECK;

#endif

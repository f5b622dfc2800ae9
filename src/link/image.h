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

/* Is @b made of the images that @i describes? */
bool link_image_is(const struct link_image *i, const struct block *b);

/* Has one of the images tables in memory while it is open (qcow2)? */
bool link_image_has_tables(const struct link_image *i);

/* Is it, and can it get their options?
 * @msg: the message with the descriptors.  Makes what link_image_apply needs.
 */
bool link_image_fits(const struct link_image *i, const struct link_msg *msg,
		     struct block *b, struct err *e) MUST_CHECK;

/* It gets them; nobody else uses it meanwhile.  It fits. */
void link_image_apply(const struct link_image *i, struct link_msg *msg,
		      struct block *b);

/* False: the message is not well-formed. */
bool link_throttle_config_get(const struct link_throttle_limits *from,
			      struct throttle_config *to, struct err *e)
	MUST_CHECK;

#endif

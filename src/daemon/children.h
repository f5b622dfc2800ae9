/* SPDX-License-Identifier: BSD-3-Clause
 *
 * children: which options of a driver name other nodes, and as what.
 */
#ifndef DAEMON_CHILDREN_H
#define DAEMON_CHILDREN_H

#include "schema/qmp-types.h"

/* What a child is to its parent; QEMU's words.  The order is that of
 * block_child(), and of the descriptors of a description.
 */
enum child_role {
	CHILD_FILE,
	CHILD_BACKING,
	CHILD_DATA_FILE,
	CHILD_IMAGE,
	CHILD_TARGET,
	CHILD_ROLES
};

const char *child_role_str(enum child_role role);

/* One of the two is set; borrowed from the options. */
struct child_option {
	const char *reference; /* a node that exists */
	const struct blockdev_options *definition; /* one to be opened */
};

/* What @o says of the child in @role; false: nothing, or null. */
bool children_option(const struct blockdev_options *o, enum child_role role,
		     struct child_option *out);

/* How an option says "the node that @o (consumed) defines".  The caller's. */
struct blockdev_ref *children_definition(struct blockdev_options *o);

/* Call @fn for each node that @o, or a definition in it, refers to. */
void children_references(const struct blockdev_options *o,
			 void (*fn)(void *opaque, const char *name),
			 void *opaque);

/* @o leaves it to the image: neither a node nor null is given. */
bool children_say_nothing(const struct blockdev_options *o,
			  enum child_role role);

/* @o says of the child in @role how to open it; @definition is consumed.  It
 * said something of it before.
 */
void children_define(struct blockdev_options *o, enum child_role role,
		     struct blockdev_options *definition);

#endif

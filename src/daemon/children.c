/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/children.h"

#include <stddef.h>

const char *
child_role_str(enum child_role role)
{
	static const char *const names[CHILD_ROLES] = {
		[CHILD_FILE] = "file",           [CHILD_BACKING] = "backing",
		[CHILD_DATA_FILE] = "data-file", [CHILD_IMAGE] = "image",
		[CHILD_TARGET] = "target",
	};

	return names[role];
}

static const struct blockdev_ref *
find(const struct blockdev_options *o, enum child_role role)
{
	switch (o->driver) {
	case BLOCKDEV_DRIVER_RAW:
		return role == CHILD_FILE ? o->u.raw->file : NULL;
	case BLOCKDEV_DRIVER_BLKDEBUG:
		return role == CHILD_IMAGE ? o->u.blkdebug->image : NULL;
	case BLOCKDEV_DRIVER_THROTTLE:
		return role == CHILD_FILE ? o->u.throttle->file : NULL;
	default: return NULL;
	}
}

bool
children_option(const struct blockdev_options *o, enum child_role role,
		struct child_option *out)
{
	const struct blockdev_ref *r = find(o, role);

	*out = (struct child_option){ 0 };
	if (!r)
		return false;
	if (r->type == JSON_STRING)
		out->reference = r->u.reference;
	else
		out->definition = r->u.definition;
	return true;
}

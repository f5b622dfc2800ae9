/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/children.h"

#include <stdlib.h>

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
find_qcow2(const struct blockdev_options_qcow2 *o, enum child_role role)
{
	if (role == CHILD_FILE)
		return o->file;
	return role == CHILD_DATA_FILE ? o->data_file : NULL;
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
	case BLOCKDEV_DRIVER_QCOW2: return find_qcow2(o->u.qcow2, role);
	default: return NULL;
	}
}

/* What may be explicitly nothing. */
static const struct blockdev_ref_or_null *
backing(const struct blockdev_options *o)
{
	return o->driver == BLOCKDEV_DRIVER_QCOW2 ? o->u.qcow2->backing : NULL;
}

static bool
backing_option(const struct blockdev_ref_or_null *r, struct child_option *out)
{
	if (r->type == JSON_STRING)
		out->reference = r->u.reference;
	else if (r->type == JSON_OBJECT)
		out->definition = r->u.definition;
	return r->type != JSON_NULL;
}

bool
children_say_nothing(const struct blockdev_options *o, enum child_role role)
{
	return role == CHILD_BACKING ? !backing(o) : !find(o, role);
}

bool
children_option(const struct blockdev_options *o, enum child_role role,
		struct child_option *out)
{
	const struct blockdev_ref *r = find(o, role);

	*out = (struct child_option){ 0 };
	if (role == CHILD_BACKING && backing(o))
		return backing_option(backing(o), out);
	if (!r)
		return false;
	if (r->type == JSON_STRING)
		out->reference = r->u.reference;
	else
		out->definition = r->u.definition;
	return true;
}

void
children_define(struct blockdev_options *o, enum child_role role,
		struct blockdev_options *definition)
{
	struct blockdev_ref_or_null *b = (void *)backing(o);
	struct blockdev_ref *r = (void *)find(o, role);

	if (role == CHILD_BACKING) {
		if (b->type == JSON_STRING)
			free(b->u.reference);
		else if (b->type == JSON_OBJECT)
			blockdev_options_free(b->u.definition);
		b->type = JSON_OBJECT;
		b->u.definition = definition;
		return;
	}
	if (r->type == JSON_STRING)
		free(r->u.reference);
	else
		blockdev_options_free(r->u.definition);
	r->type = JSON_OBJECT;
	r->u.definition = definition;
}

struct blockdev_ref *
children_definition(struct blockdev_options *o)
{
	struct blockdev_ref *r = xzalloc(sizeof *r);

	r->type = JSON_OBJECT;
	r->u.definition = o;
	return r;
}

void
children_references(const struct blockdev_options *o,
		    void (*fn)(void *opaque, const char *name), void *opaque)
{
	struct child_option c;

	for (int i = 0; i < CHILD_ROLES; i++) {
		if (!children_option(o, (enum child_role)i, &c))
			continue;
		if (c.reference)
			fn(opaque, c.reference);
		else
			children_references(c.definition, fn, opaque);
	}
}

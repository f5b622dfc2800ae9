/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Which options of a node can change while it is open: two sets of options are
 * compared, member by member.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/reopen-priv.h"
#include "json/json.h"
#include "json/out.h"

#define KEY_MAX 256

/* What can be changed while a node is open. */
static const struct {
	const char *name;
	int driver; /* -1: all */
} changeable[] = {
	{ "auto-read-only", -1 },
	{ "cache.direct", -1 },
	{ "cache.no-flush", -1 },
	{ "detect-zeroes", -1 },
	{ "discard", -1 },
	{ "force-share", -1 },
	{ "read-only", -1 },
	{ "offset", BLOCKDEV_DRIVER_RAW },
	{ "size", BLOCKDEV_DRIVER_RAW },
	{ "reconnect-delay", BLOCKDEV_DRIVER_NBD },
	{ "throttle-group", BLOCKDEV_DRIVER_THROTTLE },
	{ "cache-clean-interval", BLOCKDEV_DRIVER_QCOW2 },
	{ "cache-size", BLOCKDEV_DRIVER_QCOW2 },
	{ "l2-cache-entry-size", BLOCKDEV_DRIVER_QCOW2 },
	{ "l2-cache-size", BLOCKDEV_DRIVER_QCOW2 },
	{ "lazy-refcounts", BLOCKDEV_DRIVER_QCOW2 },
	{ "overlap-check", BLOCKDEV_DRIVER_QCOW2 },
	{ "pass-discard-other", BLOCKDEV_DRIVER_QCOW2 },
	{ "pass-discard-request", BLOCKDEV_DRIVER_QCOW2 },
	{ "pass-discard-snapshot", BLOCKDEV_DRIVER_QCOW2 },
	{ "refcount-cache-size", BLOCKDEV_DRIVER_QCOW2 },
};

static bool
can_change(const struct blockdev_options *o, const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(changeable); i++)
		if (strcmp(changeable[i].name, name) == 0 &&
		    (changeable[i].driver < 0 ||
		     changeable[i].driver == (int)o->driver))
			return true;
	return false;
}

/* Children are compared as nodes. */
static bool
is_child(const struct blockdev_options *o, const char *name)
{
	for (int i = 0; i < CHILD_ROLES; i++)
		if (strcmp(child_role_str((enum child_role)i), name) == 0 &&
		    !children_say_nothing(o, (enum child_role)i))
			return true;
	return false;
}

static struct json *
as_json(const struct blockdev_options *o, struct err *e)
{
	AUTO(json_out_destroy) struct json_out out;
	struct json *j = NULL;

	json_out_init(&out, (size_t)4 << 20);
	blockdev_options_encode(&out, o);
	if (!json_out_check(&out, e) || !json_parse(out.text, out.len, &j, e))
		return NULL;
	return j;
}

static bool
same(const struct json *a, const struct json *b)
{
	if (json_type(a) != json_type(b))
		return false;
	switch (json_type(a)) {
	case JSON_BOOL: return json_get_bool(a) == json_get_bool(b);
	case JSON_INT:
	case JSON_UINT: return json_get_uint(a) == json_get_uint(b);
	case JSON_STRING:
		return strcmp(json_get_string(a, NULL),
			      json_get_string(b, NULL)) == 0;
	case JSON_ARRAY: break;
	default: return true;
	}
	if (json_count(a) != json_count(b))
		return false;
	for (size_t i = 0; i < json_count(a); i++)
		if (!same(json_at(a, i), json_at(b, i)))
			return false;
	return true;
}

/* Everything in @a is in @b as well.  @missing: or else it would be reset.
 * @prefix: the members above, with a dot behind each.
 */
static bool
covered(const struct blockdev_options *o, const struct json *a,
	const struct json *b, const char *prefix, bool missing, struct err *e)
{
	char key[KEY_MAX];

	for (size_t i = 0; i < json_count(a); i++) {
		const char *name = json_name_at(a, i, NULL);
		const struct json *x = json_at(a, i);
		const struct json *y = b ? json_lookup(b, name) : NULL;

		(void)snprintf(key, sizeof key, "%s%s", prefix, name);
		if ((!prefix[0] && is_child(o, name)) || can_change(o, key))
			continue;
		if (json_type(x) == JSON_OBJECT) {
			if (y && json_type(y) != JSON_OBJECT)
				y = NULL;
			(void)snprintf(key, sizeof key, "%s%s.", prefix, name);
			if (!covered(o, x, y, key, missing, e))
				return false;
			continue;
		}
		if (y && same(x, y))
			continue;
		if (missing)
			return err_set(e, ERR_GENERIC, 0,
				       "Option '%s' cannot be reset to its "
				       "default value",
				       key);
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot change the option '%s'", key);
	}
	return true;
}

bool
reopen_check(const struct blockdev_options *now,
	     const struct blockdev_options *then, struct err *e)
{
	AUTO(json_free) struct json *a = as_json(now, e);
	AUTO(json_free) struct json *b = a ? as_json(then, e) : NULL;

	return b && covered(now, b, a, "", false, e) &&
	       covered(now, a, b, "", true, e);
}

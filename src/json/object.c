/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Members of a JSON object: a table in the order of arrival and, once there
 * are more than a handful, a hash index over it.  A peer chooses the names,
 * so the hash is a polynomial over a prime field at a point that is secret
 * and different in every process: no list of names makes it slow.
 */
#include "json/json-priv.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

#define SMALL 8 /* members that are searched one by one */

/* The 16 random bytes that the kernel gives to every process. */
static uint64_t
secret(void)
{
	uint64_t k = 0;
	/* NOLINTNEXTLINE(performance-no-int-to-ptr): that is the interface */
	const void *random = (const void *)getauxval(AT_RANDOM);

	if (random)
		memcpy(&k, random, sizeof k);
	return (k >> 4) | 1;
}

static uint64_t
hash(const char *s, size_t len)
{
	const uint64_t prime = (UINT64_C(1) << 61) - 1;
	uint64_t point = secret(), h = len, part;
	size_t take;

	for (; len; s += take, len -= take) {
		take = len < 7 ? len : 7;
		part = 0;
		memcpy(&part, s, take);
		h = (uint64_t)(((unsigned __int128)h * point + part + 1) %
			       prime);
	}
	return (uint64_t)((unsigned __int128)h * point % prime);
}

static bool
is_named(const struct json_member *m, const char *name, size_t len)
{
	return m->len == len && memcmp(m->name, name, len) == 0;
}

/* The slot that holds @name, or the free one where it belongs.  A slot holds
 * a member's number plus one; 0 is free; at least half of them are.
 */
static uint32_t *
find_slot(const struct json_object *o, const char *name, size_t len)
{
	uint32_t at = (uint32_t)hash(name, len) & o->mask;

	while (o->slot[at] && !is_named(&o->m[o->slot[at] - 1], name, len))
		at = (at + 1) & o->mask;
	return &o->slot[at];
}

struct json *
json_object_find(const struct json *object, const char *name, size_t len)
{
	const struct json_object *o = object->v.obj;
	uint32_t i, *slot;

	assert(object->type == JSON_OBJECT);
	if (object->n > SMALL) {
		slot = find_slot(o, name, len);
		return *slot ? &o->m[*slot - 1].value : NULL;
	}
	for (i = 0; i < object->n; i++)
		if (is_named(&o->m[i], name, len))
			return &o->m[i].value;
	return NULL;
}

/* Build the index anew, for twice as many members as there is room for. */
static bool
make_index(struct json_object *o, uint32_t n, uint32_t cap)
{
	uint32_t i, slots = SMALL * 4;
	uint32_t *table;

	while (slots < (uint64_t)cap * 2)
		slots *= 2;
	table = calloc(slots, sizeof *table);
	if (!table)
		return false;
	free(o->slot);
	o->slot = table;
	o->mask = slots - 1;
	for (i = 0; i < n; i++)
		*find_slot(o, o->m[i].name, o->m[i].len) = i + 1;
	return true;
}

static bool
make_room(struct json *object)
{
	uint32_t cap = object->cap ? object->cap * 2 : 4;
	struct json_object *o;
	struct json_member *m;

	if (!object->v.obj)
		object->v.obj = calloc(1, sizeof *object->v.obj);
	o = object->v.obj;
	if (!o || cap > UINT32_MAX / 8)
		return false;
	m = reallocarray(o->m, cap, sizeof *m);
	if (!m)
		return false;
	o->m = m;
	if (cap > SMALL && !make_index(o, object->n, cap))
		return false;
	object->cap = cap;
	return true;
}

enum json_add
json_object_add(struct json *object, char *name, size_t len, struct json *value)
{
	struct json_object *o;
	struct json_member *m;

	if (json_object_find(object, name, len))
		return JSON_DUPLICATE;
	if (object->n == object->cap && !make_room(object))
		return JSON_NOMEM;
	o = object->v.obj;
	assert(o && o->m);
	if (o->slot)
		*find_slot(o, name, len) = object->n + 1;
	m = &o->m[object->n++];
	m->name = name;
	m->len = (uint32_t)len;
	m->value = *value;
	memset(value, 0, sizeof *value);
	return JSON_ADDED;
}

void
json_object_clear(struct json *object)
{
	struct json_object *o = object->v.obj;
	uint32_t i;

	if (!o)
		return;
	for (i = 0; i < object->n; i++) {
		free(o->m[i].name);
		json_clear(&o->m[i].value);
	}
	free(o->m);
	free(o->slot);
	free(o);
	object->v.obj = NULL;
}

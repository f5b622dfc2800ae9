/* SPDX-License-Identifier: BSD-3-Clause */
#include "json/json.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "json/json-priv.h"

static struct json *
new_value(enum json_type type)
{
	struct json *j = calloc(1, sizeof *j);

	if (j)
		j->type = type;
	return j;
}

struct json *
json_new_null(void)
{
	return new_value(JSON_NULL);
}

struct json *
json_new_bool(bool b)
{
	struct json *j = new_value(JSON_BOOL);

	if (j)
		j->v.b = b;
	return j;
}

struct json *
json_new_int(int64_t i)
{
	struct json *j = new_value(JSON_INT);

	if (j)
		j->v.i = i;
	return j;
}

struct json *
json_new_uint(uint64_t u)
{
	struct json *j = new_value(u > INT64_MAX ? JSON_UINT : JSON_INT);

	if (j)
		j->v.u = u;
	return j;
}

struct json *
json_new_double(double d)
{
	struct json *j = new_value(JSON_DOUBLE);

	if (j)
		j->v.d = d;
	return j;
}

struct json *
json_new_string(const char *s)
{
	return json_new_string_n(s, strlen(s));
}

struct json *
json_new_string_n(const char *s, size_t len)
{
	AUTO(json_free) struct json *j = new_value(JSON_STRING);

	if (!j)
		return NULL;
	j->v.s = json_bytes_dup(s, len);
	if (!j->v.s)
		return NULL;
	j->n = (uint32_t)len;
	return steal(&j);
}

struct json *
json_new_array(void)
{
	return new_value(JSON_ARRAY);
}

struct json *
json_new_object(void)
{
	return new_value(JSON_OBJECT);
}

char *
json_bytes_dup(const char *s, size_t len)
{
	char *copy;

	if (len > UINT32_MAX)
		return NULL;
	copy = malloc(len + 1);
	if (!copy)
		return NULL;
	if (len)
		memcpy(copy, s, len);
	copy[len] = '\0';
	return copy;
}

void
json_clear(struct json *j)
{
	uint32_t i;

	switch (j->type) {
	case JSON_STRING: free(j->v.s); break;
	case JSON_ARRAY:
		for (i = 0; i < j->n; i++)
			json_clear(&j->v.items[i]);
		free(j->v.items);
		break;
	case JSON_OBJECT: json_object_clear(j); break;
	default: break;
	}
	memset(j, 0, sizeof *j);
}

void
json_free(struct json *j)
{
	if (!j)
		return;
	json_clear(j);
	free(j);
}

bool
json_array_push(struct json *array, struct json *item)
{
	uint32_t cap = array->cap ? array->cap * 2 : 4;
	struct json *items;

	assert(array->type == JSON_ARRAY);
	if (array->n == array->cap) {
		if (cap < array->cap)
			return false;
		items = reallocarray(array->v.items, cap, sizeof *items);
		if (!items)
			return false;
		array->v.items = items;
		array->cap = cap;
	}
	array->v.items[array->n++] = *item;
	memset(item, 0, sizeof *item);
	return true;
}

bool
json_append(struct json *array, struct json *item)
{
	bool ok = item && json_array_push(array, item);

	json_free(item);
	return ok;
}

bool
json_put(struct json *object, const char *name, struct json *item)
{
	char *copy = NULL;
	enum json_add r = JSON_NOMEM;

	if (item)
		copy = json_bytes_dup(name, strlen(name));
	if (copy)
		r = json_object_add(object, copy, strlen(name), item);
	assert(r != JSON_DUPLICATE);
	if (r != JSON_ADDED)
		free(copy);
	json_free(item);
	return r == JSON_ADDED;
}

static bool clone_into(struct json *to, const struct json *from);

static bool
clone_items(struct json *to, const struct json *from)
{
	struct json item;
	uint32_t i;

	for (i = 0; i < from->n; i++) {
		if (!clone_into(&item, &from->v.items[i]))
			return false;
		if (!json_array_push(to, &item)) {
			json_clear(&item);
			return false;
		}
	}
	return true;
}

static bool
clone_members(struct json *to, const struct json *from)
{
	const struct json_member *m;
	struct json value;
	char *name;
	uint32_t i;

	for (i = 0; i < from->n; i++) {
		m = &from->v.obj->m[i];
		if (!clone_into(&value, &m->value))
			return false;
		name = json_bytes_dup(m->name, m->len);
		if (!name ||
		    json_object_add(to, name, m->len, &value) != JSON_ADDED) {
			free(name);
			json_clear(&value);
			return false;
		}
	}
	return true;
}

/* On failure @to holds nothing. */
static bool
clone_into(struct json *to, const struct json *from)
{
	bool ok = true;

	memset(to, 0, sizeof *to);
	to->type = from->type;
	switch (from->type) {
	case JSON_STRING:
		to->v.s = json_bytes_dup(from->v.s, from->n);
		to->n = from->n;
		ok = to->v.s != NULL;
		break;
	case JSON_ARRAY: ok = clone_items(to, from); break;
	case JSON_OBJECT: ok = clone_members(to, from); break;
	default: to->v = from->v; break;
	}
	if (!ok)
		json_clear(to);
	return ok;
}

struct json *
json_clone(const struct json *j)
{
	AUTO(json_free) struct json *copy = new_value(JSON_NULL);

	if (!copy || !clone_into(copy, j))
		return NULL;
	return steal(&copy);
}

enum json_type
json_type(const struct json *j)
{
	return j->type;
}

const char *
json_type_str(enum json_type t)
{
	static const char *const names[] = {
		[JSON_NULL] = "null",     [JSON_BOOL] = "boolean",
		[JSON_INT] = "integer",   [JSON_UINT] = "integer",
		[JSON_DOUBLE] = "number", [JSON_STRING] = "string",
		[JSON_ARRAY] = "array",   [JSON_OBJECT] = "object",
	};

	return names[t];
}

bool
json_get_bool(const struct json *j)
{
	assert(j->type == JSON_BOOL);
	return j->v.b;
}

int64_t
json_get_int(const struct json *j)
{
	assert(j->type == JSON_INT);
	return j->v.i;
}

uint64_t
json_get_uint(const struct json *j)
{
	assert(j->type == JSON_INT || j->type == JSON_UINT);
	return j->v.u;
}

double
json_get_double(const struct json *j)
{
	switch (j->type) {
	case JSON_INT: return (double)j->v.i;
	case JSON_UINT: return (double)j->v.u;
	default: assert(j->type == JSON_DOUBLE); return j->v.d;
	}
}

const char *
json_get_string(const struct json *j, size_t *len)
{
	assert(j->type == JSON_STRING);
	if (len)
		*len = j->n;
	return j->v.s;
}

size_t
json_count(const struct json *j)
{
	assert(j->type == JSON_ARRAY || j->type == JSON_OBJECT);
	return j->n;
}

const struct json *
json_at(const struct json *j, size_t i)
{
	assert(i < json_count(j));
	return j->type == JSON_ARRAY ? &j->v.items[i] : &j->v.obj->m[i].value;
}

const char *
json_name_at(const struct json *j, size_t i, size_t *len)
{
	assert(j->type == JSON_OBJECT && i < j->n);
	if (len)
		*len = j->v.obj->m[i].len;
	return j->v.obj->m[i].name;
}

const struct json *
json_lookup(const struct json *object, const char *name)
{
	return json_object_find(object, name, strlen(name));
}

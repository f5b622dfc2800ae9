/* SPDX-License-Identifier: BSD-3-Clause */
#include "json/qapi.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "json/json-priv.h"
#include "json/qapi-priv.h"

#define BUILTIN(id, what, label, ctype)                            \
	const struct qapi_type qapi_##id##_type = { .kind = what,  \
						    .name = label, \
						    .slot = sizeof(ctype) }

BUILTIN(str, QAPI_STR, "string", char *);
BUILTIN(number, QAPI_NUMBER, "number", double);
BUILTIN(bool, QAPI_BOOL, "boolean", bool);
BUILTIN(null, QAPI_NULL, "null", bool);
BUILTIN(any, QAPI_ANY, "value", struct json *);
BUILTIN(int, QAPI_INT, "int64_t", int64_t);
BUILTIN(int8, QAPI_INT, "int8_t", int8_t);
BUILTIN(int16, QAPI_INT, "int16_t", int16_t);
BUILTIN(int32, QAPI_INT, "int32_t", int32_t);
BUILTIN(int64, QAPI_INT, "int64_t", int64_t);
BUILTIN(uint8, QAPI_UINT, "uint8_t", uint8_t);
BUILTIN(uint16, QAPI_UINT, "uint16_t", uint16_t);
BUILTIN(uint32, QAPI_UINT, "uint32_t", uint32_t);
BUILTIN(uint64, QAPI_UINT, "uint64_t", uint64_t);
BUILTIN(size, QAPI_UINT, "uint64_t", uint64_t);

const struct qapi_type str_list_type = {
	.kind = QAPI_LIST,
	.name = "list",
	.slot = sizeof(struct str_list),
	.element = &qapi_str_type,
};

/* Does a value of this JSON type belong to a branch of this kind? */
static bool
kind_takes(enum qapi_kind kind, enum json_type type)
{
	switch (kind) {
	case QAPI_BOOL: return type == JSON_BOOL;
	case QAPI_INT:
	case QAPI_UINT: return type == JSON_INT || type == JSON_UINT;
	case QAPI_NUMBER:
		return type == JSON_INT || type == JSON_UINT ||
		       type == JSON_DOUBLE;
	case QAPI_STR:
	case QAPI_ENUM: return type == JSON_STRING;
	case QAPI_NULL: return type == JSON_NULL;
	case QAPI_STRUCT: return type == JSON_OBJECT;
	case QAPI_LIST: return type == JSON_ARRAY;
	default: return false;
	}
}

const struct qapi_member *
qapi_branch(const struct qapi_type *t, enum json_type type)
{
	uint32_t i;

	for (i = 0; i < t->n; i++)
		if (kind_takes(t->members[i].type->kind, type))
			return &t->members[i];
	return NULL;
}

const struct qapi_type *
qapi_variant(const struct qapi_type *t, const void *object)
{
	unsigned tag;

	if (!t->variants)
		return NULL;
	tag = *(unsigned *)qapi_at(object, t->variants->tag);
	return t->variants->branch[tag];
}

bool
qapi_enum_find(const struct qapi_type *t, const char *name, unsigned *out)
{
	uint32_t i;

	for (i = 0; i < t->n; i++) {
		if (strcmp(t->values[i], name) == 0) {
			*out = i;
			return true;
		}
	}
	return false;
}

static void
clear_members(const struct qapi_type *t, void *object)
{
	const struct qapi_type *v = qapi_variant(t, object);
	void **branch;
	uint32_t i;

	if (v) {
		branch = qapi_at(object, t->variants->offset);
		if (*branch)
			clear_members(v, *branch);
		free(*branch);
	}
	for (i = 0; i < t->n; i++)
		qapi_clear(t->members[i].type,
			   qapi_at(object, t->members[i].offset));
}

static void
clear_alternate(const struct qapi_type *t, void *object)
{
	struct qapi_alternate *a = object;
	const struct qapi_member *m = qapi_branch(t, a->type);

	if (m)
		qapi_clear(m->type, qapi_at(object, m->offset));
}

static void
clear_list(const struct qapi_type *t, struct qapi_list *l)
{
	size_t i;

	for (i = 0; i < l->n; i++)
		qapi_clear(t->element, qapi_element(t, l, i));
	free(l->v);
}

void
qapi_clear(const struct qapi_type *t, void *slot)
{
	void **p = slot;

	switch (t->kind) {
	case QAPI_STR: free(*p); break;
	case QAPI_ANY: json_free(*p); break;
	case QAPI_LIST: clear_list(t, slot); break;
	case QAPI_STRUCT:
	case QAPI_ALTERNATE:
		if (*p && t->kind == QAPI_STRUCT)
			clear_members(t, *p);
		else if (*p)
			clear_alternate(t, *p);
		free(*p);
		break;
	default: break;
	}
	memset(slot, 0, t->slot);
}

static bool
is_present(const struct qapi_member *m, const void *object)
{
	void **p = qapi_at(object, m->offset);

	if (!m->optional)
		return true;
	if (m->has != QAPI_NO_HAS)
		return *(bool *)qapi_at(object, m->has);
	return *p != NULL;
}

static void
encode_members(const struct qapi_type *t, struct json_out *o,
	       const void *object)
{
	const struct qapi_type *v = qapi_variant(t, object);
	const struct qapi_member *m;
	void **branch;
	uint32_t i;

	for (i = 0; i < t->n; i++) {
		m = &t->members[i];
		if (!is_present(m, object))
			continue;
		json_out_key(o, m->name);
		qapi_encode(m->type, o, qapi_at(object, m->offset));
	}
	if (v) {
		branch = qapi_at(object, t->variants->offset);
		assert(*branch);
		encode_members(v, o, *branch);
	}
}

static void
encode_list(const struct qapi_type *t, struct json_out *o,
	    const struct qapi_list *l)
{
	size_t i;

	json_out_array_begin(o);
	for (i = 0; i < l->n; i++)
		qapi_encode(t->element, o, qapi_element(t, l, i));
	json_out_array_end(o);
}

static void
encode_alternate(const struct qapi_type *t, struct json_out *o,
		 const void *object)
{
	const struct qapi_alternate *a = object;
	const struct qapi_member *m = qapi_branch(t, a->type);

	assert(m);
	qapi_encode(m->type, o, qapi_at(object, m->offset));
}

static int64_t
load_int(const void *slot, uint32_t size)
{
	switch (size) {
	case 1: return *(const int8_t *)slot;
	case 2: return *(const int16_t *)slot;
	case 4: return *(const int32_t *)slot;
	default: return *(const int64_t *)slot;
	}
}

static uint64_t
load_uint(const void *slot, uint32_t size)
{
	switch (size) {
	case 1: return *(const uint8_t *)slot;
	case 2: return *(const uint16_t *)slot;
	case 4: return *(const uint32_t *)slot;
	default: return *(const uint64_t *)slot;
	}
}

void
qapi_encode(const struct qapi_type *t, struct json_out *o, const void *slot)
{
	void *const *p = slot;

	switch (t->kind) {
	case QAPI_BOOL: json_out_bool(o, *(const bool *)slot); break;
	case QAPI_INT: json_out_int(o, load_int(slot, t->slot)); break;
	case QAPI_UINT: json_out_uint(o, load_uint(slot, t->slot)); break;
	case QAPI_NUMBER: json_out_double(o, *(const double *)slot); break;
	case QAPI_NULL: json_out_null(o); break;
	case QAPI_ENUM:
		assert(*(const unsigned *)slot < t->n);
		json_out_string(o, t->values[*(const unsigned *)slot]);
		break;
	case QAPI_STR:
		assert(*p);
		json_out_string(o, *p);
		break;
	case QAPI_ANY:
		assert(*p);
		json_out_json(o, *p);
		break;
	case QAPI_STRUCT:
		assert(*p);
		json_out_object_begin(o);
		encode_members(t, o, *p);
		json_out_object_end(o);
		break;
	case QAPI_ALTERNATE:
		assert(*p);
		encode_alternate(t, o, *p);
		break;
	case QAPI_LIST: encode_list(t, o, slot); break;
	}
}

/* @to has the bytes of @from and owns none of what they point to; afterwards
 * it owns copies of all or, on failure, of some, and the rest is empty.
 */
static bool
clone_members(const struct qapi_type *t, void *to, const void *from)
{
	const struct qapi_type *v = qapi_variant(t, from);
	const struct qapi_member *m;
	void **branch, **source;
	bool ok = true;
	uint32_t i;

	for (i = 0; i < t->n; i++) {
		m = &t->members[i];
		if (!qapi_clone(m->type, qapi_at(to, m->offset),
				qapi_at(from, m->offset)))
			ok = false;
	}
	if (!v)
		return ok;
	branch = qapi_at(to, t->variants->offset);
	source = qapi_at(from, t->variants->offset);
	*branch = *source ? malloc(v->size) : NULL;
	if (!*source)
		return ok;
	if (!*branch)
		return false;
	memcpy(*branch, *source, v->size);
	return clone_members(v, *branch, *source) && ok;
}

static bool
clone_object(const struct qapi_type *t, void **to, void *const *from)
{
	const struct qapi_member *m;
	bool ok;

	*to = NULL;
	if (!*from)
		return true;
	*to = malloc(t->size);
	if (!*to)
		return false;
	memcpy(*to, *from, t->size);
	if (t->kind == QAPI_STRUCT) {
		ok = clone_members(t, *to, *from);
	} else {
		m = qapi_branch(t, ((struct qapi_alternate *)*from)->type);
		ok = !m || qapi_clone(m->type, qapi_at(*to, m->offset),
				      qapi_at(*from, m->offset));
	}
	if (!ok)
		qapi_clear(t, to);
	return ok;
}

static bool
clone_list(const struct qapi_type *t, struct qapi_list *to,
	   const struct qapi_list *from)
{
	to->n = 0;
	to->v = NULL;
	if (from->n)
		to->v = calloc(from->n, t->element->slot);
	if (from->n && !to->v)
		return false;
	while (to->n < from->n) {
		if (!qapi_clone(t->element, qapi_element(t, to, to->n),
				qapi_element(t, from, to->n))) {
			qapi_clear(t, to);
			return false;
		}
		to->n++;
	}
	return true;
}

bool
qapi_clone(const struct qapi_type *t, void *to, const void *from)
{
	void *const *p = from;
	void **q = to;

	switch (t->kind) {
	case QAPI_STR: *q = *p ? strdup(*p) : NULL; return *q || !*p;
	case QAPI_ANY: *q = *p ? json_clone(*p) : NULL; return *q || !*p;
	case QAPI_STRUCT:
	case QAPI_ALTERNATE: return clone_object(t, q, p);
	case QAPI_LIST: return clone_list(t, to, from);
	default: memmove(to, from, t->slot); return true;
	}
}

bool
qapi_list_append(const struct qapi_type *t, void *list, const void *item)
{
	struct qapi_list *l = list;
	size_t slot = t->element->slot;
	void *v = reallocarray(l->v, l->n + 1, slot);

	if (!v)
		return false;
	l->v = v;
	memcpy((char *)v + l->n * slot, item, slot);
	l->n++;
	return true;
}

bool
str_list_append(struct str_list *l, const char *s)
{
	char *copy = strdup(s);

	if (copy && qapi_list_append(&str_list_type, l, &copy))
		return true;
	free(copy);
	return false;
}

bool
str_list_clone(struct str_list *to, const struct str_list *from)
{
	return qapi_clone(&str_list_type, to, from);
}

void
str_list_clear(struct str_list *l)
{
	qapi_clear(&str_list_type, l);
}

#define DEFINE_LIST(id, ctype)                                      \
	const struct qapi_type id##_list_type = {                   \
		.kind = QAPI_LIST,                                  \
		.name = "list",                                     \
		.slot = sizeof(struct id##_list),                   \
		.element = &qapi_##id##_type,                       \
	};                                                          \
	bool id##_list_append(struct id##_list *l, ctype item)      \
	{                                                           \
		return qapi_list_append(&id##_list_type, l, &item); \
	}                                                           \
	void id##_list_clear(struct id##_list *l)                   \
	{                                                           \
		qapi_clear(&id##_list_type, l);                     \
	}

QAPI_LISTS(DEFINE_LIST)

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Trees to C structs.  Everything that is wrong with a client's arguments is
 * found here, before a command runs, and told in QEMU's words, of which these
 * are surprising but relied upon:
 *
 *  - what is missing, unexpected or of a wrong type is named by its full path
 *    (a.b[0].c); a bad enum value, a number outside of its width and a type
 *    that no branch of an alternate takes are named by the member alone, and a
 *    list element, which has no name, is called "null" there;
 *  - an unsigned number says "expects uint64" for any wrong JSON type,
 *    whatever its width, and takes negative numbers as if cast;
 *  - unexpected members come last, after all that the schema knows.
 */
#include "json/qapi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json/json-priv.h"
#include "json/qapi-priv.h"

/* Where we are in the message: a list on the stack, innermost first. */
struct path {
	const struct path *up; /* NULL at the top */
	const char *name; /* NULL: element number @index, or no name */
	size_t index;
	unsigned depth;
};

static const char *
bare_name(const struct path *p)
{
	return p->name ? p->name : "null";
}

/* Put @n bytes in front of @at; what does not fit is lost. */
static char *
put_before(char *start, char *at, const char *bytes, size_t n)
{
	if (n > (size_t)(at - start))
		n = (size_t)(at - start);
	memcpy(at - n, bytes, n);
	return at - n;
}

/* The full path in @buf, made from its end to its start.  @last, when given,
 * is one more member.
 */
static const char *
full_name(const struct path *p, const char *last, char *buf, size_t size)
{
	char *at = buf + size - 1, index[32];

	*at = '\0';
	if (last) {
		at = put_before(buf, at, last, strlen(last));
		at = put_before(buf, at, ".", 1);
	}
	for (; p; p = p->up) {
		if (p->name) {
			at = put_before(buf, at, p->name, strlen(p->name));
			at = put_before(buf, at, ".", 1);
		} else if (p->up) {
			(void)snprintf(index, sizeof index, "[%zu]", p->index);
			at = put_before(buf, at, index, strlen(index));
		}
	}
	return *at == '.' ? at + 1 : at;
}

/* The functions below keep their buffers out of the recursion's frames. */
#define NOINLINE __attribute__((noinline, cold))

static NOINLINE bool
no_memory(struct err *e)
{
	return err_set(e, ERR_GENERIC, 0, "out of memory");
}

static NOINLINE bool
wrong_type(const struct path *p, const char *expected, struct err *e)
{
	char buf[1024];

	return err_set(e, ERR_GENERIC, 0,
		       "Invalid parameter type for '%s', expected: %s",
		       full_name(p, NULL, buf, sizeof buf), expected);
}

static NOINLINE bool
wrong_member(const struct path *p, const char *name, const char *what,
	     struct err *e)
{
	char buf[1024];

	return err_set(e, ERR_GENERIC, 0, "Parameter '%s' is %s",
		       full_name(p, name, buf, sizeof buf), what);
}

static NOINLINE bool
expects(const char *name, const char *what, struct err *e)
{
	return err_set(e, ERR_GENERIC, 0, "Parameter '%s' expects %s", name,
		       what);
}

static NOINLINE bool
wrong_value(const struct path *p, const char *what, struct err *e)
{
	char buf[1024];

	return err_set(e, ERR_GENERIC, 0, "Parameter '%s' %s",
		       full_name(p, NULL, buf, sizeof buf), what);
}

static bool
decode_int(const struct qapi_type *t, const struct json *j,
	   const struct path *p, void *slot, struct err *e)
{
	int64_t v, limit = INT64_MAX >> (64 - 8 * t->slot);

	if (j->type != JSON_INT)
		return wrong_type(p, "integer", e);
	v = j->v.i;
	if (v > limit || v < -limit - 1)
		return expects(bare_name(p), t->name, e);
	switch (t->slot) {
	case 1: *(int8_t *)slot = (int8_t)v; break;
	case 2: *(int16_t *)slot = (int16_t)v; break;
	case 4: *(int32_t *)slot = (int32_t)v; break;
	default: *(int64_t *)slot = v; break;
	}
	return true;
}

static bool
decode_uint(const struct qapi_type *t, const struct json *j,
	    const struct path *p, void *slot, struct err *e)
{
	uint64_t v, limit = UINT64_MAX >> (64 - 8 * t->slot);

	if (j->type != JSON_INT && j->type != JSON_UINT)
		return wrong_value(p, "expects uint64", e);
	v = j->v.u;
	if (v > limit)
		return expects(bare_name(p), t->name, e);
	switch (t->slot) {
	case 1: *(uint8_t *)slot = (uint8_t)v; break;
	case 2: *(uint16_t *)slot = (uint16_t)v; break;
	case 4: *(uint32_t *)slot = (uint32_t)v; break;
	default: *(uint64_t *)slot = v; break;
	}
	return true;
}

static bool
decode_number(const struct json *j, const struct path *p, double *slot,
	      struct err *e)
{
	if (j->type != JSON_INT && j->type != JSON_UINT &&
	    j->type != JSON_DOUBLE)
		return wrong_type(p, "number", e);
	*slot = json_get_double(j);
	return true;
}

static bool
decode_str(const struct json *j, const struct path *p, char **slot,
	   struct err *e)
{
	if (j->type != JSON_STRING)
		return wrong_type(p, "string", e);
	if (memchr(j->v.s, '\0', j->n))
		return wrong_value(p, "must not contain a NUL character", e);
	*slot = json_bytes_dup(j->v.s, j->n);
	return *slot ? true : no_memory(e);
}

static bool
decode_enum(const struct qapi_type *t, const struct json *j,
	    const struct path *p, unsigned *slot, struct err *e)
{
	if (j->type != JSON_STRING)
		return wrong_type(p, "string", e);
	if (strlen(j->v.s) == j->n && qapi_enum_find(t, j->v.s, slot))
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "Parameter '%s' does not accept value '%s'",
		       bare_name(p), j->v.s);
}

static bool decode(const struct qapi_type *t, const struct json *j,
		   const struct path *p, void *slot, struct err *e);

static bool
decode_list(const struct qapi_type *t, const struct json *j,
	    const struct path *up, struct qapi_list *l, struct err *e)
{
	struct path p = { .up = up, .depth = up->depth + 1 };

	if (j->type != JSON_ARRAY)
		return wrong_type(up, "array", e);
	if (j->n == 0)
		return true;
	l->v = calloc(j->n, t->element->slot);
	if (!l->v)
		return no_memory(e);
	while (l->n < j->n) {
		p.index = l->n++; /* counted first: it may stay half full */
		if (!decode(t->element, &j->v.items[p.index], &p,
			    qapi_element(t, l, p.index), e))
			return false;
	}
	return true;
}

static bool
decode_member(const struct qapi_member *m, const struct json *j,
	      const struct path *up, void *object, struct err *e)
{
	struct path p = { .up = up, .name = m->name, .depth = up->depth + 1 };
	const struct json *v = json_lookup(j, m->name);

	if (!v && m->optional)
		return true;
	if (!v)
		return wrong_member(up, m->name, "missing", e);
	if (m->has != QAPI_NO_HAS)
		*(bool *)qapi_at(object, m->has) = true;
	return decode(m->type, v, &p, qapi_at(object, m->offset), e);
}

static bool
decode_members(const struct qapi_type *t, const struct json *j,
	       const struct path *p, void *object, struct err *e)
{
	const struct qapi_type *v;
	void **branch;
	uint32_t i;

	for (i = 0; i < t->n; i++)
		if (!decode_member(&t->members[i], j, p, object, e))
			return false;
	v = qapi_variant(t, object);
	if (!v)
		return true;
	branch = qapi_at(object, t->variants->offset);
	*branch = calloc(1, v->size);
	if (!*branch)
		return no_memory(e);
	return decode_members(v, j, p, *branch, e);
}

static bool
is_known(const struct qapi_type *t, const void *object, const char *name,
	 size_t len)
{
	const struct qapi_type *v;
	uint32_t i;

	for (i = 0; i < t->n; i++)
		if (strlen(t->members[i].name) == len &&
		    memcmp(t->members[i].name, name, len) == 0)
			return true;
	v = qapi_variant(t, object);
	return v && is_known(v, *(void **)qapi_at(object, t->variants->offset),
			     name, len);
}

static bool
check_unexpected(const struct qapi_type *t, const struct json *j,
		 const struct path *p, const void *object, struct err *e)
{
	const struct json_member *m;
	uint32_t i;

	for (i = 0; i < j->n; i++) {
		m = &j->v.obj->m[i];
		if (!is_known(t, object, m->name, m->len))
			return wrong_member(p, m->name, "unexpected", e);
	}
	return true;
}

static bool
decode_struct(const struct qapi_type *t, const struct json *j,
	      const struct path *p, void **slot, struct err *e)
{
	if (j->type != JSON_OBJECT)
		return wrong_type(p, "object", e);
	*slot = calloc(1, t->size);
	if (!*slot)
		return no_memory(e);
	return decode_members(t, j, p, *slot, e) &&
	       check_unexpected(t, j, p, *slot, e);
}

/* What an alternate's "type" says for a branch, whatever the text said. */
static enum json_type
branch_type(const struct qapi_type *t, enum json_type found)
{
	if (t->kind == QAPI_NUMBER)
		return JSON_DOUBLE;
	return found == JSON_UINT ? JSON_INT : found;
}

static bool
decode_alternate(const struct qapi_type *t, const struct json *j,
		 const struct path *p, void **slot, struct err *e)
{
	const struct qapi_member *m = qapi_branch(t, j->type);
	struct qapi_alternate *a;

	if (!m)
		return err_set(e, ERR_GENERIC, 0,
			       "Invalid parameter type for '%s', expected: %s",
			       bare_name(p), t->name);
	*slot = a = calloc(1, t->size);
	if (!a)
		return no_memory(e);
	a->type = branch_type(m->type, j->type);
	return decode(m->type, j, p, qapi_at(a, m->offset), e);
}

static bool
decode_any(const struct json *j, struct json **slot, struct err *e)
{
	*slot = json_clone(j);
	return *slot ? true : no_memory(e);
}

/* On failure the slot may be half full; qapi_decode() clears it. */
static bool
decode(const struct qapi_type *t, const struct json *j, const struct path *p,
       void *slot, struct err *e)
{
	if (p->depth > JSON_MAX_DEPTH)
		return err_set(e, ERR_GENERIC, 0,
			       "JSON nesting depth limit exceeded");
	switch (t->kind) {
	case QAPI_BOOL:
		if (j->type != JSON_BOOL)
			return wrong_type(p, "boolean", e);
		*(bool *)slot = j->v.b;
		return true;
	case QAPI_NULL:
		if (j->type != JSON_NULL)
			return wrong_type(p, "null", e);
		*(bool *)slot = true;
		return true;
	case QAPI_INT: return decode_int(t, j, p, slot, e);
	case QAPI_UINT: return decode_uint(t, j, p, slot, e);
	case QAPI_NUMBER: return decode_number(j, p, slot, e);
	case QAPI_STR: return decode_str(j, p, slot, e);
	case QAPI_ANY: return decode_any(j, slot, e);
	case QAPI_ENUM: return decode_enum(t, j, p, slot, e);
	case QAPI_STRUCT: return decode_struct(t, j, p, slot, e);
	case QAPI_ALTERNATE: return decode_alternate(t, j, p, slot, e);
	case QAPI_LIST: return decode_list(t, j, p, slot, e);
	}
	return false;
}

bool
qapi_decode(const struct qapi_type *t, const struct json *j, const char *path,
	    void *slot, struct err *e)
{
	struct path p = { .name = path };

	memset(slot, 0, t->slot);
	if (decode(t, j, &p, slot, e))
		return true;
	qapi_clear(t, slot);
	return false;
}

bool
qapi_decode_args(const struct qapi_type *t, const struct json *args, void *slot,
		 struct err *e)
{
	const struct json none = { .type = JSON_OBJECT };

	return qapi_decode(t, args ? args : &none, NULL, slot, e);
}

bool
qapi_no_args(const struct json *args, struct err *e)
{
	const struct path top = { .up = NULL };

	if (!args || json_count(args) == 0)
		return true;
	return wrong_member(&top, json_name_at(args, 0, NULL), "unexpected", e);
}

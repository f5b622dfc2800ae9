/* SPDX-License-Identifier: BSD-3-Clause
 *
 * json: text to values and back, and what the generated schema code runs on.
 * This folder may use base and is the only one that uses yajl.  It runs in
 * stillpointd and inside nbdkit, so nothing here aborts when memory is gone:
 * constructors give NULL, and functions that return bool give false.
 *
 * json.h: a JSON value as a tree.  Integers keep all 64 bits; strings carry
 * their length and may contain NUL; objects keep the order of their members
 * and refuse a second member of the same name.
 *
 * Domain of all functions: any thread, one thread at a time for each tree.
 */
#ifndef JSON_JSON_H
#define JSON_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"

/* What a reader accepts and a writer of ours must stay below. */
#define JSON_MAX_DEPTH 1024

enum json_type {
	JSON_NULL,
	JSON_BOOL,
	JSON_INT, /* fits int64_t */
	JSON_UINT, /* larger than INT64_MAX, fits uint64_t */
	JSON_DOUBLE, /* was written with '.' or 'e', or fits no integer */
	JSON_STRING,
	JSON_ARRAY,
	JSON_OBJECT,
};

struct json;

/* The result is owned by the caller; NULL: out of memory. */
struct json *json_new_null(void);
struct json *json_new_bool(bool b);
struct json *json_new_int(int64_t i);
struct json *json_new_uint(uint64_t u); /* JSON_INT when it fits */
struct json *json_new_double(double d);
struct json *json_new_string(const char *s);
struct json *json_new_string_n(const char *s, size_t len);
struct json *json_new_array(void);
struct json *json_new_object(void);
struct json *json_clone(const struct json *j);

/* Free the whole tree; NULL is allowed. */
void json_free(struct json *j);

/* @item is consumed, also on failure, and may be NULL, which fails: so a
 * constructor can stand in the call.  Pointers into @array become invalid.
 */
bool json_append(struct json *array, struct json *item) MUST_CHECK;

/* Add a member; @item as in json_append().  The name must be new. */
bool json_put(struct json *object, const char *name, struct json *item)
	MUST_CHECK;

enum json_type json_type(const struct json *j);

/* "null", "boolean", "integer", "number", "string", "array", "object" */
const char *json_type_str(enum json_type t);

bool json_get_bool(const struct json *j);

/* JSON_INT only. */
int64_t json_get_int(const struct json *j);

/* JSON_UINT, or JSON_INT, of which negative ones wrap as QEMU's do. */
uint64_t json_get_uint(const struct json *j);

/* Any of the three numbers. */
double json_get_double(const struct json *j);

/* Borrowed from @j; a NUL follows the last byte.  @len may be NULL. */
const char *json_get_string(const struct json *j, size_t *len);

/* Elements of an array, members of an object. */
size_t json_count(const struct json *j);

/* Element or member number @i, borrowed from @j. */
const struct json *json_at(const struct json *j, size_t i);

/* The name of member number @i, borrowed from @j.  @len may be NULL. */
const char *json_name_at(const struct json *j, size_t i, size_t *len);

/* The member called @name, borrowed from @object, or NULL. */
const struct json *json_lookup(const struct json *object, const char *name);

/* Exactly one value from @len bytes; *out is owned by the caller.  What is
 * accepted and the error texts are those of frame.h with its QMP limits.
 */
bool json_parse(const char *text, size_t len, struct json **out, struct err *e)
	MUST_CHECK;

DEFINE_CLEANUP(struct json, json_free);

#endif

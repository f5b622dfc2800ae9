/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The inside of a JSON value, for this folder only.  Children live in line in
 * their parent's table, so a small value costs 24 bytes and no allocation.
 */
#ifndef JSON_JSON_PRIV_H
#define JSON_JSON_PRIV_H

#include "json/json.h"

struct json_object;

struct json {
	enum json_type type;
	uint32_t n; /* bytes of a string, elements, members */
	uint32_t cap; /* room for elements or members */
	union {
		bool b;
		int64_t i;
		uint64_t u;
		double d;
		char *s; /* owned */
		struct json *items; /* owned, @n of @cap in use */
		struct json_object *obj; /* owned; NULL while empty */
	} v;
};

struct json_member {
	char *name; /* owned, NUL terminated */
	uint32_t len;
	struct json value;
};

struct json_object {
	struct json_member *m; /* owned; @n of @cap of the json in use */
	uint32_t *slot; /* owned; hash index, NULL while small */
	uint32_t mask; /* number of slots minus one */
};

enum json_add {
	JSON_ADDED,
	JSON_DUPLICATE, /* nothing was taken */
	JSON_NOMEM, /* nothing was taken */
};

/* Free what @j holds, not @j itself; it becomes JSON_NULL. */
void json_clear(struct json *j);

/* Move *item to the end of @array.  False: out of memory, nothing taken. */
bool json_array_push(struct json *array, struct json *item) MUST_CHECK;

/* Move *value and @name (allocated, @len bytes and a NUL) into @object. */
enum json_add json_object_add(struct json *object, char *name, size_t len,
			      struct json *value) MUST_CHECK;
void json_object_clear(struct json *object);

/* The member's value, or NULL. */
struct json *json_object_find(const struct json *object, const char *name,
			      size_t len);

/* @len bytes and a NUL, or NULL: out of memory or too long for a value. */
char *json_bytes_dup(const char *s, size_t len);

/* What a walk over the tokens of one message found. */
struct grammar {
	size_t stop; /* where it ended: behind the value, or at fault */
	size_t longest; /* longest string with an escape, up to there */
	unsigned deepest; /* most open brackets, up to there */
};

/* Check the tokens of @text (see frame.c for their form) and say in QEMU's
 * words what is wrong.  @stack has room for JSON_MAX_DEPTH bytes.
 */
bool grammar_check(const char *text, size_t len, uint8_t *stack,
		   struct grammar *g, struct err *e);

enum tree_result {
	TREE_BUILT,
	TREE_DUPLICATE,
	TREE_NOMEM,
	TREE_PARTIAL, /* the walk found a fault, and so did we */
};

/* The yajl side: build what grammar_check() has walked over. */
enum tree_result tree_build(const char *text, const struct grammar *g,
			    struct json **out);

/* One code point, or -1 when the bytes at *p are none (surrogates, non
 * characters and overlong forms included; only C0 80 is allowed, for NUL).
 * Always eats at least one byte; *p < end.
 */
int32_t utf8_take(const unsigned char **p, const unsigned char *end);

/* Can this be a character?  -1 and surrogates cannot. */
bool utf8_is_char(int32_t cp);

#endif

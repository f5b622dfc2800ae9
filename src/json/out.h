/* SPDX-License-Identifier: BSD-3-Clause
 *
 * json/out.h: JSON text as QEMU writes it: ", " between members, ": " after a
 * name, nothing but ASCII, upper-case \uXXXX, doubles with 17 digits.  yajl's
 * generator has neither the blanks nor the escapes, so this is our own.
 *
 * The writer puts the commas.  A failure (memory, or more than the cap) is
 * remembered and makes later calls do nothing, so callers check once at the
 * end.  Domain: any thread, one at a time for each writer.
 */
#ifndef JSON_OUT_H
#define JSON_OUT_H

#include "json/json.h"

enum json_out_state {
	JSON_OUT_OK,
	JSON_OUT_NOMEM,
	JSON_OUT_TOO_LONG,
};

struct json_out {
	char *text; /* owned; NULL while empty; else a NUL follows the text */
	size_t len;
	size_t room; /* private from here on */
	size_t max;
	bool comma;
	enum json_out_state state;
};

/* @max: the most bytes of text that it may hold. */
void json_out_init(struct json_out *o, size_t max);
void json_out_destroy(struct json_out *o);

/* Empty again, memory kept, failure forgotten. */
void json_out_reset(struct json_out *o);

/* False when something was lost, with the reason in *e. */
bool json_out_check(const struct json_out *o, struct err *e) MUST_CHECK;

/* Hand the text over (free() it); NULL when the writer failed or is empty.
 * The writer is empty afterwards.
 */
char *json_out_take(struct json_out *o);

void json_out_object_begin(struct json_out *o);
void json_out_object_end(struct json_out *o);
void json_out_array_begin(struct json_out *o);
void json_out_array_end(struct json_out *o);
void json_out_key(struct json_out *o, const char *name);

void json_out_null(struct json_out *o);
void json_out_bool(struct json_out *o, bool b);
void json_out_int(struct json_out *o, int64_t i);
void json_out_uint(struct json_out *o, uint64_t u);

/* JSON has no infinities: they become the largest numbers, NaN becomes 0. */
void json_out_double(struct json_out *o, double d);

/* Bytes that are no UTF-8 become U+FFFD. */
void json_out_string(struct json_out *o, const char *s);
void json_out_string_n(struct json_out *o, const char *s, size_t len);
void json_out_json(struct json_out *o, const struct json *j);

/* One value that is JSON text already. */
void json_out_text(struct json_out *o, const char *text, size_t len);

/* Bytes that are no value, such as a line's end. */
void json_out_bytes(struct json_out *o, const char *bytes, size_t len);

static inline void
auto_json_out_destroy(struct json_out *o)
{
	json_out_destroy(o);
}

#endif

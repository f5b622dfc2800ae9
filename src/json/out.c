/* SPDX-License-Identifier: BSD-3-Clause */
#include "json/out.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json/json-priv.h"

void
json_out_init(struct json_out *o, size_t max)
{
	memset(o, 0, sizeof *o);
	o->max = max;
}

void
json_out_destroy(struct json_out *o)
{
	free(o->text);
	memset(o, 0, sizeof *o);
}

void
json_out_reset(struct json_out *o)
{
	o->len = 0;
	o->comma = false;
	o->state = JSON_OUT_OK;
}

bool
json_out_check(const struct json_out *o, struct err *e)
{
	switch (o->state) {
	case JSON_OUT_NOMEM: return err_set(e, ERR_GENERIC, 0, "out of memory");
	case JSON_OUT_TOO_LONG:
		return err_set(e, ERR_GENERIC, 0,
			       "JSON text is longer than %zu bytes", o->max);
	default: return true;
	}
}

char *
json_out_take(struct json_out *o)
{
	char *text = o->state == JSON_OUT_OK ? steal(&o->text) : NULL;

	json_out_destroy(o);
	return text;
}

static bool
grow(struct json_out *o, size_t need)
{
	size_t room = o->room ? o->room : 256;
	char *text;

	while (room < need)
		room = room > SIZE_MAX / 2 ? need : room * 2;
	text = realloc(o->text, room);
	if (!text) {
		o->state = JSON_OUT_NOMEM;
		return false;
	}
	o->text = text;
	o->room = room;
	return true;
}

/* Where @n bytes can be written, or NULL.  They count as written. */
static char *
claim(struct json_out *o, size_t n)
{
	char *at;

	if (unlikely(o->state != JSON_OUT_OK))
		return NULL;
	if (unlikely(n > o->max - o->len)) {
		o->state = JSON_OUT_TOO_LONG;
		return NULL;
	}
	if (unlikely(n >= o->room - o->len) && !grow(o, o->len + n + 1))
		return NULL;
	at = o->text + o->len;
	o->len += n;
	at[n] = '\0';
	return at;
}

void
json_out_bytes(struct json_out *o, const char *bytes, size_t len)
{
	char *at = claim(o, len);

	if (at && len)
		memcpy(at, bytes, len);
}

void
json_out_text(struct json_out *o, const char *text, size_t len)
{
	if (o->comma)
		json_out_bytes(o, ", ", 2);
	json_out_bytes(o, text, len);
	o->comma = true;
}

static void
open_with(struct json_out *o, const char *bracket)
{
	json_out_text(o, bracket, 1);
	o->comma = false;
}

static void
close_with(struct json_out *o, const char *bracket)
{
	json_out_bytes(o, bracket, 1);
	o->comma = true;
}

void
json_out_object_begin(struct json_out *o)
{
	open_with(o, "{");
}

void
json_out_object_end(struct json_out *o)
{
	close_with(o, "}");
}

void
json_out_array_begin(struct json_out *o)
{
	open_with(o, "[");
}

void
json_out_array_end(struct json_out *o)
{
	close_with(o, "]");
}

void
json_out_key(struct json_out *o, const char *name)
{
	json_out_string(o, name);
	json_out_bytes(o, ": ", 2);
	o->comma = false;
}

void
json_out_null(struct json_out *o)
{
	json_out_text(o, "null", 4);
}

void
json_out_bool(struct json_out *o, bool b)
{
	json_out_text(o, b ? "true" : "false", b ? 4 : 5);
}

void
json_out_int(struct json_out *o, int64_t i)
{
	char buf[24];
	int n = snprintf(buf, sizeof buf, "%" PRId64, i);

	json_out_text(o, buf, (size_t)n);
}

void
json_out_uint(struct json_out *o, uint64_t u)
{
	char buf[24];
	int n = snprintf(buf, sizeof buf, "%" PRIu64, u);

	json_out_text(o, buf, (size_t)n);
}

void
json_out_double(struct json_out *o, double d)
{
	char buf[40];
	int n;

	if (isnan(d))
		d = 0;
	if (isinf(d))
		d = d > 0 ? DBL_MAX : -DBL_MAX;
	n = snprintf(buf, sizeof buf, "%.17g", d);
	json_out_text(o, buf, (size_t)n);
}

static void
put_unit(struct json_out *o, unsigned unit)
{
	static const char hex[] = "0123456789ABCDEF";
	char *at = claim(o, 6);

	if (!at)
		return;
	at[0] = '\\';
	at[1] = 'u';
	at[2] = hex[unit >> 12 & 15];
	at[3] = hex[unit >> 8 & 15];
	at[4] = hex[unit >> 4 & 15];
	at[5] = hex[unit & 15];
}

/* A character that cannot stand for itself. */
static void
put_escaped(struct json_out *o, int32_t cp)
{
	static const char plain[] = "\b\f\n\r\t\"\\";
	static const char letter[] = "bfnrt\"\\";
	const char *which = cp > 0 && cp < 0x7F ? strchr(plain, cp) : NULL;
	char pair[2] = "\\";

	if (which) {
		pair[1] = letter[which - plain];
		json_out_bytes(o, pair, 2);
	} else if (cp < 0) {
		put_unit(o, 0xFFFD);
	} else if (cp > 0xFFFF) {
		put_unit(o, 0xD800 | (unsigned)(cp - 0x10000) >> 10);
		put_unit(o, 0xDC00 | (cp & 0x3FF));
	} else {
		put_unit(o, (unsigned)cp);
	}
}

static bool
is_plain(unsigned char c)
{
	return c >= ' ' && c < 0x7F && c != '"' && c != '\\';
}

void
json_out_string_n(struct json_out *o, const char *s, size_t len)
{
	const unsigned char *p = (const unsigned char *)s, *end = p + len;
	const unsigned char *run;

	json_out_text(o, "\"", 1);
	while (p < end && o->state == JSON_OUT_OK) {
		for (run = p; p < end && is_plain(*p); p++)
			;
		json_out_bytes(o, (const char *)run, (size_t)(p - run));
		if (p < end)
			put_escaped(o, utf8_take(&p, end));
	}
	json_out_bytes(o, "\"", 1);
}

void
json_out_string(struct json_out *o, const char *s)
{
	json_out_string_n(o, s, strlen(s));
}

static void
put_members(struct json_out *o, const struct json *j)
{
	const struct json_member *m;
	uint32_t i;

	for (i = 0; i < j->n; i++) {
		m = &j->v.obj->m[i];
		json_out_string_n(o, m->name, m->len);
		json_out_bytes(o, ": ", 2);
		o->comma = false;
		json_out_json(o, &m->value);
	}
}

void
json_out_json(struct json_out *o, const struct json *j)
{
	uint32_t i;

	switch (j->type) {
	case JSON_NULL: json_out_null(o); break;
	case JSON_BOOL: json_out_bool(o, j->v.b); break;
	case JSON_INT: json_out_int(o, j->v.i); break;
	case JSON_UINT: json_out_uint(o, j->v.u); break;
	case JSON_DOUBLE: json_out_double(o, j->v.d); break;
	case JSON_STRING: json_out_string_n(o, j->v.s, j->n); break;
	case JSON_ARRAY:
		json_out_array_begin(o);
		for (i = 0; i < j->n; i++)
			json_out_json(o, &j->v.items[i]);
		json_out_array_end(o);
		break;
	case JSON_OBJECT:
		json_out_object_begin(o);
		put_members(o, j);
		json_out_object_end(o);
		break;
	}
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A walk over the tokens of one message.  yajl would find the same faults, but
 * clients match on QEMU's words for them, and on which fault comes first; so
 * we look before yajl does.  No recursion: one byte of stack for each open
 * bracket says what is expected inside it.
 *
 * The text is what frame.c keeps: tokens without white space, every string in
 * double quotes, one blank behind every number and keyword.
 */
#include "json/json-priv.h"

#include <assert.h>
#include <string.h>

/* What the innermost open bracket is waiting for. */
enum inside {
	IN_ARRAY, /* an element */
	IN_KEY, /* a member's name, which may look like any value */
	IN_MEMBER, /* a member's value */
};

enum expect {
	EXPECT_FIRST, /* a value, or the end of an empty array or object */
	EXPECT_VALUE,
	EXPECT_COLON,
	EXPECT_SEPARATOR,
};

struct walk {
	const char *start, *p, *end;
	uint8_t *stack; /* borrowed; enum inside of each open bracket */
	unsigned depth, deepest;
	enum expect expect;
	size_t longest;
	struct err *e; /* borrowed */
};

static bool
fault(struct walk *w, const char *what)
{
	return err_set(w->e, ERR_GENERIC, 0, "JSON parse error, %s", what);
}

/* Four hex digits, or -1.  There are at least four bytes to look at or a
 * quote comes first.
 */
static int32_t
hex4(const char *p)
{
	int32_t v = 0;
	int i, digit;

	for (i = 0; i < 4; i++) {
		if (p[i] >= '0' && p[i] <= '9')
			digit = p[i] - '0';
		else if ((p[i] | 32) >= 'a' && (p[i] | 32) <= 'f')
			digit = (p[i] | 32) - 'a' + 10;
		else
			return -1;
		v = v * 16 + digit;
	}
	return v;
}

/* \uXXXX, or two of them that are a surrogate pair; *p is at the backslash.
 * @end is behind the closing quote, which a valid escape does not reach.
 */
static bool
check_unicode(struct walk *w, const char **p, const char *end)
{
	const char *from = *p;
	int32_t cp = hex4(from + 2), low;
	int shown = 2;

	while (shown < 6 && from[shown - 1] != '"')
		shown++;
	*p += shown;
	if (cp >= 0xD800 && cp <= 0xDBFF && end - *p > 6 && (*p)[0] == '\\' &&
	    (*p)[1] == 'u') {
		low = hex4(*p + 2);
		if (low >= 0xDC00 && low <= 0xDFFF) {
			cp = 0x10000 + ((cp & 0x3FF) << 10 | (low & 0x3FF));
			*p += 6;
		}
	}
	if (utf8_is_char(cp))
		return true;
	return err_set(w->e, ERR_GENERIC, 0,
		       "JSON parse error, %.*s is not a valid Unicode "
		       "character",
		       shown, from);
}

static bool
check_escape(struct walk *w, const char **p, const char *end)
{
	if ((*p)[1] == 'u')
		return check_unicode(w, p, end);
	if (!strchr("\"\\/bfnrt", (*p)[1]))
		return fault(w, "invalid escape sequence in string");
	*p += 2;
	return true;
}

/* At an opening quote; the lexer has made sure that there is a closing one. */
static bool
walk_string(struct walk *w)
{
	const char *p = w->p + 1;
	const unsigned char *u;
	bool escapes = false;

	while (*p != '"') {
		if (*p == '\\') {
			escapes = true;
			if (!check_escape(w, &p, w->end))
				return false;
		} else if (*p & 0x80) {
			u = (const unsigned char *)p;
			if (utf8_take(&u, (const unsigned char *)w->end) < 0)
				return fault(w, "invalid UTF-8 sequence in "
						"string");
			p = (const char *)u;
		} else {
			p++;
		}
	}
	p++;
	if (escapes && (size_t)(p - w->p) > w->longest)
		w->longest = (size_t)(p - w->p);
	w->p = p;
	return true;
}

static bool
walk_keyword(struct walk *w)
{
	static const char *const known[] = { "null ", "true ", "false " };
	const char *stop = memchr(w->p, ' ', (size_t)(w->end - w->p));
	size_t i, len;

	assert(stop);
	len = (size_t)(stop + 1 - w->p);
	for (i = 0; i < ARRAY_SIZE(known); i++)
		if (len == strlen(known[i]) && !memcmp(w->p, known[i], len))
			break;
	if (i == ARRAY_SIZE(known))
		return err_set(w->e, ERR_GENERIC, 0,
			       "JSON parse error, invalid keyword '%.*s'",
			       len > 1000 ? 1000 : (int)len - 1, w->p);
	w->p = stop + 1;
	return true;
}

/* A value is complete; what may follow? */
static bool
value_done(struct walk *w, bool is_string)
{
	w->expect = EXPECT_SEPARATOR;
	if (w->depth == 0 || w->stack[w->depth - 1] != IN_KEY)
		return true;
	if (!is_string)
		return fault(w, "key is not a string in object");
	w->expect = EXPECT_COLON;
	return true;
}

static bool
open_bracket(struct walk *w, enum inside what)
{
	if (w->depth == JSON_MAX_DEPTH)
		return err_set(w->e, ERR_GENERIC, 0,
			       "JSON nesting depth limit exceeded");
	w->stack[w->depth++] = what;
	if (w->depth > w->deepest)
		w->deepest = w->depth;
	w->expect = EXPECT_FIRST;
	w->p++;
	return true;
}

static bool
close_bracket(struct walk *w)
{
	w->depth--;
	w->p++;
	return value_done(w, false);
}

static bool
closes(const struct walk *w, char c)
{
	return w->depth &&
	       c == (w->stack[w->depth - 1] == IN_ARRAY ? ']' : '}');
}

static bool
walk_value(struct walk *w)
{
	const char *stop;
	char c = *w->p;

	if (w->expect == EXPECT_FIRST && closes(w, c))
		return close_bracket(w);
	if (c == '{')
		return open_bracket(w, IN_KEY);
	if (c == '[')
		return open_bracket(w, IN_ARRAY);
	if (c == '"')
		return walk_string(w) && value_done(w, true);
	if (c >= 'a' && c <= 'z')
		return walk_keyword(w) && value_done(w, false);
	if (strchr(":,]}", c)) {
		if (w->depth && w->stack[w->depth - 1] == IN_MEMBER)
			return fault(w, "Missing value in dict");
		return fault(w, "expecting value");
	}
	stop = memchr(w->p, ' ', (size_t)(w->end - w->p));
	assert(stop);
	w->p = stop + 1;
	return value_done(w, false);
}

static bool
walk_colon(struct walk *w)
{
	if (*w->p != ':')
		return fault(w, "missing : in object pair");
	w->p++;
	w->stack[w->depth - 1] = IN_MEMBER;
	w->expect = EXPECT_VALUE;
	return true;
}

static bool
walk_separator(struct walk *w)
{
	bool array = w->stack[w->depth - 1] == IN_ARRAY;

	if (closes(w, *w->p))
		return close_bracket(w);
	if (*w->p != ',')
		return fault(w, array ? "expected separator in list"
				      : "expected separator in dict");
	w->p++;
	if (!array)
		w->stack[w->depth - 1] = IN_KEY;
	w->expect = EXPECT_VALUE;
	return true;
}

static bool
walk_token(struct walk *w)
{
	switch (w->expect) {
	case EXPECT_COLON: return walk_colon(w);
	case EXPECT_SEPARATOR: return walk_separator(w);
	default: return walk_value(w);
	}
}

bool
grammar_check(const char *text, size_t len, uint8_t *stack, struct grammar *g,
	      struct err *e)
{
	struct walk w = {
		.start = text,
		.p = text,
		.end = text + len,
		.stack = stack,
		.expect = EXPECT_VALUE,
		.e = e,
	};
	bool ok;

	do {
		ok = w.p < w.end ? walk_token(&w) : fault(&w, "premature EOI");
	} while (ok && (w.depth || w.expect != EXPECT_SEPARATOR));
	g->stop = (size_t)(w.p - text);
	g->longest = w.longest;
	g->deepest = w.deepest;
	return ok;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The lexer is a state machine over bytes; tokens are kept as text (see
 * grammar.c for the form) and counted.  In the text a string has double
 * quotes whatever it came with, so a double quote inside single ones gets a
 * backslash and an escaped single quote loses it.
 *
 * After bytes that are no token the lexer skips to the next control character
 * other than TAB, FE, FF, or structural character, which is read normally.
 */
#include "json/frame.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "json/json-priv.h"

#define KEEP \
	((size_t)64 * 1024) /* a larger buffer is given back after a message */

/* clang-format off */
const struct frame_limits frame_limits_qmp = {
	.token_bytes = (size_t)64 * 1024 * 1024,
	.tokens = (size_t)2 * 1024 * 1024,
	.depth = JSON_MAX_DEPTH,
};
/* clang-format on */

enum lex {
	LEX_START,
	LEX_KEYWORD,
	LEX_SIGN, /* "-" */
	LEX_ZERO, /* "0": no digit may follow */
	LEX_DIGITS, /* "12" */
	LEX_POINT, /* "12." */
	LEX_FRACTION,
	LEX_E, /* "12e" */
	LEX_E_SIGN, /* "12e+" */
	LEX_E_DIGITS,
	LEX_STRING,
	LEX_ESCAPE, /* in a string, behind a backslash */
	LEX_RECOVERY,
};

/* What a byte did. */
enum step {
	STEP_TAKEN, /* it belongs to the token */
	STEP_SKIPPED, /* it belongs to nothing */
	STEP_TOKEN, /* it ends the token and belongs to it */
	STEP_TOKEN_AT, /* the token ended in front of it */
	STEP_AGAIN, /* look at it again in the new state */
	STEP_STRAY, /* no token begins like this */
};

struct frame {
	struct frame_limits limits;
	enum lex lex;
	char quote; /* of the string being read */
	bool odd; /* ... which differs from the form that grammar.c reads */
	char first; /* byte of the token being read */
	int64_t braces, brackets;
	size_t bytes; /* of the complete tokens, as received */
	size_t tokens; /* complete ones */

	char *text; /* owned; the message so far */
	size_t len, room;
	size_t token; /* where the token being read starts in text */
	size_t token_bytes; /* its bytes as received so far */
	bool nomem; /* a byte could not be kept */
	uint8_t stack[JSON_MAX_DEPTH]; /* for grammar_check() */
};

struct frame *
frame_new(const struct frame_limits *l)
{
	struct frame *f = calloc(1, sizeof *f);

	assert(l->depth <= JSON_MAX_DEPTH);
	if (f)
		f->limits = *l;
	return f;
}

void
frame_free(struct frame *f)
{
	if (!f)
		return;
	free(f->text);
	free(f);
}

bool
frame_is_inside(const struct frame *f)
{
	return f->tokens || (f->lex != LEX_START && f->lex != LEX_RECOVERY);
}

/* Forget the message, not where the lexer is. */
static void
drop_message(struct frame *f)
{
	f->braces = f->brackets = 0;
	f->bytes = f->tokens = 0;
	f->len = f->token = f->token_bytes = 0;
	f->nomem = false;
	if (f->room > KEEP) {
		free(f->text);
		f->text = NULL;
		f->room = 0;
	}
}

void
frame_reset(struct frame *f)
{
	drop_message(f);
	f->lex = LEX_START;
}

static void
keep(struct frame *f, const char *bytes, size_t n)
{
	size_t room = f->room ? f->room : 512;
	char *text;

	if (f->nomem)
		return;
	while (room - f->len < n)
		room *= 2;
	if (room != f->room) {
		text = realloc(f->text, room);
		if (!text) {
			f->nomem = true;
			return;
		}
		f->text = text;
		f->room = room;
	}
	memcpy(f->text + f->len, bytes, n);
	f->len += n;
}

static bool
is_digit(unsigned char c)
{
	return c >= '0' && c <= '9';
}

static bool
is_structural(unsigned char c)
{
	return c && strchr("{}[]:,", c);
}

/* Bytes that end a string, and recovery, in a bad way. */
static bool
is_reset(unsigned char c)
{
	return c < ' ' || c >= 0xFE;
}

static enum step
step_start(struct frame *f, unsigned char c)
{
	if (c == ' ' || c == '\t' || c == '\r' || c == '\n')
		return STEP_SKIPPED;
	if (is_structural(c))
		return STEP_TOKEN;
	if (c == '"' || c == '\'') {
		f->lex = LEX_STRING;
		f->quote = (char)c;
		f->odd = c == '\'';
	} else if (c >= 'a' && c <= 'z') {
		f->lex = LEX_KEYWORD;
	} else if (c == '-') {
		f->lex = LEX_SIGN;
	} else if (c == '0') {
		f->lex = LEX_ZERO;
	} else if (is_digit(c)) {
		f->lex = LEX_DIGITS;
	} else {
		return STEP_STRAY;
	}
	return STEP_TAKEN;
}

static enum step
step_to(struct frame *f, enum lex lex)
{
	f->lex = lex;
	return STEP_TAKEN;
}

static enum step
step_number(struct frame *f, unsigned char c)
{
	bool digit = is_digit(c), e = c == 'e' || c == 'E';

	switch (f->lex) {
	case LEX_SIGN:
		if (digit)
			return step_to(f, c == '0' ? LEX_ZERO : LEX_DIGITS);
		return STEP_STRAY;
	case LEX_ZERO:
	case LEX_DIGITS:
		if (digit)
			return f->lex == LEX_ZERO ? STEP_STRAY : STEP_TAKEN;
		if (c == '.')
			return step_to(f, LEX_POINT);
		return e ? step_to(f, LEX_E) : STEP_TOKEN_AT;
	case LEX_POINT: return digit ? step_to(f, LEX_FRACTION) : STEP_STRAY;
	case LEX_FRACTION:
		if (digit)
			return STEP_TAKEN;
		return e ? step_to(f, LEX_E) : STEP_TOKEN_AT;
	case LEX_E:
		if (c == '+' || c == '-')
			return step_to(f, LEX_E_SIGN);
		return digit ? step_to(f, LEX_E_DIGITS) : STEP_STRAY;
	case LEX_E_SIGN: return digit ? step_to(f, LEX_E_DIGITS) : STEP_STRAY;
	default: return digit ? STEP_TAKEN : STEP_TOKEN_AT;
	}
}

static enum step
step_string(struct frame *f, unsigned char c)
{
	if (is_reset(c))
		return STEP_STRAY;
	if (f->lex == LEX_ESCAPE)
		return step_to(f, LEX_STRING);
	if (c == '\\')
		return step_to(f, LEX_ESCAPE);
	return c == (unsigned char)f->quote ? STEP_TOKEN : STEP_TAKEN;
}

static enum step
step(struct frame *f, unsigned char c)
{
	switch (f->lex) {
	case LEX_START: return step_start(f, c);
	case LEX_KEYWORD:
		return c >= 'a' && c <= 'z' ? STEP_TAKEN : STEP_TOKEN_AT;
	case LEX_STRING:
	case LEX_ESCAPE: return step_string(f, c);
	case LEX_RECOVERY:
		if ((!is_reset(c) || c == '\t') && !is_structural(c))
			return STEP_SKIPPED;
		f->lex = LEX_START;
		return STEP_AGAIN;
	default: return step_number(f, c);
	}
}

static void
keep_byte(struct frame *f, char c)
{
	if (f->token_bytes++ == 0)
		f->first = c;
	keep(f, &c, 1);
}

/* Bring the string that was just completed into the form that grammar.c
 * reads: make a copy behind it and move that over it.
 */
static void
normalize_string(struct frame *f)
{
	size_t i = f->token + 1, end = f->len, size;
	char c;

	keep(f, "\"", 1);
	for (; i + 1 < end && !f->nomem; i++) {
		c = f->text[i];
		if (c == '\\' && f->text[i + 1] != '\'') {
			keep(f, &c, 1);
			i++;
		} else if (c == '\\') {
			i++;
		} else if (c == '"') {
			keep(f, "\\", 1);
		}
		c = f->text[i];
		keep(f, &c, 1);
	}
	keep(f, "\"", 1);
	if (f->nomem)
		return;
	size = f->len - end;
	memmove(f->text + f->token, f->text + end, size);
	f->len = f->token + size;
}

static enum frame_result
drop_with(struct frame *f, struct err *e, const char *why)
{
	drop_message(f);
	(void)err_set(e, ERR_GENERIC, 0, "%s", why);
	return FRAME_ERROR;
}

/* QEMU shows the token and the byte that spoiled it, as a C string. */
static enum frame_result
stray(struct frame *f, unsigned char c, struct err *e)
{
	f->lex = LEX_RECOVERY;
	keep_byte(f, (char)c);
	keep(f, "", 1);
	if (f->nomem)
		return drop_with(f, e, "out of memory");
	(void)err_set(e, ERR_GENERIC, 0, "JSON parse error, stray '%.1024s'",
		      f->text + f->token);
	drop_message(f);
	return FRAME_ERROR;
}

/* The message is complete: check it, then let yajl build it. */
static enum frame_result
finish_message(struct frame *f, struct json **out, struct err *e)
{
	enum tree_result r = TREE_NOMEM;
	struct grammar g = { 0 };
	struct err why = ERR_INIT;
	bool ok = true;

	if (!f->nomem) {
		ok = grammar_check(f->text, f->len, f->stack, &g, &why);
		r = tree_build(f->text, &g, out);
	}
	drop_message(f);
	if (r == TREE_NOMEM)
		return drop_with(f, e, "out of memory");
	if (r == TREE_DUPLICATE)
		return drop_with(f, e, "JSON parse error, duplicate key");
	if (ok && r == TREE_BUILT)
		return FRAME_VALUE;
	if (r == TREE_BUILT)
		json_free(steal(out));
	if (ok)
		return drop_with(f, e, "JSON parse error, expecting value");
	(void)err_move(e, &why);
	return FRAME_ERROR;
}

/* Count the token; FRAME_MORE when the message goes on. */
static enum frame_result
finish_token(struct frame *f, struct json **out, struct err *e)
{
	char first = f->first;

	f->lex = LEX_START;
	f->braces += (first == '{') - (first == '}');
	f->brackets += (first == '[') - (first == ']');
	if (f->token_bytes > f->limits.token_bytes - f->bytes)
		return drop_with(f, e, "JSON token size limit exceeded");
	if (f->tokens == f->limits.tokens)
		return drop_with(f, e, "JSON token count limit exceeded");
	if (f->braces + f->brackets > (int64_t)f->limits.depth)
		return drop_with(f, e, "JSON nesting depth limit exceeded");
	if (f->quote && f->odd)
		normalize_string(f);
	else if (!f->quote && !is_structural((unsigned char)first))
		keep(f, " ", 1);
	f->bytes += f->token_bytes;
	f->tokens++;
	f->token = f->len;
	f->token_bytes = 0;
	f->quote = 0;
	if ((f->braces > 0 || f->brackets > 0) && f->braces >= 0 &&
	    f->brackets >= 0)
		return FRAME_MORE;
	return finish_message(f, out, e);
}

/* Many bytes of a string at once. */
static size_t
take_run(struct frame *f, const char *p, size_t n)
{
	size_t room = f->limits.token_bytes - f->bytes, i = 0;

	if (f->lex != LEX_STRING || f->token_bytes >= room)
		return 0;
	if (n > room - f->token_bytes)
		n = room - f->token_bytes;
	while (i < n && !is_reset((unsigned char)p[i]) && p[i] != '\\' &&
	       p[i] != f->quote)
		i++;
	keep(f, p, i);
	f->token_bytes += i;
	return i;
}

/* One byte.  *eaten says whether it was used up. */
static enum frame_result
feed_byte(struct frame *f, unsigned char c, bool *eaten, struct json **out,
	  struct err *e)
{
	bool escaped = f->lex == LEX_ESCAPE;
	enum step s;

	if (f->lex == LEX_START)
		f->quote = 0;
	s = step(f, c);
	*eaten = s != STEP_TOKEN_AT && s != STEP_AGAIN;
	switch (s) {
	case STEP_STRAY: return stray(f, c, e);
	case STEP_TAKEN:
	case STEP_TOKEN:
		keep_byte(f, (char)c);
		f->odd |= escaped && c == '\'';
		if (s == STEP_TOKEN)
			return finish_token(f, out, e);
		if (f->token_bytes <= f->limits.token_bytes - f->bytes)
			return FRAME_MORE;
		f->lex = LEX_RECOVERY;
		return drop_with(f, e, "JSON token size limit exceeded");
	case STEP_TOKEN_AT: return finish_token(f, out, e);
	default: return FRAME_MORE;
	}
}

enum frame_result
frame_feed(struct frame *f, const char **p, size_t *n, struct json **out,
	   struct err *e)
{
	enum frame_result r = FRAME_MORE;
	size_t run;
	bool eaten;

	while (*n && r == FRAME_MORE) {
		run = take_run(f, *p, *n);
		if (!run) {
			r = feed_byte(f, (unsigned char)**p, &eaten, out, e);
			run = eaten;
		}
		*p += run;
		*n -= run;
	}
	return r;
}

bool
json_parse(const char *text, size_t len, struct json **out, struct err *e)
{
	AUTO(frame_free) struct frame *f = frame_new(&frame_limits_qmp);
	AUTO(json_free) struct json *first = NULL, *second = NULL;
	enum frame_result r;
	const char *end = "\n";
	size_t one = 1;

	if (!f)
		return err_set(e, ERR_GENERIC, 0, "out of memory");
	r = frame_feed(f, &text, &len, &first, e);
	if (r == FRAME_MORE)
		r = frame_feed(f, &end, &one, &first, e);
	if (r == FRAME_MORE)
		return err_set(e, ERR_GENERIC, 0,
			       "JSON parse error, premature EOI");
	if (r == FRAME_ERROR)
		return false;
	r = frame_feed(f, &text, &len, &second, e);
	if (r == FRAME_ERROR)
		return false;
	if (r == FRAME_VALUE || frame_is_inside(f))
		return err_set(e, ERR_GENERIC, 0,
			       "JSON parse error, more than one value");
	*out = steal(&first);
	return true;
}

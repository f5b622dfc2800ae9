/* SPDX-License-Identifier: BSD-3-Clause
 *
 * yajl's events to a tree.  The only file that includes yajl.
 *
 * yajl does not look at what its allocator returns, and nothing here may end
 * the process when memory is gone.  So it gets an arena that is allocated
 * before it starts and is large enough for everything that it can ask for:
 * its handles, its stack of states (which grows by 128 bytes at a time, up to
 * one for each level), and the buffer into which it decodes the longest string
 * that has an escape (a power of two above it).  We hand it the text in one
 * piece, so its buffer for split tokens stays at its first size.
 */
#include "json/json-priv.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

#define ARENA_FIXED 8192 /* handles, first buffers and their headers */
#define STATES      128 /* states that yajl's stack grows by */

/* What stands in front of each piece of the arena. */
struct piece {
	size_t size;
	size_t pad;
};

struct arena {
	char *base; /* owned */
	size_t used, size;
};

static void *
arena_malloc(void *ctx, size_t size)
{
	struct arena *a = ctx;
	struct piece *p = (struct piece *)(void *)(a->base + a->used);

	size = (size + 15) & ~(size_t)15;
	assert(size + sizeof *p <= a->size - a->used);
	a->used += sizeof *p + size;
	p->size = size;
	return p + 1;
}

static void
arena_free(void *ctx, void *ptr)
{
	(void)ctx;
	(void)ptr;
}

/* The newest piece grows where it is; others move. */
static void *
arena_realloc(void *ctx, void *ptr, size_t size)
{
	struct arena *a = ctx;
	struct piece *p;
	void *to;

	if (!ptr)
		return arena_malloc(ctx, size);
	p = (struct piece *)ptr - 1;
	if (size <= p->size)
		return ptr;
	if ((char *)ptr + p->size == a->base + a->used) {
		size = (size + 15) & ~(size_t)15;
		assert(size - p->size <= a->size - a->used);
		a->used += size - p->size;
		p->size = size;
		return ptr;
	}
	to = arena_malloc(ctx, size);
	memcpy(to, ptr, p->size);
	return to;
}

static bool
arena_init(struct arena *a, size_t longest, unsigned depth)
{
	size_t blocks = depth / STATES + 2;

	if (longest > SIZE_MAX / 8)
		return false;
	a->used = 0;
	a->size = ARENA_FIXED;
	/* The stack of states moves each time that it grows. */
	a->size += blocks * (blocks + 1) / 2 * STATES +
		   blocks * sizeof(struct piece);
	/* The decode buffer ends at most at twice (longest + its first size)
	 * and may have left its halves, quarters, ... behind.
	 */
	if (longest)
		a->size += 4 * (longest + 4096);
	a->base = malloc(a->size);
	return a->base != NULL;
}

/* An array or object that is being filled, and the name of the next member. */
struct level {
	struct json value;
	char *name;
	uint32_t name_len;
};

struct builder {
	struct level *level; /* owned; innermost last */
	uint32_t depth, room;
	struct json done; /* the value at the top, once it is complete */
	bool is_done;
	enum tree_result result;
};

static int
stop(struct builder *b, enum tree_result why)
{
	b->result = why;
	return 0;
}

/* A value is complete: move it to where it belongs. */
static int
add(struct builder *b, struct json *value)
{
	struct level *in = b->depth ? &b->level[b->depth - 1] : NULL;
	enum json_add r = JSON_ADDED;

	if (!in) {
		b->done = *value;
		b->is_done = true;
		return 1;
	}
	if (in->value.type == JSON_ARRAY) {
		if (!json_array_push(&in->value, value))
			r = JSON_NOMEM;
	} else {
		r = json_object_add(&in->value, in->name, in->name_len, value);
		if (r == JSON_ADDED)
			in->name = NULL;
	}
	if (r == JSON_ADDED)
		return 1;
	json_clear(value);
	return stop(b, r == JSON_DUPLICATE ? TREE_DUPLICATE : TREE_NOMEM);
}

static int
on_null(void *ctx)
{
	struct json v = { .type = JSON_NULL };

	return add(ctx, &v);
}

static int
on_bool(void *ctx, int b)
{
	struct json v = { .type = JSON_BOOL, .v.b = b != 0 };

	return add(ctx, &v);
}

/* Integers that fit keep their 64 bits; the rest is a double.  What is too
 * large even for that becomes the largest one, so that it can be written.
 */
static void
number_from(const char *text, struct json *v)
{
	bool integer = !strpbrk(text, ".eE");

	errno = 0;
	v->type = JSON_INT;
	v->v.i = integer ? strtoll(text, NULL, 10) : 0;
	if (integer && errno == 0)
		return;
	if (integer && text[0] != '-') {
		errno = 0;
		v->type = JSON_UINT;
		v->v.u = strtoull(text, NULL, 10);
		if (errno == 0)
			return;
	}
	v->type = JSON_DOUBLE;
	v->v.d = strtod(text, NULL);
	if (isinf(v->v.d))
		v->v.d = nextafter(v->v.d, 0);
}

static int
on_number(void *ctx, const char *text, size_t len)
{
	struct json v = { .type = JSON_NULL };
	char small[64], *copy = NULL;

	if (len < sizeof small) {
		memcpy(small, text, len);
		small[len] = '\0';
	} else {
		copy = json_bytes_dup(text, len);
		if (!copy)
			return stop(ctx, TREE_NOMEM);
	}
	number_from(copy ? copy : small, &v);
	free(copy);
	return add(ctx, &v);
}

/* A copy in which C0 80 has become NUL; *len is adjusted. */
static char *
string_from(const unsigned char *text, size_t *len)
{
	char *s = json_bytes_dup((const char *)text, *len);
	char *from, *to, *end;

	if (!s || !memchr(s, 0xC0, *len))
		return s;
	for (from = to = s, end = s + *len; from < end; from++) {
		if ((unsigned char)*from == 0xC0)
			*from = *(from + 1) = 0, from++;
		*to++ = *from;
	}
	*to = '\0';
	*len = (size_t)(to - s);
	return s;
}

static int
on_string(void *ctx, const unsigned char *text, size_t len)
{
	struct json v = { .type = JSON_STRING };

	v.v.s = string_from(text, &len);
	if (!v.v.s)
		return stop(ctx, TREE_NOMEM);
	v.n = (uint32_t)len;
	return add(ctx, &v);
}

static int
on_name(void *ctx, const unsigned char *text, size_t len)
{
	struct builder *b = ctx;
	struct level *in = &b->level[b->depth - 1];

	in->name = string_from(text, &len);
	if (!in->name)
		return stop(b, TREE_NOMEM);
	in->name_len = (uint32_t)len;
	return 1;
}

static int
push(struct builder *b, enum json_type type)
{
	uint32_t room = b->room ? b->room * 2 : 8;
	struct level *l;

	if (b->depth == b->room) {
		l = reallocarray(b->level, room, sizeof *l);
		if (!l)
			return stop(b, TREE_NOMEM);
		b->level = l;
		b->room = room;
	}
	l = &b->level[b->depth++];
	memset(l, 0, sizeof *l);
	l->value.type = type;
	return 1;
}

static int
on_array(void *ctx)
{
	return push(ctx, JSON_ARRAY);
}

static int
on_object(void *ctx)
{
	return push(ctx, JSON_OBJECT);
}

static int
on_end(void *ctx)
{
	struct builder *b = ctx;
	struct json v = b->level[--b->depth].value;

	return add(b, &v);
}

static const yajl_callbacks callbacks = {
	.yajl_null = on_null,
	.yajl_boolean = on_bool,
	.yajl_number = on_number,
	.yajl_string = on_string,
	.yajl_start_map = on_object,
	.yajl_map_key = on_name,
	.yajl_end_map = on_end,
	.yajl_start_array = on_array,
	.yajl_end_array = on_end,
};

static void
builder_destroy(struct builder *b)
{
	while (b->depth) {
		b->depth--;
		json_clear(&b->level[b->depth].value);
		free(b->level[b->depth].name);
	}
	free(b->level);
	json_clear(&b->done);
}

static void
run_yajl(struct builder *b, struct arena *a, const char *text, size_t len)
{
	yajl_alloc_funcs funcs = {
		.malloc = arena_malloc,
		.realloc = arena_realloc,
		.free = arena_free,
		.ctx = a,
	};
	yajl_handle h = yajl_alloc(&callbacks, &funcs, b);

	/* grammar_check() was stricter, and C0 80 must pass. */
	yajl_config(h, yajl_dont_validate_strings, 1);
	if (yajl_parse(h, (const unsigned char *)text, len) == yajl_status_ok)
		yajl_complete_parse(h);
	yajl_free(h);
}

enum tree_result
tree_build(const char *text, const struct grammar *g, struct json **out)
{
	struct builder b = { .result = TREE_PARTIAL };
	struct arena a;

	if (!arena_init(&a, g->longest, g->deepest))
		return TREE_NOMEM;
	run_yajl(&b, &a, text, g->stop);
	free(a.base);
	if (b.result == TREE_PARTIAL && b.is_done) {
		*out = malloc(sizeof **out);
		b.result = *out ? TREE_BUILT : TREE_NOMEM;
		if (*out) {
			**out = b.done;
			memset(&b.done, 0, sizeof b.done);
		}
	}
	builder_destroy(&b);
	return b.result;
}

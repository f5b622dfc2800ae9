/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The QMP input framer under arbitrary bytes.  Besides not crashing:
 *
 *  - however the bytes are cut into pieces, the same values and errors come;
 *  - a value that comes can be written and read again, and then is always
 *    written alike (the first time -0.0 becomes -0, as in QEMU, and that 0);
 *  - what it holds is bounded by its limits.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "json/frame.h"
#include "json/out.h"

#define OUT_MAX (64 * 1024 * 1024)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* @j as text, and that text read again; free both. */
static struct json *
write_and_read(const struct json *j, struct json_out *o)
{
	struct json *again = NULL;

	json_out_init(o, OUT_MAX);
	json_out_json(o, j);
	if (!json_out_check(o, NULL) ||
	    !json_parse(o->text, o->len, &again, NULL))
		abort();
	return again;
}

static void
check_round_trip(const struct json *j)
{
	struct json_out once, twice, thrice;
	struct json *second = write_and_read(j, &once);
	struct json *third = write_and_read(second, &twice);

	json_free(write_and_read(third, &thrice));
	assert(twice.len == thrice.len);
	assert(memcmp(twice.text, thrice.text, twice.len) == 0);
	json_free(second);
	json_free(third);
	json_out_destroy(&once);
	json_out_destroy(&twice);
	json_out_destroy(&thrice);
}

/* How many values of this input still get the round trip, which is slow. */
static unsigned trips;

/* One call; what comes out of it is added to @o. */
static void
feed_some(struct frame *f, const char **p, size_t *n, struct json_out *o)
{
	struct err e = ERR_INIT;
	struct json *j = NULL;
	enum frame_result r = frame_feed(f, p, n, &j, &e);

	assert((r == FRAME_VALUE) == (j != NULL));
	assert((r == FRAME_ERROR) == err_is_set(&e));
	assert(r != FRAME_MORE || *n == 0);
	if (j) {
		json_out_json(o, j);
		if (trips && trips--)
			check_round_trip(j);
		json_free(j);
	} else if (r == FRAME_ERROR) {
		json_out_string(o, e.msg);
	}
}

/* Everything that comes out, as text. */
static void
feed(const uint8_t *data, size_t size, size_t piece, struct json_out *o)
{
	const struct frame_limits limits = {
		.token_bytes = 4000,
		.tokens = 500,
		.depth = 20,
	};
	struct frame *f = frame_new(&limits);
	const char *p = (const char *)data;
	size_t n;

	assert(f);
	while (size) {
		n = size < piece ? size : piece;
		size -= n;
		while (n)
			feed_some(f, &p, &n, o);
	}
	frame_free(f);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct json_out whole, cut;

	if (size < 2)
		return 0;
	trips = 10;
	json_out_init(&whole, OUT_MAX);
	json_out_init(&cut, OUT_MAX);
	feed(data + 1, size - 1, size, &whole);
	feed(data + 1, size - 1, data[0] % 16 + 1, &cut);
	assert(whole.len == cut.len);
	assert(whole.len == 0 || !memcmp(whole.text, cut.text, whole.len));
	json_out_destroy(&whole);
	json_out_destroy(&cut);
	return 0;
}

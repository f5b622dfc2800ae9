/* SPDX-License-Identifier: BSD-3-Clause
 *
 * x-debug-block-dirty-bitmap-sha256: QEMU's own way to compare bitmaps.
 *
 * What is hashed: one bit for each granule, the first one lowest, in 64-bit
 * little-endian words; the last word is filled up with zeroes, and there is at
 * least one.  Of a busy bitmap it is what its job took.
 */
#include <endian.h>
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/bits.h"
#include "daemon/bitmap-actions.h"
#include "daemon/daemon.h"
#include "daemon/pending.h"
#include "daemon/qmp-server.h"
#include "schema/qmp-commands.h"

#define DIGEST_BYTES 32
#define BUFFER_WORDS 4096

struct hashing {
	struct daemon *d;
	struct qmp_call *call;
	struct epoch_set set; /* holds its epochs while the worker reads them */
	uint64_t size, granularity;
	struct work work;
	unsigned char digest[DIGEST_BYTES];
	struct err e;
};

/* Bits on their way into the hash. */
struct bits {
	gnutls_hash_hd_t hash;
	uint64_t word; /* not full yet: @used bits of it */
	unsigned used;
	size_t n;
	uint64_t v[BUFFER_WORDS];
};

static void
flush(struct bits *b)
{
	(void)gnutls_hash(b->hash, b->v, b->n * sizeof b->v[0]);
	b->n = 0;
}

static void
end_word(struct bits *b)
{
	b->v[b->n++] = htole64(b->word);
	b->word = 0;
	b->used = 0;
	if (b->n == BUFFER_WORDS)
		flush(b);
}

static void
put(struct bits *b, uint64_t count, bool dirty)
{
	while (count) {
		unsigned k = (unsigned)min_u64(count, 64 - b->used);

		if (dirty)
			b->word |= (UINT64_MAX >> (64 - k)) << b->used;
		b->used += k;
		count -= k;
		if (b->used == 64)
			end_word(b);
	}
}

static void
put_all(struct bits *b, const struct dirty *d)
{
	uint64_t total = (d->size + d->unit - 1) / d->unit, at = 0;
	uint64_t start, end;

	while (d->n && at < total &&
	       dirty_next(d, at * d->unit, &start, &end)) {
		put(b, start / d->unit - at, false);
		at = (end + d->unit - 1) / d->unit;
		put(b, at - start / d->unit, true);
	}
	put(b, total - at, false);
	if (b->used || total == 0)
		end_word(b);
	flush(b);
}

/* Worker: a bitmap of a large disk has gigabytes. */
static void
hash_run(struct work *w)
{
	struct hashing *h = container_of(w, struct hashing, work);
	AUTO(free) struct epoch **v = xcalloc(h->set.n, sizeof v[0]);
	struct dirty d = { .v = v, .size = h->size, .unit = h->granularity };
	AUTO(free) struct bits *b = xzalloc(sizeof *b);

	for (size_t i = 0; i < h->set.n; i++)
		if (h->set.v[i]->map)
			v[d.n++] = h->set.v[i]->map;
	if (gnutls_hash_init(&b->hash, GNUTLS_DIG_SHA256) < 0) {
		(void)err_set(&h->e, ERR_GENERIC, 0, "cannot compute SHA-256");
		return;
	}
	put_all(b, &d);
	gnutls_hash_deinit(b->hash, h->digest);
}

static void
hash_done(struct work *w)
{
	struct hashing *h = container_of(w, struct hashing, work);
	char text[2 * DIGEST_BYTES + 1];
	struct block_dirty_bitmap_sha256 ret = { .sha256 = text };

	for (size_t i = 0; i < DIGEST_BYTES; i++)
		(void)snprintf(text + 2 * i, 3, "%02x", h->digest[i]);
	pending_end(h->d);
	if (err_is_set(&h->e))
		qmp_call_fail(h->call, &h->e);
	else
		qmp_x_debug_block_dirty_bitmap_sha256_return(h->call, &ret);
	epoch_set_clear(&h->set);
	free(h);
}

void
qmp_x_debug_block_dirty_bitmap_sha256(struct qmp_call *call,
				      struct block_dirty_bitmap *arg)
{
	AUTO(block_dirty_bitmap_free) struct block_dirty_bitmap *own = arg;
	struct daemon *d = qmp_call_opaque(call);
	struct err e = ERR_INIT;
	const struct bitmap *b =
		bitmap_lookup(d->graph, arg->node, arg->name, &e);
	struct hashing *h;

	if (!b) {
		qmp_call_fail(call, &e);
		return;
	}
	h = xzalloc(sizeof *h);
	h->d = d;
	h->call = call;
	h->size = b->node->size;
	h->granularity = b->granularity;
	epoch_set_copy(&h->set, b->taken ? b->taken : &b->set);
	h->work = (struct work){ .run = hash_run, .done = hash_done };
	pending_begin(d);
	work_submit(d->work, &d->loop, &h->work);
}

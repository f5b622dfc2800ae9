/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A view under load: writers, zeroers, readers and a consumer at once, and
 * every byte that is read must be the byte of the instant of the cut.  Run
 * under the sanitizers too; it is not counted as coverage of the rules, which
 * have forced tests in test-view.c.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bits.h"
#include "fault.h"
#include "unit.h"
#include "view/cbw.h"
#include "view/reader.h"

#define SIZE    (300 * UINT64_C(4096) + 1536)
#define HALF    (150 * UINT64_C(4096)) /* the consumer's part ends here */
#define WRITERS 3
#define WRITES  400

struct world {
	struct block *image, *readers_image; /* two opens of one file */
	struct view *view;
	struct epoch *mask; /* or NULL */
	struct cbw *cbw;
	struct view_reader reader;
	unsigned char *at_cut;
	_Atomic bool stop;
	_Atomic unsigned long checked;
	unsigned seed;
};

struct actor_of {
	pthread_t thread;
	struct world *w;
	unsigned seed;
	const char *wrong;
	uint64_t at;
};

static uint64_t
below(unsigned *seed, uint64_t n)
{
	return ((uint64_t)rand_r(seed) << 16 ^ (uint64_t)rand_r(seed)) % n;
}

static void *
write_about(void *arg)
{
	struct actor_of *a = arg;
	struct world *w = a->w;
	static const uint64_t lens[] = { 512, 4096, 20000, 100000 };
	unsigned char *buf = malloc(100000);

	for (int i = 0; buf && i < WRITES; i++) {
		uint64_t off = below(&a->seed, SIZE);
		uint64_t len = 1 + below(&a->seed, lens[below(&a->seed, 4)]);
		int r;

		len = min_u64(len, SIZE - off);
		r = cbw_before_write(w->cbw, off, len);
		if (!r && below(&a->seed, 4) == 0) {
			r = block_zero(w->image, off, len,
				       BLOCK_ZERO_MAY_UNMAP);
		} else if (!r) {
			memset(buf, (int)below(&a->seed, 255) + 1, len);
			r = block_pwrite(w->image, buf, len, off);
		}
		if (r)
			a->wrong = "a write failed";
	}
	free(buf);
	return NULL;
}

/* Does [off, off + len) of @buf equal the cut, where it belongs to the view
 * and was not DONE before the read began?
 */
static bool
equals_cut(struct world *w, const unsigned char *buf, uint64_t off,
	   uint64_t len, uint64_t *bad)
{
	const struct dirty *d = &w->reader.mask;
	uint64_t at = off, start, end;

	while (dirty_next_in(d, at, off + len, &start, &end)) {
		end = min_u64(end, off + len);
		for (uint64_t i = start; i < end; i++)
			if (buf[i - off] != w->at_cut[i]) {
				*bad = i;
				return false;
			}
		atomic_fetch_add(&w->checked, end - start);
		at = end;
	}
	return true;
}

static void *
read_about(void *arg)
{
	struct actor_of *a = arg;
	struct world *w = a->w;
	unsigned char *buf = malloc(SIZE);

	while (buf && !atomic_load(&w->stop) && !a->wrong) {
		/* nobody reads what the consumer has: stay above it */
		uint64_t low = HALF;
		uint64_t off = low + below(&a->seed, SIZE - low);
		uint64_t len = 1 + below(&a->seed, SIZE - off), n;
		bool zero;

		if (view_reader_pread(&w->reader, buf, len, off))
			a->wrong = "a read failed";
		else if (!equals_cut(w, buf, off, len, &a->at))
			a->wrong = "a read is not the cut";
		if (view_reader_extent(&w->reader, off, len, &n, &zero) || !n)
			a->wrong = "an extent failed";
		memset(buf, 0, n < len ? n : len);
		if (!a->wrong && zero && !equals_cut(w, buf, off, n, &a->at))
			a->wrong = "an extent says zero where the cut is not";
	}
	free(buf);
	return NULL;
}

/* Reads the lower half in order, and lets it go. */
static void *
consume(void *arg)
{
	struct actor_of *a = arg;
	struct world *w = a->w;
	unsigned char buf[10000];
	uint64_t off = 0, sent = 0;

	while (off < HALF && !a->wrong) {
		uint64_t len = 1 + below(&a->seed, sizeof buf);

		len = min_u64(len, HALF - off);
		if (view_reader_pread(&w->reader, buf, len, off))
			a->wrong = "the consumer's read failed";
		else if (!equals_cut(w, buf, off, len, &a->at))
			a->wrong = "the consumer's read is not the cut";
		off += len;
		if (below(&a->seed, 3) == 0) { /* a flush */
			view_reader_done(&w->reader, sent, off - sent);
			sent = off / 4096 * 4096;
		}
	}
	return NULL;
}

static struct block *
open_file(int fd)
{
	struct block_file_options o = { .fd = fd, .name = "image" };
	struct err e = ERR_INIT;
	struct block *b;

	assert_ok(block_file_open(&o, &b, &e), &e);
	b->discard_unmap = true;
	return b;
}

static struct epoch *
random_mask(unsigned *seed)
{
	struct err e = ERR_INIT;
	struct epoch *ep;
	int fd = tmpfs_file();

	assert_ok(epoch_format(fd, SIZE, UINT64_C(512) << below(seed, 8), &e),
		  &e);
	assert_ok(epoch_open(fd, &ep, &e), &e);
	for (int i = 0; i < 40; i++) {
		uint64_t off = below(seed, SIZE);

		epoch_set(ep, off, 1 + below(seed, min_u64(SIZE - off, 40000)));
	}
	return ep;
}

static void
fill_image(struct world *w)
{
	for (uint64_t i = 0; i < SIZE; i++)
		w->at_cut[i] = mem_image_pattern(i);
	for (int i = 0; i < 20; i++) { /* with holes */
		uint64_t off = below(&w->seed, SIZE / 4096) * 4096;

		memset(w->at_cut + off, 0, min_u64(SIZE - off, 8192));
	}
	for (uint64_t off = 0; off < SIZE; off += 4096) {
		size_t n = (size_t)min_u64(SIZE - off, 4096);

		if (!buf_is_zero(w->at_cut + off, n))
			assert_int_equal(
				block_pwrite(w->image, w->at_cut + off, n, off),
				0);
	}
}

static void
world_init(struct world *w, unsigned seed, bool with_mask)
{
	struct cbw_options c = { .unit = UINT64_C(512) << seed % 9 };
	struct err e = ERR_INIT;
	int fd = tmpfs_file(), states = tmpfs_file(), store = tmpfs_file();

	*w = (struct world){ .seed = seed };
	assert_int_equal(ftruncate(fd, SIZE), 0);
	w->image = open_file(fd);
	w->readers_image = open_file(dup(fd));
	w->at_cut = xzalloc(SIZE);
	fill_image(w);
	assert_ok(view_format(states, SIZE, &e), &e);
	assert_ok(view_open(states, &w->view, &e), &e);
	c.view = view_ref(w->view);
	c.store = dup(store);
	c.image = w->image;
	if (with_mask) {
		w->mask = random_mask(&w->seed);
		c.mask[c.n++] = epoch_ref(w->mask);
	}
	assert_ok(cbw_new(&c, &w->cbw, &e), &e);
	w->reader = (struct view_reader){ .image = w->readers_image,
					  .view = w->view,
					  .store = store,
					  .mask = { .v = &w->mask,
						    .n = with_mask,
						    .size = SIZE,
						    .unit = c.unit } };
}

static void
world_destroy(struct world *w)
{
	(void)close(w->reader.store);
	cbw_free(w->cbw);
	view_unref(w->view);
	if (w->mask)
		epoch_unref(w->mask);
	block_free(w->image);
	block_free(w->readers_image);
	free(w->at_cut);
}

static void
one_run(unsigned seed, bool with_mask)
{
	void *(*const fn[])(void *) = { write_about, write_about, write_about,
					consume,     read_about,  read_about };
	struct actor_of a[ARRAY_SIZE(fn)];
	struct world w;

	world_init(&w, seed, with_mask);
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++) {
		a[i] = (struct actor_of){ .w = &w, .seed = seed * 100 + i };
		assert_int_equal(
			pthread_create(&a[i].thread, NULL, fn[i], &a[i]), 0);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++) {
		if (i == WRITERS + 1)
			atomic_store(&w.stop, true);
		(void)pthread_join(a[i].thread, NULL);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(a); i++)
		if (a[i].wrong)
			fail_msg("seed %u: %s (byte %llu)", seed, a[i].wrong,
				 (unsigned long long)a[i].at);
	assert_int_equal(view_broken(w.view), 0);
	assert_true(atomic_load(&w.checked) > 0);
	world_destroy(&w);
}

static void
a_full_view_is_the_cut_while_guests_write(void **s)
{
	(void)s;
	for (unsigned seed = 1; seed <= 6; seed++)
		one_run(seed, false);
}

static void
a_masked_view_is_the_cut_while_guests_write(void **s)
{
	(void)s;
	for (unsigned seed = 1; seed <= 9; seed++)
		one_run(seed, true);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_full_view_is_the_cut_while_guests_write),
		cmocka_unit_test(a_masked_view_is_the_cut_while_guests_write),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

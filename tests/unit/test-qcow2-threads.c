/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Many threads at one image, for the sanitizers' sake (the rules are tested in
 * test-qcow2-steps.c): in the first half of the disk each thread has every
 * n-th piece of 4 KiB, so that they share clusters; in the second half each
 * has a part of its own, where whole clusters come and go.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>

#include "base/bits.h"
#include "qcow2-rig.h"
#include "unit.h"

#define THREADS 6u
#define PIECE   4096u
#define DISK    (24 * MiB)
#define HALF    (DISK / 2)
#define PIECES  ((unsigned)(HALF / PIECE))
#define CLUSTER (64 * KiB)
#define PART    (2 * MiB) /* of the second half */
#define OWN     ((unsigned)(PART / CLUSTER))

struct guest {
	pthread_t thread;
	struct block *b;
	unsigned number;
	uint64_t seed;
	uint64_t is[PIECES]; /* what our pieces are; by number of the piece */
	uint64_t cluster[OWN]; /* and our clusters */
	bool failed;
};

static uint64_t
dice(struct guest *g, uint64_t n)
{
	return crash_random(g->number + 1, ++g->seed) % n;
}

static bool
is_all(const uint64_t *p, size_t len, uint64_t v)
{
	for (size_t i = 0; i < len / 8; i++)
		if (p[i] != v)
			return false;
	return true;
}

static int
write_words(struct guest *g, uint64_t off, size_t len, uint64_t v, bool packed)
{
	uint64_t p[CLUSTER / 8];

	for (size_t i = 0; i < len / 8; i++)
		p[i] = v;
	return packed ? block_compress(g->b, p, len, off)
		      : block_pwrite(g->b, p, len, off);
}

static int
check_words(struct guest *g, uint64_t off, size_t len, uint64_t v)
{
	uint64_t p[CLUSTER / 8];
	int r = block_pread(g->b, p, len, off);

	return r ? r : is_all(p, len, v) ? 0 : EILSEQ;
}

static int
shared_request(struct guest *g)
{
	unsigned i = (unsigned)dice(g, PIECES / THREADS) * THREADS + g->number;
	uint64_t off = (uint64_t)i * PIECE, v = g->seed;

	switch (dice(g, 4)) {
	case 0: return check_words(g, off, PIECE, g->is[i]);
	case 1:
		g->is[i] = 0;
		return block_zero(g->b, off, PIECE, BLOCK_ZERO_MAY_UNMAP);
	default: g->is[i] = v; return write_words(g, off, PIECE, v, false);
	}
}

static int
own_request(struct guest *g)
{
	unsigned i = (unsigned)dice(g, OWN);
	uint64_t off = HALF + g->number * PART + i * CLUSTER, v = g->seed;

	switch (dice(g, 6)) {
	case 0: return check_words(g, off, CLUSTER, g->cluster[i]);
	case 1: g->cluster[i] = 0; return block_discard(g->b, off, CLUSTER);
	case 2:
		g->cluster[i] = 0;
		return block_zero(g->b, off, CLUSTER,
				  BLOCK_ZERO_MAY_UNMAP | BLOCK_ZERO_FAST);
	case 3: g->cluster[i] = v; return write_words(g, off, CLUSTER, v, true);
	case 4: return block_flush(g->b);
	default:
		g->cluster[i] = v;
		return write_words(g, off, CLUSTER, v, false);
	}
}

static int
check_all(struct guest *g)
{
	int r = 0;

	for (unsigned i = g->number; i < PIECES && !r; i += THREADS)
		r = check_words(g, (uint64_t)i * PIECE, PIECE, g->is[i]);
	for (unsigned i = 0; i < OWN && !r; i++)
		r = check_words(g, HALF + g->number * PART + i * CLUSTER,
				CLUSTER, g->cluster[i]);
	return r;
}

static void *
guest_run(void *arg)
{
	struct guest *g = arg;
	int r = 0;

	for (unsigned n = 0; n < 400 && !r; n++)
		r = dice(g, 2) ? shared_request(g) : own_request(g);
	if (!r)
		r = check_all(g);
	g->failed = r != 0;
	return NULL;
}

static void
guests_run(struct block *b, struct guest *g)
{
	for (unsigned i = 0; i < THREADS; i++) {
		g[i].b = b;
		g[i].number = i;
		assert_int_equal(
			pthread_create(&g[i].thread, NULL, guest_run, &g[i]),
			0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(g[i].thread, NULL), 0);
	for (unsigned i = 0; i < THREADS; i++)
		assert_false(g[i].failed);
}

static void
many_threads_do_not_get_into_each_others_way(void **s)
{
	static const char *const options[] = {
		"compat=1.1", "extended_l2=on", "cluster_size=4k",
		"cluster_size=512,refcount_bits=64"
	};
	struct qcow2_snapshot_info info = { .name = "between" };

	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		struct guest *g = xcalloc(THREADS, sizeof *g);
		struct block *b;

		rig_run("qemu-img create -q -f qcow2 -o %s disk.qcow2 %u",
			options[i], (unsigned)DISK);
		b = rig_open("disk.qcow2", NULL);
		guests_run(b, g);
		assert_int_equal(qcow2_snapshot_create(b, &info), 0);
		guests_run(b, g);
		assert_int_equal(qcow2_snapshot_delete(b, 0), 0);
		guests_run(b, g);
		block_free(b);
		rig_run("qemu-img check -q disk.qcow2");
		free(g);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(many_threads_do_not_get_into_each_others_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

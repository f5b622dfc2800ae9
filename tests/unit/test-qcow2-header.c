/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Power cuts while the first cluster of an image is rewritten: what is left is
 * the old header or the new one.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "block/qcow2/amend.h"
#include "block/qcow2/bitmaps.h"
#include "qcow2-rig.h"
#include "unit.h"

#define CAPACITY (1 * MiB)
#define SEEDS    12u

/* What a cut may leave. */
static struct {
	char backing[2][600];
	unsigned cuts;
	unsigned catch_at; /* the cut after which the disk is used again */
	struct crash_disk *caught;
} t;

static void
look_at(const struct crash_disk *d, enum crash_policy policy, uint64_t seed)
{
	struct crash_disk *c = crash_disk_cut(d, policy, seed);
	struct qcow2_info *i = xzalloc(sizeof *i);
	struct err e = ERR_INIT;

	if (!qcow2_probe(&c->block, i, &e))
		fail_msg("cut %u, policy %d, seed %" PRIu64 ": %s", t.cuts,
			 (int)policy, seed, e.msg);
	if (strcmp(i->header.backing, t.backing[0]) &&
	    strcmp(i->header.backing, t.backing[1]))
		fail_msg("cut %u, policy %d, seed %" PRIu64
			 ": the backing file is '%s'",
			 t.cuts, (int)policy, seed, i->header.backing);
	free(i);
	block_free(&c->block);
}

static void
before_change(struct crash_disk *d)
{
	if (++t.cuts == t.catch_at)
		t.caught = crash_disk_cut(d, CRASH_ALL, 0);
	if (!d->changes) { /* whatever a cut does, it leaves the same */
		look_at(d, CRASH_ALL, 0);
		return;
	}
	for (int p = CRASH_NOTHING; p < CRASH_RANDOM; p++)
		look_at(d, (enum crash_policy)p, 1);
	for (uint64_t seed = 0; seed < SEEDS; seed++)
		look_at(d, CRASH_RANDOM, seed + 100 * t.cuts);
}

static struct crash_disk *
disk_load(void)
{
	char path[128];

	(void)snprintf(path, sizeof path, "%s/disk.qcow2", rig_dir());
	return crash_disk_load(path, CAPACITY);
}

/* An image that names a file of @len characters. */
static void
image_make(const char *options, size_t len)
{
	memset(&t, 0, sizeof t);
	memset(t.backing[0], 'b', len);
	memcpy(t.backing[1], t.backing[0], sizeof t.backing[1]);
	rig_run("qemu-img create -q -f qcow2 -u -o %s -b %s -F raw disk.qcow2 "
		"1M",
		options, t.backing[0]);
}

static bool
next_range(void *opaque, uint64_t from, uint64_t *start, uint64_t *end)
{
	(void)opaque;
	*start = 0;
	*end = 64 * KiB;
	return from < 64 * KiB;
}

/* The first bitmap brings an extension; the last takes it away. */
static void
store_bitmaps(struct block *b)
{
	static const struct qcow2_bitmap_source s = { .name = "b",
						      .granularity = 64 * KiB,
						      .enabled = true,
						      .next = next_range };
	AUTO(qcow2_bitmaps_free) struct qcow2_bitmaps *l = NULL;
	struct err e = ERR_INIT;

	assert_ok(qcow2_bitmaps_load(b, &l, &e), &e);
	assert_ok(qcow2_bitmaps_take(b, l, &e), &e);
	assert_ok(qcow2_bitmaps_store(b, l, &s, 1, &e), &e);
	assert_ok(qcow2_bitmaps_store(b, l, &s, 0, &e), &e);
}

static void
bitmaps_come_and_go(const char *options, size_t len)
{
	struct qcow2_options o = { .keep_bitmaps = true };
	struct err e = ERR_INIT;
	struct crash_disk *d;
	struct block *b;

	image_make(options, len);
	d = disk_load();
	o.file = &d->block;
	assert_ok(qcow2_open(&o, &b, &e), &e);
	assert_int_equal(block_flush(b), 0);
	d->before = before_change;
	store_bitmaps(b);
	d->before = NULL;
	block_free(b);
	assert_true(t.cuts > 10);
}

static void
a_header_that_gets_an_extension_is_whole_at_any_moment(void **s)
{
	(void)s;
	bitmaps_come_and_go("cluster_size=64k", 300);
	bitmaps_come_and_go("cluster_size=64k", 8);
	bitmaps_come_and_go("cluster_size=1k", 30);
}

static void
amend(struct crash_disk *d, char c, size_t len)
{
	struct qcow2_amend_options o = { .set_backing = true,
					 .backing_format = "raw" };
	struct err e = ERR_INIT;

	memset(t.backing[1], 0, sizeof t.backing[1]);
	memset(t.backing[1], c, len);
	o.backing_file = t.backing[1];
	assert_ok(qcow2_amend(&d->block, &o, &e), &e);
	memcpy(t.backing[0], t.backing[1], sizeof t.backing[0]);
}

static void
a_backing_file_is_the_old_or_the_new_one(void **s)
{
	struct crash_disk *d;

	(void)s;
	image_make("cluster_size=64k", 300);
	d = disk_load();
	d->before = before_change;
	amend(d, 'c', 500);
	amend(d, 'd', 20);
	amend(d, 'e', 400);
	amend(d, 'f', 400);
	d->before = NULL;
	block_free(&d->block);
}

static void
name_of(struct crash_disk *d, char *name)
{
	struct qcow2_info *i = xzalloc(sizeof *i);
	struct err e = ERR_INIT;

	assert_ok(qcow2_probe(&d->block, i, &e), &e);
	(void)strcpy(name, i->header.backing);
	free(i);
}

/* What an interruption has left lies in the way of the next change. */
static void
a_header_is_whole_also_after_an_interruption(void **s)
{
	char name[sizeof t.backing[0]];

	(void)s;
	image_make("cluster_size=4k", 300);
	memcpy(name, t.backing[0], sizeof name);
	for (unsigned at = 1; at < 10; at++) {
		struct crash_disk *d = disk_load(), *c;

		memcpy(t.backing[0], name, sizeof name);
		t.cuts = 0;
		t.caught = NULL;
		t.catch_at = at;
		d->before = before_change;
		amend(d, 'c', 500);
		d->before = NULL;
		block_free(&d->block);
		c = t.caught;
		assert_non_null(c);
		c->before = before_change;
		name_of(c, t.backing[0]);
		amend(c, 'd', 450);
		amend(c, 'e', 550);
		c->before = NULL;
		block_free(&c->block);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			a_header_that_gets_an_extension_is_whole_at_any_moment),
		cmocka_unit_test(a_backing_file_is_the_old_or_the_new_one),
		cmocka_unit_test(a_header_is_whole_also_after_an_interruption),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

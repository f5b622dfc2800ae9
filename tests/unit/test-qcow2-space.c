/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Space in the image's file at its edges: a disk that is full at any moment,
 * files whose ends are not where one would think, readers of an image that
 * grows.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "qcow2-rig.h"
#include "unit.h"

#define DISK  "disk.qcow2"
#define SMALL 512u /* bytes of a cluster: refcount blocks are soon full */

static void
new_image(const char *options, const char *size)
{
	rig_run("qemu-img create -q -f qcow2 -o %s " DISK " %s", options, size);
}

static struct block *
open_small(struct crash_disk **d, uint64_t capacity)
{
	struct qcow2_options o = { 0 };
	struct err e = ERR_INIT;
	struct block *b;
	char path[128];

	(void)snprintf(path, sizeof path, "%s/" DISK, rig_dir());
	*d = crash_disk_load(path, capacity);
	o.file = &(*d)->block;
	assert_ok(qcow2_open(&o, &b, &e), &e);
	b->discard_unmap = true;
	return b;
}

static struct block *
open_crash(struct crash_disk **d)
{
	return open_small(d, 32 * MiB);
}

static int
put(struct block *b, uint64_t off, uint64_t len, unsigned char value)
{
	unsigned char *buf = xzalloc(len);
	int r;

	memset(buf, value, len);
	r = block_pwrite(b, buf, len, off);
	free(buf);
	return r;
}

static void
expect(struct block *b, uint64_t off, uint64_t len, unsigned char value)
{
	unsigned char *buf = xzalloc(len);

	assert_int_equal(block_pread(b, buf, len, off), 0);
	for (size_t i = 0; i < len; i++)
		assert_int_equal(buf[i], value);
	free(buf);
}

/* --- a full disk ------------------------------------------------------------------ */

/* Change number @skip of a write finds the disk full; then there is room
 * again.  What the driver believes from then on must be what the file says.
 */
static void
full_once(unsigned skip)
{
	struct crash_disk *d;
	struct block *b = open_crash(&d);
	char what[64];
	int r;

	d->write_os = ENOSPC;
	d->write_skip = skip;
	r = put(b, 0, SMALL, 1);
	d->write_os = 0;
	assert_true(r == 0 || r == ENOSPC);
	assert_int_equal(put(b, 0, 1536 * KiB, 2), 0);
	assert_int_equal(block_flush(b), 0);
	(void)snprintf(what, sizeof what, "full at change %u", skip);
	(void)rig_check(d, what);
	expect(b, 0, 1536 * KiB, 2);
	block_free(b);
}

static void
a_full_disk_leaves_memory_and_file_agreed(void **s)
{
	(void)s;
	new_image("cluster_size=512", "4M");
	for (unsigned skip = 0; skip < 40; skip++)
		full_once(skip);
}

/* A guest tries again and again. */
static uint64_t
full_often(struct block *b, struct crash_disk *d, unsigned skip, unsigned times)
{
	for (unsigned i = 0; i < times; i++) {
		d->write_os = ENOSPC;
		d->write_skip = skip;
		(void)put(b, 0, SMALL, 1);
		d->write_os = 0;
	}
	return d->block.size;
}

static void
a_full_disk_does_not_make_the_file_longer(void **s)
{
	(void)s;
	new_image("cluster_size=512,refcount_bits=64", "4M");
	for (unsigned skip = 0; skip < 60; skip++) {
		struct crash_disk *d;
		struct block *b = open_crash(&d);
		uint64_t soon = full_often(b, d, skip, 3);

		if (full_often(b, d, skip, 3) > soon + 64 * KiB)
			fail_msg("full at change %u", skip);
		assert_int_equal(put(b, MiB, MiB, 3), 0);
		assert_int_equal(block_flush(b), 0);
		(void)rig_check(d, "after a full disk");
		block_free(b);
	}
}

/* --- rule 8, for what the driver makes itself ----------------------------------------- */

/* Move the image's one L2 table to cluster @to, whose count is 0. */
static void
move_table(struct crash_disk *d, uint64_t to)
{
	uint64_t l1 = be64_get(d->now + QCOW2_AT_L1_SIZE + 4);
	uint64_t from = be64_get(d->now + l1) & QCOW2_L1_OFFSET;

	d->block.size = (to + 1) * SMALL;
	memcpy(d->now + to * SMALL, d->now + from, SMALL);
	be64_put(d->now + l1, to * SMALL | QCOW2_COPIED);
}

/* Where the first refcount block that is made will be. */
static uint64_t
next_block(struct crash_disk *d)
{
	const uint64_t batch = MiB / SMALL;

	return div_up(d->block.size, SMALL) + batch;
}

static void
refcount_blocks_do_not_land_on_metadata(void **s)
{
	struct qcow2_options o = { 0 };
	struct err e = ERR_INIT;
	struct crash_disk *d;
	unsigned char table[SMALL];
	struct block *b;
	char path[128];
	uint64_t to;

	(void)s;
	new_image("cluster_size=512,refcount_bits=64", "4M");
	rig_run("qemu-io -c 'write -q -P 1 0 512' " DISK);
	(void)snprintf(path, sizeof path, "%s/" DISK, rig_dir());
	d = crash_disk_load(path, 32 * MiB);
	to = next_block(d);
	move_table(d, to);
	memcpy(table, d->now + to * SMALL, SMALL);
	o.file = &d->block;
	assert_ok(qcow2_open(&o, &b, &e), &e);
	assert_int_equal(put(b, MiB, SMALL, 2), EIO);
	assert_memory_equal(d->now + to * SMALL, table, SMALL);
	expect(b, 0, SMALL, 1);
	block_free(b);
}

/* --- ends of files ---------------------------------------------------------------------- */

static void
a_last_cluster_that_is_partly_there_can_be_written(void **s)
{
	struct block *b;

	(void)s;
	new_image("cluster_size=64k", "1M");
	rig_run("qemu-io -c 'write -q -P 1 0 64k' " DISK);
	rig_run("truncate -s -32k " DISK);
	b = rig_open(DISK, NULL);
	expect(b, 0, 32 * KiB, 1);
	expect(b, 32 * KiB, 32 * KiB, 0);
	assert_int_equal(put(b, 48 * KiB, 4096, 7), 0);
	expect(b, 48 * KiB, 4096, 7);
	expect(b, 52 * KiB, 4096, 0);
	block_free(b);
	rig_run("qemu-io -c 'read -q -P 7 48k 4k' " DISK);
}

static void
a_data_file_that_is_shorter_than_the_disk_grows(void **s)
{
	struct qcow2_options o = { 0 };
	struct err e = ERR_INIT;
	struct block *b;

	(void)s;
	new_image("data_file=data.raw", "4M");
	rig_run("truncate -s 100k data.raw");
	o.file = rig_file(DISK, false);
	o.data = rig_file("data.raw", false);
	assert_ok(qcow2_open(&o, &b, &e), &e);
	assert_int_equal(put(b, 2 * MiB, 4096, 7), 0);
	expect(b, 2 * MiB, 4096, 7);
	block_free(b);
	rig_run("qemu-io -c 'read -q -P 7 2M 4k' " DISK);
}

/* An image on something that cannot grow and does not end with a cluster. */
static void
space_ends_where_the_file_does(void **s)
{
	struct qcow2_options o = { 0 };
	struct err e = ERR_INIT;
	struct block *b;
	int r = 0;

	(void)s;
	new_image("cluster_size=64k", "4M");
	rig_run("truncate -s 1100k " DISK);
	assert_ok(block_raw_open(rig_file(DISK, false), 0, true, 1100 * KiB,
				 &o.file, &e),
		  &e);
	assert_ok(qcow2_open(&o, &b, &e), &e);
	for (uint64_t off = 0; r == 0 && off < 4 * MiB; off += 64 * KiB)
		r = put(b, off, 64 * KiB, 5);
	assert_int_equal(r, ENOSPC);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(put(b, 0, 4096, 6), 0);
	block_free(b);
	rig_run("qemu-img check -q " DISK);
	rig_run("qemu-io -c 'read -q -P 6 0 4k' -c 'read -q -P 5 4k 60k' " DISK);
}

/* --- a reader of an image that grows --------------------------------------------------- */

static void
a_reader_finds_tables_that_moved(void **s)
{
	struct block *b, *live;

	(void)s;
	new_image("cluster_size=512,refcount_bits=64", "16M");
	b = rig_open(DISK, NULL);
	live = rig_open_live(DISK, NULL);
	/* the refcount table is too short for that, and moves */
	assert_int_equal(put(b, 0, 8 * MiB, 4), 0);
	assert_int_equal(block_refresh(live), 0);
	expect(live, 0, 8 * MiB, 4);
	block_free(live);
	block_free(b);
	rig_run("qemu-img check -q " DISK);
}

/* --- what a long view held ------------------------------------------------------------- */

/* Clusters that nobody refers to any more and that are not free. */
static unsigned
leaks(const struct crash_disk *d)
{
	return rig_check(d, "after a view");
}

static void
a_flush_frees_a_bounded_part(void **s)
{
	const unsigned runs = 6000, some = 2500;
	struct crash_disk *d;
	struct block *b;
	unsigned reserved, before, after;

	(void)s;
	new_image("cluster_size=512", "8M");
	b = open_crash(&d);
	assert_int_equal(put(b, 0, 2 * runs * SMALL, 1), 0);
	assert_int_equal(block_flush(b), 0);
	reserved = leaks(d);
	block_hold(b);
	for (unsigned i = 0; i < runs; i++)
		assert_int_equal(block_discard(b, 2 * i * SMALL, SMALL), 0);
	assert_int_equal(block_flush(b), 0);
	before = leaks(d);
	assert_int_equal(before, reserved + runs);
	block_release(b);
	for (unsigned flushes = 0; flushes < 10; flushes++) {
		assert_int_equal(block_flush(b), 0);
		after = leaks(d);
		assert_in_range(before - after, 0, some);
		before = after;
	}
	assert_int_equal(before, reserved);
	block_free(b);
}

/* --- power cuts while the size changes --------------------------------------------------- */

#define KEPT (200 * KiB) /* of the disk: flushed before, and never cut off */

static uint64_t sizes[2]; /* that a cut may leave */

static void
look_at(const struct crash_disk *d, enum crash_policy policy, uint64_t seed)
{
	struct crash_disk *c = crash_disk_cut(d, policy, seed);
	struct qcow2_options o = { .file = &c->block, .read_only = true };
	struct err e = ERR_INIT;
	struct block *b;

	(void)rig_check(c, "a resize was interrupted");
	assert_ok(qcow2_open(&o, &b, &e), &e);
	assert_true(b->size == sizes[0] || b->size == sizes[1]);
	expect(b, 0, KEPT, 9);
	block_free(b);
}

static void
cut_here(struct crash_disk *d)
{
	for (int p = CRASH_NOTHING; p < CRASH_POLICIES; p++)
		look_at(d, (enum crash_policy)p, d->changes);
	look_at(d, CRASH_RANDOM, d->changes + 1000);
}

static void
resize_to(struct crash_disk *d, struct block *b, uint64_t size)
{
	sizes[0] = b->size;
	sizes[1] = size;
	d->before = cut_here;
	assert_int_equal(block_truncate(b, size), 0);
	assert_int_equal(block_flush(b), 0);
	d->before = NULL;
}

static void
a_resize_that_power_interrupts_loses_nothing(void **s)
{
	static const char *const options[] = {
		"cluster_size=512", "cluster_size=4k",
		"extended_l2=on,cluster_size=16k",
		"cluster_size=512,compat=0.10"
	};

	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(options); i++) {
		struct crash_disk *d;
		struct block *b;

		new_image(options[i], "300k");
		b = open_small(&d, 4 * MiB);
		assert_int_equal(put(b, 0, KEPT, 9), 0);
		assert_int_equal(block_flush(b), 0);
		resize_to(d, b, 3 * MiB + 512); /* another L1 table */
		assert_int_equal(put(b, 250 * KiB, 500 * KiB, 3), 0);
		assert_int_equal(block_flush(b), 0);
		resize_to(d, b, 201 * KiB);
		resize_to(d, b, MiB);
		expect(b, 201 * KiB, MiB - 201 * KiB, 0);
		block_free(b);
	}
}

/* --- version 2 has no zeroes ------------------------------------------------------------ */

static void
a_discard_in_version_2_lets_nothing_shine_through(void **s)
{
	struct block *b;

	(void)s;
	rig_run("qemu-img create -q -f raw base.raw 1M");
	rig_run("qemu-io -f raw -c 'write -q -P 85 0 1M' base.raw");
	rig_run("qemu-img create -q -f qcow2 -o compat=0.10 -b base.raw -F raw " DISK);
	b = rig_open(DISK, rig_file("base.raw", true));
	assert_int_equal(put(b, 0, 128 * KiB, 1), 0);
	assert_int_equal(block_discard(b, 0, 128 * KiB), 0);
	expect(b, 0, 128 * KiB, 1);
	block_free(b);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_full_disk_leaves_memory_and_file_agreed),
		cmocka_unit_test(a_full_disk_does_not_make_the_file_longer),
		cmocka_unit_test(refcount_blocks_do_not_land_on_metadata),
		cmocka_unit_test(
			a_last_cluster_that_is_partly_there_can_be_written),
		cmocka_unit_test(
			a_data_file_that_is_shorter_than_the_disk_grows),
		cmocka_unit_test(space_ends_where_the_file_does),
		cmocka_unit_test(a_reader_finds_tables_that_moved),
		cmocka_unit_test(a_flush_frees_a_bounded_part),
		cmocka_unit_test(a_resize_that_power_interrupts_loses_nothing),
		cmocka_unit_test(
			a_discard_in_version_2_lets_nothing_shine_through),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Images that ask for far more work than they have bytes: what is read of them
 * is bounded.
 */
#include "base/bits.h"
#include "block/qcow2/bitmap-format.h"
#include "block/qcow2/bitmaps.h"
#include "block/qcow2/check.h"
#include "block/qcow2/qcow2.h"
#include "qcow2-rig.h"
#include "unit.h"

#define CLUSTER 65536u
#define USED    (8 * CLUSTER) /* what is behind it reads as zeroes */
#define ENOUGH  (64 * MiB) /* that a small image may cost */

/* A sparse file that counts what is read of it. */
static struct {
	struct block block;
	uint8_t bytes[USED];
	uint64_t read;
} file;

static int
file_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	size_t have = off < USED ? (size_t)min_u64(len, USED - off) : 0;

	assert_true(range_fits(off, len, b->size));
	file.read += len;
	memset(buf, 0, len);
	memcpy(buf, file.bytes + off, have);
	return 0;
}

static void
file_free(struct block *b)
{
	(void)b;
}

static const struct block_ops file_ops = {
	.name = "counting",
	.free = file_free,
	.pread = file_pread,
};

/* An empty disk of 64 MiB: header, refcount table, refcount block, L1 table. */
static void
make(struct qcow2_header *h, uint64_t file_size)
{
	struct err e = ERR_INIT;

	memset(&file, 0, sizeof file);
	file.block = (struct block){ .ops = &file_ops,
				     .size = file_size,
				     .min_block = 1,
				     .pref_block = 4096 };
	h->version = 3;
	h->cluster_bits = 16;
	h->size = 64 * MiB;
	h->l1_size = 1;
	h->l1_offset = 3 * CLUSTER;
	h->reftable_offset = CLUSTER;
	h->reftable_clusters = 1;
	h->refcount_order = 4;
	assert_ok(qcow2_header_serialise(h, file.bytes, CLUSTER, NULL, &e), &e);
	be64_put(file.bytes + CLUSTER, 2 * CLUSTER);
	for (unsigned i = 0; i < 4; i++)
		be16_put(file.bytes + 2 * CLUSTER + 2 * i, 1);
}

/* Count, and end what takes too long. */
static bool
too_much(void *opaque)
{
	unsigned *steps = opaque;

	return ++*steps > 10000;
}

static void
check(struct qcow2_check_result *res)
{
	unsigned steps = 0;
	struct qcow2_check_options o = { .cancelled = too_much,
					 .opaque = &steps };
	struct err e = ERR_INIT;

	assert_ok(qcow2_check(&file.block, &o, res, &e), &e);
	assert_true(file.read < ENOUGH);
}

static bool
open_image(struct block **b, struct err *e)
{
	struct qcow2_options o = { .file = &file.block, .read_only = true };

	return qcow2_open(&o, b, e);
}

/* An entry of a snapshot table of zeroes is 40 bytes long. */
static void
a_table_of_short_snapshots_is_read_once(void **s)
{
	struct qcow2_header h = { .snapshots = QCOW2_SNAPSHOTS_MAX,
				  .snapshots_offset = 4 * CLUSTER };
	struct qcow2_check_result res;

	(void)s;
	make(&h, 64 * MiB);
	check(&res);
	assert_int_equal(res.check_errors, 0);
}

static void
opening_reads_short_snapshots_once(void **s)
{
	struct qcow2_header h = { .snapshots = QCOW2_SNAPSHOTS_MAX,
				  .snapshots_offset = 4 * CLUSTER };
	struct qcow2_options o = { .file = &file.block };
	struct err e = ERR_INIT;
	struct block *b = NULL;

	(void)s;
	make(&h, 64 * MiB);
	assert_ok(qcow2_open(&o, &b, &e), &e);
	assert_true(file.read < ENOUGH);
	/* closing it would write */
	b->read_only = true;
	block_free(b);
}

static void
snapshots_with_tables_behind_the_end_are_not_walked(void **s)
{
	struct qcow2_header h = { .snapshots = 1600,
				  .snapshots_offset = 4 * CLUSTER };
	struct qcow2_check_result res;

	(void)s;
	make(&h, USED);
	for (unsigned i = 0; i < h.snapshots; i++) {
		uint8_t *p = file.bytes + h.snapshots_offset +
			     (size_t)i * QCOW2_SNAPSHOT_FIXED;

		be64_put(p, GiB);
		be32_put(p + 8, QCOW2_L1_BYTES_MAX / 8);
	}
	check(&res);
	assert_true(res.corruptions >= h.snapshots);
}

/* The directory has @n bitmaps, whose tables have @entries at @at. */
static void
make_bitmaps(uint64_t file_size, unsigned n, uint32_t entries, uint64_t at)
{
	struct qcow2_bitmap_entry b = { .table_offset = at,
					.table_size = entries,
					.type = QCOW2_BITMAP_TYPE_DIRTY,
					.granularity_bits = 9,
					.name_size = 8 };
	uint64_t length = qcow2_bitmap_entry_length(&b);
	struct qcow2_header h = {
		.autoclear = QCOW2_AUTO_BITMAPS,
		.has_bitmaps = true,
		.bitmaps = { .count = n,
			     .directory_size = n * length,
			     .directory_offset = 4 * CLUSTER },
	};

	make(&h, file_size);
	for (unsigned i = 0; i < n; i++) {
		uint8_t *p = file.bytes + 4 * CLUSTER + i * length;

		qcow2_bitmap_entry_put(&b, p);
		for (unsigned k = 0; k < 8; k++)
			p[QCOW2_BITMAP_FIXED + k] =
				(uint8_t)('a' + (i >> 4 * k) % 16);
	}
}

static void
bitmaps_with_tables_behind_the_end_are_not_walked(void **s)
{
	struct qcow2_check_result res;

	(void)s;
	make_bitmaps(USED, 1000, 1u << 20, GiB);
	check(&res);
	assert_true(res.corruptions >= 1000);
}

static void
tables_of_bitmaps_are_not_larger_than_the_file(void **s)
{
	struct qcow2_bitmaps *l = NULL;
	struct err e = ERR_INIT;
	struct block *b;

	(void)s;
	/* 16384 bytes of bits for the disk: a table of one entry */
	make_bitmaps(64 * KiB * 9, 8, 64 * KiB * 9 / 64, 8 * CLUSTER);
	assert_ok(open_image(&b, &e), &e);
	assert_ok(qcow2_bitmaps_load(b, &l, &e), &e);
	qcow2_bitmaps_free(l);
	block_free(b);
	make_bitmaps(64 * KiB * 9, 8, 64 * KiB * 9 / 64 + 1, 8 * CLUSTER);
	assert_ok(open_image(&b, &e), &e);
	assert_fails_with(qcow2_bitmaps_load(b, &l, &e), &e,
			  "larger than the file");
	block_free(b);
}

/* The flag "copied" without a table is no table, least of all the header. */
static void
an_l1_entry_of_a_flag_alone_is_none(void **s)
{
	unsigned char buf[512] = { 1 };
	struct block *b;

	(void)s;
	rig_run("qemu-img create -q -f qcow2 flag.qcow2 1M");
	rig_run("bash -c \"printf '\\\\x80' | dd of=flag.qcow2 bs=1 "
		"seek=$((3 * 65536)) conv=notrunc status=none\"");
	b = rig_open("flag.qcow2", NULL);
	assert_int_equal(block_pwrite(b, buf, sizeof buf, 0), 0);
	block_free(b);
	rig_run("qemu-img check -q flag.qcow2");
	b = rig_open("flag.qcow2", NULL);
	assert_int_equal(block_pread(b, buf, sizeof buf, 0), 0);
	assert_int_equal(buf[0], 1);
	block_free(b);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_table_of_short_snapshots_is_read_once),
		cmocka_unit_test(opening_reads_short_snapshots_once),
		cmocka_unit_test(
			snapshots_with_tables_behind_the_end_are_not_walked),
		cmocka_unit_test(
			bitmaps_with_tables_behind_the_end_are_not_walked),
		cmocka_unit_test(
			tables_of_bitmaps_are_not_larger_than_the_file),
		cmocka_unit_test(an_l1_entry_of_a_flag_alone_is_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

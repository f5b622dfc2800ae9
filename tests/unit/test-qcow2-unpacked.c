/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The rules of unpacked.c: clusters that were decompressed last.
 */
#include "base/bits.h"
#include "block/qcow2/qcow2-priv.h"
#include "qcow2-rig.h"
#include "step.h"
#include "unit.h"

#define CLUSTER (64 * KiB)
#define DISK    "disk.qcow2"
#define PIECE   4096u

static void
pack(struct block *b, uint64_t cluster, unsigned char value)
{
	unsigned char *buf = xzalloc(CLUSTER);

	memset(buf, value, CLUSTER);
	assert_int_equal(block_compress(b, buf, CLUSTER, cluster * CLUSTER), 0);
	free(buf);
}

/* A piece of the middle of it. */
static void
expect(struct block *b, uint64_t cluster, unsigned char value)
{
	unsigned char buf[PIECE];

	assert_int_equal(
		block_pread(b, buf, PIECE, cluster * CLUSTER + 5 * PIECE), 0);
	for (unsigned i = 0; i < PIECE; i++)
		assert_int_equal(buf[i], value);
}

/* An image with @n compressed clusters; number i is all i + 1. */
static struct block *
make(unsigned n)
{
	struct block *b;

	rig_run("qemu-img create -q -f qcow2 " DISK " 16M");
	b = rig_open(DISK, NULL);
	for (unsigned i = 0; i < n; i++)
		pack(b, i, (unsigned char)(i + 1));
	block_free(b);
	step_reset();
	return rig_open(DISK, NULL);
}

static unsigned
decompressed(void)
{
	return step_passed("qcow2.packed-read");
}

static void
small_reads_decompress_a_cluster_once(void **s)
{
	struct block *b = make(1);

	(void)s;
	for (unsigned i = 0; i < 10; i++)
		expect(b, 0, 1);
	assert_int_equal(decompressed(), 1);
	step_end();
	block_free(b);
}

static void
go_round(struct block *b, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		expect(b, i, (unsigned char)(i + 1));
}

static void
so_many_are_kept_and_no_more(void **s)
{
	struct block *b = make(QCOW2_UNPACKED + 1);

	(void)s;
	go_round(b, QCOW2_UNPACKED);
	go_round(b, QCOW2_UNPACKED);
	assert_int_equal(decompressed(), QCOW2_UNPACKED);
	expect(b, QCOW2_UNPACKED, QCOW2_UNPACKED + 1);
	assert_int_equal(decompressed(), QCOW2_UNPACKED + 1);
	/* the oldest made room, and only it */
	expect(b, 1, 2);
	assert_int_equal(decompressed(), QCOW2_UNPACKED + 1);
	expect(b, 0, 1);
	assert_int_equal(decompressed(), QCOW2_UNPACKED + 2);
	step_end();
	block_free(b);
}

/* The new bytes lie where the old ones lay: the entries are alike. */
static void
what_is_compressed_anew_is_read_anew(void **s)
{
	struct block *b = make(1);

	(void)s;
	expect(b, 0, 1);
	assert_int_equal(block_discard(b, 0, CLUSTER), 0);
	assert_int_equal(block_flush(b), 0);
	pack(b, 7, 0x77);
	expect(b, 7, 0x77);
	step_end();
	block_free(b);
	rig_run("qemu-img check -q " DISK);
}

static void
an_open_that_is_refreshed_reads_anew(void **s)
{
	struct block *b = make(1), *live = rig_open_live(DISK, NULL);

	(void)s;
	expect(live, 0, 1);
	assert_int_equal(block_discard(b, 0, CLUSTER), 0);
	assert_int_equal(block_flush(b), 0);
	pack(b, 0, 0x77);
	assert_int_equal(block_refresh(live), 0);
	expect(live, 0, 0x77);
	step_end();
	block_free(live);
	block_free(b);
}

static void
run_expect(void *arg)
{
	expect(arg, 0, 1);
}

static void
readers_wait_for_who_decompresses(void **s)
{
	struct block *b = make(1);
	struct actor one, two;

	(void)s;
	step_arm("qcow2.packed-read");
	actor_start(&one, run_expect, b);
	step_wait_parked("qcow2.packed-read");
	actor_start(&two, run_expect, b);
	assert_true(actor_is_held_at(&two, "qcow2.mapped", 2));
	step_release("qcow2.packed-read");
	actor_join(&one);
	actor_join(&two);
	assert_int_equal(decompressed(), 1);
	step_end();
	block_free(b);
}

static void
run_second(void *arg)
{
	expect(arg, 1, 2);
}

static void
readers_of_other_clusters_do_not_wait(void **s)
{
	struct block *b = make(2);
	struct actor one, two;

	(void)s;
	step_arm("qcow2.packed-read");
	actor_start(&one, run_expect, b);
	step_wait_parked("qcow2.packed-read");
	actor_start(&two, run_second, b);
	assert_true(actor_returns(&two));
	actor_join(&two);
	step_release("qcow2.packed-read");
	actor_join(&one);
	step_end();
	block_free(b);
}

/* Readers that take their time are invented. */
static void
who_finds_all_in_use_decompresses_for_itself(void **s)
{
	struct block *b = make(QCOW2_UNPACKED + 1);
	struct qcow2_unpacked *u = &to_qcow2(b)->unpacked;

	(void)s;
	go_round(b, QCOW2_UNPACKED);
	for (unsigned i = 0; i < QCOW2_UNPACKED; i++)
		u->v[i].users++;
	expect(b, QCOW2_UNPACKED, QCOW2_UNPACKED + 1);
	expect(b, QCOW2_UNPACKED, QCOW2_UNPACKED + 1);
	assert_int_equal(decompressed(), QCOW2_UNPACKED + 2);
	go_round(b, QCOW2_UNPACKED); /* they are still there */
	assert_int_equal(decompressed(), QCOW2_UNPACKED + 2);
	for (unsigned i = 0; i < QCOW2_UNPACKED; i++)
		u->v[i].users--;
	step_end();
	block_free(b);
}

/* Damage is an error for all who wait, and is not remembered. */
static void
what_cannot_be_decompressed_is_not_kept(void **s)
{
	struct block *b = make(1);
	unsigned char buf[PIECE];

	(void)s;
	rig_run("bash -c 'for i in 5 6 7 8; do "
		"head -c 65536 /dev/urandom | dd of=" DISK
		" bs=64k seek=$i conv=notrunc status=none; done'");
	assert_int_not_equal(block_pread(b, buf, PIECE, 0), 0);
	assert_int_not_equal(block_pread(b, buf, PIECE, 0), 0);
	assert_int_equal(decompressed(), 2);
	step_end();
	block_free(b);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(small_reads_decompress_a_cluster_once),
		cmocka_unit_test(so_many_are_kept_and_no_more),
		cmocka_unit_test(what_is_compressed_anew_is_read_anew),
		cmocka_unit_test(an_open_that_is_refreshed_reads_anew),
		cmocka_unit_test(readers_wait_for_who_decompresses),
		cmocka_unit_test(readers_of_other_clusters_do_not_wait),
		cmocka_unit_test(who_finds_all_in_use_decompresses_for_itself),
		cmocka_unit_test(what_cannot_be_decompressed_is_not_kept),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of block: what the common layer adds, and the raw and null-co drivers.
 */
#include "block/block.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/bits.h"
#include "fault.h"
#include "unit.h"

#define SIZE UINT64_C(65536)

static void
a_write_of_zeroes_becomes_a_zero_when_it_is_detected(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);
	char zeroes[4096] = { 0 }, data[4096] = { 0 };

	(void)s;
	data[4095] = 1;
	assert_int_equal(block_pwrite(&m->block, zeroes, 4096, 0), 0);
	assert_int_equal(m->writes, 1);
	m->block.detect_zeroes = true;
	assert_int_equal(block_pwrite(&m->block, zeroes, 4096, 0), 0);
	assert_int_equal(m->zeroes, 1);
	assert_int_equal(block_pwrite(&m->block, data, 4096, 0), 0);
	assert_int_equal(m->writes, 2);
	assert_int_equal(m->zeroes, 1);
	block_free(&m->block);
}

static void
a_discard_is_dropped_unless_the_image_unmaps(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);

	(void)s;
	m->block.discard_unmap = false;
	assert_int_equal(block_discard(&m->block, 0, 4096), 0);
	assert_int_equal(m->discards, 0);
	m->block.discard_unmap = true;
	assert_int_equal(block_discard(&m->block, 0, 4096), 0);
	assert_int_equal(m->discards, 1);
	block_free(&m->block);
}

static void
a_flush_is_dropped_with_no_flush(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);

	(void)s;
	m->block.no_flush = true;
	assert_int_equal(block_flush(&m->block), 0);
	assert_int_equal(m->flushes, 0);
	m->block.no_flush = false;
	assert_int_equal(block_flush(&m->block), 0);
	assert_int_equal(m->flushes, 1);
	block_free(&m->block);
}

static void
an_image_without_a_descriptor_says_so(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);

	(void)s;
	assert_int_equal(block_fd(&m->block), -1);
	assert_int_equal(block_cache(&m->block, 0, SIZE), 0);
	block_free(&m->block);
}

/* --- raw -------------------------------------------------------------------- */

static void
raw_is_a_window_at_its_offset(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);
	struct err e = ERR_INIT;
	struct block *b;
	unsigned char buf[512];
	unsigned flags;
	uint64_t n;

	(void)s;
	assert_ok(block_raw_open(&m->block, 4096, true, 8192, &b, &e), &e);
	b->discard_unmap = true;
	assert_int_equal(b->size, 8192);
	assert_int_equal(block_pread(b, buf, 512, 100), 0);
	for (unsigned i = 0; i < 512; i++)
		assert_int_equal(buf[i], mem_image_pattern(4196 + i));
	memset(buf, 9, sizeof buf);
	assert_int_equal(block_pwrite(b, buf, 512, 0), 0);
	assert_int_equal(m->data[4096], 9);
	assert_int_equal(m->data[4095], mem_image_pattern(4095));
	assert_int_equal(block_zero(b, 512, 512, 0), 0);
	assert_int_equal(m->data[4096 + 512], 0);
	assert_int_equal(block_discard(b, 1024, 512), 0);
	assert_int_equal(m->data[4096 + 1024], 0);
	assert_int_equal(block_extent(b, 512, 4096, &n, &flags), 0);
	assert_int_equal(n, 1024);
	assert_true(flags & BLOCK_ZERO);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(m->flushes, 1);
	assert_string_equal(b->ops->name, "raw");
	block_free(b);
}

static void
raw_without_a_size_goes_to_the_end(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);
	struct err e = ERR_INIT;
	struct block *b;

	(void)s;
	assert_ok(block_raw_open(&m->block, 512, false, 0, &b, &e), &e);
	assert_int_equal(b->size, SIZE - 512);
	block_free(b);
}

static void
a_raw_window_must_lie_inside_and_end_on_a_sector(void **s)
{
	struct err e = ERR_INIT;
	struct block *b;

	(void)s;
	assert_fails(block_raw_open(&mem_image_new(SIZE)->block, 512, true,
				    SIZE, &b, &e),
		     &e,
		     "The sum of offset (512) and size (65536) has to be "
		     "smaller or equal to the  actual size of the containing "
		     "file (65536)");
	assert_fails_with(block_raw_open(&mem_image_new(SIZE)->block,
					 UINT64_MAX, true, 512, &b, &e),
			  &e, "Offset (18446744073709551615) cannot be");
	assert_fails_with(block_raw_open(&mem_image_new(SIZE)->block,
					 SIZE + 512, false, 0, &b, &e),
			  &e, "Offset (66048) cannot be greater than");
	assert_fails(block_raw_open(&mem_image_new(SIZE)->block, 0, true, 1000,
				    &b, &e),
		     &e, "Specified size is not multiple of 512");
	assert_ok(block_raw_open(&mem_image_new(SIZE)->block, SIZE, true, 0, &b,
				 &e),
		  &e);
	block_free(b);
}

/* --- null-co ----------------------------------------------------------------- */

static void
null_co_takes_everything_and_reads_as_zeroes(void **s)
{
	struct err e = ERR_INIT;
	struct block *b;
	unsigned char buf[512];
	unsigned flags;
	uint64_t n;

	(void)s;
	assert_ok(block_null_open(GiB + 1, 0, &b, &e), &e);
	assert_int_equal(b->size, GiB + 512);
	memset(buf, 7, sizeof buf);
	assert_int_equal(block_pwrite(b, buf, 512, 0), 0);
	assert_int_equal(block_zero(b, 0, GiB, 0), 0);
	assert_int_equal(block_discard(b, 0, GiB), 0);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(block_pread(b, buf, 512, 0), 0);
	assert_true(buf_is_zero(buf, sizeof buf));
	assert_int_equal(block_extent(b, 512, GiB, &n, &flags), 0);
	assert_int_equal(n, GiB);
	assert_true(flags & BLOCK_ZERO);
	block_free(b);
}

static void
null_co_takes_as_long_as_it_was_told(void **s)
{
	struct err e = ERR_INIT;
	struct timespec t0, t1;
	struct block *b;
	char buf[512];
	long ms;

	(void)s;
	assert_ok(block_null_open(GiB, 30000000, &b, &e), &e);
	(void)clock_gettime(CLOCK_MONOTONIC, &t0);
	assert_int_equal(block_pread(b, buf, 512, 0), 0);
	(void)clock_gettime(CLOCK_MONOTONIC, &t1);
	ms = (t1.tv_sec - t0.tv_sec) * 1000 +
	     (t1.tv_nsec - t0.tv_nsec) / 1000000;
	assert_true(ms >= 29);
	block_free(b);
}

/* --- layers ------------------------------------------------------------------- */

static void
a_layer_is_found_by_its_node_name(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);
	struct err e = ERR_INIT;
	struct block *b;

	(void)s;
	assert_ok(block_raw_open(&m->block, 0, false, 0, &b, &e), &e);
	b->node = strdup("top");
	m->block.node = strdup("below");
	assert_ptr_equal(block_find(b, "top"), b);
	assert_ptr_equal(block_find(b, "below"), &m->block);
	assert_null(block_find(b, "other"));
	assert_ptr_equal(block_child(b, 0), &m->block);
	assert_null(block_child(b, 1));
	block_free(b);
}

static void
a_raw_layer_has_everything_in_itself(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);
	struct err e = ERR_INIT;
	struct block *b;
	unsigned depth = 9;
	uint64_t n;

	(void)s;
	assert_ok(block_raw_open(&m->block, 0, false, 0, &b, &e), &e);
	assert_int_equal(block_depth(b, 512, 4096, &n, &depth), 0);
	assert_int_equal(n, 4096);
	assert_int_equal(depth, 1);
	assert_int_equal(block_compress(b, "", 1, 0), ENOTSUP);
	block_free(b);
}

static void
a_window_of_fixed_size_cannot_be_resized(void **s)
{
	struct err e = ERR_INIT;
	struct block *null, *b;

	(void)s;
	assert_ok(block_null_open(SIZE, 0, &null, &e), &e);
	assert_ok(block_raw_open(null, 4096, false, 0, &b, &e), &e);
	assert_int_equal(block_truncate(b, 8192), 0);
	assert_int_equal(b->size, 8192);
	assert_int_equal(block_child(b, 0)->size, 8192 + 4096);
	block_free(b);
	assert_ok(block_null_open(SIZE, 0, &null, &e), &e);
	assert_ok(block_raw_open(null, 4096, true, 4096, &b, &e), &e);
	assert_int_equal(block_truncate(b, 8192), ENOTSUP);
	assert_int_equal(b->size, 4096);
	block_free(b);
}

/* --- the highest write --------------------------------------------------------- */

static void
count_crossings(void *opaque)
{
	++*(unsigned *)opaque;
}

static void
the_highest_end_of_a_write_is_kept(void **s)
{
	struct err e = ERR_INIT;
	struct block *b;

	(void)s;
	assert_ok(block_null_open(SIZE, 0, &b, &e), &e);
	assert_int_equal(b->high.highest, 0);
	assert_int_equal(block_pwrite(b, "abcd", 4, 1000), 0);
	assert_int_equal(b->high.highest, 1004);
	assert_int_equal(block_zero(b, 512, 512, 0), 0);
	assert_int_equal(b->high.highest, 1024);
	assert_int_equal(block_pwrite(b, "abcd", 4, 0), 0);
	assert_int_equal(b->high.highest, 1024);
	assert_int_equal(block_discard(b, 0, SIZE), 0);
	assert_int_equal(b->high.highest, 1024);
	block_free(b);
}

static void
a_write_behind_the_threshold_is_told_once(void **s)
{
	struct err e = ERR_INIT;
	uint64_t threshold, by;
	unsigned told = 0;
	struct block *b;

	(void)s;
	assert_ok(block_null_open(SIZE, 0, &b, &e), &e);
	assert_int_equal(block_zero(b, 0, 8192, 0), 0);
	block_set_threshold(b, 4096, count_crossings, &told);
	assert_int_equal(block_pwrite(b, "abcd", 4, 4092), 0);
	assert_int_equal(told, 0); /* it ends at the threshold */
	assert_false(block_take_crossed(b, &threshold, &by));
	assert_int_equal(block_pwrite(b, "abcd", 4, 4093), 0);
	assert_int_equal(told, 1);
	assert_true(block_take_crossed(b, &threshold, &by));
	assert_int_equal(threshold, 4096);
	assert_int_equal(by, 1);
	assert_false(block_take_crossed(b, &threshold, &by));
	assert_int_equal(block_zero(b, 0, 16384, 0), 0);
	assert_int_equal(told, 1);
	block_set_threshold(b, 4096, count_crossings, &told);
	block_set_threshold(b, 0, count_crossings, &told);
	assert_int_equal(block_zero(b, 0, 16384, 0), 0);
	assert_int_equal(told, 1);
	block_free(b);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			a_write_of_zeroes_becomes_a_zero_when_it_is_detected),
		cmocka_unit_test(a_discard_is_dropped_unless_the_image_unmaps),
		cmocka_unit_test(a_flush_is_dropped_with_no_flush),
		cmocka_unit_test(an_image_without_a_descriptor_says_so),
		cmocka_unit_test(raw_is_a_window_at_its_offset),
		cmocka_unit_test(raw_without_a_size_goes_to_the_end),
		cmocka_unit_test(
			a_raw_window_must_lie_inside_and_end_on_a_sector),
		cmocka_unit_test(null_co_takes_everything_and_reads_as_zeroes),
		cmocka_unit_test(null_co_takes_as_long_as_it_was_told),
		cmocka_unit_test(a_layer_is_found_by_its_node_name),
		cmocka_unit_test(a_raw_layer_has_everything_in_itself),
		cmocka_unit_test(a_window_of_fixed_size_cannot_be_resized),
		cmocka_unit_test(the_highest_end_of_a_write_is_kept),
		cmocka_unit_test(a_write_behind_the_threshold_is_told_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of the file driver: its edges, zeroes and holes, and O_DIRECT.  Each
 * runs on a file in the directory that TMPDIR names (default: /tmp); those
 * about O_DIRECT are skipped where the file system has none.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "block/block.h"
#include "fault.h"
#include "step.h"
#include "unit.h"

/* A file of @size bytes of the pattern, opened by the driver. */
static struct block *
file_make(uint64_t size, int flags)
{
	const char *dir = getenv("TMPDIR");
	AUTO(free)
	char *path = xasprintf("%s/stillpoint-XXXXXX", dir ? dir : "/tmp");
	AUTO(free) unsigned char *text = xzalloc(size + 1);
	AUTO(close) int fd = mkstemp(path);
	struct block_file_options o = { .direct = flags & O_DIRECT,
					.name = "image" };
	struct err e = ERR_INIT;
	struct block *b;

	assert_true(fd >= 0);
	for (uint64_t i = 0; i < size; i++)
		text[i] = mem_image_pattern(i);
	assert_int_equal(pwrite(fd, text, size, 0), size);
	o.fd = open(path, O_RDWR | O_CLOEXEC | flags);
	(void)unlink(path);
	if (o.fd < 0) {
		print_message("no O_DIRECT here\n");
		skip();
	}
	assert_ok(block_file_open(&o, &b, &e), &e);
	b->discard_unmap = true;
	return b;
}

static uint64_t
length_of(const struct block *b)
{
	struct stat st;

	assert_int_equal(fstat(block_fd(b), &st), 0);
	return (uint64_t)st.st_size;
}

static uint64_t
allocated(const struct block *b)
{
	struct stat st;

	assert_int_equal(fsync(block_fd(b)), 0);
	assert_int_equal(fstat(block_fd(b), &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* [off, off + len) is the pattern, but for [zero, zero_end), which is zero. */
static void
check(struct block *b, uint64_t off, size_t len, uint64_t zero,
      uint64_t zero_end)
{
	AUTO(free) unsigned char *buf = xzalloc(len + 1);

	memset(buf, 0x55, len);
	assert_int_equal(block_pread(b, buf, len, off), 0);
	for (size_t i = 0; i < len; i++) {
		uint64_t at = off + i;
		unsigned char want =
			at >= zero && at < zero_end ? 0 : mem_image_pattern(at);

		if (buf[i] != want)
			fail_msg("byte %d is %02x, not %02x", (int)at, buf[i],
				 want);
	}
}

static void
what_is_behind_the_end_of_the_file_reads_as_zeroes(void **s)
{
	struct block *b = file_make(1000, 0);
	uint64_t n;
	unsigned flags;

	(void)s;
	assert_int_equal(b->size, 1024);
	assert_string_equal(b->ops->name, "file");
	check(b, 0, 1024, 1000, 1024);
	check(b, 990, 34, 1000, 1024);
	check(b, 1010, 14, 1000, 1024);
	assert_int_equal(block_extent(b, 1000, 24, &n, &flags), 0);
	assert_int_equal(n, 24);
	assert_true(flags & BLOCK_ZERO);
	assert_int_equal(length_of(b), 1000);
	block_free(b);
}

static void
a_write_behind_the_end_of_the_file_makes_it_longer(void **s)
{
	struct block *b = file_make(1000, 0);
	unsigned char byte = mem_image_pattern(1023);

	(void)s;
	assert_int_equal(block_pwrite(b, &byte, 1, 1023), 0);
	assert_int_equal(length_of(b), 1024);
	check(b, 0, 1024, 1000, 1023);
	block_free(b);
}

static void
a_file_of_any_size_is_an_image(void **s)
{
	static const uint64_t sizes[] = { 0, 1, 511, 512, 513, 4096, 4097 };

	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct block *b = file_make(sizes[i], 0);

		assert_int_equal(b->size, round_up(sizes[i], 512));
		check(b, 0, b->size, sizes[i], b->size);
		block_free(b);
	}
}

static void
what_is_neither_file_nor_block_device_is_refused(void **s)
{
	struct block_file_options o = { .name = "thing" };
	struct err e = ERR_INIT;
	struct block *b;

	(void)s;
	o.fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_fails(block_file_open(&o, &b, &e), &e,
		     "'thing' is not a regular file or block device");
	assert_int_equal(fcntl(o.fd, F_GETFD), -1); /* consumed */
	o.fd = open("/", O_RDONLY | O_CLOEXEC);
	assert_fails(block_file_open(&o, &b, &e), &e,
		     "'thing' is not a regular file or block device");
	o.fd = 999;
	assert_fails(block_file_open(&o, &b, &e), &e,
		     "Could not open 'thing': Bad file descriptor");
}

static void
a_write_to_a_read_only_descriptor_is_an_error_and_no_more(void **s)
{
	struct block_file_options o = { .name = "image", .read_only = true };
	struct err e = ERR_INIT;
	struct block *b;

	(void)s;
	o.fd = open("/etc/hostname", O_RDONLY | O_CLOEXEC);
	assert_ok(block_file_open(&o, &b, &e), &e);
	assert_true(b->read_only);
	assert_int_equal(block_pwrite(b, "x", 1, 0), EBADF);
	block_free(b);
}

static void
zeroes_are_zero_whatever_way_is_taken(void **s)
{
	static const int oses[] = { 0, EOPNOTSUPP };

	(void)s;
	for (unsigned flags = 0; flags < 2; flags++)
		for (size_t i = 0; i < ARRAY_SIZE(oses); i++) {
			struct block *b = file_make(200000, 0);

			fault_fallocate(oses[i], 0, i ? 1000 : 0);
			assert_int_equal(block_zero(b, 777, 150001, flags), 0);
			check(b, 0, 200000, 777, 150778);
			/* the second time it knows what does not work */
			assert_int_equal(block_zero(b, 0, 777, flags), 0);
			check(b, 0, 200000, 0, 150778);
			fault_fallocate(0, 0, 0);
			block_free(b);
		}
}

static void
a_zero_that_may_unmap_leaves_a_hole(void **s)
{
	struct block *b = file_make(MiB, 0);
	uint64_t n, before = allocated(b);
	unsigned flags;

	(void)s;
	assert_int_equal(block_zero(b, 65536, 131072, BLOCK_ZERO_MAY_UNMAP), 0);
	assert_true(allocated(b) <= before - 131072);
	assert_int_equal(block_extent(b, 0, MiB, &n, &flags), 0);
	assert_int_equal(n, 65536);
	assert_int_equal(flags, BLOCK_DATA);
	assert_int_equal(block_extent(b, 65536, MiB - 65536, &n, &flags), 0);
	assert_int_equal(n, 131072);
	assert_int_equal(flags, BLOCK_HOLE | BLOCK_ZERO);
	assert_int_equal(block_extent(b, 65536 + 4096, 8192, &n, &flags), 0);
	assert_int_equal(n, 8192);
	block_free(b);
}

static void
a_zero_that_may_not_unmap_keeps_its_space(void **s)
{
	struct block *b = file_make(MiB, 0);
	uint64_t before = allocated(b);

	(void)s;
	assert_int_equal(block_zero(b, 65536, 131072, 0), 0);
	assert_true(allocated(b) >= before);
	b->discard_unmap = false; /* "discard": "ignore" */
	assert_int_equal(block_zero(b, 0, 65536, BLOCK_ZERO_MAY_UNMAP), 0);
	assert_true(allocated(b) >= before);
	block_free(b);
}

static void
a_fast_zero_that_would_be_slow_is_refused_and_changes_nothing(void **s)
{
	struct block *b = file_make(65536, 0);

	(void)s;
	fault_fallocate(EOPNOTSUPP, 0, 1000);
	assert_int_equal(block_zero(b, 0, 4096, BLOCK_ZERO_FAST), ENOTSUP);
	fault_fallocate(0, 0, 0);
	check(b, 0, 65536, 0, 0);
	block_free(b);
}

static void
a_zero_that_fails_for_want_of_space_says_so(void **s)
{
	struct block *b = file_make(65536, 0);

	(void)s;
	fault_fallocate(ENOSPC, 0, 1);
	assert_int_equal(block_zero(b, 0, 4096, 0), ENOSPC);
	fault_fallocate(EINTR, 0, 2);
	assert_int_equal(block_zero(b, 0, 4096, 0), 0);
	fault_fallocate(0, 0, 0);
	block_free(b);
}

static void
a_zero_at_the_end_does_not_change_the_size_of_the_image(void **s)
{
	(void)s;
	for (unsigned flags = 0; flags < 2; flags++) {
		struct block *b = file_make(1000, 0);

		assert_int_equal(block_zero(b, 512, 512, flags), 0);
		check(b, 0, 1024, 512, 1024);
		assert_true(length_of(b) <= b->size);
		block_free(b);
	}
}

static void
a_discard_gives_space_up_and_is_advice(void **s)
{
	struct block *b = file_make(MiB, 0);
	uint64_t before = allocated(b);

	(void)s;
	assert_int_equal(block_discard(b, 65536, 131072), 0);
	assert_true(allocated(b) <= before - 131072);
	check(b, 65536, 131072, 65536, 65536 + 131072);
	fault_fallocate(EOPNOTSUPP, 0, 1);
	assert_int_equal(block_discard(b, 0, 4096), 0);
	check(b, 0, 65536, 0, 0);
	fault_fallocate(EIO, 0, 1);
	assert_int_equal(block_discard(b, 0, 4096), EIO);
	fault_fallocate(0, 0, 0);
	block_free(b);
}

static void
flush_and_cache_succeed(void **s)
{
	struct block *b = file_make(65536, 0);

	(void)s;
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(block_cache(b, 0, 65536), 0);
	block_free(b);
}

/* --- O_DIRECT ----------------------------------------------------------------- */

/* Offset, length and memory: aligned or not, all eight. */
static void
direct_requests_of_any_alignment_read_and_write_right(void **s)
{
	struct block *b = file_make(MiB, O_DIRECT);
	unsigned char *mem = aligned_alloc(4096, 172 * 4096);

	(void)s;
	assert_non_null(mem);
	for (unsigned way = 0; way < 8; way++) {
		uint64_t off = way & 1 ? 65536 + 513 : 65536;
		size_t len = way & 2 ? 300001 : 294912;
		unsigned char *p = way & 4 ? mem + 7 : mem;

		memset(p, 0, len);
		assert_int_equal(block_pwrite(b, p, len, off), 0);
		check(b, 0, MiB, off, off + len);
		for (size_t i = 0; i < len; i++)
			p[i] = mem_image_pattern(off + i);
		assert_int_equal(block_pwrite(b, p, len, off), 0);
		check(b, 0, MiB, 0, 0);
		memset(p, 0, len);
		assert_int_equal(block_pread(b, p, len, off), 0);
		for (size_t i = 0; i < len; i += 101)
			assert_int_equal(p[i], mem_image_pattern(off + i));
	}
	free(mem);
	assert_int_equal(block_zero(b, 100, 70000, 0), 0);
	check(b, 0, MiB, 100, 70100);
	fault_fallocate(EOPNOTSUPP, 0, 1000);
	assert_int_equal(block_zero(b, 70100, 70000, 0), 0);
	fault_fallocate(0, 0, 0);
	check(b, 0, MiB, 100, 140100);
	block_free(b);
}

/* Regression: the last 512 bytes of a disk were written as a whole block, and
 * the image had another size when it was opened the next time.
 */
static void
direct_an_image_does_not_grow_when_its_end_is_written(void **s)
{
	static const uint64_t sizes[] = { MiB + 512, MiB + 1000, 100 };

	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct block *b = file_make(sizes[i], O_DIRECT);
		unsigned char byte = mem_image_pattern(b->size - 1);

		assert_int_equal(b->size, round_up(sizes[i], 512));
		check(b, 0, b->size, sizes[i], b->size);
		assert_int_equal(block_pwrite(b, &byte, 1, b->size - 1), 0);
		check(b, 0, b->size, sizes[i], b->size - 1);
		assert_int_equal(length_of(b), b->size);
		block_free(b);
	}
}

static void
write_a_byte(void *arg)
{
	unsigned char byte = mem_image_pattern(5);

	assert_int_equal(block_pwrite(arg, &byte, 1, 5), 0);
}

struct change {
	struct block *b;
	int kind;
	int r;
};

static void
change_next_door(void *arg)
{
	struct change *c = arg;
	static const unsigned char zero = 0;

	if (c->kind == 0)
		c->r = block_pwrite(c->b, &zero, 1, 9);
	else if (c->kind == 1)
		c->r = block_zero(c->b, 9, 1, 0);
	else
		c->r = block_discard(c->b, 9, 1);
}

/* Regression: a zero between the read and the write of an unaligned write was
 * undone by it.
 */
static void
direct_an_unaligned_write_undoes_no_change_next_door(void **s)
{
	(void)s;
	for (int kind = 0; kind < 3; kind++) {
		struct block *b = file_make(65536, O_DIRECT);
		struct change c = { .b = b, .kind = kind };
		struct actor a, n;

		step_reset();
		step_arm("file.modify"); /* it has read the block */
		actor_start(&a, write_a_byte, b);
		step_wait_parked("file.modify");
		actor_start(&n, change_next_door, &c);
		/* it waits, or it has to be kept */
		(void)actor_is_held_at(&n, "file.modify", 1);
		step_release("file.modify");
		actor_join(&a);
		actor_join(&n);
		assert_int_equal(c.r, 0);
		check(b, 0, 65536, 9, 10);
		block_free(b);
		step_end();
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			what_is_behind_the_end_of_the_file_reads_as_zeroes),
		cmocka_unit_test(
			a_write_behind_the_end_of_the_file_makes_it_longer),
		cmocka_unit_test(a_file_of_any_size_is_an_image),
		cmocka_unit_test(
			what_is_neither_file_nor_block_device_is_refused),
		cmocka_unit_test(
			a_write_to_a_read_only_descriptor_is_an_error_and_no_more),
		cmocka_unit_test(zeroes_are_zero_whatever_way_is_taken),
		cmocka_unit_test(a_zero_that_may_unmap_leaves_a_hole),
		cmocka_unit_test(a_zero_that_may_not_unmap_keeps_its_space),
		cmocka_unit_test(
			a_fast_zero_that_would_be_slow_is_refused_and_changes_nothing),
		cmocka_unit_test(a_zero_that_fails_for_want_of_space_says_so),
		cmocka_unit_test(
			a_zero_at_the_end_does_not_change_the_size_of_the_image),
		cmocka_unit_test(a_discard_gives_space_up_and_is_advice),
		cmocka_unit_test(flush_and_cache_succeed),
		cmocka_unit_test(
			direct_requests_of_any_alignment_read_and_write_right),
		cmocka_unit_test(
			direct_an_image_does_not_grow_when_its_end_is_written),
		cmocka_unit_test(
			direct_an_unaligned_write_undoes_no_change_next_door),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

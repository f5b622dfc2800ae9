/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The numbered rules of tracking/checkpoint.h.
 */
#include "tracking/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bits.h"
#include "epoch-made.h"
#include "fault.h"
#include "unit.h"

#define G     (64 * KiB)
#define CHUNK (32768 * G) /* bytes of a record */
#define ID    7

static int
save(const struct epoch *ep)
{
	struct err e = ERR_INIT;
	int fd = tmpfs_file();

	assert_ok(checkpoint_save(fd, ID, ep, &e), &e);
	return fd;
}

static bool
load(int fd, struct epoch **out)
{
	struct err e = ERR_INIT;
	struct checkpoint c;
	bool ok;

	*out = NULL;
	if (!checkpoint_look(fd, &c, &e) || c.id != ID)
		return false;
	*out = epoch_make(c.size, c.granularity);
	ok = checkpoint_load(fd, *out, &e);
	if (!ok)
		assert_true(err_is_set(&e));
	return ok;
}

static void
assert_same(const struct epoch *a, const struct epoch *b)
{
	uint64_t size = epoch_size(a), at = 0, end;

	assert_int_equal(size, epoch_size(b));
	assert_int_equal(epoch_granularity(a), epoch_granularity(b));
	while (at < size) {
		at = epoch_next_dirty(a, at, size);
		assert_int_equal(at, epoch_next_dirty(b, at, size));
		end = epoch_next_clean(a, at, size);
		assert_int_equal(end, epoch_next_clean(b, at, size));
		if (at < size) /* what lies before it is clean in both */
			assert_true(end > at);
		at = end;
	}
}

static void
assert_survives(struct epoch *ep)
{
	int fd = save(ep);
	struct epoch *again;

	assert_true(load(fd, &again));
	assert_same(ep, again);
	assert_same(again, ep);
	epoch_unref(again);
	epoch_unref(ep);
	(void)close(fd);
}

static void
rule_1_borders_and_ends_come_back(void **s)
{
	static const uint64_t sizes[] = { 0,         512,          G,
					  G + 512,   CHUNK - G,    CHUNK,
					  CHUNK + 1, 3 * CHUNK + G };
	struct epoch *ep;

	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		uint64_t size = sizes[i];

		assert_survives(epoch_make(size, G)); /* nothing */
		ep = epoch_make(size, G);
		epoch_set(ep, 0, size); /* everything */
		assert_survives(ep);
		if (!size)
			continue;
		ep = epoch_make(size, G);
		epoch_set(ep, size - 1, 1);
		assert_survives(ep);
		ep = epoch_make(size, G);
		epoch_set(ep, 0, 1);
		assert_survives(ep);
	}
}

static void
rule_1_runs_across_records_come_back(void **s)
{
	struct epoch *ep = epoch_make(4 * CHUNK, G);

	(void)s;
	epoch_set(ep, CHUNK - 3 * G, 6 * G);
	epoch_set(ep, 2 * CHUNK, CHUNK); /* a whole record */
	assert_survives(ep);
}

static void
rule_1_a_chunk_without_memory_is_saved_as_all_of_it(void **s)
{
	struct epoch *ep = epoch_make(2 * CHUNK, G);

	(void)s;
	fault_fallocate(ENOSPC, 0, 1);
	epoch_set(ep, 5 * G, 1);
	assert_int_equal(epoch_next_clean(ep, 0, 2 * CHUNK), CHUNK);
	assert_survives(ep);
}

static void
rule_1_random_bits_come_back(void **s)
{
	(void)s;
	srandom(20);
	for (int round = 0; round < 30; round++) {
		uint64_t size = (uint64_t)random() % (3 * CHUNK / 128) + 1;
		struct epoch *ep = epoch_make(size, 512);

		for (long n = random() % 3000; n > 0; n--) {
			uint64_t at = (uint64_t)random() % size;

			epoch_set(
				ep, at,
				min_u64(size - at, (uint64_t)random() % 5000));
		}
		assert_survives(ep);
	}
}

static void
rule_2_a_file_that_ends_early_is_refused(void **s)
{
	struct epoch *ep = epoch_make(3 * CHUNK, G), *again;
	struct stat st;
	int fd;

	(void)s;
	epoch_set(ep, 5 * G, G);
	epoch_set(ep, CHUNK, CHUNK);
	fd = save(ep);
	assert_int_equal(fstat(fd, &st), 0);
	for (off_t len = st.st_size - 1; len >= 0; len -= len > 4200 ? 97 : 1) {
		assert_int_equal(ftruncate(fd, len), 0);
		assert_false(load(fd, &again));
		if (again)
			epoch_unref(again);
	}
	epoch_unref(ep);
	(void)close(fd);
}

static void
rule_2_a_file_with_another_byte_is_refused(void **s)
{
	struct epoch *ep = epoch_make(3 * CHUNK, G), *again;
	struct stat st;
	int fd;

	(void)s;
	epoch_set(ep, 5 * G, G);
	epoch_set(ep, 2 * CHUNK, CHUNK);
	fd = save(ep);
	assert_int_equal(fstat(fd, &st), 0);
	/* the geometry and the number are the caller's to compare */
	for (off_t at = 40; at < st.st_size; at += at < 100 ? 1 : 61) {
		unsigned char c, other;

		assert_int_equal(pread(fd, &c, 1, at), 1);
		other = c ^ 0x10;
		assert_int_equal(pwrite(fd, &other, 1, at), 1);
		assert_false(load(fd, &again));
		if (again)
			epoch_unref(again);
		assert_int_equal(pwrite(fd, &c, 1, at), 1);
	}
	assert_true(load(fd, &again));
	assert_same(ep, again);
	epoch_unref(again);
	epoch_unref(ep);
	(void)close(fd);
}

static void
rule_2_another_geometry_is_refused(void **s)
{
	struct epoch *ep = epoch_make(CHUNK, G);
	struct epoch *longer = epoch_make(CHUNK + G, G);
	struct epoch *finer = epoch_make(CHUNK, G / 2);
	struct err e = ERR_INIT;
	int fd = save(ep);

	(void)s;
	assert_false(checkpoint_load(fd, longer, &e));
	err_clear(&e);
	assert_false(checkpoint_load(fd, finer, &e));
	epoch_unref(ep);
	epoch_unref(longer);
	epoch_unref(finer);
	(void)close(fd);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rule_1_borders_and_ends_come_back),
		cmocka_unit_test(rule_1_runs_across_records_come_back),
		cmocka_unit_test(
			rule_1_a_chunk_without_memory_is_saved_as_all_of_it),
		cmocka_unit_test(rule_1_random_bits_come_back),
		cmocka_unit_test(rule_2_a_file_that_ends_early_is_refused),
		cmocka_unit_test(rule_2_a_file_with_another_byte_is_refused),
		cmocka_unit_test(rule_2_another_geometry_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

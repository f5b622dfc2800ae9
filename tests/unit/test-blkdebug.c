/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The rules of block/blkdebug.h, each with a test of its name.
 */
#include "block/blkdebug.h"

#include <errno.h>

#include "fault.h"
#include "unit.h"

#define SIZE (64 << 10)

static struct block *
debug_over(struct block *image, const struct blkdebug_rule *rules, size_t n)
{
	struct blkdebug_options o = { .rules = rules, .n = n };
	struct err e = ERR_INIT;
	struct block *b;

	assert_ok(block_blkdebug_open(image, &o, &b, &e), &e);
	return b;
}

static int
read_at(struct block *b, uint64_t off)
{
	char buf[512];

	return block_pread(b, buf, sizeof buf, off);
}

static int
write_at(struct block *b, uint64_t off)
{
	static const char buf[512] = { 1 };

	return block_pwrite(b, buf, sizeof buf, off);
}

static void
an_event_wakes_its_rules_and_puts_others_to_sleep(void **s)
{
	static const struct blkdebug_rule rules[] = {
		{ .event = BLOCK_EVENT_READ_AIO,
		  .kinds = BLKDEBUG_DEFAULT,
		  .os = EIO,
		  .sector = -1 },
		{ .event = BLOCK_EVENT_WRITE_AIO,
		  .kinds = BLKDEBUG_DEFAULT,
		  .os = ENOSPC,
		  .sector = -1 },
	};
	struct block *b = debug_over(&mem_image_new(SIZE)->block, rules, 2);

	(void)s;
	assert_int_equal(block_zero(b, 0, 512, 0), 0); /* none is awake */
	assert_int_equal(read_at(b, 0), EIO);
	assert_int_equal(block_zero(b, 0, 512, 0), EIO);
	assert_int_equal(write_at(b, 0), ENOSPC);
	assert_int_equal(block_zero(b, 0, 512, 0), ENOSPC);
	block_free(b);
}

static void
a_rule_for_none_is_awake_at_every_request(void **s)
{
	static const struct blkdebug_rule rules[] = {
		{ .event = BLOCK_EVENT_NONE,
		  .kinds = BLKDEBUG_WRITE | BLKDEBUG_DISCARD | BLKDEBUG_FLUSH,
		  .os = EPERM,
		  .sector = -1 },
	};
	struct block *b = debug_over(&mem_image_new(SIZE)->block, rules, 1);

	(void)s;
	b->discard_unmap = true;
	assert_int_equal(read_at(b, 0), 0);
	assert_int_equal(write_at(b, 0), EPERM);
	assert_int_equal(block_discard(b, 0, 512), EPERM);
	assert_int_equal(block_flush(b), EPERM);
	assert_int_equal(block_zero(b, 0, 512, 0), 0);
	block_free(b);
}

static void
a_rule_for_a_sector_and_once_fails_one_request(void **s)
{
	static const struct blkdebug_rule rules[] = {
		{ .event = BLOCK_EVENT_NONE,
		  .kinds = BLKDEBUG_DEFAULT,
		  .os = EIO,
		  .sector = 3,
		  .once = true },
	};
	struct mem_image *m = mem_image_new(SIZE);
	struct block *b = debug_over(&m->block, rules, 1);
	char buf[4096];

	(void)s;
	assert_int_equal(read_at(b, 2 * 512), 0);
	assert_int_equal(read_at(b, 4 * 512), 0);
	assert_int_equal(block_pread(b, buf, sizeof buf, 0), EIO);
	assert_int_equal(m->reads, 2);
	assert_int_equal(block_pread(b, buf, sizeof buf, 0), 0);
	block_free(b);
}

static void
a_new_state_takes_effect_after_its_event(void **s)
{
	static const struct blkdebug_rule rules[] = {
		{ .event = BLOCK_EVENT_FLUSH_TO_DISK,
		  .state = 1,
		  .sets = true,
		  .new_state = 2 },
		{ .event = BLOCK_EVENT_FLUSH_TO_DISK,
		  .state = 2,
		  .sets = true,
		  .new_state = 3 },
		{ .event = BLOCK_EVENT_READ_AIO,
		  .state = 2,
		  .kinds = BLKDEBUG_READ,
		  .os = EIO,
		  .sector = -1,
		  .once = true },
	};
	struct block *b = debug_over(&mem_image_new(SIZE)->block, rules, 3);

	(void)s;
	assert_int_equal(read_at(b, 0), 0); /* state 1 */
	assert_int_equal(block_flush(b), 0); /* 2, and not 3 at once */
	assert_int_equal(read_at(b, 0), EIO);
	assert_int_equal(read_at(b, 0), 0);
	block_free(b);
}

static void
a_driver_above_that_tells_is_believed(void **s)
{
	static const struct blkdebug_rule rules[] = {
		{ .event = BLOCK_EVENT_READ_AIO,
		  .kinds = BLKDEBUG_READ,
		  .os = EIO,
		  .sector = -1 },
	};
	struct block *b = debug_over(&mem_image_new(SIZE)->block, rules, 1);

	(void)s;
	block_event(b, BLOCK_EVENT_L2_LOAD);
	assert_int_equal(read_at(b, 0), 0); /* that was no data */
	block_event(b, BLOCK_EVENT_READ_AIO);
	assert_int_equal(read_at(b, 0), EIO);
	block_free(b);
}

static void
long_requests_are_cut(void **s)
{
	struct blkdebug_options o = { .max_transfer = 4096, .align = 512 };
	struct mem_image *m = mem_image_new(SIZE);
	struct err e = ERR_INIT;
	static char buf[10000];
	struct block *b;

	(void)s;
	assert_ok(block_blkdebug_open(&m->block, &o, &b, &e), &e);
	assert_int_equal(b->min_block, 512);
	assert_int_equal(block_pread(b, buf, sizeof buf, 0), 0);
	assert_int_equal(m->reads, 3);
	for (unsigned i = 0; i < sizeof buf; i++)
		assert_int_equal((unsigned char)buf[i], mem_image_pattern(i));
	block_free(b);
	m = mem_image_new(SIZE);
	o.max_transfer = 1000;
	assert_false(block_blkdebug_open(&m->block, &o, &b, &e));
	assert_string_equal(e.msg,
			    "Cannot meet constraints with max-transfer 1000");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			an_event_wakes_its_rules_and_puts_others_to_sleep),
		cmocka_unit_test(a_rule_for_none_is_awake_at_every_request),
		cmocka_unit_test(
			a_rule_for_a_sector_and_once_fails_one_request),
		cmocka_unit_test(a_new_state_takes_effect_after_its_event),
		cmocka_unit_test(a_driver_above_that_tells_is_believed),
		cmocka_unit_test(long_requests_are_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

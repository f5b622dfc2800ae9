/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The rules of block/throttle.h.  Times are checked from below only: a busy
 * machine makes requests later, never sooner.
 */
#include "block/throttle.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/park.h"
#include "fault.h"
#include "step.h"
#include "unit.h"

#define SIZE (64 << 10)

static struct throttle_config
limits(enum throttle_bucket bucket, uint64_t avg)
{
	struct throttle_config c = { 0 };

	for (int i = 0; i < THROTTLE_BUCKETS; i++)
		c.of[i].length = 1;
	c.of[bucket].avg = avg;
	return c;
}

static struct block *
throttled(const char *group, const struct throttle_config *c)
{
	struct err e = ERR_INIT;
	struct block *b;

	assert_ok(block_throttle_open(&mem_image_new(SIZE)->block, group, c, &b,
				      &e),
		  &e);
	return b;
}

static double
now(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void
read_n(struct block *b, unsigned n)
{
	char buf[4096];

	while (n--)
		assert_int_equal(block_pread(b, buf, sizeof buf, 0), 0);
}

static void
write_n(struct block *b, unsigned n)
{
	static const char buf[4096] = { 1 };

	while (n--)
		assert_int_equal(block_pwrite(b, buf, sizeof buf, 0), 0);
}

/* Rule 1. */
static void
requests_are_no_faster_than_the_limit(void **s)
{
	struct throttle_config c = limits(THROTTLE_OPS_TOTAL, 100);
	struct block *b = throttled("a", &c);
	double t = now();

	(void)s;
	read_n(b, 20);
	write_n(b, 21); /* 41 at once: 10 fit, and one is on its way */
	assert_true(now() - t >= 0.29);
	block_free(b);
}

static void
bytes_are_no_faster_than_the_limit(void **s)
{
	struct throttle_config c = limits(THROTTLE_BPS_WRITE, 400 << 10);
	struct block *b = throttled("a", &c);
	double t = now();

	(void)s;
	read_n(b, 100); /* reads are not limited */
	write_n(b, 42); /* 168 KiB: 40 fit, and one request more */
	assert_true(now() - t >= 0.3);
	block_free(b);
}

static void
a_burst_has_its_own_limit(void **s)
{
	struct throttle_config c = limits(THROTTLE_OPS_READ, 10);
	struct block *b;
	double t;

	(void)s;
	c.of[THROTTLE_OPS_READ].max = 200;
	c.of[THROTTLE_OPS_READ].length = 2;
	b = throttled("a", &c);
	t = now();
	read_n(b, 100); /* a burst may have 400: only its rate counts */
	assert_true(now() - t >= 0.35);
	assert_true(now() - t < 8); /* and not 10 in a second */
	block_free(b);
}

static void
a_long_request_counts_as_several(void **s)
{
	struct throttle_config c = limits(THROTTLE_OPS_TOTAL, 100);
	struct block *b;
	double t;

	(void)s;
	c.ops_size = 1024;
	b = throttled("a", &c);
	t = now();
	read_n(b, 11); /* 44 */
	assert_true(now() - t >= 0.25);
	block_free(b);
}

/* --- sharing ------------------------------------------------------------------- */

struct reader {
	struct block *b;
	_Atomic unsigned n, done;
	pthread_t thread;
};

static void *
keep_reading(void *arg)
{
	struct reader *r = arg;
	char buf[512];

	while (r->done < r->n && block_pread(r->b, buf, sizeof buf, 0) == 0)
		r->done++;
	return NULL;
}

static void
start(struct reader *r, struct block *b, unsigned n)
{
	r->b = b;
	r->n = n;
	assert_int_equal(pthread_create(&r->thread, NULL, keep_reading, r), 0);
}

static void
images_of_a_group_share_its_limit(void **s)
{
	struct throttle_config c = limits(THROTTLE_OPS_TOTAL, 100);
	struct block *a = throttled("g", &c), *b = throttled("g", &c);
	struct block *other = throttled("h", &c);
	struct reader x = { 0 }, y = { 0 };
	double t = now();

	(void)s;
	start(&x, a, 21);
	start(&y, b, 20);
	read_n(other, 10); /* fits in its own bucket */
	pthread_join(x.thread, NULL);
	pthread_join(y.thread, NULL);
	assert_true(now() - t >= 0.29);
	block_free(a);
	block_free(b);
	block_free(other);
}

/* What the group let happen, in its order: noted under its lock. */
static _Thread_local bool is_alone;
static _Atomic unsigned many_wait; /* threads of the other image */
static unsigned overtaken, worst; /* by how many requests of the other */

static void
note_turn(const char *place)
{
	bool admitted = strcmp(place, "throttle.admitted") == 0;

	if (!admitted && strcmp(place, "throttle.queued") != 0)
		return;
	if (!is_alone) {
		many_wait += admitted ? -1u : 1u;
		overtaken += admitted;
	} else if (admitted) {
		worst = overtaken > worst ? overtaken : worst;
	} else {
		overtaken = 0;
	}
}

static void *
read_alone(void *b)
{
	is_alone = true;
	read_n(b, 20);
	return NULL;
}

/* Rule 3: many threads of one image do not push the other aside.  What comes
 * while one of theirs has its turn goes next.
 */
static void
images_of_a_group_take_turns(void **s)
{
	struct throttle_config c = limits(THROTTLE_OPS_TOTAL, 100);
	struct block *a = throttled("g", &c), *b = throttled("g", &c);
	struct reader many[8] = { 0 };
	pthread_t alone;

	(void)s;
	worst = 0;
	park_set(note_turn);
	for (int i = 0; i < 8; i++)
		start(&many[i], a, 1000000);
	while (many_wait < 8)
		sched_yield();
	assert_int_equal(pthread_create(&alone, NULL, read_alone, b), 0);
	pthread_join(alone, NULL);
	for (int i = 0; i < 8; i++)
		many[i].n = 0;
	block_admit_all(a, true);
	for (int i = 0; i < 8; i++)
		pthread_join(many[i].thread, NULL);
	block_admit_all(a, false);
	park_set(NULL);
	assert_int_equal(many_wait, 0);
	assert_true(worst <= 1);
	block_free(a);
	block_free(b);
}

/* --- outside -------------------------------------------------------------------- */

static void
who_waits_outside_does_not_wait_in_the_request(void **s)
{
	struct throttle_config c = limits(THROTTLE_OPS_TOTAL, 1);
	struct block *b = throttled("g", &c);
	struct block *raw, *plain;
	struct err e = ERR_INIT;
	double t = now();

	(void)s;
	assert_ok(block_raw_open(b, 0, false, 0, &raw, &e), &e);
	assert_true(block_admit_outside(raw));
	read_n(raw, 1000);
	assert_true(now() - t < 60);
	t = now();
	block_admit(raw, false, 512);
	block_admit(raw, true, 512);
	assert_true(now() - t >= 0.8);
	block_free(raw);
	assert_ok(block_null_open(SIZE, 0, &plain, &e), &e);
	assert_false(block_admit_outside(plain));
	block_free(plain);
}

static void
new_limits_reach_who_waits(void **s)
{
	struct throttle_config c = limits(THROTTLE_BPS_TOTAL, 1);
	struct throttle_config none = limits(THROTTLE_BPS_TOTAL, 0);
	struct block *b = throttled("g", &c);
	struct reader x = { 0 };

	(void)s;
	start(&x, b, 2); /* the second would take minutes */
	while (x.done == 0)
		sched_yield();
	throttle_group_set("g", &none);
	pthread_join(x.thread, NULL);
	assert_int_equal(x.done, 2);
	throttle_group_set("nobody", &none);
	block_free(b);
}

static void
who_waits_can_be_let_go(void **s)
{
	struct throttle_config c = limits(THROTTLE_BPS_TOTAL, 1);
	struct block *b = throttled("g", &c);
	struct reader x = { 0 }, y = { 0 };

	(void)s;
	start(&x, b, 2);
	start(&y, b, 2);
	while (x.done + y.done == 0)
		sched_yield();
	block_admit_all(b, true);
	pthread_join(x.thread, NULL);
	pthread_join(y.thread, NULL);
	block_admit_all(b, false);
	block_free(b);
}

static void
impossible_limits_are_refused(void **s)
{
	struct throttle_config c = limits(THROTTLE_BPS_TOTAL, 1);
	struct err e = ERR_INIT;

	(void)s;
	assert_true(throttle_config_check(&c, &e));
	c.of[THROTTLE_BPS_READ].avg = 1;
	assert_false(throttle_config_check(&c, &e));
	assert_string_equal(e.msg, "bps/iops/max total values and read/write "
				   "values cannot be used at the same time");
	err_clear(&e);
	c = limits(THROTTLE_OPS_READ, THROTTLE_MAX_VALUE);
	assert_true(throttle_config_check(&c, &e));
	c.of[THROTTLE_OPS_READ].avg++;
	assert_false(throttle_config_check(&c, &e));
	err_clear(&e);
	c = limits(THROTTLE_OPS_READ, 10);
	c.of[THROTTLE_OPS_READ].max = 9;
	assert_false(throttle_config_check(&c, &e));
	assert_string_equal(e.msg,
			    "bps_max/iops_max cannot be lower than bps/iops");
	err_clear(&e);
	c.of[THROTTLE_OPS_READ].max = 10;
	c.of[THROTTLE_OPS_READ].length = 0;
	assert_false(throttle_config_check(&c, &e));
	assert_string_equal(e.msg, "the burst length cannot be 0");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(requests_are_no_faster_than_the_limit),
		cmocka_unit_test(bytes_are_no_faster_than_the_limit),
		cmocka_unit_test(a_burst_has_its_own_limit),
		cmocka_unit_test(a_long_request_counts_as_several),
		cmocka_unit_test(images_of_a_group_share_its_limit),
		cmocka_unit_test(images_of_a_group_take_turns),
		cmocka_unit_test(
			who_waits_outside_does_not_wait_in_the_request),
		cmocka_unit_test(new_limits_reach_who_waits),
		cmocka_unit_test(who_waits_can_be_let_go),
		cmocka_unit_test(impossible_limits_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The limits of a throttle group by a clock of our own: what clients that take
 * all they get have let through, against what the limits say of every window
 * of a second and of a minute.
 */
#include "block/buckets.h"

#include <stdlib.h>

#include "unit.h"

#define SECOND UINT64_C(1000000000)

struct request {
	uint64_t at;
	double units
		[THROTTLE_BUCKETS]; /* what it counts as, 0 where it does not */
};

struct run {
	struct request *v; /* owned */
	size_t n;
	uint64_t now;
	struct buckets b;
};

static uint64_t
rnd(uint64_t *seed, uint64_t below)
{
	*seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407;
	return (*seed >> 33) % below;
}

static struct throttle_config
unlimited(void)
{
	struct throttle_config c = { 0 };

	for (int i = 0; i < THROTTLE_BUCKETS; i++)
		c.of[i].length = 1;
	return c;
}

static void
begin(struct run *r, const struct throttle_config *c)
{
	*r = (struct run){ .now = 5 * SECOND, .b.now = 5 * SECOND };
	buckets_set(&r->b, r->now, c);
}

static void
note(struct run *r, bool write, uint64_t len)
{
	uint64_t size = r->b.limits.ops_size;
	double ops = size && len > size ? (double)len / (double)size : 1;
	struct request *q;

	if ((r->n & (r->n - 1)) == 0) /* full */
		r->v = realloc(r->v, (r->n ? 2 * r->n : 1) * sizeof r->v[0]);
	assert_non_null(r->v);
	q = &r->v[r->n++];
	*q = (struct request){ .at = r->now };
	q->units[THROTTLE_BPS_TOTAL] = (double)len;
	q->units[write ? THROTTLE_BPS_WRITE : THROTTLE_BPS_READ] = (double)len;
	q->units[THROTTLE_OPS_TOTAL] = ops;
	q->units[write ? THROTTLE_OPS_WRITE : THROTTLE_OPS_READ] = ops;
}

/* As throttle.c does it, by this clock. */
static void
request(struct run *r, bool write, uint64_t len)
{
	double s;

	while ((s = buckets_wait(&r->b, r->now, write)) > 0)
		r->now += (uint64_t)(s * 1e9) + 1;
	buckets_pour(&r->b, write, len);
	note(r, write, len);
}

static double
most_in(const struct run *r, int bucket, uint64_t window, double *largest)
{
	double sum = 0, most = 0;
	size_t from = 0;

	*largest = 0;
	for (size_t i = 0; i < r->n; i++) {
		double units = r->v[i].units[bucket];

		sum += units;
		while (r->v[i].at - r->v[from].at >= window)
			sum -= r->v[from++].units[bucket];
		most = sum > most ? sum : most;
		*largest = units > *largest ? units : *largest;
	}
	return most;
}

/* The model: a limit lets through what it says for the window, once what a
 * bucket holds, and the request that made it full.
 */
static void
check_window(const struct run *r, uint64_t window)
{
	for (int i = 0; i < THROTTLE_BUCKETS; i++) {
		const struct throttle_limit *l = &r->b.limits.of[i];
		double s = (double)window / 1e9, avg = (double)l->avg;
		double burst = (double)l->max, largest;
		double most = most_in(r, i, window, &largest);
		double room = l->max ? burst * (double)l->length : avg / 10;

		if (!l->avg)
			continue;
		assert_true(most <= avg * s + room + largest + 0.01);
		if (l->length > 1)
			assert_true(most <=
				    burst * s + burst / 10 + largest + 0.01);
	}
}

static void
check(struct run *r)
{
	check_window(r, SECOND);
	check_window(r, 60 * SECOND);
	free(r->v);
}

/* --- throttle.h, rule 1 ----------------------------------------------------------- */

/* One to three buckets, which may not exclude each other. */
static struct throttle_config
random_limits(uint64_t *seed)
{
	struct throttle_config c = unlimited();
	bool total = rnd(seed, 2);

	for (int kind = 0; kind < 2; kind++) {
		int first = kind ? THROTTLE_OPS_TOTAL : THROTTLE_BPS_TOTAL;
		uint64_t rate =
			kind ? 20 + rnd(seed, 300) : 10000 + rnd(seed, 3000000);

		if (total) {
			c.of[first].avg = rate;
		} else {
			c.of[first + 1].avg = rate;
			c.of[first + 2].avg = rnd(seed, 2) ? rate * 2 : 0;
		}
	}
	if (rnd(seed, 3) == 0)
		c.ops_size = 4096;
	return c;
}

static void
limits_hold_over_a_second_and_over_a_minute(void **s)
{
	(void)s;
	for (uint64_t n = 1; n <= 40; n++) {
		uint64_t seed = n, end;
		struct throttle_config c = random_limits(&seed);
		struct run r;

		begin(&r, &c);
		end = r.now + 150 * SECOND;
		while (r.now < end && r.n < 200000) {
			request(&r, rnd(&seed, 2), 512 << rnd(&seed, 8));
			r.now += 1000 + rnd(&seed, 50000);
			if (rnd(&seed, 500) == 0)
				r.now += rnd(&seed, 3 * SECOND);
		}
		check(&r);
	}
}

static void
bursts_hold_over_a_second_and_over_a_minute(void **s)
{
	static const struct throttle_limit limits[] = {
		{ 100, 300, 1 }, { 100, 300, 5 },   { 100, 1000, 30 },
		{ 50, 50, 3 },   { 200, 2000, 60 },
	};

	(void)s;
	for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
		struct throttle_config c = unlimited();
		uint64_t seed = i, end;
		struct run r;

		c.of[THROTTLE_OPS_TOTAL] = limits[i];
		begin(&r, &c);
		end = r.now + 300 * SECOND;
		while (r.now < end) {
			request(&r, false, 4096);
			if (rnd(&seed, 3000) == 0) /* the bucket leaks */
				r.now += rnd(&seed, 40 * SECOND);
		}
		check(&r);
	}
}

/* What is asked for is also given. */
static void
who_takes_all_gets_all(void **s)
{
	struct throttle_config c = unlimited();
	struct run r;

	(void)s;
	c.of[THROTTLE_BPS_READ].avg = 1 << 20;
	begin(&r, &c);
	while (r.now < 65 * SECOND)
		request(&r, false, 64 << 10);
	assert_true(r.n >= 60 * 16);
	check(&r);
}

static void
a_burst_lasts_as_long_as_it_may(void **s)
{
	struct throttle_config c = unlimited();
	uint64_t second[20] = { 0 };
	struct run r;

	(void)s;
	c.of[THROTTLE_OPS_WRITE] = (struct throttle_limit){ 100, 300, 6 };
	begin(&r, &c);
	while (r.now < 20 * SECOND)
		request(&r, true, 512);
	for (size_t i = 0; i < r.n; i++)
		second[(r.v[i].at / SECOND) % 20]++;
	/* 1800 in the bucket, which loses 100 a second: 300 for 9 seconds */
	for (int i = 5; i < 13; i++)
		assert_in_range(second[i], 290, 331);
	for (int i = 15; i < 20; i++)
		assert_in_range(second[i], 98, 102);
	free(r.v);
}

static void
idle_time_is_not_saved_up(void **s)
{
	struct throttle_config c = unlimited();
	struct run r;

	(void)s;
	c.of[THROTTLE_OPS_TOTAL].avg = 100;
	begin(&r, &c);
	for (int i = 0; i < 5; i++) {
		uint64_t end;

		r.now += 3600 * SECOND;
		for (end = r.now + SECOND; r.now < end;)
			request(&r, i & 1, 512);
	}
	/* 110 a second and the one that made it full */
	assert_in_range(r.n, 5 * 100, 5 * 112);
	check(&r);
}

/* What was let through under the old limits counts under the new ones. */
static void
new_limits_do_not_forget(void **s)
{
	struct throttle_config c = unlimited();
	struct run r;
	size_t before;

	(void)s;
	c.of[THROTTLE_OPS_TOTAL] = (struct throttle_limit){ 1000, 5000, 1 };
	begin(&r, &c);
	while (r.n < 5000)
		request(&r, false, 512);
	before = r.n;
	c.of[THROTTLE_OPS_TOTAL] = (struct throttle_limit){ 100, 0, 1 };
	buckets_set(&r.b, r.now, &c);
	assert_true(buckets_wait(&r.b, r.now, false) > 40);
	c.of[THROTTLE_OPS_TOTAL] = (struct throttle_limit){ 0, 0, 1 };
	buckets_set(&r.b, r.now, &c);
	request(&r, false, 512); /* without a limit nobody waits */
	assert_int_equal(r.n, before + 1);
	free(r.v);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(limits_hold_over_a_second_and_over_a_minute),
		cmocka_unit_test(bursts_hold_over_a_second_and_over_a_minute),
		cmocka_unit_test(who_takes_all_gets_all),
		cmocka_unit_test(a_burst_lasts_as_long_as_it_may),
		cmocka_unit_test(idle_time_is_not_saved_up),
		cmocka_unit_test(new_limits_do_not_forget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/buckets.h"

static double
drained(double units, uint64_t rate, double seconds)
{
	double left = units - (double)rate * seconds;

	return left > 0 ? left : 0;
}

static void
leak(struct buckets *b, uint64_t now)
{
	double seconds = (double)(now - b->now) / 1e9;

	b->now = now;
	for (int i = 0; i < THROTTLE_BUCKETS; i++) {
		struct level *v = &b->level[i];
		const struct throttle_limit *l = &b->limits.of[i];

		v->units = drained(v->units, l->avg, seconds);
		v->burst = drained(v->burst, l->max, seconds);
	}
}

void
buckets_set(struct buckets *b, uint64_t now, const struct throttle_config *l)
{
	leak(b, now);
	b->limits = *l;
}

/* Seconds until a bucket has room again. */
static double
bucket_wait(const struct throttle_limit *l, const struct level *v)
{
	double room = l->max ? (double)l->max * (double)l->length
			     : (double)l->avg / 10;

	if (!l->avg)
		return 0;
	if (v->units > room)
		return (v->units - room) / (double)l->avg;
	room = (double)l->max / 10;
	if (l->length > 1 && v->burst > room)
		return (v->burst - room) / (double)l->max;
	return 0;
}

/* Those of one direction: bytes and requests, total and its own. */
static const enum throttle_bucket own[2][4] = {
	{ THROTTLE_BPS_TOTAL, THROTTLE_BPS_READ, THROTTLE_OPS_TOTAL,
	  THROTTLE_OPS_READ },
	{ THROTTLE_BPS_TOTAL, THROTTLE_BPS_WRITE, THROTTLE_OPS_TOTAL,
	  THROTTLE_OPS_WRITE },
};

double
buckets_wait(struct buckets *b, uint64_t now, bool write)
{
	double longest = 0;

	leak(b, now);
	for (int i = 0; i < 4; i++) {
		enum throttle_bucket k = own[write][i];
		double s = bucket_wait(&b->limits.of[k], &b->level[k]);

		longest = s > longest ? s : longest;
	}
	return longest;
}

void
buckets_pour(struct buckets *b, bool write, uint64_t len)
{
	uint64_t size = b->limits.ops_size;
	double ops = size && len > size ? (double)len / (double)size : 1;

	for (int i = 0; i < 4; i++) {
		struct level *v = &b->level[own[write][i]];
		double units = i < 2 ? (double)len : ops;

		v->units += units;
		v->burst += units;
	}
}

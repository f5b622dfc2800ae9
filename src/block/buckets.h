/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The arithmetic of a throttle group: leaky buckets.  A request may go while
 * none of its buckets is too full, and is poured into them then.  Times are
 * nanoseconds of any clock that does not go back, and are passed in.  Whoever
 * uses it holds the group's lock.
 */
#ifndef BLOCK_BUCKETS_H
#define BLOCK_BUCKETS_H

#include <stdbool.h>
#include <stdint.h>

/* QEMU's limits, and its largest value for each of them. */
enum throttle_bucket {
	THROTTLE_BPS_TOTAL,
	THROTTLE_BPS_READ,
	THROTTLE_BPS_WRITE,
	THROTTLE_OPS_TOTAL,
	THROTTLE_OPS_READ,
	THROTTLE_OPS_WRITE,
	THROTTLE_BUCKETS
};
#define THROTTLE_MAX_VALUE UINT64_C(1000000000000000)

struct throttle_limit {
	uint64_t avg; /* units per second; 0: no limit */
	uint64_t max; /* in a burst; 0: no burst */
	uint64_t length; /* of a burst, in seconds; at least 1 */
};

struct throttle_config {
	struct throttle_limit of[THROTTLE_BUCKETS];
	uint64_t ops_size; /* longer requests count as several; 0: as one */
};

/* How full a bucket is, in units; it leaks avg (burst: max) in a second. */
struct level {
	double units, burst;
};

struct buckets {
	struct throttle_config limits;
	struct level level[THROTTLE_BUCKETS];
	uint64_t now; /* of the levels */
};

/* Other limits from now on; what was poured in stays. */
void buckets_set(struct buckets *b, uint64_t now,
		 const struct throttle_config *l);

/* Seconds until a request may go; 0: now. */
double buckets_wait(struct buckets *b, uint64_t now, bool write);

/* A request goes. */
void buckets_pour(struct buckets *b, bool write, uint64_t len);

#endif

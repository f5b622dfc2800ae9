/* SPDX-License-Identifier: BSD-3-Clause
 *
 * load-writer: a guest at full speed.
 *
 * Keeps --depth requests in flight at random places of one disk's area, over
 * one connection as a guest's driver does, and reports what got through:
 *
 *   ready
 *   stat T OPS ERRORS MAX     once per --interval: end of the interval
 *                             (CLOCK_MONOTONIC seconds), requests that
 *                             succeeded and failed in it, longest latency (us)
 *   paused OPS | running | acked OPS    answers to control, see tool.h
 *   done {JSON}               the totals with latency percentiles
 *
 * A pause is announced when no request is in flight any more.  With
 * --reconnect a lost connection is made anew and the load goes on; requests
 * that were lost are sent again, so that whoever counts them sees each once.
 */
#include <assert.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "tool.h"

enum {
	MAX_DEPTH = 1024,
	MAX_BLOCK = 32 << 20,
	POLL_MS = 20,
	/* Latency histogram: 32 linear steps per power of two of microseconds. */
	STEPS = 32,
	BUCKETS = 1280, /* 40 powers of two */
};

enum kind { KIND_READ, KIND_WRITE, KIND_ZERO, KIND_TRIM };

struct load;

struct request {
	struct load *load;
	enum kind kind;
	uint64_t offset;
	double sent; /* seconds; latency counts from here */
	bool flying;
	bool lost; /* must be sent again */
	uint8_t *data; /* owned, one block */
};

struct load {
	struct disk disk;
	uint64_t block, depth, percent_read, percent_zero, percent_trim;
	double interval, seconds, patience;
	bool sequential;
	uint64_t random, seq;
	struct request requests[MAX_DEPTH];
	uint64_t flying;
	bool paused;
	uint64_t ops, errors, reconnections;
	uint64_t interval_ops, interval_errors;
	double interval_max, total_max;
	uint64_t histogram[BUCKETS];
};

static uint64_t
random_next(struct load *l)
{
	uint64_t x = l->random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return l->random = x;
}

static unsigned
bucket_of(uint64_t us)
{
	unsigned shift = 0;

	while (us >> shift >= (uint64_t)STEPS * 2)
		shift++;
	if (shift == 0)
		return (unsigned)us;
	return shift * STEPS + (unsigned)(us >> shift);
}

static uint64_t
bucket_value(unsigned bucket)
{
	unsigned shift;

	if (bucket < STEPS * 2)
		return bucket;
	shift = bucket / STEPS - 1;
	return (uint64_t)(bucket - shift * STEPS) << shift;
}

static void
account(struct load *l, double latency)
{
	unsigned bucket = bucket_of((uint64_t)(latency * 1e6));

	l->histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	l->ops++;
	l->interval_ops++;
	if (latency > l->interval_max)
		l->interval_max = latency;
	if (latency > l->total_max)
		l->total_max = latency;
}

static int
on_completion(void *user_data, int *error)
{
	struct request *r = user_data;
	struct load *l = r->load;

	r->flying = false;
	l->flying--;
	if (*error == 0) {
		account(l, now_seconds() - r->sent);
	} else if (*error == ENOTCONN || *error == ESHUTDOWN) {
		r->lost = true;
	} else {
		l->errors++;
		l->interval_errors++;
	}
	return 1; /* retire it */
}

static enum kind
choose_kind(struct load *l)
{
	uint64_t dice = random_next(l) % 100;

	if (dice < l->percent_read)
		return KIND_READ;
	if (dice < l->percent_read + l->percent_zero)
		return KIND_ZERO;
	if (dice < l->percent_read + l->percent_zero + l->percent_trim)
		return KIND_TRIM;
	return KIND_WRITE;
}

static void
choose(struct load *l, struct request *r)
{
	uint64_t blocks = l->disk.length / l->block;
	uint64_t b = (l->sequential ? l->seq : random_next(l)) % blocks;

	r->kind = choose_kind(l);
	r->offset = l->disk.offset + b * l->block;
	l->seq++;
	/* Every write differs from every other in its first bytes. */
	if (r->kind == KIND_WRITE && l->block >= sizeof(l->seq))
		memcpy(r->data, &l->seq, sizeof(l->seq));
}

static void
send_request(struct load *l, struct request *r)
{
	nbd_completion_callback done = { .callback = on_completion,
					 .user_data = r };
	int64_t cookie = -1;

	if (!r->lost)
		choose(l, r);
	r->lost = false;
	r->flying = true;
	l->flying++;
	r->sent = now_seconds();
	switch (r->kind) {
	case KIND_READ:
		cookie = nbd_aio_pread(l->disk.nbd, r->data, l->block,
				       r->offset, done, 0);
		break;
	case KIND_WRITE:
		cookie = nbd_aio_pwrite(l->disk.nbd, r->data, l->block,
					r->offset, done, 0);
		break;
	case KIND_ZERO:
		cookie =
			nbd_aio_zero(l->disk.nbd, l->block, r->offset, done, 0);
		break;
	case KIND_TRIM:
		cookie =
			nbd_aio_trim(l->disk.nbd, l->block, r->offset, done, 0);
		break;
	}
	/* Refused at once: the callback may or may not have run. */
	if (cookie < 0 && r->flying) {
		r->flying = false;
		r->lost = true;
		l->flying--;
	}
}

static void
reconnect(struct load *l)
{
	uint64_t i;

	if (l->patience <= 0)
		die("%s: connection lost: %s", l->disk.uri, nbd_get_error());
	disk_close(&l->disk);
	for (i = 0; i < l->depth; i++) { /* closing does not complete them */
		l->requests[i].lost |= l->requests[i].flying;
		l->requests[i].flying = false;
	}
	l->flying = 0;
	disk_connect(&l->disk, l->patience);
	l->reconnections++;
}

static bool
is_broken(const struct load *l)
{
	return nbd_aio_is_dead(l->disk.nbd) > 0 ||
	       nbd_aio_is_closed(l->disk.nbd) > 0;
}

/* Send what may be sent and handle what has arrived. */
static void
turn(struct load *l)
{
	uint64_t i;

	for (i = 0; i < l->depth && !l->paused; i++)
		if (!l->requests[i].flying)
			send_request(l, &l->requests[i]);
	if (is_broken(l) || (l->flying && nbd_poll(l->disk.nbd, POLL_MS) < 0))
		reconnect(l);
}

static void
report(struct load *l, double now)
{
	say("stat %.6f %" PRIu64 " %" PRIu64 " %.0f", now, l->interval_ops,
	    l->interval_errors, l->interval_max * 1e6);
	l->interval_ops = l->interval_errors = 0;
	l->interval_max = 0;
}

/* Returns false when the load must stop.  While it is paused this waits for
 * the next order.
 */
static bool
obey(struct load *l)
{
	bool quiet = l->paused && l->flying == 0;

	switch (control_poll(quiet ? -1 : 0)) {
	case CONTROL_NONE: return true;
	case CONTROL_QUIT: return false;
	case CONTROL_STATUS: say("acked %" PRIu64, l->ops); return true;
	case CONTROL_RESUME:
		l->paused = false;
		say("running");
		return true;
	case CONTROL_PAUSE:
		l->paused = true;
		while (l->flying)
			turn(l);
		say("paused %" PRIu64, l->ops);
		return true;
	}
	return true;
}

static void
run(struct load *l)
{
	double start = now_seconds(), due = start + l->interval, now;
	double look = start;

	for (;;) {
		now = now_seconds();
		if (l->seconds > 0 && now >= start + l->seconds)
			break;
		if (now >= look || l->paused) {
			look = now + POLL_MS / 1000.0;
			if (!obey(l))
				break;
			now = now_seconds();
		}
		if (now >= due) {
			report(l, now);
			due += l->interval;
			if (due < now)
				due = now + l->interval;
		}
		turn(l);
	}
	l->paused = true;
	while (l->flying)
		turn(l);
	report(l, now_seconds());
}

static uint64_t
percentile(const struct load *l, double share)
{
	uint64_t sum = 0, want = (uint64_t)((double)l->ops * share);
	unsigned i;

	for (i = 0; i < BUCKETS; i++) {
		sum += l->histogram[i];
		if (sum > want)
			return bucket_value(i);
	}
	return bucket_value(BUCKETS - 1);
}

static void
summary(const struct load *l, double elapsed)
{
	say("done {\"ops\": %" PRIu64 ", \"errors\": %" PRIu64
	    ", \"reconnections\": %" PRIu64 ", \"seconds\": %.6f"
	    ", \"iops\": %.1f, \"p50_us\": %" PRIu64 ", \"p99_us\": %" PRIu64
	    ", \"p999_us\": %" PRIu64 ", \"max_us\": %.0f}",
	    l->ops, l->errors, l->reconnections, elapsed,
	    (double)l->ops / elapsed, percentile(l, 0.5), percentile(l, 0.99),
	    percentile(l, 0.999), l->total_max * 1e6);
}

static void
usage(void)
{
	puts("load-writer [OPTIONS] OFFSET+LENGTH@URI\n"
	     "Random requests to one NBD export, as fast as it takes them.\n"
	     "Orders on standard input: pause, resume, status, quit.\n\n"
	     "  --depth N      requests in flight (default 16)\n"
	     "  --block N      bytes per request (default 4096)\n"
	     "  --read N       percent of reads (default 0: only writes)\n"
	     "  --zero N       percent of write-zeroes (default 0)\n"
	     "  --trim N       percent of trims (default 0)\n"
	     "  --sequential   one block after the other, round and round\n"
	     "  --interval MS  time between stat lines (default 250)\n"
	     "  --seconds N    stop after N seconds (default: never)\n"
	     "  --reconnect S  wait up to S seconds for a lost connection\n"
	     "  --seed N       of the random places (default 1)\n"
	     "  --help         this text");
}

static void
set_option(struct load *l, int o, const char *arg)
{
	switch (o) {
	case 'd': l->depth = number(arg, "--depth", MAX_DEPTH); break;
	case 'b': l->block = number(arg, "--block", MAX_BLOCK); break;
	case 'r': l->percent_read = number(arg, "--read", 100); break;
	case 'z': l->percent_zero = number(arg, "--zero", 100); break;
	case 't': l->percent_trim = number(arg, "--trim", 100); break;
	case 'q': l->sequential = true; break;
	case 'i':
		l->interval = (double)number(arg, "--interval", 60000) / 1000;
		break;
	case 's': l->seconds = (double)number(arg, "--seconds", 86400); break;
	case 'c': l->patience = (double)number(arg, "--reconnect", 3600); break;
	case 'e': l->random ^= number(arg, "--seed", UINT32_MAX) << 1; break;
	case 'h': usage(); exit(0);
	default: exit(1);
	}
}

static void
parse_options(struct load *l, int argc, char **argv)
{
	static const struct option options[] = {
		{ "depth", required_argument, NULL, 'd' },
		{ "block", required_argument, NULL, 'b' },
		{ "read", required_argument, NULL, 'r' },
		{ "zero", required_argument, NULL, 'z' },
		{ "trim", required_argument, NULL, 't' },
		{ "sequential", no_argument, NULL, 'q' },
		{ "interval", required_argument, NULL, 'i' },
		{ "seconds", required_argument, NULL, 's' },
		{ "reconnect", required_argument, NULL, 'c' },
		{ "seed", required_argument, NULL, 'e' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1)
		set_option(l, o, optarg);
	if (argc - optind != 1)
		die("give exactly one disk, see --help");
	disk_parse(&l->disk, argv[optind]);
	if (l->depth == 0 || l->block == 0 || l->interval <= 0)
		die("--depth, --block and --interval must not be 0");
	if (l->percent_read + l->percent_zero + l->percent_trim > 100)
		die("--read, --zero and --trim together exceed 100 percent");
	if (l->disk.length < l->block)
		die("the area is smaller than one block");
}

static void
make_requests(struct load *l)
{
	const uint64_t block = l->block;
	uint64_t i, j;

	assert(block > 0);
	for (i = 0; i < l->depth; i++) {
		struct request *r = &l->requests[i];

		r->load = l;
		r->data = malloc(block);
		if (!r->data)
			die("no memory for %" PRIu64 " blocks", l->depth);
		for (j = 0; j < block; j++)
			r->data[j] = (uint8_t)(random_next(l) >> 32);
	}
}

int
main(int argc, char **argv)
{
	static struct load l = { .depth = 16,
				 .block = 4096,
				 .interval = 0.25,
				 .random = 0x9e3779b97f4a7c15ULL };
	double start;
	uint64_t i;

	parse_options(&l, argc, argv);
	make_requests(&l);
	disk_connect(&l.disk, l.patience);
	say("ready");
	start = now_seconds();
	run(&l);
	summary(&l, now_seconds() - start);
	disk_close(&l.disk);
	for (i = 0; i < l.depth; i++)
		free(l.requests[i].data);
	return 0;
}

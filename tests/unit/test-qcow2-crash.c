/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Power cuts and deaths.  Random requests go to an image on a simulated disk;
 * before each change that reaches the disk the power is cut in several ways,
 * and the image that is left must be whole but for leaks (rules 1, 2, 5), hold
 * all flushed data (rules 3, 4), and after a mere death all that was
 * acknowledged (rule 6).
 *
 * QCOW2_CRASH_SEED and QCOW2_CRASH_OPS in the environment make longer runs.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "base/bits.h"
#include "qcow2-rig.h"
#include "unit.h"

#define SECTOR   512u
#define CAPACITY (8 * MiB)
#define UNIT_MAX 4096u
#define VERSIONS 12u
#define HISTORY  40u
#define BASE_TAG UINT64_C(0xba5e000000000000)

struct variant {
	const char *name, *options;
	const char *snapshot_of; /* qemu-io commands before a snapshot */
	unsigned kib; /* of the disk */
	unsigned cluster; /* bytes */
	bool backing, slow_zero, v2, snapshots;
	unsigned min_block; /* of the disk below, in bytes; 0: 1 */
};

/* What a sector may be after a power cut. */
struct sector {
	uint64_t now; /* acknowledged */
	uint64_t may[VERSIONS]; /* durable or not: any of these */
	unsigned n;
	uint64_t ever[HISTORY]; /* what it was at some time */
	unsigned was;
	bool any; /* too many to remember */
	bool packed; /* compressed and not flushed: may be unreadable */
};

static struct {
	const struct variant *v;
	struct crash_disk *d;
	struct block *b;
	struct sector *sector; /* owned */
	uint64_t sectors, seed, cuts, tag;
	uint64_t first, end; /* of the request in flight */
	char what[128];
} t;

/* --- the model ------------------------------------------------------------------- */

static void
may_be(struct sector *s, uint64_t v)
{
	for (unsigned i = 0; i < s->n; i++)
		if (s->may[i] == v)
			return;
	if (s->n == VERSIONS)
		s->any = true;
	else
		s->may[s->n++] = v;
}

/* A sector that was written and not flushed may be what it was before in the
 * same place.
 */
static bool
is_allowed(const struct sector *s, uint64_t v)
{
	if (s->any || (s->n > 1 && s->was == HISTORY))
		return true;
	for (unsigned i = 0; i < s->was && s->n > 1; i++)
		if (s->ever[i] == v)
			return true;
	for (unsigned i = 0; i < s->n; i++)
		if (s->may[i] == v)
			return true;
	return false;
}

static void
remember(struct sector *s, uint64_t v)
{
	s->now = v;
	if (s->was < HISTORY)
		s->ever[s->was++] = v;
}

static void
all_flushed(void)
{
	for (uint64_t i = 0; i < t.sectors; i++) {
		struct sector *s = &t.sector[i];

		s->may[0] = s->now;
		s->n = 1;
		s->any = s->packed = false;
	}
}

/* A sector is one word, many times. */
static uint64_t
word_of(const uint64_t *p, uint64_t sector)
{
	for (unsigned i = 1; i < SECTOR / 8; i++)
		if (p[i] != p[0])
			fail_msg("%s: sector %" PRIu64 " is torn", t.what,
				 sector);
	return p[0];
}

static struct block *
new_backing(void)
{
	size_t size = (size_t)(t.sectors * SECTOR);
	uint64_t *p;
	struct crash_disk *d;

	if (!t.v->backing)
		return NULL;
	p = xzalloc(size);
	for (size_t i = 0; i < size / 8; i++)
		p[i] = BASE_TAG + i / (SECTOR / 8);
	/* the middle of it has never been written */
	memset((char *)p + size / 2, 0, size / 8);
	d = crash_disk_new(p, size, size);
	free(p);
	return &d->block;
}

/* Read one sector, as the disk below wants it. */
static int
read_sector(struct block *b, uint64_t *p, uint64_t sector)
{
	uint64_t off = sector * SECTOR, unit = max_u64(b->min_block, SECTOR);
	unsigned char buf[UNIT_MAX];
	int r = block_pread(b, buf, (size_t)unit, round_down(off, unit));

	memcpy(p, buf + off % unit, SECTOR);
	return r;
}

static struct block *
open_on(struct crash_disk *d, bool read_only)
{
	struct qcow2_options o = { .file = &d->block,
				   .backing = new_backing(),
				   .read_only = read_only };
	struct err e = ERR_INIT;
	struct block *b;

	if (t.v->min_block)
		d->block.min_block = t.v->min_block;
	if (!qcow2_open(&o, &b, &e))
		fail_msg("%s: %s", t.what, e.msg);
	b->discard_unmap = true;
	return b;
}

/* --- cuts --------------------------------------------------------------------------- */

/* After a mere death everything can be read. */
static bool
may_fail(const struct sector *s, enum crash_policy policy)
{
	return s->packed && policy != CRASH_ALL;
}

static void
check_content(struct crash_disk *d, enum crash_policy policy)
{
	struct block *b = open_on(d, true);
	uint64_t *p = xzalloc((size_t)(t.sectors * SECTOR));
	int all = block_pread(b, p, (size_t)(t.sectors * SECTOR), 0);

	for (uint64_t i = 0; i < t.sectors; i++) {
		const struct sector *s = &t.sector[i];
		bool in_flight = i >= t.first && i < t.end;
		uint64_t *at = p + i * (SECTOR / 8), v;

		if (all && read_sector(b, at, i)) {
			if (!may_fail(s, policy))
				fail_msg("%s: sector %" PRIu64
					 " cannot be read",
					 t.what, i);
			continue;
		}
		v = word_of(at, i);

		if (policy == CRASH_ALL && !in_flight && v != s->now)
			fail_msg("%s: sector %" PRIu64 " is %#" PRIx64
				 ", and %#" PRIx64 " was acknowledged",
				 t.what, i, v, s->now);
		if (!is_allowed(s, v))
			fail_msg("%s: sector %" PRIu64 " is %#" PRIx64
				 ", which it was not; now it is %#" PRIx64,
				 t.what, i, v, s->now);
	}
	free(p);
	block_free(b);
}

static void
ask_qemu(const struct crash_disk *d)
{
	char path[128];
	bool dirty =
		!t.v->v2 && be64_get(d->now + QCOW2_AT_INCOMPAT) & QCOW2_DIRTY;
	int r;

	(void)snprintf(path, sizeof path, "%s/cut.qcow2", rig_dir());
	crash_disk_save(d, path);
	/* a dirty image is repaired by whoever opens it */
	r = rig_status("qemu-img check -q %s -f qcow2 cut.qcow2 >check.log "
		       "2>&1",
		       dirty ? "-r all" : "");
	if (r != 0 && r != 3)
		fail_msg("%s: qemu-img check says %d", t.what, r);
}

static void
cut(enum crash_policy policy)
{
	struct crash_disk *d =
		crash_disk_cut(t.d, policy, crash_random(t.seed, 7 * t.cuts));

	(void)snprintf(t.what, sizeof t.what,
		       "%s, seed %" PRIu64 ", cut %" PRIu64 ", policy %d",
		       t.v->name, t.seed, t.cuts, (int)policy);
	(void)rig_check(d, t.what);
	if (t.cuts++ % 199 == 0)
		ask_qemu(d);
	check_content(d, policy); /* consumes it */
}

static void
before_change(struct crash_disk *d)
{
	(void)d;
	cut(CRASH_ALL);
	cut((enum crash_policy)(crash_random(t.seed, t.cuts) % CRASH_POLICIES));
}

/* --- requests ------------------------------------------------------------------------- */

static uint64_t
pick(uint64_t n)
{
	return crash_random(t.seed + 1, t.tag * 16 + t.end) % n;
}

/* The range becomes @v, now or later; then read what it is. */
static void
begin(uint64_t first, uint64_t n, uint64_t v)
{
	t.first = first;
	t.end = first + n;
	for (uint64_t i = first; i < t.end; i++) {
		may_be(&t.sector[i], v);
		may_be(&t.sector[i], 0);
	}
}

static void
end(uint64_t v, bool is_known)
{
	uint64_t p[SECTOR / 8];

	for (uint64_t i = t.first; i < t.end; i++) {
		assert_int_equal(read_sector(t.b, p, i), 0);
		if (is_known && word_of(p, i) != v)
			fail_msg("%s: sector %" PRIu64 " is %#" PRIx64
				 " and not %#" PRIx64,
				 t.what, i, p[0], v);
		remember(&t.sector[i], p[0]);
		assert_true(is_allowed(&t.sector[i], p[0]));
	}
	t.first = t.end = 0;
}

static void
do_write(uint64_t first, uint64_t n, bool compressed)
{
	uint64_t v = ++t.tag, *p = xzalloc((size_t)(n * SECTOR));
	int r;

	for (size_t i = 0; i < n * SECTOR / 8; i++)
		p[i] = v;
	begin(first, n, v);
	for (uint64_t i = first; i < first + n; i++)
		t.sector[i].packed |= compressed;
	if (compressed)
		r = block_compress(t.b, p, (size_t)(n * SECTOR),
				   first * SECTOR);
	else
		r = block_pwrite(t.b, p, (size_t)(n * SECTOR), first * SECTOR);
	assert_int_equal(r, 0);
	end(v, true);
	free(p);
}

static void
do_zero(uint64_t first, uint64_t n, unsigned flags)
{
	t.tag++;
	begin(first, n, 0);
	assert_int_equal(block_zero(t.b, first * SECTOR, n * SECTOR, flags), 0);
	end(0, true);
}

static void
do_discard(uint64_t first, uint64_t n)
{
	t.tag++;
	begin(first, n, 0);
	assert_int_equal(block_discard(t.b, first * SECTOR, n * SECTOR), 0);
	end(0, false);
}

static void
do_flush(void)
{
	t.tag++;
	assert_int_equal(block_flush(t.b), 0);
	all_flushed();
}

/* Snapshots come and go, and with them the references to clusters. */
static void
do_snapshot(void)
{
	struct qcow2_snapshot_info info = { .name = "s" };
	uint32_t n;

	t.tag++;
	(void)qcow2_snapshots(t.b, &n);
	if (n < 2)
		assert_int_equal(qcow2_snapshot_create(t.b, &info), 0);
	else
		assert_int_equal(qcow2_snapshot_delete(t.b, (uint32_t)pick(n)),
				 0);
	/* a barrier is behind what was written before */
}

static void
one_request(void)
{
	uint64_t what = pick(100), cluster = t.v->cluster / SECTOR;
	uint64_t unit = max_u64(t.v->min_block / SECTOR, 1);
	uint64_t first = (t.end = 1, pick(t.sectors));
	uint64_t n = (t.end = 2, pick(5 * cluster + 3)) + 1;

	t.end = 0;
	first = round_down(first, unit);
	n = min_u64(round_up(n, unit), t.sectors - first);
	if (what < 4 && t.v->snapshots) {
		do_snapshot();
	} else if (what < 45) {
		do_write(first, n, false);
	} else if (what < 55) {
		do_zero(first, n, what % 2 ? BLOCK_ZERO_MAY_UNMAP : 0);
	} else if (what < 65) {
		do_discard(first, n);
	} else if (what < 80) {
		first = round_down(first, cluster);
		do_write(first, min_u64(cluster, t.sectors - first), true);
	} else {
		do_flush();
	}
}

/* --- variants --------------------------------------------------------------------------- */

static void
make_image(const struct variant *v)
{
	rig_run("rm -f disk.qcow2");
	if (v->backing)
		rig_run("truncate -s %uk base.raw", v->kib);
	rig_run("qemu-img create -q -f qcow2 -o %s,cluster_size=%u %s "
		"disk.qcow2 %uk",
		v->options, v->cluster, v->backing ? "-b base.raw -F raw" : "",
		v->kib);
	if (v->min_block) /* a device ends with a whole one */
		rig_run("truncate -s %%%u disk.qcow2", v->min_block);
	if (!v->snapshot_of)
		return;
	rig_run("qemu-io %s disk.qcow2 >/dev/null", v->snapshot_of);
	rig_run("qemu-img snapshot -c one disk.qcow2");
}

static void
read_state(void)
{
	for (uint64_t i = 0; i < t.sectors; i++) {
		uint64_t p[SECTOR / 8];

		assert_int_equal(read_sector(t.b, p, i), 0);
		remember(&t.sector[i], word_of(p, i));
	}
	all_flushed();
}

static void
run_variant(const struct variant *v, uint64_t seed, unsigned requests)
{
	char path[128];
	struct crash_disk *last;

	memset(&t, 0, sizeof t);
	t.v = v;
	t.seed = seed;
	t.sectors = v->kib * KiB / SECTOR;
	t.sector = xcalloc(t.sectors, sizeof *t.sector);
	make_image(v);
	(void)snprintf(path, sizeof path, "%s/disk.qcow2", rig_dir());
	t.d = crash_disk_load(path, CAPACITY);
	t.d->slow_zero = v->slow_zero;
	t.b = open_on(t.d, false);
	read_state();
	t.d->before = before_change;
	for (unsigned i = 0; i < requests; i++)
		one_request();
	/* closing is a sequence of changes as well; its end is clean */
	do_flush();
	last = crash_disk_cut(t.d, CRASH_ALL, 0);
	block_free(&last->block);
	block_free(t.b);
	free(t.sector);
}

static const struct variant variants[] = {
	{ .name = "plain",
	  .options = "compat=1.1",
	  .kib = 512,
	  .cluster = 4096,
	  .snapshots = true },
	{ .name = "small clusters, wide counts",
	  .options = "refcount_bits=64",
	  .kib = 192,
	  .cluster = 512 },
	{ .name = "one bit counts",
	  .options = "refcount_bits=1",
	  .kib = 256,
	  .cluster = 1024 },
	{ .name = "backing file",
	  .options = "compat=1.1",
	  .kib = 512,
	  .cluster = 8192,
	  .backing = true,
	  .snapshots = true },
	{ .name = "version 2, backing file",
	  .options = "compat=0.10",
	  .kib = 512,
	  .cluster = 4096,
	  .backing = true,
	  .v2 = true },
	{ .name = "extended",
	  .options = "extended_l2=on",
	  .kib = 1024,
	  .cluster = 16384,
	  .backing = true,
	  .snapshots = true },
	{ .name = "slow zeroes",
	  .options = "compat=1.1",
	  .kib = 512,
	  .cluster = 4096,
	  .slow_zero = true },
	{ .name = "zstd",
	  .options = "compression_type=zstd",
	  .kib = 512,
	  .cluster = 4096,
	  .backing = true },
	{ .name = "snapshot",
	  .options = "compat=1.1",
	  .snapshot_of = "-c 'write -P 17 0 200k' -c 'write -P 34 300k 100k'",
	  .kib = 512,
	  .cluster = 4096,
	  .snapshots = true },
	{ .name = "snapshot, extended",
	  .options = "extended_l2=on",
	  .snapshot_of = "-c 'write -P 17 0 200k' -c 'write -P 34 300k 100k'",
	  .kib = 512,
	  .cluster = 16384,
	  .snapshots = true },
	{ .name = "sectors of 4096 bytes",
	  .options = "compat=1.1",
	  .kib = 512,
	  .cluster = 8192,
	  .backing = true,
	  .snapshots = true,
	  .min_block = 4096 },
};

static unsigned
from_environment(const char *name, unsigned otherwise)
{
	const char *s = getenv(name);

	return s ? (unsigned)strtoul(s, NULL, 0) : otherwise;
}

/* What is left leaks at most, and flushed data stay. */
static void
power_cuts(void **s)
{
	const struct variant *v = *s;
	uint64_t seed = from_environment("QCOW2_CRASH_SEED", 1);

	run_variant(v, seed + (uint64_t)(v - variants),
		    from_environment("QCOW2_CRASH_OPS", 25));
}

#define TEST(test, n)                                            \
	{                                                        \
		.name = #test, .test_func = power_cuts,          \
		.initial_state = (void *)(uintptr_t)&variants[n] \
	}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(power_cuts_plain, 0),
		TEST(power_cuts_with_small_clusters, 1),
		TEST(power_cuts_with_one_bit_counts, 2),
		TEST(power_cuts_on_an_overlay, 3),
		TEST(power_cuts_in_version_2, 4),
		TEST(power_cuts_with_subclusters, 5),
		TEST(power_cuts_with_slow_zeroes, 6),
		TEST(power_cuts_with_zstd, 7),
		TEST(power_cuts_with_a_snapshot, 8),
		TEST(power_cuts_with_a_snapshot_and_subclusters, 9),
		TEST(power_cuts_with_sectors_of_4096_bytes, 10),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

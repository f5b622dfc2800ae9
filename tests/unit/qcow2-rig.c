/* SPDX-License-Identifier: BSD-3-Clause */
#include "qcow2-rig.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bits.h"
#include "block/qcow2/format.h"
#include "unit.h"

static char directory[64];

static void
remove_dir(void)
{
	(void)rig_status("rm -rf '%s'", directory);
}

const char *
rig_dir(void)
{
	if (!directory[0]) {
		(void)snprintf(directory, sizeof directory, "%s/qcow2-XXXXXX",
			       access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
		assert_non_null(mkdtemp(directory));
		(void)atexit(remove_dir);
	}
	return directory;
}

static int __attribute__((format(printf, 1, 0)))
run(const char *fmt, va_list ap)
{
	char line[2048];
	int n = snprintf(line, sizeof line, "cd '%s' && exec ", rig_dir());

	(void)vsnprintf(line + n, sizeof line - (size_t)n, fmt, ap);
	n = system(line);
	return WIFEXITED(n) ? WEXITSTATUS(n) : 255;
}

int
rig_status(const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = run(fmt, ap);
	va_end(ap);
	return r;
}

void
rig_run(const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = run(fmt, ap);
	va_end(ap);
	if (r)
		fail_msg("%s ...: exit status %d", fmt, r);
}

struct block *
rig_file(const char *name, bool read_only)
{
	struct block_file_options o = { .read_only = read_only, .name = name };
	char path[256];
	struct err e = ERR_INIT;
	struct block *b;

	(void)snprintf(path, sizeof path, "%s/%s", rig_dir(), name);
	o.fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	assert_true(o.fd >= 0);
	assert_ok(block_file_open(&o, &b, &e), &e);
	b->discard_unmap = true;
	return b;
}

static struct block *
open_image(const char *name, struct block *backing, bool live)
{
	struct qcow2_options o = { .file = rig_file(name, live),
				   .backing = backing,
				   .read_only = live,
				   .live = live };
	struct err e = ERR_INIT;
	struct block *b;

	assert_ok(qcow2_open(&o, &b, &e), &e);
	b->discard_unmap = true;
	return b;
}

struct block *
rig_open(const char *name, struct block *backing)
{
	return open_image(name, backing, false);
}

struct block *
rig_open_live(const char *name, struct block *backing)
{
	return open_image(name, backing, true);
}

/* --- the checker ---------------------------------------------------------------- */

struct checker {
	const struct crash_disk *d;
	const char *what;
	struct qcow2_header h;
	struct qcow2_geometry g;
	uint64_t clusters;
	unsigned *refs; /* owned; what refers to each cluster */
};

static uint64_t
word(const struct checker *c, uint64_t off)
{
	if (off + 8 > c->d->block.size)
		fail_msg("%s: a table at %#" PRIx64 " is behind the end",
			 c->what, off);
	return be64_get(c->d->now + off);
}

static void
refer(struct checker *c, uint64_t off, uint64_t bytes)
{
	uint64_t end = round_up(c->d->block.size, c->g.cluster_size);

	if (off + bytes > end)
		fail_msg("%s: %#" PRIx64 " is behind the end", c->what, off);
	for (uint64_t i = off >> c->g.cluster_bits;
	     i << c->g.cluster_bits < off + bytes; i++)
		c->refs[i]++;
}

static uint64_t
count_of(const struct checker *c, uint64_t off)
{
	uint64_t i = off >> c->g.cluster_bits;
	uint64_t t = c->h.reftable_offset + (i >> c->g.refblock_bits) * 8;
	uint64_t block = word(c, t);

	if (!block)
		return 0;
	assert_true(block + c->g.cluster_size <= c->d->block.size);
	return qcow2_refcount_get(
		c->d->now + block, c->g.refcount_order,
		i & ((UINT64_C(1) << c->g.refblock_bits) - 1));
}

static void
check_copied(const struct checker *c, uint64_t entry, uint64_t off)
{
	/* while snapshots come and go */
	if (c->h.incompat & QCOW2_DIRTY)
		return;
	if (!!(entry & QCOW2_COPIED) != (count_of(c, off) == 1))
		fail_msg("%s: bit 63 of entry %#" PRIx64
			 " does not agree with refcount %" PRIu64,
			 c->what, entry, count_of(c, off));
}

static void
check_entry(struct checker *c, uint64_t e, bool active)
{
	uint64_t off = e & QCOW2_L2_OFFSET, bytes = c->g.cluster_size;

	if (e & QCOW2_COMPRESSED) {
		qcow2_compressed_place(&c->g, e, &off, &bytes);
		assert_false(e & QCOW2_COPIED);
		/* the last sector may be cut off by the end of the file */
		if (off + bytes > c->d->block.size)
			bytes = c->d->block.size - off;
		refer(c, off, bytes);
	} else if (off) {
		refer(c, off, bytes);
		if (active)
			check_copied(c, e, off);
	}
}

static void
check_l1(struct checker *c, uint64_t l1, uint32_t n, bool active)
{
	refer(c, l1, (uint64_t)n * 8);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t e = word(c, l1 + i * 8), l2 = e & QCOW2_L1_OFFSET;

		if (!l2)
			continue;
		refer(c, l2, c->g.cluster_size);
		if (active)
			check_copied(c, e, l2);
		for (uint64_t k = 0; k < UINT64_C(1) << c->g.l2_bits; k++)
			check_entry(c, word(c, l2 + k * c->g.entry_size),
				    active);
	}
}

static void
check_snapshots(struct checker *c)
{
	uint64_t at = c->h.snapshots_offset;

	for (uint32_t i = 0; i < c->h.snapshots; i++) {
		struct qcow2_snapshot s;
		struct err e = ERR_INIT;
		size_t used;

		assert_ok(qcow2_snapshot_parse(&s, &c->g, c->d->now + at,
					       c->d->block.size - at, c->h.size,
					       &used, &e),
			  &e);
		at += used;
		check_l1(c, s.l1_offset, s.l1_size, false);
		qcow2_snapshot_clear(&s);
	}
	if (c->h.snapshots)
		refer(c, c->h.snapshots_offset, at - c->h.snapshots_offset);
}

static void
check_reftable(struct checker *c)
{
	uint64_t bytes = (uint64_t)c->h.reftable_clusters << c->g.cluster_bits;

	refer(c, c->h.reftable_offset, bytes);
	for (uint64_t i = 0; i < bytes / 8; i++) {
		uint64_t block = word(c, c->h.reftable_offset + i * 8);

		if (block)
			refer(c, block, c->g.cluster_size);
	}
}

unsigned
rig_check(const struct crash_disk *d, const char *what)
{
	struct checker c = { .d = d, .what = what };
	struct err e = ERR_INIT;
	unsigned leaks = 0;

	assert_ok(qcow2_header_parse(&c.h, d->now, d->capacity, d->block.size,
				     &e),
		  &e);
	qcow2_geometry_init(&c.g, &c.h);
	c.clusters = d->capacity >> c.g.cluster_bits;
	c.refs = xcalloc(c.clusters + 1, sizeof *c.refs);
	refer(&c, 0, c.g.cluster_size);
	check_reftable(&c);
	check_l1(&c, c.h.l1_offset, c.h.l1_size, true);
	check_snapshots(&c);
	for (uint64_t i = 0; i < c.clusters; i++) {
		uint64_t n = i << c.g.cluster_bits < d->block.size
				     ? count_of(&c, i << c.g.cluster_bits)
				     : 0;

		if (n < c.refs[i])
			fail_msg("%s: cluster %" PRIu64 " has refcount %" PRIu64
				 " and %u references",
				 what, i, n, c.refs[i]);
		leaks += n > c.refs[i];
	}
	free(c.refs);
	return leaks;
}

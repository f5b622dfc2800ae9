/* SPDX-License-Identifier: BSD-3-Clause */
#include "crash-disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "unit.h"

#define SECTOR 512u

enum change_kind { WRITE, ZERO, RESIZE };

struct crash_change {
	enum change_kind kind;
	uint64_t off, len; /* RESIZE: len is the new size */
	unsigned char *data; /* owned */
};

static struct crash_disk *
to_disk(struct block *b)
{
	return container_of(b, struct crash_disk, block);
}

uint64_t
crash_random(uint64_t seed, uint64_t n)
{
	uint64_t x = seed + (n + 1) * UINT64_C(0x9e3779b97f4a7c15);

	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

/* Inside the disk, and aligned as it wants it. */
static void
assert_fits(const struct block *b, uint64_t off, uint64_t len)
{
	assert_true(range_fits(off, len, b->size));
	assert_int_equal((off | len) & (b->min_block - 1), 0);
}

static int
disk_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	assert_fits(b, off, len);
	memcpy(buf, to_disk(b)->now + off, len);
	return 0;
}

/* Does this change fail, as the test wants? */
static int
fault(struct crash_disk *d)
{
	if (!d->write_os)
		return 0;
	if (d->write_skip) {
		d->write_skip--;
		return 0;
	}
	return d->write_os;
}

static int
note(struct crash_disk *d, enum change_kind kind, uint64_t off, uint64_t len,
     const void *data)
{
	struct crash_change *c;
	int r;

	if (d->before)
		d->before(d);
	r = fault(d);
	if (r)
		return r;
	if (d->changes == d->room) {
		d->room = d->room * 2 + 64;
		d->change = xrealloc(d->change, d->room, sizeof *d->change);
	}
	c = &d->change[d->changes++];
	*c = (struct crash_change){ .kind = kind, .off = off, .len = len };
	if (data) {
		c->data = xzalloc(len);
		memcpy(c->data, data, len);
	}
	return 0;
}

static int
disk_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	struct crash_disk *d = to_disk(b);
	int r;

	assert_fits(b, off, len);
	r = note(d, WRITE, off, len, buf);
	if (!r)
		memcpy(d->now + off, buf, len);
	return r;
}

static int
disk_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	struct crash_disk *d = to_disk(b);
	int r;

	assert_fits(b, off, len);
	if (flags & BLOCK_ZERO_FAST && d->slow_zero)
		return ENOTSUP;
	r = note(d, ZERO, off, len, NULL);
	if (!r)
		memset(d->now + off, 0, len);
	return r;
}

static int
disk_discard(struct block *b, uint64_t off, uint64_t len)
{
	return disk_zero(b, off, len, 0);
}

static int
disk_truncate(struct block *b, uint64_t size)
{
	struct crash_disk *d = to_disk(b);
	int r;

	if (size > d->capacity)
		return EFBIG;
	r = note(d, RESIZE, 0, size, NULL);
	if (r)
		return r;
	if (size < b->size)
		memset(d->now + size, 0, b->size - size);
	b->size = size;
	return 0;
}

static void
forget_changes(struct crash_disk *d)
{
	for (unsigned i = 0; i < d->changes; i++)
		free(d->change[i].data);
	d->changes = 0;
}

static int
disk_flush(struct block *b)
{
	struct crash_disk *d = to_disk(b);

	if (d->before)
		d->before(d);
	if (d->flush_os)
		return d->flush_os;
	d->flushes++;
	memcpy(d->durable, d->now, max_u64(b->size, d->durable_size));
	d->durable_size = b->size;
	forget_changes(d);
	return 0;
}

static int
disk_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	    unsigned *flags)
{
	(void)b;
	(void)off;
	*n = len;
	*flags = BLOCK_DATA;
	return 0;
}

static void
disk_free(struct block *b)
{
	struct crash_disk *d = to_disk(b);

	forget_changes(d);
	free(d->change);
	free(d->now);
	free(d->durable);
	free(d);
}

static const struct block_ops crash_ops = {
	.name = "crash",
	.free = disk_free,
	.pread = disk_pread,
	.pwrite = disk_pwrite,
	.zero = disk_zero,
	.discard = disk_discard,
	.flush = disk_flush,
	.extent = disk_extent,
	.truncate = disk_truncate,
};

struct crash_disk *
crash_disk_new(const void *data, uint64_t size, uint64_t capacity)
{
	struct crash_disk *d = xzalloc(sizeof *d);

	assert_true(size <= capacity);
	d->block.ops = &crash_ops;
	d->block.size = round_up(size, SECTOR);
	d->block.min_block = 1;
	d->block.pref_block = 4096;
	d->block.coherent = true;
	d->block.discard_unmap = true;
	d->capacity = capacity;
	d->durable_size = d->block.size;
	d->now = xzalloc(capacity);
	d->durable = xzalloc(capacity);
	memcpy(d->now, data, size);
	memcpy(d->durable, data, size);
	return d;
}

/* How many of the changes reached sector @s. */
static unsigned
prefix(const struct crash_disk *d, enum crash_policy policy, uint64_t seed,
       uint64_t s, bool small)
{
	switch (policy) {
	case CRASH_NOTHING: return 0;
	case CRASH_ALL: return d->changes;
	case CRASH_SMALL: return small ? d->changes : 0;
	case CRASH_LARGE: return small ? 0 : d->changes;
	default: return (unsigned)(crash_random(seed, s) % (d->changes + 1));
	}
}

static void
apply(const struct crash_change *c, unsigned char *to, uint64_t s)
{
	uint64_t from = max_u64(c->off, s * SECTOR);
	uint64_t end = min_u64(c->off + c->len, (s + 1) * SECTOR);

	if (from >= end)
		return;
	if (c->kind == WRITE)
		memcpy(to + from, c->data + (from - c->off), end - from);
	else
		memset(to + from, 0, end - from);
}

static bool
is_small(const struct crash_disk *d, uint64_t s)
{
	for (unsigned i = 0; i < d->changes; i++) {
		const struct crash_change *c = &d->change[i];

		if (c->kind != RESIZE && c->len < SECTOR &&
		    c->off < (s + 1) * SECTOR && c->off + c->len > s * SECTOR)
			return true;
	}
	return false;
}

static void
cut_sector(const struct crash_disk *d, struct crash_disk *to, uint64_t s,
	   enum crash_policy policy, uint64_t seed)
{
	bool small = policy == CRASH_SMALL || policy == CRASH_LARGE
			     ? is_small(d, s)
			     : false;
	unsigned n = prefix(d, policy, seed, s, small);

	for (unsigned i = 0; i < n; i++)
		if (d->change[i].kind != RESIZE)
			apply(&d->change[i], to->now, s);
}

/* Only sectors that some change touched can differ. */
static void
cut_content(const struct crash_disk *d, struct crash_disk *to,
	    enum crash_policy policy, uint64_t seed)
{
	unsigned char *seen = xzalloc(d->capacity / SECTOR + 1);

	for (unsigned i = 0; i < d->changes; i++) {
		const struct crash_change *c = &d->change[i];

		if (c->kind == RESIZE)
			continue;
		for (uint64_t s = c->off / SECTOR; s * SECTOR < c->off + c->len;
		     s++) {
			if (!seen[s])
				cut_sector(d, to, s, policy, seed);
			seen[s] = 1;
		}
	}
	free(seen);
}

/* The length: as it was durably, or after some of the changes. */
static uint64_t
cut_size(const struct crash_disk *d, enum crash_policy policy, uint64_t seed)
{
	uint64_t size = d->durable_size;
	unsigned n = prefix(d, policy, seed, UINT32_MAX, true);

	for (unsigned i = 0; i < n; i++)
		if (d->change[i].kind == RESIZE)
			size = d->change[i].len;
	return size;
}

struct crash_disk *
crash_disk_cut(const struct crash_disk *d, enum crash_policy policy,
	       uint64_t seed)
{
	struct crash_disk *to =
		crash_disk_new(d->durable, d->durable_size, d->capacity);
	uint64_t size = cut_size(d, policy, seed);

	if (policy == CRASH_ALL)
		memcpy(to->now, d->now, d->block.size);
	else
		cut_content(d, to, policy, seed);
	if (d->block.size > size)
		memset(to->now + size, 0, d->block.size - size);
	if (d->durable_size > size)
		memset(to->now + size, 0, d->durable_size - size);
	memcpy(to->durable, to->now, size);
	to->block.size = to->durable_size = size;
	return to;
}

void
crash_disk_save(const struct crash_disk *d, const char *path)
{
	FILE *f = fopen(path, "wb");

	assert_non_null(f);
	assert_int_equal(fwrite(d->now, 1, d->block.size, f), d->block.size);
	assert_int_equal(fclose(f), 0);
}

struct crash_disk *
crash_disk_load(const char *path, uint64_t capacity)
{
	FILE *f = fopen(path, "rb");
	unsigned char *data = xzalloc(capacity);
	struct crash_disk *d;
	size_t n;

	assert_non_null(f);
	n = fread(data, 1, capacity, f);
	assert_true(feof(f) || n < capacity);
	(void)fclose(f);
	d = crash_disk_new(data, n, capacity);
	free(data);
	return d;
}

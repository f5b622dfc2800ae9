/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A simulated disk: an image file in memory that remembers what would be
 * durable.  Every change since the last flush may be on the disk after a power
 * cut, or not, or in part, in any order: each sector of 512 bytes becomes
 * what it was after some prefix of the changes that touched it.
 *
 * One thread at a time, but for reading.
 */
#ifndef UNIT_CRASH_DISK_H
#define UNIT_CRASH_DISK_H

#include "block/block.h"

struct crash_change;

struct crash_disk {
	struct block block; /* size: as it is now */
	unsigned char *now, *durable; /* owned */
	uint64_t durable_size, capacity;
	struct crash_change *change; /* owned: since the last flush */
	unsigned changes, room;
	unsigned flushes;
	int write_os, flush_os; /* these fail with it, unless 0 */
	unsigned write_skip; /* writes before the failing ones */
	bool slow_zero; /* fast zeroes are refused */
	/* Called, when set, before each change and each flush. */
	void (*before)(struct crash_disk *d);
	void *opaque;
};

/* With the @size bytes at @data, all durable. */
struct crash_disk *crash_disk_new(const void *data, uint64_t size,
				  uint64_t capacity);

enum crash_policy {
	CRASH_NOTHING, /* no unflushed change is there */
	CRASH_ALL, /* all are: what the death of the process leaves */
	CRASH_SMALL, /* sectors that a small change touched: metadata */
	CRASH_LARGE, /* the other sectors */
	CRASH_RANDOM, /* any prefix for each sector */
	CRASH_POLICIES
};

/* A disk of its own as a power cut leaves @d now.  @seed decides. */
struct crash_disk *crash_disk_cut(const struct crash_disk *d,
				  enum crash_policy policy, uint64_t seed);

/* Write the disk as it is now into the file @path. */
void crash_disk_save(const struct crash_disk *d, const char *path);

/* A disk with the content of the file @path, which must fit. */
struct crash_disk *crash_disk_load(const char *path, uint64_t capacity);

/* A number that depends on nothing but @seed and @n. */
uint64_t crash_random(uint64_t seed, uint64_t n);

#endif

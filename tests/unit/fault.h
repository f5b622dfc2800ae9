/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Faults on demand: an image in memory whose requests can fail, take their
 * time or be watched, and failing fallocate() calls (the test is linked with
 * -Wl,--wrap=fallocate64).
 */
#ifndef UNIT_FAULT_H
#define UNIT_FAULT_H

#include <pthread.h>
#include <stdatomic.h>

#include "block/block.h"

/* The next @times calls of fallocate() after @skip more fail with @os. */
void fault_fallocate(int os, unsigned skip, unsigned times);

/* How many calls of fallocate() there were since the last fault_fallocate. */
unsigned fault_fallocate_calls(void);

/* An image in memory.  The tests may touch all fields. */
struct mem_image {
	struct block block;
	unsigned char *data; /* owned */
	pthread_mutex_t lock; /* one request at a time: whole or not at all */
	_Atomic int read_os; /* reads fail with this */
	_Atomic int write_os; /* writes and zeroes fail with this */
	_Atomic unsigned read_ms; /* reads take so long */
	_Atomic unsigned reads, writes, zeroes, discards, flushes;
	_Atomic uint64_t bytes_read;
	_Atomic unsigned holds; /* block_hold without block_release */
	/* Called, when set, at the beginning of reads, changes and extents.
	 * A hook that itself makes requests takes itself away first.
	 */
	void (*before_read)(struct mem_image *m, uint64_t off, uint64_t len);
	void (*before_write)(struct mem_image *m, uint64_t off, uint64_t len);
	void (*before_extent)(struct mem_image *m, uint64_t off, uint64_t len);
	void *opaque;
};

/* @size bytes of the pattern (i * 7 + i / 4096 + 1) & 0xff | 1: never zero. */
struct mem_image *mem_image_new(uint64_t size);
void mem_image_free(struct mem_image *m);
unsigned char mem_image_pattern(uint64_t off);

/* An empty file on tmpfs; the caller owns the descriptor. */
int tmpfs_file(void);

#endif

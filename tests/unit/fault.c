/* SPDX-License-Identifier: BSD-3-Clause */
#include "fault.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "unit.h"

int __real_fallocate64(int fd, int mode, off_t off, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t off, off_t len);

static _Atomic int fault_os;
static _Atomic unsigned fault_skip, fault_times, fault_calls;

void
fault_fallocate(int os, unsigned skip, unsigned times)
{
	atomic_store(&fault_os, os);
	atomic_store(&fault_skip, skip);
	atomic_store(&fault_times, times);
	atomic_store(&fault_calls, 0);
}

unsigned
fault_fallocate_calls(void)
{
	return atomic_load(&fault_calls);
}

/* For single-threaded use: the counters are atomic, the decision is not. */
int
__wrap_fallocate64(int fd, int mode, off_t off, off_t len)
{
	atomic_fetch_add(&fault_calls, 1);
	if (atomic_load(&fault_skip)) {
		atomic_fetch_sub(&fault_skip, 1);
	} else if (atomic_load(&fault_times)) {
		atomic_fetch_sub(&fault_times, 1);
		errno = atomic_load(&fault_os);
		return -1;
	}
	return __real_fallocate64(fd, mode, off, len);
}

static struct mem_image *
to_mem(struct block *b)
{
	return container_of(b, struct mem_image, block);
}

static void
take_ms(unsigned ms)
{
	struct timespec t = { .tv_sec = ms / 1000,
			      .tv_nsec = (long)(ms % 1000) * 1000000 };

	if (ms)
		(void)nanosleep(&t, NULL);
}

static int
mem_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	struct mem_image *m = to_mem(b);

	if (m->before_read)
		m->before_read(m, off, len);
	take_ms(atomic_load(&m->read_ms));
	atomic_fetch_add(&m->reads, 1);
	atomic_fetch_add(&m->bytes_read, len);
	(void)pthread_mutex_lock(&m->lock);
	memcpy(buf, m->data + off, len);
	(void)pthread_mutex_unlock(&m->lock);
	return atomic_load(&m->read_os);
}

static int
change(struct mem_image *m, const void *buf, uint64_t len, uint64_t off)
{
	if (m->before_write)
		m->before_write(m, off, len);
	if (atomic_load(&m->write_os))
		return atomic_load(&m->write_os);
	(void)pthread_mutex_lock(&m->lock);
	if (buf)
		memcpy(m->data + off, buf, len);
	else
		memset(m->data + off, 0, len);
	(void)pthread_mutex_unlock(&m->lock);
	return 0;
}

static int
mem_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	atomic_fetch_add(&to_mem(b)->writes, 1);
	return change(to_mem(b), buf, len, off);
}

static int
mem_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	(void)flags;
	atomic_fetch_add(&to_mem(b)->zeroes, 1);
	return change(to_mem(b), NULL, len, off);
}

static int
mem_discard(struct block *b, uint64_t off, uint64_t len)
{
	atomic_fetch_add(&to_mem(b)->discards, 1);
	return change(to_mem(b), NULL, len, off);
}

static int
mem_flush(struct block *b)
{
	atomic_fetch_add(&to_mem(b)->flushes, 1);
	return 0;
}

/* One run of zeroes or of data, in steps of 512 bytes. */
static int
mem_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	   unsigned *flags)
{
	struct mem_image *m = to_mem(b);
	static const unsigned char none[512];
	uint64_t at = 0;
	bool zero = false;

	if (m->before_extent)
		m->before_extent(m, off, len);
	(void)pthread_mutex_lock(&m->lock);
	while (at < len) {
		size_t step = len - at < 512 ? len - at : 512;
		bool z = memcmp(m->data + off + at, none, step) == 0;

		if (at == 0)
			zero = z;
		if (z != zero)
			break;
		at += step;
	}
	(void)pthread_mutex_unlock(&m->lock);
	*n = at;
	*flags = zero ? BLOCK_ZERO | BLOCK_HOLE : BLOCK_DATA;
	return 0;
}

static void
mem_free(struct block *b)
{
	mem_image_free(to_mem(b));
}

static void
mem_hold(struct block *b)
{
	to_mem(b)->holds++;
}

static void
mem_release(struct block *b)
{
	to_mem(b)->holds--;
}

static const struct block_ops mem_ops = {
	.name = "mem",
	.free = mem_free,
	.pread = mem_pread,
	.pwrite = mem_pwrite,
	.zero = mem_zero,
	.discard = mem_discard,
	.flush = mem_flush,
	.extent = mem_extent,
	.hold = mem_hold,
	.release = mem_release,
};

unsigned char
mem_image_pattern(uint64_t off)
{
	return (unsigned char)((off * 7 + off / 4096 + 1) | 1);
}

struct mem_image *
mem_image_new(uint64_t size)
{
	struct mem_image *m = xzalloc(sizeof *m);

	m->block.ops = &mem_ops;
	m->block.size = size;
	m->block.discard_unmap = true;
	m->data = xzalloc(size);
	(void)pthread_mutex_init(&m->lock, NULL);
	for (uint64_t i = 0; i < size; i++)
		m->data[i] = mem_image_pattern(i);
	return m;
}

void
mem_image_free(struct mem_image *m)
{
	(void)pthread_mutex_destroy(&m->lock);
	free(m->data);
	free(m);
}

int
tmpfs_file(void)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The file driver: regular files and host block devices.
 *
 * A size that is not a multiple of 512 is rounded up, as QEMU does; what lies
 * behind the end of the file reads as zeroes, and a write there makes the
 * file longer.
 *
 * With cache.direct (O_DIRECT) requests must be aligned to @direct_align
 * bytes in memory and in the file; a request that is not goes through a
 * bounce buffer, and an unaligned write is a read-modify-write under a lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/park.h"
#include "block/block.h"

#define BOUNCE_MAX (256 * KiB)

struct file {
	struct block block;
	int fd; /* owned */
	char *name; /* owned */
	bool direct, device;
	_Atomic bool cannot_zero; /* fallocate's ZERO_RANGE is not there */
	_Atomic bool cannot_punch; /* nor PUNCH_HOLE */
	uint32_t direct_align; /* power of two */
	pthread_rwlock_t modify; /* direct: unaligned writers are alone */
};

static struct file *
to_file(struct block *b)
{
	return container_of(b, struct file, block);
}

static void
file_free(struct block *b)
{
	struct file *f = to_file(b);

	(void)close(f->fd);
	(void)pthread_rwlock_destroy(&f->modify);
	free(f->name);
	free(f);
}

/* What is behind the end of the file reads as zeroes. */
static int
read_full(const struct file *f, char *p, size_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pread(f->fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		if (n == 0) {
			memset(p, 0, len);
			return 0;
		}
		p += n;
		len -= (size_t)n;
		off += (uint64_t)n;
	}
	return 0;
}

static int
write_full(const struct file *f, const char *p, size_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pwrite(f->fd, p, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno;
		if (n == 0)
			return EIO;
		p += n;
		len -= (size_t)n;
		off += (uint64_t)n;
	}
	return 0;
}

static bool
aligned(const struct file *f, const void *buf, size_t len, uint64_t off)
{
	uint64_t mask = f->direct_align - 1;

	return !(((uintptr_t)buf | len | off) & mask);
}

/* One piece through the bounce buffer: read what surrounds it, and for a
 * write put @from in and write it back.
 */
static int
bounce_piece(const struct file *f, char *bounce, void *to, const void *from,
	     size_t n, uint64_t off)
{
	uint64_t start = round_down(off, f->direct_align);
	size_t len = (size_t)(round_up(off + n, f->direct_align) - start);
	int r = 0;

	if (to || start != off || len != n)
		r = read_full(f, bounce, len, start);
	if (r)
		return r;
	if (to) {
		memcpy(to, bounce + (off - start), n);
		return 0;
	}
	PARK("file.modify");
	memcpy(bounce + (off - start), from, n);
	r = write_full(f, bounce, len, start);
	/* an image does not grow because its last block is written: when it is
	 * opened again it has the size that it had
	 */
	if (!r && !f->device && start + len > block_size_now(&f->block) &&
	    ftruncate(f->fd, (off_t)block_size_now(&f->block)) < 0)
		r = errno;
	return r;
}

/* Either @to (a read) or @from (a write) is given. */
static int
bounced(const struct file *f, void *to, const void *from, size_t len,
	uint64_t off)
{
	size_t size =
		(size_t)min_u64(round_up(len, f->direct_align), BOUNCE_MAX) +
		2 * (size_t)f->direct_align;
	void *bounce;
	size_t at = 0;
	int r = posix_memalign(&bounce, 4096, size);

	if (r)
		return r;
	while (!r && at < len) {
		size_t n = (size_t)min_u64(len - at, BOUNCE_MAX);

		r = bounce_piece(f, bounce, to ? (char *)to + at : NULL,
				 from ? (const char *)from + at : NULL, n,
				 off + at);
		at += n;
	}
	free(bounce);
	return r;
}

static int
file_pread(struct block *b, void *buf, size_t len, uint64_t off)
{
	struct file *f = to_file(b);

	if (f->direct && !aligned(f, buf, len, off))
		return bounced(f, buf, NULL, len, off);
	return read_full(f, buf, len, off);
}

static int
file_pwrite(struct block *b, const void *buf, size_t len, uint64_t off)
{
	struct file *f = to_file(b);
	bool alone;
	int r;

	if (!f->direct)
		return write_full(f, buf, len, off);
	alone = (off | len) & (f->direct_align - 1);
	if (alone)
		(void)pthread_rwlock_wrlock(&f->modify);
	else
		(void)pthread_rwlock_rdlock(&f->modify);
	r = aligned(f, buf, len, off) ? write_full(f, buf, len, off)
				      : bounced(f, NULL, buf, len, off);
	(void)pthread_rwlock_unlock(&f->modify);
	return r;
}

static bool
unsupported(int os)
{
	return os == EOPNOTSUPP || os == ENOSYS || os == ENOTTY ||
	       os == EINVAL || os == ENODEV;
}

/* EINVAL is about one request (a device wants whole sectors); the others are
 * about the file.
 */
static void
note_missing(_Atomic bool *missing, int os)
{
	if (os != EINVAL)
		atomic_store(missing, true);
}

/* 0, or an errno value for which unsupported() tells whether to try another
 * way.
 */
static int
allocate(const struct file *f, int mode, uint64_t off, uint64_t len)
{
	while (fallocate(f->fd, mode, (off_t)off, (off_t)len) < 0)
		if (errno != EINTR)
			return errno;
	return 0;
}

static int
zero_by_writing(struct file *f, uint64_t off, uint64_t len)
{
	static const _Alignas(4096) char zeroes[64 * KiB];

	while (len) {
		size_t n = (size_t)min_u64(len, sizeof zeroes);
		int r = file_pwrite(&f->block, zeroes, n, off);

		if (r)
			return r;
		off += n;
		len -= n;
	}
	return 0;
}

static int
try_zero(struct file *f, uint64_t off, uint64_t len, unsigned flags)
{
	int r = EOPNOTSUPP;

	if (flags & BLOCK_ZERO_MAY_UNMAP && !atomic_load(&f->cannot_punch)) {
		r = allocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off,
			     len);
		if (!unsupported(r))
			return r;
		note_missing(&f->cannot_punch, r);
	}
	if (!atomic_load(&f->cannot_zero)) {
		r = allocate(f, FALLOC_FL_ZERO_RANGE, off, len);
		if (!unsupported(r))
			return r;
		note_missing(&f->cannot_zero, r);
	}
	/* tmpfs has no ZERO_RANGE: a hole and an allocation do the same */
	if (!f->device && !atomic_load(&f->cannot_punch)) {
		r = allocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off,
			     len);
		if (!r)
			r = allocate(f, 0, off, len);
	}
	return r;
}

/* A zero or a discard that comes between the read and the write of an
 * unaligned write would be undone by it.
 */
static void
modify_begin(struct file *f)
{
	if (f->direct)
		(void)pthread_rwlock_rdlock(&f->modify);
}

static void
modify_end(struct file *f)
{
	if (f->direct)
		(void)pthread_rwlock_unlock(&f->modify);
}

static int
file_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags)
{
	struct file *f = to_file(b);
	int r;

	modify_begin(f);
	r = try_zero(f, off, len, flags);
	modify_end(f);
	if (!unsupported(r))
		return r;
	if (flags & BLOCK_ZERO_FAST)
		return ENOTSUP;
	return zero_by_writing(f, off, len);
}

static int
file_discard(struct block *b, uint64_t off, uint64_t len)
{
	struct file *f = to_file(b);
	int r;

	modify_begin(f);
	if (f->device) {
		uint64_t range[2] = { off, len };

		r = ioctl(f->fd, BLKDISCARD, range) < 0 ? errno : 0;
	} else {
		r = allocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off,
			     len);
	}
	modify_end(f);
	/* a discard is advice */
	return unsupported(r) ? 0 : r;
}

static int
file_flush(struct block *b)
{
	return fdatasync(to_file(b)->fd) < 0 ? errno : 0;
}

static int
file_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
	    unsigned *flags)
{
	struct file *f = to_file(b);
	off_t data =
		f->device ? (off_t)off : lseek(f->fd, (off_t)off, SEEK_DATA);
	off_t hole;

	*n = len;
	*flags = BLOCK_HOLE | BLOCK_ZERO;
	if (data < 0)
		return errno == ENXIO ? 0 : errno; /* ENXIO: no more data */
	if ((uint64_t)data > off) {
		*n = min_u64(len, (uint64_t)data - off);
		return 0;
	}
	*flags = BLOCK_DATA;
	hole = f->device ? -1 : lseek(f->fd, (off_t)off, SEEK_HOLE);
	if (hole > (off_t)off)
		*n = min_u64(len, (uint64_t)hole - off);
	return 0;
}

static int
file_cache(struct block *b, uint64_t off, uint64_t len)
{
	struct file *f = to_file(b);

	return f->direct ? 0
			 : posix_fadvise(f->fd, (off_t)off, (off_t)len,
					 POSIX_FADV_WILLNEED);
}

static int
file_fd(const struct block *b)
{
	return container_of(b, const struct file, block)->fd;
}

static const char *
file_filename(const struct block *b)
{
	return container_of(b, const struct file, block)->name;
}

/* A device has the size that it has. */
static int
file_truncate(struct block *b, uint64_t size)
{
	struct file *f = to_file(b);

	if (f->device)
		return size == b->size ? 0 : size < b->size ? ENOTSUP : EINVAL;
	while (ftruncate(f->fd, (off_t)size) < 0)
		if (errno != EINTR)
			return errno;
	block_size_set(b, size);
	return 0;
}

static void
file_look(struct block *b)
{
	struct stat st;

	if (fstat(file_fd(b), &st) == 0 &&
	    (uint64_t)st.st_size > block_size_now(b))
		block_size_set(b, round_up((uint64_t)st.st_size, 512));
}

static const struct block_ops file_ops = {
	.name = "file",
	.free = file_free,
	.pread = file_pread,
	.pwrite = file_pwrite,
	.zero = file_zero,
	.discard = file_discard,
	.flush = file_flush,
	.extent = file_extent,
	.cache = file_cache,
	.fd = file_fd,
	.filename = file_filename,
	.truncate = file_truncate,
	.look = file_look,
};

static const struct block_ops host_device_ops = {
	.name = "host_device",
	.free = file_free,
	.pread = file_pread,
	.pwrite = file_pwrite,
	.zero = file_zero,
	.discard = file_discard,
	.flush = file_flush,
	.extent = file_extent,
	.cache = file_cache,
	.fd = file_fd,
	.filename = file_filename,
	.truncate = file_truncate,
};

void
block_file_set_fd(struct block *b, int fd, bool direct)
{
	struct file *f = to_file(b);

	(void)close(f->fd);
	f->fd = fd;
	f->direct = direct;
}

/* Size and alignment of what @f->fd refers to. */
static bool
look_at(struct file *f, const char *name, struct err *e)
{
	struct stat st;
	int sector = 512;

	if (fstat(f->fd, &st) < 0)
		return err_set(e, ERR_GENERIC, errno, "Could not open '%s'",
			       name);
	f->device = S_ISBLK(st.st_mode);
	if (!f->device && !S_ISREG(st.st_mode))
		return err_set(e, ERR_GENERIC, 0,
			       "'%s' is not a regular file or block device",
			       name);
	if (!f->device) {
		f->block.size = round_up((uint64_t)st.st_size, 512);
		f->direct_align = 4096;
		return true;
	}
	if (ioctl(f->fd, BLKGETSIZE64, &f->block.size) < 0 ||
	    ioctl(f->fd, BLKSSZGET, &sector) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot get the size of '%s'", name);
	f->direct_align = (uint32_t)sector;
	return true;
}

bool
block_file_open(const struct block_file_options *o, struct block **out,
		struct err *e)
{
	AUTO(close) int fd = o->fd;
	AUTO(free) struct file *f = calloc(1, sizeof *f);
	AUTO(free) char *name = strdup(o->name);

	if (!f || !name)
		return err_set(e, ERR_GENERIC, ENOMEM, "Could not open '%s'",
			       o->name);
	f->fd = fd;
	f->direct = o->direct;
	if (!look_at(f, o->name, e))
		return false;
	f->name = steal(&name);
	f->block.ops = f->device ? &host_device_ops : &file_ops;
	f->block.read_only = o->read_only;
	f->block.min_block = 1;
	f->block.pref_block = 4096;
	f->block.coherent = true;
	(void)pthread_rwlock_init(&f->modify, NULL);
	(void)steal_fd(&fd);
	*out = &f->block;
	f = NULL;
	return true;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The least that any copy-before-write does, for tests/bench: an nbdkit plugin
 * that serves a raw file and, from the first cache request on, reads the old
 * content of each 4 KiB block before it is overwritten for the first time and
 * writes it to a second file.  There is no reader, no bitmap, no error that is
 * survived, and nobody waits for a block that somebody else is copying: it is
 * no snapshot, only its price.
 *
 *	nbdkit ./nbdkit-bare-cbw-plugin.so file=PATH store=PATH
 */
#define NBDKIT_API_VERSION 2
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <nbdkit-plugin.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#define BLOCK 4096

static const char *file, *store;
static int file_fd = -1, store_fd = -1;
static uint64_t size;
static _Atomic bool copying;
static _Atomic uint64_t *copied; /* one bit for each block */

static int
bare_config(const char *key, const char *value)
{
	if (strcmp(key, "file") == 0)
		file = value;
	else if (strcmp(key, "store") == 0)
		store = value;
	else
		nbdkit_error("unknown parameter '%s'", key);
	return file == value || store == value ? 0 : -1;
}

static int
bare_get_ready(void)
{
	struct stat st;

	if (!file || !store) {
		nbdkit_error("file= and store= are needed");
		return -1;
	}
	file_fd = open(file, O_RDWR | O_CLOEXEC);
	store_fd = open(store, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file_fd < 0 || store_fd < 0 || fstat(file_fd, &st)) {
		nbdkit_error("cannot open %s or %s: %m", file, store);
		return -1;
	}
	size = (uint64_t)st.st_size;
	copied = calloc(size / BLOCK / 64 + 1, sizeof *copied);
	return copied ? 0 : -1;
}

static void
bare_unload(void)
{
	free(copied);
	if (file_fd >= 0)
		(void)close(file_fd);
	if (store_fd >= 0)
		(void)close(store_fd);
}

static void *
bare_open(int readonly)
{
	(void)readonly;
	return NBDKIT_HANDLE_NOT_NEEDED;
}

static int64_t
bare_get_size(void *handle)
{
	(void)handle;
	return (int64_t)size;
}

static int
bare_can_cache(void *handle)
{
	(void)handle;
	return NBDKIT_CACHE_NATIVE;
}

static int
bare_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	(void)handle;
	(void)count;
	(void)offset;
	(void)flags;
	atomic_store(&copying, true);
	return 0;
}

static bool
is_first(uint64_t block)
{
	uint64_t bit = UINT64_C(1) << block % 64;

	return !(atomic_fetch_or(&copied[block / 64], bit) & bit);
}

static bool
transferred(ssize_t n, uint32_t count)
{
	if (n == (ssize_t)count)
		return true;
	nbdkit_error("short transfer: %m");
	nbdkit_set_error(n < 0 ? errno : EIO);
	return false;
}

static int
bare_pread(void *handle, void *buf, uint32_t count, uint64_t offset,
	   uint32_t flags)
{
	(void)handle;
	(void)flags;
	return transferred(pread(file_fd, buf, count, (off_t)offset), count)
		       ? 0
		       : -1;
}

static int
bare_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
	    uint32_t flags)
{
	_Alignas(BLOCK) char old[BLOCK];
	uint64_t block = offset / BLOCK;

	(void)handle;
	(void)flags;
	for (; atomic_load(&copying) && block * BLOCK < offset + count;
	     block++) {
		off_t at = (off_t)(block * BLOCK);

		if (!is_first(block))
			continue;
		if (!transferred(pread(file_fd, old, BLOCK, at), BLOCK) ||
		    !transferred(pwrite(store_fd, old, BLOCK, at), BLOCK))
			return -1;
	}
	return transferred(pwrite(file_fd, buf, count, (off_t)offset), count)
		       ? 0
		       : -1;
}

static struct nbdkit_plugin plugin = {
	.name = "bare-cbw",
	.config = bare_config,
	.get_ready = bare_get_ready,
	.unload = bare_unload,
	.open = bare_open,
	.get_size = bare_get_size,
	.can_cache = bare_can_cache,
	.cache = bare_cache,
	.pread = bare_pread,
	.pwrite = bare_pwrite,
};

struct nbdkit_plugin *plugin_init(void); /* is in the macro */

NBDKIT_REGISTER_PLUGIN(plugin)

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/identity.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/graph.h"

/* Of an image that we may still write to. */
#define TIME_UNKNOWN INT64_MIN

static int64_t
nanoseconds(const struct timespec *t)
{
	return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

static bool
look(const struct node *n, struct registry_identity *i)
{
	int fd = node_fd(n);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return false;
	i->device = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
	i->inode = S_ISBLK(st.st_mode) ? 0 : st.st_ino;
	i->size = (uint64_t)st.st_size;
	i->mtime_ns = nanoseconds(&st.st_mtim);
	/* what looks after device files changes that for reasons of its own */
	i->has_ctime_ns = S_ISREG(st.st_mode);
	i->ctime_ns = nanoseconds(&st.st_ctim);
	return true;
}

struct registry_identity *
identity_of(const struct node *n)
{
	struct registry_identity *i = xzalloc(sizeof *i);

	if (look(n, i)) {
		if (!n->released) {
			i->mtime_ns = TIME_UNKNOWN;
			i->has_ctime_ns = false;
		}
		return i;
	}
	registry_identity_free(i);
	return NULL;
}

bool
identity_is_exact(const struct registry_identity *i)
{
	return i && i->mtime_ns != TIME_UNKNOWN && i->has_ctime_ns;
}

static bool
stands_on_format(const struct node *n)
{
	while (n && !n->qcow2)
		n = node_filtered(n);
	return n != NULL;
}

const char *
identity_changed(const struct node *n, const struct identity_leave *leave,
		 const struct registry_identity *then)
{
	/* an inode and two times in nanoseconds are enough to know a file by,
	 * and a device without a file has nothing else
	 */
	bool any_device = leave->device && identity_is_exact(then);
	struct registry_identity now;

	if (!look(n, &now))
		return NULL;
	/* while it is in use, the file of an image in a format grows */
	if (stands_on_format(n) && then->mtime_ns == TIME_UNKNOWN)
		now.size = then->size;
	if ((now.device != then->device && !any_device) ||
	    now.inode != then->inode)
		return "the image is another file than the one it recorded";
	if ((now.size != then->size && !leave->size) ||
	    (then->mtime_ns != TIME_UNKNOWN &&
	     now.mtime_ns != then->mtime_ns) ||
	    (then->has_ctime_ns && now.ctime_ns != then->ctime_ns))
		return "the image was changed while Stillpoint did not run";
	return NULL;
}

char *
boot_id(void)
{
	AUTO(close)
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	char text[64];
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

	if (n < 0)
		n = 0;
	text[n] = '\0';
	text[strcspn(text, "\n")] = '\0';
	return xstrdup(text);
}

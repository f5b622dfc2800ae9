/* SPDX-License-Identifier: BSD-3-Clause
 *
 * oom-preload: memory that runs out in the plugin, and nowhere else.
 *
 * A library for nbdkit's LD_PRELOAD.  An allocation belongs to the plugin when
 * the innermost of the callers that are part of nbdkit or of the plugin is the
 * plugin: what the C library, yajl or libnbd allocate for it counts, what
 * nbdkit allocates does not.
 *
 * A test controls it through the file OOM_CONTROL, which both map (struct
 * control; stillpoint_test/memory.py has the other side).
 */
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <unwind.h>

#define PLUGIN "nbdkit-stillpoint-plugin"

struct control {
	_Atomic uint64_t left; /* the allocation that makes it 0 fails */
	_Atomic uint64_t period; /* and one of so many after it; 0: none */
	_Atomic uint64_t seen; /* allocations of the plugin while armed */
	_Atomic uint64_t failed;
};

/* An object's executable part. */
struct range {
	uintptr_t from, to;
};

/* glibc's own names. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);

static struct control *control; /* NULL: not asked for */
static struct range program, plugin; /* empty: not there yet */
static __thread bool inside __attribute__((tls_model("initial-exec")));

__attribute__((constructor)) static void
map_control(void)
{
	const char *path = getenv("OOM_CONTROL");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *p;

	if (fd < 0)
		return;
	p = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
		 0);
	(void)close(fd);
	if (p != MAP_FAILED)
		control = p;
}

static int
look_at_object(struct dl_phdr_info *i, size_t size, void *opaque)
{
	bool is_plugin = strstr(i->dlpi_name, PLUGIN) != NULL;

	(void)size;
	(void)opaque;
	if (!is_plugin && i->dlpi_name[0])
		return 0;
	for (int k = 0; k < i->dlpi_phnum; k++) {
		const ElfW(Phdr) *h = &i->dlpi_phdr[k];
		uintptr_t at = i->dlpi_addr + h->p_vaddr;

		if (h->p_type == PT_LOAD && h->p_flags & PF_X)
			*(is_plugin ? &plugin : &program) =
				(struct range){ at, at + h->p_memsz };
	}
	return 0;
}

static bool
is_in(const struct range *r, uintptr_t at)
{
	return at >= r->from && at < r->to;
}

static _Unwind_Reason_Code
look_at_frame(struct _Unwind_Context *c, void *opaque)
{
	uintptr_t at = _Unwind_GetIP(c);
	bool *found = opaque;

	if (is_in(&plugin, at)) {
		*found = true;
		return _URC_END_OF_STACK;
	}
	return is_in(&program, at) ? _URC_END_OF_STACK : _URC_NO_REASON;
}

static bool
is_for_the_plugin(void)
{
	bool found = false;

	if (!plugin.to)
		(void)dl_iterate_phdr(look_at_object, NULL);
	if (plugin.to)
		(void)_Unwind_Backtrace(look_at_frame, &found);
	return found;
}

/* At no fixed distance: what is tried again must not meet it every time. */
static uint64_t
next_failure(void)
{
	static _Atomic uint64_t random = 1;
	uint64_t period = atomic_load(&control->period);
	uint64_t r = atomic_load(&random) * UINT64_C(6364136223846793005) +
		     UINT64_C(1442695040888963407);

	atomic_store(&random, r);
	return period ? 1 + (r >> 33) % (2 * period) : 0;
}

static bool
count_one(void)
{
	uint64_t left = atomic_load(&control->left);

	if (!is_for_the_plugin())
		return false;
	atomic_fetch_add(&control->seen, 1);
	while (left &&
	       !atomic_compare_exchange_weak(&control->left, &left, left - 1))
		;
	if (left != 1)
		return false;
	atomic_fetch_add(&control->failed, 1);
	atomic_store(&control->left, next_failure());
	return true;
}

/* Is there no memory for this one? */
static bool
fails(void)
{
	bool failed;

	if (!control || inside || !atomic_load(&control->left))
		return false;
	inside = true;
	failed = count_one();
	inside = false;
	if (failed)
		errno = ENOMEM;
	return failed;
}

void *
malloc(size_t size)
{
	return fails() ? NULL : __libc_malloc(size);
}

void *
calloc(size_t n, size_t size)
{
	return fails() ? NULL : __libc_calloc(n, size);
}

void *
realloc(void *p, size_t size)
{
	return fails() ? NULL : __libc_realloc(p, size);
}

void *
reallocarray(void *p, size_t n, size_t size)
{
	size_t all;

	if (__builtin_mul_overflow(n, size, &all)) {
		errno = ENOMEM;
		return NULL;
	}
	return fails() ? NULL : __libc_realloc(p, all);
}

void *
memalign(size_t align, size_t size)
{
	return fails() ? NULL : __libc_memalign(align, size);
}

void *
aligned_alloc(size_t align, size_t size)
{
	return fails() ? NULL : __libc_memalign(align, size);
}

int
posix_memalign(void **p, size_t align, size_t size)
{
	void *got = fails() ? NULL : __libc_memalign(align, size);

	if (!got)
		return ENOMEM;
	*p = got;
	return 0;
}

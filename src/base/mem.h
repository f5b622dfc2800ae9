/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory and cleanup.  Between the first allocation and steal() every owned
 * thing is AUTO.  Sizes that we choose: xzalloc and friends, which abort when
 * memory is gone, and which the data plane must not call on behalf of a guest
 * or of a peer.  Sizes that a peer, a guest or an image chooses: calloc with a
 * cap, and an error.
 */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#define PRINTF(f, a)  __attribute__((format(printf, f, a)))
#define MUST_CHECK    __attribute__((warn_unused_result))
#define AUTO(fn)      __attribute__((cleanup(auto_##fn), unused))
#define likely(x)     __builtin_expect(!!(x), 1)
#define unlikely(x)   __builtin_expect(!!(x), 0)
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define container_of(ptr, type, member) \
	((type *)(void *)((char *)(uintptr_t)(ptr)-offsetof(type, member)))

/* DEFINE_CLEANUP(struct job, job_unref): lets AUTO(job_unref) call
 * job_unref(p) at the end of the scope when p is not NULL.
 */
#define DEFINE_CLEANUP(type, fn)               \
	static inline void auto_##fn(type **p) \
	{                                      \
		if (*p)                        \
			fn(*p);                \
	}                                      \
	struct dummy_semicolon

/* Take the value out of an AUTO variable: the caller owns it now. */
#define steal(p)                                \
	__extension__({                         \
		__auto_type steal_p = (p);      \
		__auto_type steal_v = *steal_p; \
		*steal_p = 0;                   \
		steal_v;                        \
	})

/* Never NULL; abort when memory is gone. */
void *xzalloc(size_t size) __attribute__((returns_nonnull));
void *xcalloc(size_t n, size_t size) __attribute__((returns_nonnull));
void *xrealloc(void *p, size_t n, size_t size) __attribute__((returns_nonnull));
char *xstrdup(const char *s) __attribute__((returns_nonnull));
char *xasprintf(const char *fmt, ...) PRINTF(1, 2)
	__attribute__((returns_nonnull));

/* For functions that tell of a lack of memory where we can do nothing about
 * it: abort unless @ok.
 */
void xassert_memory(bool ok);

/* AUTO(free) char *s; */
static inline void
auto_free(void *p)
{
	extern void free(void *);
	free(*(void **)p);
}

/* AUTO(close) int fd = -1; */
static inline void
auto_close(const int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
}

/* Take a descriptor out of an AUTO(close) variable. */
static inline int
steal_fd(int *fd)
{
	int v = *fd;

	*fd = -1;
	return v;
}

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * base: what every other folder may use and that itself uses nothing but the
 * C library, pthreads and (in loop.h only) libev.
 *
 * err.h: one failure as a plain value, so that reporting an error cannot
 * itself fail.  The first error wins; callers on the way up only add context
 * in front (err_prefix).  All functions accept e == NULL (the caller does not
 * want to know) and are safe in any thread: the value belongs to its declarer.
 */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdarg.h>
#include <stdbool.h>

#include "base/mem.h"

/* The classes that a QMP client can see (QAPI QapiErrorClass). */
enum err_class {
	ERR_NONE = 0, /* no error recorded */
	ERR_GENERIC,
	ERR_COMMAND_NOT_FOUND,
	ERR_DEVICE_NOT_ACTIVE,
	ERR_DEVICE_NOT_FOUND,
};

struct err {
	enum err_class cls;
	int os; /* errno value, 0 when none applies */
	const char *file; /* where it was first raised (static string) */
	int line;
	char msg[1280]; /* one phrase; no newline, no final stop */
};

#define ERR_INIT                \
	{                       \
		.cls = ERR_NONE \
	}

/* Record a failure and return false.  When @os is not 0, ": " and its
 * strerror text are appended.  The slot must be empty.
 */
#define err_set(e, cls, os, ...) \
	err_set_at(e, __FILE__, __LINE__, cls, os, __VA_ARGS__)

bool err_set_at(struct err *e, const char *file, int line, enum err_class cls,
		int os, const char *fmt, ...) PRINTF(6, 7);

/* Put context in front of the phrase; returns false for "return err_...". */
bool err_prefix(struct err *e, const char *fmt, ...) PRINTF(2, 3);

/* Forget the failure, so that the slot can be used again. */
void err_clear(struct err *e);

/* Move @from into the empty slot @to; returns false. */
bool err_move(struct err *to, const struct err *from);

static inline bool
err_is_set(const struct err *e)
{
	return e && e->cls != ERR_NONE;
}

#endif

/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/err.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

bool
err_set_at(struct err *e, const char *file, int line, enum err_class cls,
	   int os, const char *fmt, ...)
{
	char text[128];
	va_list ap;
	int n;

	if (!e)
		return false;
	assert(e->cls == ERR_NONE && cls != ERR_NONE);
	e->cls = cls;
	e->os = os;
	e->file = file;
	e->line = line;
	va_start(ap, fmt);
	n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
	va_end(ap);
	if (os && n >= 0 && (size_t)n < sizeof e->msg)
		(void)snprintf(e->msg + n, sizeof e->msg - (size_t)n, ": %s",
			       strerror_r(os, text, sizeof text));
	return false;
}

bool
err_prefix(struct err *e, const char *fmt, ...)
{
	char old[sizeof e->msg];
	va_list ap;
	int n;

	if (!err_is_set(e))
		return false;
	memcpy(old, e->msg, sizeof old);
	va_start(ap, fmt);
	n = vsnprintf(e->msg, sizeof e->msg, fmt, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof e->msg)
		(void)snprintf(e->msg + n, sizeof e->msg - (size_t)n, "%s",
			       old);
	return false;
}

void
err_clear(struct err *e)
{
	if (!e)
		return;
	e->cls = ERR_NONE;
	e->os = 0;
	e->msg[0] = '\0';
}

bool
err_move(struct err *to, const struct err *from)
{
	if (!to)
		return false;
	assert(to->cls == ERR_NONE && from->cls != ERR_NONE);
	*to = *from;
	return false;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
xassert_memory(bool ok)
{
	static const char text[] = "out of memory\n";

	if (ok)
		return;
	(void)!write(STDERR_FILENO, text, sizeof text - 1);
	abort();
}

static void *
checked(void *p)
{
	xassert_memory(p != NULL);
	return p;
}

void *
xzalloc(size_t size)
{
	return checked(calloc(1, size ? size : 1));
}

void *
xcalloc(size_t n, size_t size)
{
	return checked(calloc(n ? n : 1, size ? size : 1));
}

void *
xrealloc(void *p, size_t n, size_t size)
{
	return checked(reallocarray(p, n ? n : 1, size ? size : 1));
}

char *
xstrdup(const char *s)
{
	return checked(strdup(s));
}

char *
xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *s;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	return checked(n < 0 ? NULL : s);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "oom.h"

#include <stdlib.h>
#include <string.h>

#include "unit.h"

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t size);
void *__real_reallocarray(void *p, size_t n, size_t size);
char *__real_strdup(const char *s);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t size);
void *__wrap_reallocarray(void *p, size_t n, size_t size);
char *__wrap_strdup(const char *s);

static unsigned countdown;
static bool failed;
static size_t largest;

void
oom_fail_at(unsigned n)
{
	countdown = n;
	failed = false;
}

bool
oom_has_failed(void)
{
	return failed;
}

size_t
oom_largest(void)
{
	size_t was = largest;

	largest = 0;
	return was;
}

unsigned
oom_every(bool (*test)(void *arg), void *arg)
{
	unsigned n = 0;
	bool ok;

	do {
		oom_fail_at(++n);
		ok = test(arg);
		assert_int_equal(ok, !failed);
	} while (failed);
	oom_fail_at(0);
	assert_true(ok);
	return n;
}

static bool
is_time(size_t size)
{
	if (size > largest)
		largest = size;
	if (countdown == 0 || --countdown > 0)
		return false;
	failed = true;
	return true;
}

void *
__wrap_malloc(size_t size)
{
	return is_time(size) ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t n, size_t size)
{
	return is_time(n * size) ? NULL : __real_calloc(n, size);
}

void *
__wrap_realloc(void *p, size_t size)
{
	return is_time(size) ? NULL : __real_realloc(p, size);
}

void *
__wrap_reallocarray(void *p, size_t n, size_t size)
{
	return is_time(n * size) ? NULL : __real_reallocarray(p, n, size);
}

char *
__wrap_strdup(const char *s)
{
	return is_time(strlen(s)) ? NULL : __real_strdup(s);
}

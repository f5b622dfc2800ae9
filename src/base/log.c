/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>

static void to_stderr(enum log_level level, const char *line);

/* Set once by main() or the plugin's load(), before other threads start. */
static void (*log_sink)(enum log_level, const char *) = to_stderr;
static _Atomic int log_most_verbose = LOG_LEVEL_INFO;

static void
to_stderr(enum log_level level, const char *line)
{
	static const char *const names[] = {
		[LOG_LEVEL_ERROR] = "error",
		[LOG_LEVEL_WARN] = "warning",
		[LOG_LEVEL_INFO] = "info",
		[LOG_LEVEL_DEBUG] = "debug",
	};
	struct timeval tv;
	struct tm tm;
	char when[32];

	(void)gettimeofday(&tv, NULL);
	(void)gmtime_r(&tv.tv_sec, &tm);
	(void)strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &tm);
	(void)fprintf(stderr, "%s.%03ldZ %s: %s\n", when,
		      (long)tv.tv_usec / 1000, names[level], line);
}

void
log_set_sink(void (*sink)(enum log_level, const char *))
{
	log_sink = sink;
}

void
log_set_level(enum log_level most_verbose)
{
	atomic_store(&log_most_verbose, (int)most_verbose);
}

void
log_at(enum log_level level, const char *fmt, ...)
{
	char line[2048];
	va_list ap;

	if ((int)level > atomic_load(&log_most_verbose))
		return;
	va_start(ap, fmt);
	(void)vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	for (char *p = line; *p; p++)
		if (*p == '\n' || *p == '\r')
			*p = ' ';
	log_sink(level, line);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Log lines: one line each, the thing that they are about named first.  The
 * program chooses where they go (stderr, or nbdkit's log).  Any thread.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "base/mem.h"

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARN,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG
};

/* Receives one line without newline.  Called in any thread. */
void log_set_sink(void (*sink)(enum log_level level, const char *line));
void log_set_level(enum log_level most_verbose);

void log_at(enum log_level level, const char *fmt, ...) PRINTF(2, 3);

#define log_error(...) log_at(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_at(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_at(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_at(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif

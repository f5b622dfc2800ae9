/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the tools that open images with our drivers have in common.
 */
#ifndef TOOLS_IMAGE_TOOL_H
#define TOOLS_IMAGE_TOOL_H

#include "block/block.h"

/* Say it on standard error and exit with 1. */
void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* @flags are open(2)'s; a file that is made gets mode 0600.  Dies if it
 * cannot.  The caller owns what is returned.
 */
struct block *tool_open_file(const char *name, int flags, bool unmap);

#endif

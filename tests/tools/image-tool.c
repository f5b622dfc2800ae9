/* SPDX-License-Identifier: BSD-3-Clause */
#include "image-tool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vfprintf(stderr, fmt, ap);
	va_end(ap);
	(void)fputc('\n', stderr);
	exit(1);
}

struct block *
tool_open_file(const char *name, int flags, bool unmap)
{
	struct block_file_options o = { .name = name };
	struct err e = ERR_INIT;
	struct block *b;

	o.read_only = (flags & O_ACCMODE) == O_RDONLY;
	o.fd = open(name, flags | O_CLOEXEC, 0600);
	if (o.fd < 0)
		die("%s: %s", name, strerror(errno));
	if (!block_file_open(&o, &b, &e))
		die("%s", e.msg);
	b->discard_unmap = unmap;
	return b;
}

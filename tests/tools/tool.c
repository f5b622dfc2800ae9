/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Disks and control of the guest writers; see tool.h.
 */
#include "tool.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

enum { RETRY_MS = 20, LINE_MAX_BYTES = 64 };

double
now_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

void
die(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

void
say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);
}

uint64_t
number(const char *text, const char *what, uint64_t max)
{
	char *end;
	uint64_t v;

	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || *end || end == text || *text == '-' || v > max)
		die("%s must be a number from 0 to %" PRIu64 ", not '%s'", what,
		    max, text);
	return v;
}

void
disk_parse(struct disk *d, char *text)
{
	char *plus = strchr(text, '+'), *at = strchr(text, '@');

	if (!plus || !at || at < plus)
		die("a disk is written OFFSET+LENGTH@URI, not '%s'", text);
	*plus = *at = '\0';
	d->offset = number(text, "the offset of a disk", INT64_MAX / 2);
	d->length = number(plus + 1, "the length of a disk", INT64_MAX / 2);
	d->uri = at + 1;
	d->nbd = NULL;
}

void
disk_connect(struct disk *d, double patience)
{
	double end = now_seconds() + patience;
	int64_t size;

	for (;;) {
		d->nbd = nbd_create();
		if (!d->nbd)
			die("libnbd: %s", nbd_get_error());
		if (nbd_set_uri_allow_local_file(d->nbd, true) == 0 &&
		    nbd_connect_uri(d->nbd, d->uri) == 0)
			break;
		if (now_seconds() >= end)
			die("cannot connect to %s: %s", d->uri,
			    nbd_get_error());
		disk_close(d);
		poll(NULL, 0, RETRY_MS);
	}
	size = nbd_get_size(d->nbd);
	if (size < 0 || (uint64_t)size < d->offset + d->length)
		die("%s has %" PRIi64 " bytes, the area ends at %" PRIu64,
		    d->uri, size, d->offset + d->length);
}

void
disk_close(struct disk *d)
{
	if (d->nbd)
		nbd_close(d->nbd);
	d->nbd = NULL;
}

static enum control
control_word(const char *word)
{
	static const char *const words[] = {
		[CONTROL_PAUSE] = "pause",
		[CONTROL_RESUME] = "resume",
		[CONTROL_STATUS] = "status",
		[CONTROL_QUIT] = "quit",
	};
	int i;

	for (i = CONTROL_PAUSE; i <= CONTROL_QUIT; i++)
		if (strcmp(word, words[i]) == 0)
			return (enum control)i;
	die("unknown order '%s' on standard input", word);
}

enum control
control_poll(int timeout_ms)
{
	struct pollfd p = { .fd = STDIN_FILENO, .events = POLLIN };
	char line[LINE_MAX_BYTES];
	size_t n = 0;
	ssize_t r;

	if (poll(&p, 1, timeout_ms) <= 0)
		return CONTROL_NONE;
	/* Orders are short and rare: a byte at a time leaves no rest behind. */
	while (n < sizeof(line) - 1) {
		r = read(STDIN_FILENO, line + n, 1);
		if (r <= 0)
			return CONTROL_QUIT;
		if (line[n] == '\n')
			break;
		n++;
	}
	line[n] = '\0';
	return control_word(line);
}

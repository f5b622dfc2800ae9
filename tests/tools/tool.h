/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the guest writers share: a disk (one NBD connection and the part of it
 * that the tool may touch), and control over standard input.
 *
 * Control is one word per line: pause, resume, status, quit.  The end of the
 * input counts as quit, so a writer never outlives the test that started it.
 * Everything here runs in the one thread of the tool and exits with a message
 * where a tool cannot go on; nothing here is part of the product.
 */
#ifndef TESTS_TOOL_H
#define TESTS_TOOL_H

#include <stdbool.h>
#include <stdint.h>

#include <libnbd.h>

struct disk {
	const char *uri; /* borrowed from argv */
	uint64_t offset; /* of our area, in bytes */
	uint64_t length; /* of our area, in bytes */
	struct nbd_handle *nbd; /* owned; NULL while not connected */
};

/* Parse "OFFSET+LENGTH@URI" (bytes, decimal) into @d; exits when it is not
 * that.  @text is borrowed for the life of @d.
 */
void disk_parse(struct disk *d, char *text);

/* Connect, trying again for @patience seconds; exits when that was not
 * enough or when the area does not fit into the export.
 */
void disk_connect(struct disk *d, double patience);

/* Drop the connection, whatever its state. */
void disk_close(struct disk *d);

enum control {
	CONTROL_NONE,
	CONTROL_PAUSE,
	CONTROL_RESUME,
	CONTROL_STATUS,
	CONTROL_QUIT,
};

/* The next order, or CONTROL_NONE when none comes within @timeout_ms
 * (-1: wait for one).
 */
enum control control_poll(int timeout_ms);

/* Seconds on CLOCK_MONOTONIC, which is what Python's time.monotonic() says. */
double now_seconds(void);

/* A number from the command line, at most @max; exits when it is not one. */
uint64_t number(const char *text, const char *what, uint64_t max);

/* Print a line to standard output at once. */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Print the reason to standard error and exit with status 1. */
void die(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * A server that lives no longer than the test: started as a child in a
 * temporary directory of its own, listening on a unix socket there, killed
 * by its process id.
 */
#ifndef UNIT_CAPTIVE_H
#define UNIT_CAPTIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct captive {
	char dir[64]; /* the directory; ends without a slash */
	char socket[80]; /* of the server */
	char *argv[40]; /* owned; ends with NULL */
	pid_t pid; /* 0: not running */
};

/* Is the program in PATH?  Says so when it is not (the test skips). */
bool captive_has(const char *program);

/* Make the directory.  Everything in it goes away with captive_destroy(). */
void captive_init(struct captive *c);
void captive_destroy(struct captive *c);

/* Start "nbdkit -f ..." with these arguments (ends with NULL) and wait until
 * it listens.  In an argument "@" stands for the directory.
 */
void captive_nbdkit(struct captive *c, const char *const *args);

/* The same with qemu-nbd. */
void captive_qemu_nbd(struct captive *c, const char *const *args);

/* Kill it (no chance to tidy up), and start it again with the same. */
void captive_kill(struct captive *c);
void captive_restart(struct captive *c);
void captive_signal(struct captive *c, int signal);

/* "DIR/name", in a static buffer of a few. */
const char *captive_path(const struct captive *c, const char *name);

/* Files in the directory. */
bool captive_exists(const struct captive *c, const char *name);
void captive_touch(const struct captive *c, const char *name);
void captive_wait_for(const struct captive *c, const char *name);
int captive_open(const struct captive *c, const char *name, uint64_t size);

/* How often @text occurs in a file. */
unsigned captive_count(const struct captive *c, const char *name,
		       const char *text);

#endif

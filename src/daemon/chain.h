/* SPDX-License-Identifier: BSD-3-Clause
 *
 * chain: nodes that an image's header names and nobody's options do.
 *
 * Rules (an image is untrusted; each has a test of its name in
 * tests/integration/test_qcow2_chain.py):
 * 1. Only files: a name with a protocol is refused.  A relative name counts
 *    from the directory of the image that has it, and like any other name it
 *    must lie below an allowed directory.
 * 2. Formats are never probed: a backing file whose format the header does not
 *    name is refused.
 * 3. No image is below itself, and a chain has an end (NODE_MAX_LAYERS).
 * 4. Backing files are opened read-only.
 */
#ifndef DAEMON_CHAIN_H
#define DAEMON_CHAIN_H

#include "daemon/nodes.h"

/* Worker.  Read the header of a->v[at], if it is of a driver that has such
 * names and was not looked at before, and add what it names to @a.  Its file
 * is open.
 */
bool chain_look(struct node_add *a, size_t at, struct err *e) MUST_CHECK;

/* Worker: rule 3.  @fd has been opened for @n. */
bool chain_check_loop(const struct node *n, int fd, struct err *e) MUST_CHECK;

/* The file that a header's @name means, in the image of @n; NULL and *e: rule
 * 1 is broken.  Free it yourself.
 */
char *chain_filename(const struct node *n, const char *name, struct err *e);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Did somebody else change an image while it was not ours?  Loop.
 */
#ifndef DAEMON_IDENTITY_H
#define DAEMON_IDENTITY_H

#include "schema/registry-types.h"

struct node;

/* What the node's file looks like now; NULL for images that are no file.
 * While we may still write to it, the time of its last write is left open:
 * after a death another file is noticed, a changed one is not.
 */
struct registry_identity *identity_of(const struct node *n);

/* Why the node's bitmaps cannot be believed: a static text, or NULL. */
const char *identity_changed(const struct node *n, bool any_size,
			     const struct registry_identity *then);

/* The kernel's boot; owned by the caller. */
char *boot_id(void);

#endif

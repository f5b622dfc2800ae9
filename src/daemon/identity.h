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

/* What may be another without being looked at. */
struct identity_leave {
	bool size; /* it was about to change */
	bool device; /* the host was restarted: numbers may be others */
};

/* Why the node's bitmaps cannot be believed: a static text, or NULL.  @leave
 * is borrowed for the call.
 */
const char *identity_changed(const struct node *n,
			     const struct identity_leave *leave,
			     const struct registry_identity *then);

/* @i tells the image from any that was written to since.  @i may be NULL. */
bool identity_is_exact(const struct registry_identity *i);

/* The kernel's boot; owned by the caller. */
char *boot_id(void);

#endif

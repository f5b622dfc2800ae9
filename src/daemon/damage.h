/* SPDX-License-Identifier: BSD-3-Clause
 *
 * damage: clients are told of images whose metadata make no sense
 * (BLOCK_IMAGE_CORRUPTED), and the node says so from then on.  Guests' images
 * are watched by the data plane, those that jobs read and write here.  Loop
 * only.
 */
#ifndef DAEMON_DAMAGE_H
#define DAEMON_DAMAGE_H

#include <stdbool.h>

struct block;
struct daemon;
struct json;

/* The data plane tells something; false: it is not for us. */
bool damage_event(struct daemon *d, const char *name, const struct json *data);

/* Tell what was found in @b (borrowed; NULL: nothing) and below since the last
 * look.
 */
void damage_look(struct daemon *d, struct block *b);

#endif

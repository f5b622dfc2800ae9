/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The registry: what the daemon knows, in STATE/registry.json, which is
 * replaced as a whole (written beside, synced, renamed).  Loop only; the disk
 * is touched by a worker.
 *
 * A transaction stages the state that it leads to before its cut and publishes
 * it after that, so that everything that can fail fails before the cut.
 * 1. What is published never promises less than what is true: an older
 *    registry makes bitmaps report more, never less (see recover.h).  The
 *    files of epochs that it names stay until a later one is published.
 * 2. Between registry_hold and registry_release the state in memory is that
 *    of a transaction that may still fail: nobody else's save is written.
 */
#ifndef DAEMON_REGISTRY_H
#define DAEMON_REGISTRY_H

#include "base/err.h"
#include "schema/registry-types.h"

struct daemon;

/* Called once, on the loop, not from inside; @e NULL: success. */
typedef void registry_done(void *opaque, const struct err *e);

/* Read the file, if there is one.  *doc is NULL when there is none.  At start;
 * blocks.
 */
bool registry_load(struct daemon *d, struct registry_doc **out, struct err *e)
	MUST_CHECK;

struct registry *registry_new(struct daemon *d);
void registry_free(struct registry *r);

/* Write the present state and make it the registry. */
void registry_save(struct registry *r, registry_done *done, void *opaque);

void registry_hold(struct registry *r);
/* By the holder: write the present state beside the registry... */
void registry_stage(struct registry *r, registry_done *done, void *opaque);
/* ...and make that the registry. */
void registry_publish(struct registry *r, registry_done *done, void *opaque);
void registry_release(struct registry *r);

#endif

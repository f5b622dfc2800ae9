/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bringing things back: at the daemon's start from the registry and from a
 * data plane that may have gone on meanwhile, and after a death of the data
 * plane from memory.
 *
 * Rules (a chain never lies):
 * 1. Every epoch that an enabled bitmap may have been recorded in is in its
 *    set: those of the registry, and the one that the data plane has open.
 *    A transaction that was staged and not published when both processes died
 *    may have opened its epochs: they count.
 * 2. When the data plane does not record a node that has an enabled bitmap,
 *    everything counts as changed.
 * 3. A bitmap whose epochs are gone (the host was restarted, and they were not
 *    saved: saved.h), or whose image was changed while it was not ours, is
 *    inconsistent, and says why.
 * 4. New epochs are in the registry before a guest can write to them.
 * 5. Jobs of an earlier daemon have failed; their bitmaps hold everything.
 *
 * Loop only.
 */
#ifndef DAEMON_RECOVER_H
#define DAEMON_RECOVER_H

#include "base/err.h"
#include "schema/link-types.h"
#include "schema/registry-types.h"

struct daemon;
struct json;

/* What core_init read; consumed.  NULL: nothing. */
void recover_set_registry(struct daemon *d, struct registry_doc *doc);

/* The data plane has answered; @hello is consumed.  Ends with plane_restored
 * (and daemon_ready, the first time) or plane_give_up.
 */
void recover_begin(struct daemon *d, struct link_hello *hello);

/* Memory says all that the registry does, and the registry says all that
 * memory does: it may be replaced.
 */
bool recover_is_loaded(const struct daemon *d);

/* A command is about to run with @args.  When it names something that is lost
 * (lost.h), that is tried again first, and then @then is called once, with all
 * other commands waiting.  False: nothing to do, @then is not called.
 */
bool recover_lost(struct daemon *d, const struct json *args,
		  void (*then)(void *opaque), void *opaque);

/* The data plane is gone again: what it had, it has no more. */
void recover_interrupted(struct daemon *d);

void recover_free(struct daemon *d);

#endif

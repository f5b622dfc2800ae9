/* SPDX-License-Identifier: BSD-3-Clause
 *
 * pending: what must come to its end before the daemon may: commands that
 * wait for an answer, work items that hold objects of ours.  Loop only.
 */
#ifndef DAEMON_PENDING_H
#define DAEMON_PENDING_H

#include "base/loop.h"

struct daemon;

/* Embedded in struct daemon; all zero at first. */
struct pending {
	unsigned n;
	void (*idle)(struct daemon *d); /* who waits, or NULL */
	struct task task;
};

void pending_begin(struct daemon *d);
void pending_end(struct daemon *d);

/* Call @idle once when nothing is pending, on the loop, not from inside. */
void pending_wait(struct daemon *d, void (*idle)(struct daemon *d));

#endif

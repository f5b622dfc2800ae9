/* SPDX-License-Identifier: BSD-3-Clause
 *
 * blockdev-reopen: other options for nodes that are in use.  All nodes of a
 * command change together or not at all, and guests notice nothing.  Steps:
 *
 *   plan      reopen-plan.c: which nodes change, and what they will be;
 *             reopen-check.c: the options that may change at all
 *   open      reopen.c, worker: what must be opened anew
 *   check     reopen-users.c: those who use the nodes can live with it
 *   store     reopen-bitmaps.c: what becomes read-only stores its bitmaps
 *   exchange  reopen-exchange.c: nodes are what they will be, in memory, and
 *             when guests are concerned in the registry, before they write
 *   ask       reopen.c: the data plane changes the nodes that it has, at once
 *   take      reopen-bitmaps.c: what became writable says that its bitmaps are
 *             in use
 *   save      the registry
 *
 * A failure up to "take" undoes all.  Loop only, except where it says worker.
 */
#ifndef DAEMON_REOPEN_PRIV_H
#define DAEMON_REOPEN_PRIV_H

#include "base/work.h"
#include "daemon/graph.h"
#include "daemon/plane.h"
#include "schema/qmp-commands.h"

struct qmp_call;
struct store;

/* A node and what it will be; in the end, and after an exchange, what it was. */
struct change {
	struct change *next;
	struct node *node;
	struct blockdev_options *options; /* owned */
	struct throttle_config limits; /* of a throttle node's group */
	struct node *child[CHILD_ROLES]; /* borrowed */
	struct store *store; /* owned: bitmaps of its image; or NULL */
	int fd; /* owned, or -1 */
	uint64_t size;
	uint32_t cluster;
	bool read_only, read_only_below;
	bool takes; /* @store takes bitmaps into use; else stores them */
	bool stored; /* @store was carried out */
};

struct reopening {
	struct daemon *d;
	struct qmp_call *call;
	struct qmp_blockdev_reopen_args *arg; /* owned */
	struct change *changes; /* owned */
	struct task settled;
	struct work work;
	struct plane_request r;
	bool taking; /* the stores that are carried out now are takes */
	bool registered; /* the registry has what the data plane is asked for */
	struct err e;
};

/* --- reopen-plan.c ---------------------------------------------------------- */

/* Fill in r->changes from r->arg. */
bool reopen_plan(struct reopening *r, struct err *e) MUST_CHECK;

/* --- reopen-check.c ---------------------------------------------------------- */

/* May @now become @then?  The names in messages are QEMU's: members of members
 * are joined by dots.
 */
bool reopen_check(const struct blockdev_options *now,
		  const struct blockdev_options *then, struct err *e)
	MUST_CHECK;

/* --- reopen-users.c ---------------------------------------------------------- */

/* When all is opened: may @c happen?  It may become read-only by that. */
bool reopen_check_change(const struct reopening *r, struct change *c,
			 struct err *e) MUST_CHECK;

/* --- reopen-exchange.c ------------------------------------------------------- */

/* Nodes are what they will be, and changes have what they were; the second
 * time it is the other way round.
 */
void reopen_exchange(struct reopening *r);

/* After the exchange: no chain has become too long. */
bool reopen_check_layers(const struct reopening *r, struct err *e) MUST_CHECK;

/* What a change has brought or will bring to @top or to something below it. */
bool reopen_concerns(const struct reopening *r, const struct node *top);

/* Does anything of it concern guests? */
bool reopen_any_in_plane(const struct reopening *r);

/* After the exchange: nodes that nobody holds any more go. */
void reopen_drop_old_children(struct reopening *r);

/* --- reopen-bitmaps.c -------------------------------------------------------- */

bool reopen_check_bitmaps(const struct reopening *r, const struct change *c,
			  struct err *e) MUST_CHECK;

/* Which bitmaps are stored, before the exchange, and taken into use, after it. */
void reopen_plan_stores(struct reopening *r);
void reopen_plan_takes(struct reopening *r);

/* Worker: what was planned last.  The first failure is in r->e. */
void reopen_run_stores(struct reopening *r);

/* All went well. */
void reopen_finish_stores(struct reopening *r);

/* The way back: before the exchange, after it, and on a worker. */
void reopen_return_takes(struct reopening *r);
void reopen_assume_again(struct reopening *r);
void reopen_run_back(struct reopening *r);

#endif

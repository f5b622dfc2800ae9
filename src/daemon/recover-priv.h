/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Inside the recovery.  Its steps, each of which ends by starting the next:
 *
 *   load     recover-load.c: the data plane hands out the files that it has
 *            open; objects, nodes, exports and jobs of the registry are in
 *            memory again
 *   epochs   recover-epochs.c: bitmaps agree with what the data plane records,
 *            and the registry says so (rule 4)
 *   plane    recover-plane.c: the data plane opens what it should have, and
 *            offers it; what nobody knows is closed
 *   options  recover-options.c: --blockdev and --export of things that are not
 *            there yet
 *
 * recover-lost.c does the same later for nodes that could not be opened.
 *
 * After a death of the data plane only the steps from "plane" on are needed.
 * It may die (again) at every step: what is between the registry and our
 * memory goes on, what concerns the data plane begins anew with the next one.
 */
#ifndef DAEMON_RECOVER_PRIV_H
#define DAEMON_RECOVER_PRIV_H

#include "base/work.h"
#include "daemon/nodes.h"
#include "daemon/plane.h"
#include "daemon/recover.h"

/* A file that the data plane kept. */
struct kept {
	char *name; /* owned: its name when it was opened */
	int fd; /* owned; -1: a node has it */
};

/* How much of the registry is in memory. */
enum stage {
	STAGE_NOTHING,
	STAGE_LOADING, /* nodes are being opened */
	STAGE_LOADED, /* waits for what a data plane records */
	STAGE_SAVING,
	STAGE_SAVED, /* all that is left concerns the data plane */
};

struct recovery {
	struct daemon *d; /* borrowed */
	enum stage stage;
	bool options_begun; /* --blockdev and --export */
	bool rebooted; /* the registry is of another boot */
	struct registry_doc *doc; /* owned, or NULL */
	struct link_hello *hello; /* owned; of the data plane that runs */
	unsigned asked; /* answers that are awaited */
	unsigned round; /* of which recovery they are */
	void (*next)(struct recovery *r);
	struct kept *kept; /* owned */
	size_t n_kept;
	size_t at; /* node or option that is worked on */
	struct node_add add;
	struct epoch_set saved; /* that came back from the disk */
	struct work work;
	struct err e; /* the worker's */
	struct err failed; /* what the data plane could not do */
	ev_timer again; /* for nodes that it could not open */
	struct retry *retry; /* recover-lost.c; owned, or NULL */
};

/* --- asking the data plane ------------------------------------------------------ */

struct ask {
	struct plane_request r;
	struct recovery *rec;
	unsigned round;
	/* Of what it is about; owned, or NULL.  Names, because a command may
	 * take the thing itself away.  After success it is in the plane.
	 */
	char *node, *export;
	/* What came with the answer, or NULL. */
	void (*got)(struct recovery *r, const struct json *ret,
		    struct link_msg *msg);
	bool fatal; /* a failure ends the data plane */
};

/* A step asks, any number of times, and ends with recover_one_less; @next
 * follows when all is answered.
 */
void recover_step(struct recovery *r, void (*next)(struct recovery *r));
struct ask *recover_ask(struct recovery *r, bool fatal);
void recover_one_less(struct recovery *r);

/* --- steps ------------------------------------------------------------------------ */

void recover_load(struct recovery *r);

/* Files that the data plane has open for the node @name are kept from the
 * answer on, until recover_drop_kept.
 */
void recover_ask_files(struct recovery *r, const char *name, bool fatal);
void recover_drop_kept(struct recovery *r);

/* Plan r->add for @from (loop; the reason of a failure is in r->e), and open it
 * (worker) with what was saved of its bitmaps.
 */
bool recover_plan(struct recovery *r, const struct registry_node *from)
	MUST_CHECK;
void recover_open(struct recovery *r, const struct registry_node *from);

/* What the bitmaps of @n were, when the registry says @from of it.  @changed:
 * why they cannot be believed, or NULL.
 */
void recover_bitmaps(struct recovery *r, struct node *n,
		     const struct registry_node *from, const char *changed);
void recover_epochs(struct recovery *r);
/* The same for one node, without saving. */
void recover_node_epochs(struct recovery *r, struct node *n);

/* What the data plane has of the node @name; borrowed, NULL: nothing. */
struct link_node_info *recover_find_info(const struct recovery *r,
					 const char *name);
bool recover_has_export(const struct recovery *r, const char *name);
void recover_plane(struct recovery *r);
/* Its second half: nodes and exports that are not there yet. */
void recover_open_nodes(struct recovery *r);

void recover_options(struct recovery *r);

/* Worker: open r->add. */
void recover_open_run(struct work *w);

/* The data plane has done what recover-lost.c asked for, or is gone. */
void recover_lost_goes_on(struct recovery *r);

#endif

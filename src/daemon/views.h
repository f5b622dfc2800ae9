/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's views: states on tmpfs, a store on disk, the mask that limits
 * an incremental, and the reader over all of it.  Loop only unless said
 * otherwise.
 */
#ifndef DAEMON_VIEWS_H
#define DAEMON_VIEWS_H

#include "daemon/epochs.h"
#include "schema/link-types.h"
#include "view/reader.h"

struct daemon;
struct node;

struct view_file {
	uint64_t id;
	uint64_t size, unit;
	bool break_guest_write; /* when a save fails; else the view breaks */
	uint32_t timeout_ms; /* of a save; 0: no limit */
	char *states_path, *store_path; /* owned */
	struct view *states; /* owned; NULL until made */
	int store; /* owned */
	/* What is copied: epochs that are closed after the cut.  Empty with
	 * @limited: nothing at all.
	 */
	bool limited;
	struct epoch_set closed; /* closed before the cut */
	struct epoch_file *open; /* the one that the cut closes, or NULL */
	struct epoch_file *mask; /* union of @closed; owned; NULL: empty */
	struct node *node; /* borrowed; in whose list it is, or NULL */
	bool begun; /* its cut took place */
	struct view_file *next; /* in node->views */
	/* For the reader, made by view_file_ready. */
	struct epoch *masks[2]; /* borrowed from @mask and @open */
	struct block *image; /* owned: our own read-only open */
	struct view_reader reader;
};

struct view_file *view_file_new(struct daemon *d, const struct node *n,
				uint64_t unit);
void view_file_free(struct view_file *v);
DEFINE_CLEANUP(struct view_file, view_file_free);

/* Plan the mask from @closed and @open (once they are known). */
void view_file_plan(struct view_file *v, struct daemon *d);

/* In and out of node->views. */
void view_file_attach(struct view_file *v, struct node *n);
void view_file_detach(struct view_file *v);

/* Describe it for the data plane: append to @to, and its descriptors to
 * fds[*n...] (at most 4).  @at_cut: the epoch that the cut closes is still
 * open there.
 */
void view_file_describe(const struct view_file *v, bool at_cut,
			struct link_view_list *to, int *fds, unsigned *n);

/* Any thread: make the files. */
bool view_file_make(struct view_file *v, struct err *e) MUST_CHECK;

/* The cut took place: the reader can be used.  @image is consumed. */
void view_file_ready(struct view_file *v, struct block *image);

#endif

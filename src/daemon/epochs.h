/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's epochs: numbered files on tmpfs, shared by bitmaps and jobs.
 * Loop only, except epoch_file_make and epoch_file_merge.
 *
 * An epoch is freed with its last user.  Its file goes later: when a registry
 * that does not name it any more is on the disk, so that a crash, or a disk
 * that is full, leaves no registry that names what is gone.
 */
#ifndef DAEMON_EPOCHS_H
#define DAEMON_EPOCHS_H

#include "base/err.h"
#include "tracking/epoch.h"

/* For merge.c. */
struct epoch_users {
	unsigned n; /* bitmaps */
	uint64_t who; /* the same for the same bitmaps; may be for others */
};

struct epoch_file {
	uint64_t id;
	unsigned refs;
	uint64_t size, granularity;
	char *path; /* owned */
	struct epoch *map; /* owned; NULL until it was made or opened */
	bool keep; /* the file stays when the last user goes (shutdown) */
	struct epoch_users users;
};

/* A planned epoch: no file yet.  The caller holds the one reference. */
struct epoch_file *epoch_file_new(const char *dir, uint64_t id, uint64_t size,
				  uint64_t granularity);

/* Any thread: make the file and map it. */
bool epoch_file_make(struct epoch_file *f, struct err *e) MUST_CHECK;

/* Map a file that is there.  Blocks for as long as tmpfs does. */
bool epoch_file_open(const char *dir, uint64_t id, struct epoch_file **out,
		     struct err *e) MUST_CHECK;

/* The registry that is described at this moment names all that is in use.
 * Later, when it is on the disk, epochs_forget(mark) removes the files that
 * had no user when the mark was taken.
 */
uint64_t epochs_mark(void);
void epochs_forget(uint64_t mark);

/* The program ends; with @remove the remaining ones go too. */
void epochs_end(bool remove);

struct epoch_file *epoch_file_ref(struct epoch_file *f);
void epoch_file_unref(struct epoch_file *f);
DEFINE_CLEANUP(struct epoch_file, epoch_file_unref);

/* A set of epochs in order of their numbers; each is there once and holds a
 * reference.
 */
struct epoch_set {
	size_t n;
	struct epoch_file **v; /* owned */
};

void epoch_set_add(struct epoch_set *s, struct epoch_file *f);
void epoch_set_remove(struct epoch_set *s, const struct epoch_file *f);
bool epoch_set_has(const struct epoch_set *s, const struct epoch_file *f);
/* The one with this number; borrowed, NULL: it is not there. */
struct epoch_file *epoch_set_find(const struct epoch_set *s, uint64_t id);
void epoch_set_copy(struct epoch_set *to, const struct epoch_set *from);
void epoch_set_subtract(struct epoch_set *s, const struct epoch_set *what);
void epoch_set_clear(struct epoch_set *s);
/* Exchange contents. */
void epoch_set_swap(struct epoch_set *a, struct epoch_set *b);

/* How many bytes of units are dirty; epochs without a map count as empty. */
uint64_t epoch_set_count(const struct epoch_set *s, uint64_t size,
			 uint64_t unit);

#endif

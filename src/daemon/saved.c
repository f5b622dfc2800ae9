/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/saved.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/identity.h"
#include "daemon/lost.h"
#include "tracking/checkpoint.h"

#define FOLDER "epochs" /* in the state directory */

/* --- saving ------------------------------------------------------------------------ */

struct saving {
	struct daemon *d; /* borrowed */
	struct node *node; /* borrowed */
	struct epoch_set set; /* of all that are saved */
	struct err e;
};

static bool
wants(const struct bitmap *b)
{
	return b->persistent && !b->in_image && !b->inconsistent;
}

/* A file, or a part of one, with nothing in between that has a memory. */
static bool
can_be_known_again(const struct node *n)
{
	struct stat st;
	int fd = node_fd(n);

	for (; n; n = node_filtered(n))
		if (n->qcow2)
			return false;
	return fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

struct saving *
saved_plan(struct daemon *d, struct node *n)
{
	struct saving *s;
	bool any = false;

	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		any |= wants(b);
	if (!any || !can_be_known_again(n))
		return NULL;
	s = xzalloc(sizeof *s);
	s->d = d;
	s->node = n;
	for (const struct bitmap *b = n->bitmaps; b; b = b->next)
		if (wants(b))
			epoch_set_copy(&s->set, &b->set);
	return s;
}

/* The folder; made when it is not there.  The caller's. */
static int
open_folder(struct daemon *d, struct err *e)
{
	int fd;

	if (mkdirat(d->state.fd, FOLDER, 0700) == 0)
		(void)fsync(d->state.fd);
	fd = openat(d->state.fd, FOLDER,
		    O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		(void)err_set(e, ERR_GENERIC, errno, "cannot open '%s/%s'",
			      d->state.path, FOLDER);
	return fd;
}

static bool
write_file(int dir, const struct epoch_file *f, struct err *e)
{
	AUTO(free) char *name = xasprintf("epoch-%" PRIu64, f->id);
	AUTO(free) char *half = xasprintf("%s.new", name);
	AUTO(close)
	int fd = openat(dir, half,
			O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
			0600);

	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot make '%s'", half);
	if (!f->map)
		return err_set(e, ERR_GENERIC, 0, "'%s' has no memory", name);
	if (!checkpoint_save(fd, f->id, f->map, e))
		return false;
	if (fsync(fd) < 0 || renameat(dir, half, dir, name) < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot write '%s'",
			       name);
	return true;
}

void
saved_run(struct saving *s)
{
	AUTO(close) int dir = -1;

	if (fsync(node_fd(s->node)) < 0) { /* rule 2 */
		(void)err_set(&s->e, ERR_GENERIC, errno,
			      "cannot sync the image");
		return;
	}
	PARK("saved.synced");
	dir = open_folder(s->d, &s->e);
	for (size_t i = 0; dir >= 0 && i < s->set.n; i++)
		if (!write_file(dir, s->set.v[i], &s->e))
			return;
	if (dir >= 0 && fsync(dir) < 0)
		(void)err_set(&s->e, ERR_GENERIC, errno, "cannot sync '%s/%s'",
			      s->d->state.path, FOLDER);
	PARK("saved.written");
}

void
saved_finish(struct saving *s)
{
	if (err_is_set(&s->e))
		log_error("node '%s': its bitmaps will not outlive a restart "
			  "of the host: %s",
			  s->node->name, s->e.msg);
	else
		for (struct bitmap *b = s->node->bitmaps; b; b = b->next)
			b->saved = wants(b);
	epoch_set_clear(&s->set);
	free(s);
}

/* --- loading ------------------------------------------------------------------------- */

static bool
read_file(struct daemon *d, int fd, uint64_t id, struct epoch_file **out,
	  struct err *e)
{
	AUTO(epoch_file_unref) struct epoch_file *f = NULL;
	struct checkpoint c;

	if (!checkpoint_look(fd, &c, e))
		return false;
	if (c.id != id)
		return err_set(e, ERR_GENERIC, 0, "it is of another epoch");
	f = epoch_file_new(d->cfg.shm, id, c.size, c.granularity);
	if (!epoch_file_make(f, e) || !checkpoint_load(fd, f->map, e))
		return false;
	*out = steal(&f);
	return true;
}

static void
load_one(struct daemon *d, uint64_t id, struct epoch_set *to)
{
	AUTO(free) char *name = xasprintf("%s/epoch-%" PRIu64, FOLDER, id);
	AUTO(close)
	int fd = openat(d->state.fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct epoch_file *f = NULL;
	struct err e = ERR_INIT;

	if (fd < 0)
		(void)err_set(&e, ERR_GENERIC, errno, "cannot open it");
	else if (read_file(d, fd, id, &f, &e)) {
		epoch_set_add(to, f);
		epoch_file_unref(f);
		return;
	}
	log_error("'%s/%s': %s", d->state.path, name, e.msg);
}

static bool
has_memory(const struct daemon *d, uint64_t id)
{
	AUTO(free) char *path = xasprintf("%s/epoch-%" PRIu64, d->cfg.shm, id);

	return access(path, F_OK) == 0;
}

void
saved_load(struct daemon *d, const struct registry_node *n, bool rebooted,
	   struct epoch_set *to)
{
	if (!identity_is_exact(n->identity))
		return; /* rule 5 */
	for (size_t i = 0; i < n->bitmaps.n; i++) {
		const struct registry_bitmap *b = n->bitmaps.v[i];

		for (size_t k = 0; b->saved && k < b->epochs.n; k++)
			if (!epoch_set_find(to, b->epochs.v[k]) &&
			    (rebooted || !has_memory(d, b->epochs.v[k])))
				load_one(d, b->epochs.v[k], to);
	}
}

/* --- what is left over ------------------------------------------------------------------ */

void
saved_sweep(struct daemon *d)
{
	AUTO(free) char *path = xasprintf("%s/%s", d->state.path, FOLDER);
	DIR *dir = opendir(path);
	struct dirent *de;

	if (!dir)
		return;
	while ((de = readdir(dir))) {
		uint64_t id;
		int used = 0;

		if (strncmp(de->d_name, "epoch-", 6) != 0 ||
		    (sscanf(de->d_name, "epoch-%" SCNu64 "%n", &id, &used) ==
			     1 &&
		     !de->d_name[used] && lost_has_epoch(d->lost, id)))
			continue;
		(void)unlinkat(dirfd(dir), de->d_name, 0);
	}
	(void)closedir(dir);
}

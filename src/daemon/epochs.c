/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/epochs.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

/* --- files without a user ------------------------------------------------------ */

struct grave {
	struct grave *next; /* in the order of their deaths */
	uint64_t number;
	char *path; /* owned */
};

static struct graves {
	struct grave *head, **tail;
	uint64_t count; /* of all that ever were */
} graves = { .tail = &graves.head };

static void
bury(struct epoch_file *f)
{
	struct grave *g = xzalloc(sizeof *g);

	g->number = graves.count++;
	g->path = steal(&f->path);
	*graves.tail = g;
	graves.tail = &g->next;
}

uint64_t
epochs_mark(void)
{
	return graves.count;
}

static void
forget(uint64_t mark, bool remove)
{
	struct grave *g;

	while ((g = graves.head) && g->number < mark) {
		graves.head = g->next;
		if (!g->next)
			graves.tail = &graves.head;
		if (remove)
			(void)unlink(g->path);
		free(g->path);
		free(g);
	}
}

void
epochs_forget(uint64_t mark)
{
	forget(mark, true);
}

void
epochs_end(bool remove)
{
	forget(UINT64_MAX, remove);
}

/* --- epochs --------------------------------------------------------------------- */

struct epoch_file *
epoch_file_new(const char *dir, uint64_t id, uint64_t size,
	       uint64_t granularity)
{
	struct epoch_file *f = xzalloc(sizeof *f);

	f->id = id;
	f->refs = 1;
	f->size = size;
	f->granularity = granularity;
	f->path = xasprintf("%s/epoch-%" PRIu64, dir, id);
	return f;
}

bool
epoch_file_make(struct epoch_file *f, struct err *e)
{
	AUTO(close) int fd = -1;

	/* never truncate a file: somebody may have it mapped */
	(void)unlink(f->path);
	fd = open(f->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot make '%s'",
			       f->path);
	return epoch_format(fd, f->size, f->granularity, e) &&
	       epoch_open(steal_fd(&fd), &f->map, e);
}

bool
epoch_file_open(const char *dir, uint64_t id, struct epoch_file **out,
		struct err *e)
{
	AUTO(epoch_file_unref)
	struct epoch_file *f = epoch_file_new(dir, id, 0, 0);
	int fd = open(f->path, O_RDWR | O_CLOEXEC);

	f->keep = true; /* until it is known to be ours and whole */
	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot open '%s'",
			       f->path);
	if (!epoch_open(fd, &f->map, e))
		return err_prefix(e, "'%s': ", f->path);
	f->size = epoch_size(f->map);
	f->granularity = epoch_granularity(f->map);
	f->keep = false;
	*out = steal(&f);
	return true;
}

struct epoch_file *
epoch_file_ref(struct epoch_file *f)
{
	f->refs++;
	return f;
}

void
epoch_file_unref(struct epoch_file *f)
{
	if (--f->refs)
		return;
	if (f->map && !f->keep)
		bury(f);
	else if (!f->keep)
		(void)unlink(f->path); /* half made: nobody names it */
	if (f->map)
		epoch_unref(f->map);
	free(f->path);
	free(f);
}

void
epoch_set_add(struct epoch_set *s, struct epoch_file *f)
{
	size_t at = s->n;

	if (epoch_set_has(s, f))
		return;
	s->v = xrealloc(s->v, s->n + 1, sizeof s->v[0]);
	for (; at && s->v[at - 1]->id > f->id; at--)
		s->v[at] = s->v[at - 1];
	s->v[at] = epoch_file_ref(f);
	s->n++;
}

void
epoch_set_remove(struct epoch_set *s, const struct epoch_file *f)
{
	size_t at = 0;

	while (at < s->n && s->v[at] != f)
		at++;
	if (at == s->n)
		return;
	epoch_file_unref(s->v[at]);
	s->n--;
	for (; at < s->n; at++)
		s->v[at] = s->v[at + 1];
}

bool
epoch_set_has(const struct epoch_set *s, const struct epoch_file *f)
{
	return epoch_set_find(s, f->id) == f;
}

struct epoch_file *
epoch_set_find(const struct epoch_set *s, uint64_t id)
{
	size_t from = 0, to = s->n;

	while (from < to) {
		size_t mid = from + (to - from) / 2;

		if (s->v[mid]->id < id)
			from = mid + 1;
		else
			to = mid;
	}
	return from < s->n && s->v[from]->id == id ? s->v[from] : NULL;
}

void
epoch_set_copy(struct epoch_set *to, const struct epoch_set *from)
{
	for (size_t i = 0; i < from->n; i++)
		epoch_set_add(to, from->v[i]);
}

void
epoch_set_subtract(struct epoch_set *s, const struct epoch_set *what)
{
	for (size_t i = 0; i < what->n; i++)
		epoch_set_remove(s, what->v[i]);
}

void
epoch_set_clear(struct epoch_set *s)
{
	for (size_t i = 0; i < s->n; i++)
		epoch_file_unref(s->v[i]);
	free(s->v);
	*s = (struct epoch_set){ 0 };
}

void
epoch_set_swap(struct epoch_set *a, struct epoch_set *b)
{
	struct epoch_set t = *a;

	*a = *b;
	*b = t;
}

uint64_t
epoch_set_count(const struct epoch_set *s, uint64_t size, uint64_t unit)
{
	AUTO(free) struct epoch **v = xcalloc(s->n, sizeof v[0]);
	struct dirty d = { .v = v, .size = size, .unit = unit };

	for (size_t i = 0; i < s->n; i++)
		if (s->v[i]->map)
			v[d.n++] = s->v[i]->map;
	/* no epoch at all would mean "everything" */
	return d.n ? dirty_count(&d) * unit : 0;
}

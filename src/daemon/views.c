/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/views.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/bits.h"
#include "daemon/daemon.h"
#include "daemon/graph.h"

struct view_file *
view_file_new(struct daemon *d, const struct node *n, uint64_t unit)
{
	struct view_file *v = xzalloc(sizeof *v);

	v->id = graph_take_id(d->graph);
	v->size = n->size;
	v->unit = unit;
	v->store = -1;
	v->states_path = xasprintf("%s/view-%" PRIu64, d->cfg.shm, v->id);
	v->store_path = xasprintf("%s/view-%" PRIu64, d->cfg.store, v->id);
	return v;
}

void
view_file_free(struct view_file *v)
{
	view_file_detach(v);
	if (v->states)
		view_unref(v->states);
	(void)unlink(v->states_path); /* perhaps half made */
	if (v->store >= 0) {
		(void)close(v->store);
		(void)unlink(v->store_path);
	}
	if (v->image)
		block_free(v->image);
	if (v->mask)
		epoch_file_unref(v->mask);
	if (v->open)
		epoch_file_unref(v->open);
	epoch_set_clear(&v->closed);
	free(v->states_path);
	free(v->store_path);
	free(v);
}

void
view_file_plan(struct view_file *v, struct daemon *d)
{
	uint64_t finest = v->unit;

	if (!v->limited || (v->closed.n == 0 && v->open))
		return;
	if (v->closed.n == 1) {
		v->mask = epoch_file_ref(v->closed.v[0]);
		return;
	}
	/* the union of many; of none: an epoch in which nothing is dirty */
	for (size_t i = 0; i < v->closed.n; i++)
		finest = min_u64(finest, v->closed.v[i]->granularity);
	v->mask = epoch_file_new(d->cfg.shm, graph_take_id(d->graph), v->size,
				 finest);
}

void
view_file_attach(struct view_file *v, struct node *n)
{
	v->node = n;
	v->next = n->views;
	n->views = v;
}

void
view_file_detach(struct view_file *v)
{
	struct view_file **p;

	if (!v->node)
		return;
	for (p = &v->node->views; *p != v; p = &(*p)->next)
		;
	*p = v->next;
	v->node = NULL;
}

static void
add_mask(struct link_view *l, const struct epoch_file *f, int *fds, unsigned *n)
{
	l->masks.v = xrealloc(l->masks.v, l->masks.n + 1, sizeof l->masks.v[0]);
	l->masks.v[l->masks.n++] = *n;
	fds[(*n)++] = epoch_fd(f->map);
}

void
view_file_describe(const struct view_file *v, bool at_cut,
		   struct link_view_list *to, int *fds, unsigned *n)
{
	struct link_view *l = xzalloc(sizeof *l);

	l->id = v->id;
	l->unit = v->unit;
	l->break_guest_write = v->break_guest_write;
	l->timeout_ms = v->timeout_ms;
	l->states = *n;
	fds[(*n)++] = view_fd(v->states);
	l->store = *n;
	fds[(*n)++] = v->store;
	if (v->mask)
		add_mask(l, v->mask, fds, n);
	if (v->open && !at_cut)
		add_mask(l, v->open, fds, n);
	l->mask_open = v->open && at_cut;
	xassert_memory(link_view_list_append(to, l));
}

static bool
make_states(struct view_file *v, struct err *e)
{
	AUTO(close) int fd = -1;

	/* never truncate a file: somebody may have it mapped */
	(void)unlink(v->states_path);
	fd = open(v->states_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot make '%s'",
			       v->states_path);
	return view_format(fd, v->size, e) &&
	       view_open(steal_fd(&fd), &v->states, e);
}

/* The plugin gets one closed epoch: the only one there is, or their union. */
static bool
make_mask(struct view_file *v, struct err *e)
{
	if (!v->mask)
		return true;
	if (!v->mask->map && !epoch_file_make(v->mask, e))
		return false;
	for (size_t i = 0; i < v->closed.n; i++)
		if (v->closed.v[i] != v->mask)
			epoch_merge(v->mask->map, v->closed.v[i]->map);
	return true;
}

bool
view_file_make(struct view_file *v, struct err *e)
{
	if (!make_states(v, e))
		return false;
	(void)unlink(v->store_path);
	v->store = open(v->store_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
			0600);
	if (v->store < 0 || ftruncate(v->store, (off_t)v->size) < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot make '%s'",
			       v->store_path);
	return make_mask(v, e);
}

void
view_file_ready(struct view_file *v, struct block *image)
{
	size_t n = 0;

	if (v->mask)
		v->masks[n++] = v->mask->map;
	if (v->open)
		v->masks[n++] = v->open->map;
	v->begun = true;
	v->image = image;
	v->reader = (struct view_reader){
		.image = image,
		.view = v->states,
		.store = v->store,
		.mask = { .v = v->masks,
			  .n = n,
			  .size = v->size,
			  .unit = v->unit },
	};
}

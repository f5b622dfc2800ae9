/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the data plane does for each message of schema/link.json.  Link thread,
 * except for the functions that say "own thread".
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/park.h"
#include "change.h"
#include "link/image.h"
#include "notices.h"
#include "schema/link-commands.h"
#include "server.h"

/* How long a request of a guest may keep an export from being taken away. */
#define REMOVE_MS 2000

static bool
find_node(struct link_call *call, const char *name, struct node **n,
	  struct err *e)
{
	*n = table_node(server_table(call->server), name);
	if (!*n || (*n)->closing)
		return err_set(e, ERR_GENERIC, 0,
			       "the data plane has no node '%s'", name);
	return true;
}

/* --- hello ------------------------------------------------------------------- */

static bool
describe_views(const struct node *n, struct uint64_list *out)
{
	size_t count = 0, i = 0;

	for (const struct attached *a = n->views; a; a = a->next)
		count += !a->leaving;
	out->v = calloc(count ? count : 1, sizeof out->v[0]);
	if (!out->v)
		return false;
	for (const struct attached *a = n->views; a; a = a->next)
		if (!a->leaving)
			out->v[i++] = a->id;
	out->n = count;
	return true;
}

static bool
describe_node(const struct node *n, struct link_hello *h)
{
	AUTO(link_node_info_free)
	struct link_node_info *i = calloc(1, sizeof *i);

	if (!i)
		return false;
	i->node = strdup(n->name);
	i->has_epoch = n->epoch != NULL;
	i->epoch = n->epoch_id;
	if (!i->node || !describe_views(n, &i->views) ||
	    !link_node_info_list_append(&h->nodes, i))
		return false;
	(void)steal(&i);
	return true;
}

static bool
describe_export(const struct export *x, struct link_hello *h)
{
	AUTO(link_export_info_free)
	struct link_export_info *i = calloc(1, sizeof *i);

	if (!i)
		return false;
	i->name = strdup(x->name);
	i->node = strdup(x->node->name);
	i->writable = x->writable;
	i->connections = export_connections(x);
	if (!i->name || !i->node ||
	    !link_export_info_list_append(&h->exports, i))
		return false;
	(void)steal(&i);
	return true;
}

static bool
describe(struct link_call *call, struct link_hello *h)
{
	struct table *t = server_table(call->server);

	for (const struct node *n = t->nodes; n; n = n->next)
		if (!n->closing && !describe_node(n, h))
			return false;
	for (const struct export *x = t->exports; x; x = x->next)
		if (!describe_export(x, h))
			return false;
	for (unsigned i = 0; i < server_listen_fds(call->server); i++)
		if (!link_call_add_fd(call, 3 + (int)i))
			return false;
	return true;
}

static void
greet(struct link_call *call)
{
	AUTO(link_hello_free) struct link_hello *h = calloc(1, sizeof *h);
	struct err e = ERR_INIT;

	if (!h || !describe(call, h)) {
		(void)err_set(&e, ERR_GENERIC, ENOMEM,
			      "cannot describe the data plane");
		link_call_fail(call, &e);
		return;
	}
	h->version = LINK_VERSION;
	h->pid = getpid();
	link_hello_return(call, h);
}

/* Whoever is told of no node opens its image, and it must not be open here. */
void
link_hello(struct link_call *call, struct link_hello_args *arg)
{
	AUTO(link_hello_args_free) struct link_hello_args *own = arg;
	struct err e = ERR_INIT;

	PARK("link.hello");
	if (arg->version == LINK_VERSION) {
		server_after_images(call, greet);
		return;
	}
	(void)err_set(&e, ERR_GENERIC, 0,
		      "link version %" PRIu32 ", and we speak %u", arg->version,
		      LINK_VERSION);
	link_call_fail(call, &e);
}

/* --- views -------------------------------------------------------------------- */

static void
on_view_broken(void *opaque, int os)
{
	struct attached *a = opaque;

	atomic_store(&a->broken, os);
	server_wake(a->server);
}

static bool
take_epoch(struct link_msg *m, uint32_t index, struct epoch **out,
	   struct err *e)
{
	int fd;

	return link_msg_take_fd(m, index, &fd, e) && epoch_open(fd, out, e);
}

static bool
take_view(struct link_msg *m, uint32_t index, struct view **out, struct err *e)
{
	int fd;

	return link_msg_take_fd(m, index, &fd, e) && view_open(fd, out, e);
}

/* The epochs that limit a view.  On failure those in @o are the caller's to
 * give back.
 */
static bool
take_masks(struct link_call *call, struct node *n, const struct link_view *v,
	   struct cbw_options *o, struct err *e)
{
	if (v->masks.n + v->mask_open > ARRAY_SIZE(o->mask))
		return err_set(e, ERR_GENERIC, 0, "a view has too many masks");
	if (v->mask_open && !n->epoch)
		return err_set(e, ERR_GENERIC, 0, "node '%s' has no open epoch",
			       n->name);
	for (size_t i = 0; i < v->masks.n; i++) {
		if (!take_epoch(&call->msg, v->masks.v[i], &o->mask[o->n], e))
			return false;
		if (epoch_size(o->mask[o->n++]) != n->image->size)
			return err_set(e, ERR_GENERIC, 0,
				       "mask and node '%s' have different "
				       "sizes",
				       n->name);
	}
	if (v->mask_open)
		o->mask[o->n++] = epoch_ref(n->epoch);
	return true;
}

static bool
geometry_ok(const struct node *n, const struct view *v, uint64_t unit,
	    struct err *e)
{
	if (view_size(v) != n->image->size)
		return err_set(e, ERR_GENERIC, 0,
			       "view and node '%s' have different sizes",
			       n->name);
	if (unit < 512 || (unit & (unit - 1)))
		return err_set(e, ERR_GENERIC, 0,
			       "a view cannot have this unit");
	return true;
}

/* Make a view ready to be attached. */
static bool
make_view(struct link_call *call, struct node *n, const struct link_view *v,
	  struct attached **out, struct err *e)
{
	AUTO(attached_free) struct attached *a = calloc(1, sizeof *a);
	AUTO(view_unref) struct view *states = NULL;
	AUTO(close) int store = -1;
	struct cbw_options o = { 0 };

	if (!a)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot attach a view");
	if (!take_view(&call->msg, v->states, &states, e) ||
	    !link_msg_take_fd(&call->msg, v->store, &store, e) ||
	    !geometry_ok(n, states, v->unit, e))
		return false;
	if (!take_masks(call, n, v, &o, e)) {
		while (o.n)
			epoch_unref(o.mask[--o.n]);
		return false;
	}
	a->id = v->id;
	a->server = call->server;
	o.view = steal(&states);
	o.store = steal_fd(&store);
	o.image = n->image;
	o.unit = v->unit;
	o.policy = v->break_guest_write ? CBW_BREAK_GUEST_WRITE
					: CBW_BREAK_SNAPSHOT;
	o.timeout_ms = v->timeout_ms;
	o.broken = on_view_broken;
	o.opaque = a;
	if (!cbw_new(&o, &a->cbw, e))
		return false;
	*out = steal(&a);
	return true;
}

static bool
make_views(struct link_call *call, struct node *n,
	   const struct link_view_list *l, struct attached **out, struct err *e)
{
	for (size_t i = 0; i < l->n; i++) {
		if (!make_view(call, n, l->v[i], out, e))
			return false;
		out = &(*out)->next;
	}
	return true;
}

bool
link_view_close(struct link_call *call, const struct link_view_close_args *arg,
		struct err *e)
{
	struct attached *a;
	struct node *n = NULL;

	if (!find_node(call, arg->node, &n, e))
		return false;
	for (a = n->views; a && a->id != arg->view; a = a->next)
		;
	if (!a)
		return err_set(e, ERR_GENERIC, 0,
			       "node '%s' has no view %" PRIu64, arg->node,
			       arg->view);
	node_give_up(n, a);
	return true;
}

/* --- nodes -------------------------------------------------------------------- */

struct node_open {
	struct link_node_open_args *arg; /* owned */
	bool alone; /* see struct node */
	struct block *image; /* owned, or NULL: @e */
	struct err e;
};

/* Own thread: an NBD server may take its time. */
static void
open_image(struct link_call *call)
{
	struct node_open *op = call->state;

	PARK("node.opening");
	if (!link_image_open(op->arg->image, &call->msg, &op->image, &op->e))
		op->image = NULL;
}

static bool
make_node(struct link_call *call, struct node_open *op, struct node **out,
	  struct err *e)
{
	const struct link_node_open_args *arg = op->arg;
	AUTO(node_free) struct node *n = node_new(arg->node, op->image);
	struct attached *views = NULL;
	bool ok;

	if (!n)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open '%s'",
			       arg->node);
	op->image = NULL;
	if (arg->epoch) {
		if (!take_epoch(&call->msg, arg->epoch->fd, &n->epoch, e))
			return false;
		n->epoch_id = arg->epoch->id;
		if (epoch_size(n->epoch) != n->image->size)
			return err_set(e, ERR_GENERIC, 0,
				       "epoch and node '%s' have different "
				       "sizes",
				       arg->node);
	}
	ok = make_views(call, n, &arg->views, &views, e);
	node_attach(n, views);
	if (!ok)
		return false;
	*out = steal(&n);
	return true;
}

/* A format writes tables; all else may be open any number of times. */
static bool
is_written_by_format(const struct link_image *i)
{
	switch (i->driver) {
	case LINK_DRIVER_QCOW2: return !i->read_only;
	case LINK_DRIVER_RAW: return is_written_by_format(i->u.raw->file);
	case LINK_DRIVER_THROTTLE:
		return is_written_by_format(i->u.throttle->file);
	case LINK_DRIVER_BLKDEBUG:
		return is_written_by_format(i->u.blkdebug->image);
	default: return false;
	}
}

static void
wake(void *opaque)
{
	server_wake(opaque);
}

static void
node_opened(struct link_call *call)
{
	struct table *t = server_table(call->server);
	struct node_open *op = call->state;
	struct link_node_opened ret = { 0 };
	struct server *s = call->server;
	bool alone = op->alone;
	struct node *n = NULL;

	/* Who asked for it is gone.  His successor was not told of it, and opens
	 * it anew.
	 */
	if (op->image && !link_call_is_current(call))
		(void)err_set(&op->e, ERR_GENERIC, 0, "nobody waits for '%s'",
			      op->arg->node);
	else if (op->image && table_node(t, op->arg->node))
		(void)err_set(&op->e, ERR_GENERIC, 0,
			      "the data plane has a node '%s' already",
			      op->arg->node);
	else if (op->image && make_node(call, op, &n, &op->e)) {
		n->alone = alone;
		table_add_node(t, n);
		notices_watch_all(n, wake, call->server);
		ret.size = n->image->size;
		link_node_open_return(call, &ret);
		call = NULL;
	}
	if (call)
		link_call_fail(call, &op->e);
	if (op->image)
		block_free(op->image);
	link_node_open_args_free(op->arg);
	free(op);
	if (alone)
		server_image_end(s);
}

void
link_node_open(struct link_call *call, struct link_node_open_args *arg)
{
	struct node_open *op = calloc(1, sizeof *op);
	struct err e = ERR_INIT;

	if (op) {
		op->arg = arg;
		op->alone = is_written_by_format(arg->image);
		call->state = op;
		call->finish = node_opened;
		if (server_run(call, open_image)) {
			if (op->alone)
				server_image_begin(call->server);
			return;
		}
	}
	(void)err_set(&e, ERR_GENERIC, ENOMEM, "cannot open '%s'", arg->node);
	link_call_fail(call, &e);
	link_node_open_args_free(arg);
	free(op);
}

/* Own thread: closing flushes. */
static void
close_image(struct link_call *call)
{
	struct node *n = call->state;

	(void)node_flush(n);
	PARK("node.closing");
	node_free(n);
}

static void
node_closed(struct link_call *call)
{
	link_node_close_return(call);
}

static void
alone_closed(struct link_call *call)
{
	struct server *s = call->server;

	node_closed(call);
	server_image_end(s);
}

/* Nobody is inside.  Without a thread to do it, it is done here: whoever asks
 * for it opens the image next.
 */
static void
close_node(struct link_call *call, struct node *n)
{
	table_remove_node(server_table(call->server), n);
	call->state = n;
	call->finish = n->alone ? alone_closed : node_closed;
	if (server_run(call, close_image))
		return;
	close_image(call);
	call->finish(call);
}

void
link_node_close(struct link_call *call, struct link_node_close_args *arg)
{
	AUTO(link_node_close_args_free) struct link_node_close_args *own = arg;
	struct err e = ERR_INIT;
	struct node *n = NULL;

	if (!find_node(call, arg->node, &n, &e)) {
		link_call_fail(call, &e);
		return;
	}
	if (cut_has(server_cut(call->server), n)) /* given up, see below */
		cut_clear(server_cut(call->server));
	if (n->exports) {
		(void)err_set(&e, ERR_GENERIC, 0, "node '%s' is in use",
			      arg->node);
		link_call_fail(call, &e);
		return;
	}
	if (n->alone)
		server_image_begin(call->server);
	if (n->flushing)
		n->closing = call;
	else
		close_node(call, n);
}

/* --- flushing ------------------------------------------------------------------ */

struct flush {
	struct node *node; /* borrowed: it is not closed meanwhile */
	int os;
};

/* Own thread: an NBD server may take its time. */
static void
flush_image(struct link_call *call)
{
	struct flush *f = call->state;

	PARK("node.flushing");
	f->os = node_flush(f->node);
}

static void
node_flushed(struct link_call *call)
{
	struct flush *f = call->state;
	struct node *n = f->node;
	struct err e = ERR_INIT;
	int os = f->os;

	free(f);
	if (os) {
		(void)err_set(&e, ERR_GENERIC, os, "cannot flush '%s'",
			      n->name);
		link_call_fail(call, &e);
	} else {
		link_node_flush_return(call);
	}
	n->flushing--;
	if (!n->flushing && n->closing)
		close_node(steal(&n->closing), n);
}

void
link_node_flush(struct link_call *call, struct link_node_flush_args *arg)
{
	AUTO(link_node_flush_args_free) struct link_node_flush_args *own = arg;
	AUTO(free) struct flush *f = calloc(1, sizeof *f);
	struct err e = ERR_INIT;
	struct node *n = NULL;

	if (!find_node(call, arg->node, &n, &e)) {
		link_call_fail(call, &e);
		return;
	}
	if (f) {
		f->node = n;
		call->state = f;
		call->finish = node_flushed;
		n->flushing++;
		if (server_run(call, flush_image)) {
			(void)steal(&f);
			return;
		}
		n->flushing--;
	}
	(void)err_set(&e, ERR_GENERIC, ENOMEM, "cannot flush '%s'", arg->node);
	link_call_fail(call, &e);
}

/* --- changes ------------------------------------------------------------------- */

bool
link_node_resize(struct link_call *call,
		 const struct link_node_resize_args *arg, struct err *e)
{
	AUTO(epoch_unref) struct epoch *epoch = NULL;
	struct node *n = NULL;

	if (!find_node(call, arg->node, &n, e))
		return false;
	if (cut_has(server_cut(call->server), n))
		return err_set(e, ERR_GENERIC, 0, "node '%s' is in use",
			       arg->node);
	if (arg->epoch && !take_epoch(&call->msg, arg->epoch->fd, &epoch, e))
		return false;
	if (!change_size(server_table(call->server), n, arg->size, epoch,
			 arg->epoch ? arg->epoch->id : 0, arg->timeout_ms, e))
		return false;
	(void)steal(&epoch);
	return true;
}

bool
link_node_threshold(struct link_call *call,
		    const struct link_node_threshold_args *arg, struct err *e)
{
	struct node *n = NULL;

	if (!find_node(call, arg->node, &n, e))
		return false;
	return notices_watch(n, arg->layer, arg->threshold, wake,
			     call->server) ||
	       err_set(e, ERR_GENERIC, 0, "node '%s' has no layer '%s'",
		       arg->node, arg->layer);
}

/* --- what guests have done -------------------------------------------------------- */

static bool
add_counts(const struct export *x, struct link_export_stats *to)
{
	for (int k = 0; k < STATS_N; k++) {
		struct stats_sum sum = stats_sum(&x->stats, (enum stats_kind)k);
		struct link_count *c = calloc(1, sizeof *c);

		if (!c || !link_count_list_append(&to->counts, c)) {
			free(c);
			return false;
		}
		*c = (struct link_count){ .ops = sum.ops,
					  .bytes = sum.bytes,
					  .ns = sum.ns,
					  .failed = sum.failed };
	}
	return true;
}

static bool
add_export_stats(const struct export *x, struct link_stats *to)
{
	AUTO(link_export_stats_free)
	struct link_export_stats *i = calloc(1, sizeof *i);

	if (!i)
		return false;
	i->name = strdup(x->name);
	if (!i->name || !add_counts(x, i) ||
	    !link_export_stats_list_append(&to->exports, i))
		return false;
	(void)steal(&i);
	return true;
}

static bool
add_layers(const struct block *b, struct link_stats *to)
{
	AUTO(link_layer_stats_free)
	struct link_layer_stats *i = calloc(1, sizeof *i);
	struct block *c;
	bool ok;

	if (!i)
		return false;
	i->node = strdup(b->node ? b->node : "");
	i->highest = atomic_load(&b->high.highest);
	if (!i->node || !link_layer_stats_list_append(&to->layers, i))
		return false;
	(void)steal(&i);
	ok = true;
	for (unsigned k = 0; ok && (c = block_child(b, k)); k++)
		ok = add_layers(c, to);
	return ok;
}

bool
link_stats(struct link_call *call, struct link_stats **ret, struct err *e)
{
	AUTO(link_stats_free) struct link_stats *s = calloc(1, sizeof *s);
	struct table *t = server_table(call->server);
	bool ok = s != NULL;

	for (struct export *x = t->exports; ok && x; x = x->next)
		ok = add_export_stats(x, s);
	for (struct node *n = t->nodes; ok && n; n = n->next)
		ok = add_layers(n->image, s);
	if (!ok)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot report");
	*ret = steal(&s);
	return true;
}

/* --- files -------------------------------------------------------------------------- */

/* The files of @b and of what it stands on. */
static bool
add_files(struct link_call *call, const struct block *b, struct link_files *f)
{
	const char *name = block_filename(b);
	int fd = block_fd(b);
	struct block *c;
	bool ok = true;

	if (fd >= 0 && name)
		ok = str_list_append(&f->names, name) &&
		     link_call_add_fd(call, fd);
	for (unsigned i = 0; ok && (c = block_child(b, i)); i++)
		ok = add_files(call, c, f);
	return ok;
}

bool
link_node_files(struct link_call *call, const struct link_node_files_args *arg,
		struct link_files **ret, struct err *e)
{
	AUTO(link_files_free) struct link_files *f = calloc(1, sizeof *f);
	struct node *n = NULL;

	if (!find_node(call, arg->node, &n, e))
		return false;
	if (!f || !add_files(call, n->image, f))
		return err_set(e, ERR_GENERIC, EMFILE,
			       "cannot send the files of '%s'", arg->node);
	*ret = steal(&f);
	return true;
}

bool
link_throttle_set(struct link_call *call,
		  const struct link_throttle_set_args *arg, struct err *e)
{
	struct throttle_config limits;

	(void)call;
	if (!link_throttle_config_get(arg->limits, &limits, e))
		return false;
	throttle_group_set(arg->group, &limits);
	return true;
}

/* --- exports ------------------------------------------------------------------- */

bool
link_export_add(struct link_call *call, const struct link_export_add_args *arg,
		struct err *e)
{
	struct node *n = NULL;
	unsigned flags = 0;

	if (!find_node(call, arg->node, &n, e))
		return false;
	if (arg->writable && !n->image->read_only)
		flags |= EXPORT_WRITABLE;
	if (arg->has_writethrough && arg->writethrough)
		flags |= EXPORT_WRITETHROUGH;
	return table_add_export(server_table(call->server), arg->name,
				arg->description, n, flags, e);
}

bool
link_export_del(struct link_call *call, const struct link_export_del_args *arg,
		struct err *e)
{
	struct table *t = server_table(call->server);
	struct export *x = table_export(t, arg->name);

	if (!x)
		return err_set(e, ERR_GENERIC, 0,
			       "the data plane has no export '%s'", arg->name);
	if (!arg->hard && export_connections(x))
		return err_set(e, ERR_GENERIC, EBUSY,
			       "export '%s' still in use", arg->name);
	if (!table_remove_export(t, x, REMOVE_MS))
		return err_set(e, ERR_GENERIC, 0,
			       "a request to export '%s' does not end",
			       arg->name);
	return true;
}

bool
link_exports_complete(struct link_call *call, struct err *e)
{
	(void)e;
	table_complete(server_table(call->server));
	return true;
}

/* --- cuts ---------------------------------------------------------------------- */

static bool
make_part(struct link_call *call, const struct link_cut_prepare_args *arg,
	  struct cut_part **out, struct err *e)
{
	AUTO(cut_part_free) struct cut_part *p = calloc(1, sizeof *p);

	if (!p)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot prepare a cut");
	if (!find_node(call, arg->node, &p->node, e))
		return false;
	p->stop = arg->stop;
	if (arg->epoch) {
		p->epoch_id = arg->epoch->id;
		if (!take_epoch(&call->msg, arg->epoch->fd, &p->epoch, e))
			return false;
		if (epoch_size(p->epoch) != p->node->image->size)
			return err_set(e, ERR_GENERIC, 0,
				       "epoch and node '%s' have different "
				       "sizes",
				       arg->node);
	}
	for (size_t i = 0; i < arg->views.n; i++)
		if (arg->views.v[i]->mask_open && !p->epoch && !p->stop)
			return err_set(e, ERR_GENERIC, 0,
				       "a view's mask would stay open");
	if (!make_views(call, p->node, &arg->views, &p->views, e))
		return false;
	*out = steal(&p);
	return true;
}

bool
link_cut_prepare(struct link_call *call,
		 const struct link_cut_prepare_args *arg, struct err *e)
{
	struct cut *c = server_cut(call->server);
	struct cut_part *p = NULL;

	/* One cut at a time: an older one was given up, and telling us that
	 * may have failed for lack of memory.
	 */
	if (c->id != arg->cut)
		cut_clear(c);
	if (!make_part(call, arg, &p, e))
		return false;
	if (cut_has(c, p->node)) {
		cut_part_free(p);
		return err_set(e, ERR_GENERIC, 0,
			       "node '%s' has a part in this cut already",
			       arg->node);
	}
	c->id = arg->cut;
	p->next = c->parts;
	c->parts = p;
	return true;
}

bool
link_cut_commit(struct link_call *call, const struct link_cut_commit_args *arg,
		struct link_cut_result **ret, struct err *e)
{
	struct cut *c = server_cut(call->server);
	AUTO(link_cut_result_free)
	struct link_cut_result *r = calloc(1, sizeof *r);

	if (!r)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot cut");
	if (!c->parts || c->id != arg->cut)
		return err_set(e, ERR_GENERIC, 0, "no such cut is prepared");
	if (!cut_commit(c, arg->timeout_ms, server_stats(call->server),
			&r->closed_ns, e)) {
		cut_clear(c);
		return false;
	}
	*ret = steal(&r);
	return true;
}

bool
link_cut_abort(struct link_call *call, const struct link_cut_abort_args *arg,
	       struct err *e)
{
	struct cut *c = server_cut(call->server);

	(void)e;
	if (c->id == arg->cut)
		cut_clear(c);
	return true;
}

static bool
add_bar(struct link_cut_stats *s, unsigned bar, uint64_t count)
{
	struct link_cut_bucket *b = calloc(1, sizeof *b);

	if (!b)
		return false;
	b->below_ns = bar == CUT_BARS - 1 ? UINT64_MAX : UINT64_C(1000) << bar;
	b->count = count;
	if (link_cut_bucket_list_append(&s->histogram, b))
		return true;
	free(b);
	return false;
}

bool
link_cut_stats(struct link_call *call, struct link_cut_stats **ret,
	       struct err *e)
{
	const struct cut_stats *from = server_stats(call->server);
	AUTO(link_cut_stats_free)
	struct link_cut_stats *s = calloc(1, sizeof *s);
	bool ok = s != NULL;

	for (unsigned i = 0; ok && i < CUT_BARS; i++)
		ok = add_bar(s, i, from->bars[i]);
	if (!ok)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot report");
	s->cuts = from->cuts;
	s->max_closed_ns = from->max_closed_ns;
	*ret = steal(&s);
	return true;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the data plane tells of itself: what it has when stillpointd says hello,
 * what guests have done, and the files that it has open.
 */
#include "handlers.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/park.h"

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

	if (!handle_find_node(call, arg->node, &n, e))
		return false;
	if (!f || !add_files(call, n->image, f))
		return err_set(e, ERR_GENERIC, EMFILE,
			       "cannot send the files of '%s'", arg->node);
	*ret = steal(&f);
	return true;
}

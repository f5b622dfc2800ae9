/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit's callbacks (nbdkit-plugin(3)).  A connection refers to an export;
 * every request passes the export's own gate, so that stillpointd can take an
 * export away from connected clients.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/bits.h"
#include "base/log.h"
#include "base/park.h"
#include "node.h"
#include "server.h"
#include "table.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* What QEMU's server accepts in one read or write. */
#define MAX_REQUEST (32 * MiB)

/* What a client that is one too many is told. */
#define TOO_MANY "there are as many clients as may be connected already"

/* A reply to block status describes at most so many extents. */
#define MAX_EXTENTS 4096

/* nbdkit's callbacks have no argument for state of the whole plugin. */
static struct {
	char *link_path; /* owned */
	unsigned listen_fds;
	unsigned max_connections; /* 0: any number */
	_Atomic unsigned connections;
	struct table table;
	struct server *server; /* owned; NULL before after_fork */
} plugin;

struct connection {
	struct export *x; /* a reference */
	bool read_only;
};

static void
log_to_nbdkit(enum log_level level, const char *line)
{
	if (level <= LOG_LEVEL_WARN)
		nbdkit_error("%s", line);
	else
		nbdkit_debug("%s", line);
}

static void
plugin_load(void)
{
	/* nbdkit 1.32 asks to be ended with its parent even without
	 * --exit-with-parent; guests must outlive stillpointd.
	 */
	(void)prctl(PR_SET_PDEATHSIG, 0);
	/* A limit on file sizes is an error of a write (EFBIG). */
	(void)signal(SIGXFSZ, SIG_IGN);
	log_set_sink(log_to_nbdkit);
	park_from_environment();
	table_init(&plugin.table);
}

static void
plugin_unload(void)
{
	free(plugin.link_path);
}

static int
plugin_config(const char *key, const char *value)
{
	if (strcmp(key, "link") == 0) {
		free(plugin.link_path);
		plugin.link_path = nbdkit_absolute_path(value);
		return plugin.link_path ? 0 : -1;
	}
	if (strcmp(key, "listen-fds") == 0) {
		if (nbdkit_parse_unsigned(key, value, &plugin.listen_fds) < 0)
			return -1;
		if (plugin.listen_fds <= LINK_MAX_LISTENS)
			return 0;
		nbdkit_error("listen-fds: at most %d", LINK_MAX_LISTENS);
		return -1;
	}
	if (strcmp(key, "max-connections") == 0)
		return nbdkit_parse_unsigned(key, value,
					     &plugin.max_connections);
	nbdkit_error("unknown parameter '%s'", key);
	return -1;
}

static int
plugin_config_complete(void)
{
	if (plugin.link_path)
		return 0;
	nbdkit_error("the link parameter is missing");
	return -1;
}

/* Threads must not be started before nbdkit has forked. */
static int
plugin_after_fork(void)
{
	struct server_options o = { .path = plugin.link_path,
				    .listen_fds = plugin.listen_fds,
				    .table = &plugin.table };
	struct err e = ERR_INIT;

	if (server_start(&o, &plugin.server, &e))
		return 0;
	nbdkit_error("%s", e.msg);
	return -1;
}

/* All connections are closed. */
static void
plugin_cleanup(void)
{
	struct node *n;

	table_complete(&plugin.table);
	if (plugin.server)
		server_stop(plugin.server);
	plugin.server = NULL;
	while (plugin.table.exports)
		(void)table_remove_export(&plugin.table, plugin.table.exports,
					  0);
	while ((n = plugin.table.nodes)) {
		table_remove_node(&plugin.table, n);
		(void)node_flush(n);
		node_free(n);
	}
}

static bool
list_one(const struct export *x, void *opaque)
{
	return nbdkit_add_export(opaque, x->name, x->description) == 0;
}

static int
plugin_list_exports(int read_only, int is_tls, struct nbdkit_exports *exports)
{
	(void)read_only;
	(void)is_tls;
	table_wait_complete(&plugin.table);
	return table_each_export(&plugin.table, list_one, exports) ? 0 : -1;
}

/* Room for one more client.  Those who only negotiate do not count. */
static bool
take_place(void)
{
	unsigned n = atomic_fetch_add(&plugin.connections, 1);

	if (!plugin.max_connections || n < plugin.max_connections)
		return true;
	(void)atomic_fetch_sub(&plugin.connections, 1);
	return false;
}

static void
give_place(void)
{
	(void)atomic_fetch_sub(&plugin.connections, 1);
}

static struct connection *
connection_new(const char *name)
{
	struct connection *c = calloc(1, sizeof *c);

	if (!c) {
		nbdkit_error("no memory for another connection");
		return NULL;
	}
	c->x = table_connect(&plugin.table, name);
	if (c->x)
		return c;
	nbdkit_error("there is no export named '%s'", name);
	free(c);
	return NULL;
}

static void *
plugin_open(int read_only)
{
	const char *name = nbdkit_export_name();
	struct connection *c;

	if (!take_place()) {
		nbdkit_error(TOO_MANY);
		return NULL;
	}
	c = connection_new(name ? name : "");
	if (!c) {
		give_place();
		return NULL;
	}
	c->read_only = read_only || !c->x->writable;
	return c;
}

static void
plugin_close(void *handle)
{
	struct connection *c = handle;

	export_unref(c->x);
	free(c);
	give_place();
}

static int
failed(int os)
{
	if (!os)
		return 0;
	nbdkit_set_error(os);
	return -1;
}

/* Every request is between these two.  NULL: the export is gone. */
static struct node *
enter(struct connection *c, unsigned *ticket)
{
	*ticket = gate_enter(&c->x->users);
	if (likely(c->x->node != NULL))
		return c->x->node;
	gate_leave(&c->x->users, *ticket);
	nbdkit_error("export '%s' was removed", c->x->name);
	nbdkit_set_error(ESHUTDOWN);
	return NULL;
}

static int
leave(struct connection *c, unsigned ticket, int os)
{
	gate_leave(&c->x->users, ticket);
	return failed(os);
}

static int64_t
plugin_get_size(void *handle)
{
	struct connection *c = handle;
	unsigned ticket;
	struct node *n = enter(c, &ticket);
	int64_t size;

	if (!n)
		return -1;
	size = (int64_t)n->image->size;
	(void)leave(c, ticket, 0);
	return size;
}

static int
plugin_can_write(void *handle)
{
	return !((struct connection *)handle)->read_only;
}

/* Several connections to one export make no sense when there is one place. */
static int
plugin_can_multi_conn(void *handle)
{
	(void)handle;
	return plugin.max_connections != 1;
}

static int
yes(void *handle)
{
	(void)handle;
	return 1;
}

static int
native_fua(void *handle)
{
	(void)handle;
	return NBDKIT_FUA_NATIVE;
}

static int
native_cache(void *handle)
{
	(void)handle;
	return NBDKIT_CACHE_NATIVE;
}

static int
plugin_is_rotational(void *handle)
{
	struct connection *c = handle;
	unsigned ticket;
	struct node *n = enter(c, &ticket);
	int r;

	if (!n)
		return -1;
	r = n->image->rotational;
	(void)leave(c, ticket, 0);
	return r;
}

static const char *
plugin_export_description(void *handle)
{
	return ((struct connection *)handle)->x->description;
}

static int
plugin_block_size(void *handle, uint32_t *minimum, uint32_t *preferred,
		  uint32_t *maximum)
{
	struct connection *c = handle;
	unsigned ticket;
	struct node *n = enter(c, &ticket);

	if (!n)
		return -1;
	*minimum = n->image->min_block;
	*preferred = n->image->pref_block;
	*maximum = MAX_REQUEST;
	return leave(c, ticket, 0);
}

/* Must the request be on the disk before it is answered? */
static bool
through(const struct connection *c, uint32_t flags)
{
	return (flags & NBDKIT_FLAG_FUA) || c->x->writethrough;
}

/* A request that is counted, from here to counted(). */
struct request {
	struct node *n;
	unsigned ticket;
	uint64_t began;
};

static bool
begin(struct connection *c, struct request *r)
{
	r->n = enter(c, &r->ticket);
	r->began = r->n ? stats_now() : 0;
	return r->n != NULL;
}

static int
counted(struct connection *c, const struct request *r, enum stats_kind kind,
	uint64_t bytes, int os)
{
	if (unlikely(stats_count(&c->x->stats, r->ticket, kind, bytes, r->began,
				 os)))
		server_wake(plugin.server);
	return leave(c, r->ticket, os);
}

static int
plugin_pread(void *handle, void *buf, uint32_t count, uint64_t offset,
	     uint32_t flags)
{
	struct connection *c = handle;
	struct request r;

	(void)flags;
	if (!begin(c, &r))
		return -1;
	return counted(c, &r, STATS_READ, count,
		       node_pread(r.n, buf, count, offset));
}

static int
plugin_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset,
	      uint32_t flags)
{
	struct connection *c = handle;
	struct request r;

	if (!begin(c, &r))
		return -1;
	return counted(c, &r, STATS_WRITE, count,
		       node_pwrite(r.n, buf, count, offset, through(c, flags)));
}

static int
plugin_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct connection *c = handle;
	unsigned how = 0;
	struct request r;
	int os;

	if (flags & NBDKIT_FLAG_MAY_TRIM)
		how |= BLOCK_ZERO_MAY_UNMAP;
	if (flags & NBDKIT_FLAG_FAST_ZERO)
		how |= BLOCK_ZERO_FAST;
	if (!begin(c, &r))
		return -1;
	os = node_zero(r.n, offset, count, how, through(c, flags));
	/* not a failure: the guest asked whether it would be fast */
	if (os == ENOTSUP && how & BLOCK_ZERO_FAST)
		return leave(c, r.ticket, os);
	return counted(c, &r, STATS_WRITE, count, os);
}

static int
plugin_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct connection *c = handle;
	struct request r;

	if (!begin(c, &r))
		return -1;
	return counted(c, &r, STATS_UNMAP, count,
		       node_discard(r.n, offset, count, through(c, flags)));
}

static int
plugin_flush(void *handle, uint32_t flags)
{
	struct connection *c = handle;
	struct request r;

	(void)flags;
	if (!begin(c, &r))
		return -1;
	return counted(c, &r, STATS_FLUSH, 0, node_flush(r.n));
}

static int
add_extents(struct node *n, uint64_t off, uint64_t end, uint32_t flags,
	    struct nbdkit_extents *to)
{
	for (unsigned i = 0; off < end && i < MAX_EXTENTS; i++) {
		unsigned type;
		uint64_t len;
		int r = block_extent(n->image, off, end - off, &len, &type);

		if (r)
			return r;
		if (nbdkit_add_extent(
			    to, off, len,
			    (type & BLOCK_HOLE ? NBDKIT_EXTENT_HOLE : 0) |
				    (type & BLOCK_ZERO ? NBDKIT_EXTENT_ZERO
						       : 0)) < 0)
			return errno;
		if (flags & NBDKIT_FLAG_REQ_ONE)
			break;
		off += len;
	}
	return 0;
}

static int
plugin_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
	       struct nbdkit_extents *extents)
{
	struct connection *c = handle;
	unsigned ticket;
	struct node *n = enter(c, &ticket);

	return n ? leave(c, ticket,
			 add_extents(n, offset, offset + count, flags, extents))
		 : -1;
}

static int
plugin_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct connection *c = handle;
	unsigned ticket;
	struct node *n = enter(c, &ticket);

	(void)flags;
	return n ? leave(c, ticket, block_cache(n->image, offset, count)) : -1;
}

static struct nbdkit_plugin stillpoint = {
	.name = "stillpoint",
	.longname = "Stillpoint data plane",
	.version = STILLPOINT_VERSION,
	.description = "Serves disks to guests and keeps points in time still "
		       "for stillpointd, which starts and controls it.",
	.load = plugin_load,
	.unload = plugin_unload,
	.config = plugin_config,
	.config_complete = plugin_config_complete,
	.config_help =
		"link=PATH      (required) unix socket for stillpointd\n"
		"listen-fds=N   how many sockets nbdkit was activated with\n"
		"max-connections=N   how many clients may be connected (0: any "
		"number)",
	.after_fork = plugin_after_fork,
	.cleanup = plugin_cleanup,
	.list_exports = plugin_list_exports,
	.open = plugin_open,
	.close = plugin_close,
	.get_size = plugin_get_size,
	.export_description = plugin_export_description,
	.block_size = plugin_block_size,
	.can_write = plugin_can_write,
	.can_flush = yes,
	.can_trim = yes,
	.can_zero = yes,
	.can_fast_zero = yes,
	.can_extents = yes,
	.can_fua = native_fua,
	.can_cache = native_cache,
	.can_multi_conn = plugin_can_multi_conn,
	.is_rotational = plugin_is_rotational,
	.pread = plugin_pread,
	.pwrite = plugin_pwrite,
	.zero = plugin_zero,
	.trim = plugin_trim,
	.flush = plugin_flush,
	.extents = plugin_extents,
	.cache = plugin_cache,
	.errno_is_preserved = 0,
};

struct nbdkit_plugin *plugin_init(void); /* is in the macro */

NBDKIT_REGISTER_PLUGIN(stillpoint)

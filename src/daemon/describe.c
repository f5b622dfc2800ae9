/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/describe.h"

#include <assert.h>
#include <errno.h>

#include "block/blkdebug.h"
#include "daemon/objects.h"

static struct link_image *describe(const struct node *n, bool read_only,
				   int *fds, unsigned *nfds);

/* --- options that every driver has -------------------------------------------- */

static struct link_image *
common(const struct node *n, enum link_driver driver)
{
	const struct blockdev_options *o = n->options;
	struct link_image *i = xzalloc(sizeof *i);

	i->driver = driver;
	i->node = xstrdup(n->name);
	i->discard_unmap =
		o->has_discard && o->discard == BLOCKDEV_DISCARD_OPTIONS_UNMAP;
	if (o->has_detect_zeroes) {
		i->detect_unmap = o->detect_zeroes ==
				  BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP;
		i->detect_zeroes =
			i->detect_unmap ||
			o->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_ON;
	}
	i->no_flush = o->cache && o->cache->no_flush;
	return i;
}

/* --- drivers -------------------------------------------------------------------- */

static struct link_image *
describe_file(const struct node *n, int *fds, unsigned *nfds)
{
	struct link_image *i = common(n, LINK_DRIVER_FILE);
	struct link_image_file *to = i->u.file = xzalloc(sizeof *to);

	assert(*nfds < LINK_MAX_FDS);
	to->fd = *nfds;
	fds[(*nfds)++] = n->fd;
	to->direct = n->options->cache && n->options->cache->direct;
	to->name = xstrdup(node_filename(n));
	return i;
}

static struct link_image *
describe_raw(const struct node *n, bool read_only, int *fds, unsigned *nfds)
{
	const struct blockdev_options_raw *r = n->options->u.raw;
	struct link_image *i = common(n, LINK_DRIVER_RAW);
	struct link_image_raw *to = i->u.raw = xzalloc(sizeof *to);

	to->file = describe(n->child[CHILD_FILE], read_only, fds, nfds);
	to->has_offset = r->has_offset;
	to->offset = (uint64_t)r->offset;
	to->has_size = r->has_size;
	to->size = (uint64_t)r->size;
	return i;
}

const struct blockdev_options_null *
null_options(const struct blockdev_options *o)
{
	return o->driver == BLOCKDEV_DRIVER_NULL_CO ? o->u.null_co
						    : o->u.null_aio;
}

static struct link_image *
describe_null(const struct node *n)
{
	const struct blockdev_options_null *o = null_options(n->options);
	struct link_image *i = common(n, LINK_DRIVER_NULL_CO);
	struct link_image_null *to = i->u.null_co = xzalloc(sizeof *to);

	to->size = o->has_size ? (uint64_t)o->size : UINT64_C(1) << 30;
	to->latency_ns = o->has_latency_ns ? o->latency_ns : 0;
	return i;
}

static char *
maybe(const char *s)
{
	return s ? xstrdup(s) : NULL;
}

static struct link_image *
describe_nbd(const struct node *n)
{
	const struct blockdev_options_nbd *o = n->options->u.nbd;
	struct link_image *i = common(n, LINK_DRIVER_NBD);
	struct link_image_nbd *to = i->u.nbd = xzalloc(sizeof *to);

	if (o->server->type == SOCKET_ADDRESS_TYPE_UNIX) {
		to->path = xstrdup(o->server->u.q_unix->path);
	} else {
		to->host = xstrdup(o->server->u.inet->host);
		to->port = xstrdup(o->server->u.inet->port);
	}
	to->export = xstrdup(o->export ? o->export : "");
	to->context = maybe(o->x_dirty_bitmap);
	to->tls_certificates = maybe(o->x_tls_certificates);
	to->tls_psk_file = maybe(o->x_tls_psk_file);
	to->tls_username = maybe(o->x_tls_username);
	to->tls_hostname = maybe(o->tls_hostname);
	to->tls = to->tls_certificates || to->tls_psk_file;
	to->reconnect_delay = o->has_reconnect_delay ? o->reconnect_delay : 0;
	to->open_timeout = o->has_open_timeout ? o->open_timeout : 0;
	return i;
}

static void
describe_inject(const struct blkdebug_inject_error_options *r,
		struct link_blkdebug_rule *to)
{
	to->event = xstrdup(blkdebug_event_str(r->event));
	to->state = r->has_state ? (uint32_t)r->state : 0;
	to->kinds = r->has_iotype ? 1u << r->iotype : BLKDEBUG_DEFAULT;
	to->os = r->has_q_errno ? (int32_t)r->q_errno : EIO;
	to->sector = r->has_sector ? r->sector : -1;
	to->once = r->has_once && r->once;
}

static void
describe_set_state(const struct blkdebug_set_state_options *r,
		   struct link_blkdebug_rule *to)
{
	to->event = xstrdup(blkdebug_event_str(r->event));
	to->state = r->has_state ? (uint32_t)r->state : 0;
	to->has_new_state = true;
	to->new_state = (uint32_t)r->new_state;
	to->sector = -1;
}

static struct link_blkdebug_rule *
add_rule(struct link_image_blkdebug *to)
{
	struct link_blkdebug_rule *r = xzalloc(sizeof *r);

	xassert_memory(link_blkdebug_rule_list_append(&to->rules, r));
	return r;
}

static struct link_image *
describe_blkdebug(const struct node *n, bool read_only, int *fds,
		  unsigned *nfds)
{
	const struct blockdev_options_blkdebug *o = n->options->u.blkdebug;
	struct link_image *i = common(n, LINK_DRIVER_BLKDEBUG);
	struct link_image_blkdebug *to = i->u.blkdebug = xzalloc(sizeof *to);

	to->image = describe(n->child[CHILD_IMAGE], read_only, fds, nfds);
	to->align = (uint32_t)o->align;
	to->max_transfer = (uint32_t)o->max_transfer;
	to->max_write_zero = (uint32_t)o->max_write_zero;
	to->max_discard = (uint32_t)o->max_discard;
	for (size_t k = 0; k < o->inject_error.n; k++)
		describe_inject(o->inject_error.v[k], add_rule(to));
	for (size_t k = 0; k < o->set_state.n; k++)
		describe_set_state(o->set_state.v[k], add_rule(to));
	return i;
}

static struct link_image *
describe_throttle(const struct node *n, bool read_only, int *fds,
		  unsigned *nfds)
{
	const struct blockdev_options_throttle *o = n->options->u.throttle;
	struct link_image *i = common(n, LINK_DRIVER_THROTTLE);
	struct link_image_throttle *to = i->u.throttle = xzalloc(sizeof *to);

	to->file = describe(n->child[CHILD_FILE], read_only, fds, nfds);
	to->group = xstrdup(o->throttle_group);
	to->limits = objects_describe_limits(&n->limits);
	return i;
}

static struct link_image *
describe_child(const struct node *n, enum child_role role, bool read_only,
	       int *fds, unsigned *nfds)
{
	const struct node *c = n->child[role];

	return c ? describe(c, read_only, fds, nfds) : NULL;
}

/* One number for all caches: what was asked for in parts is added up. */
static uint64_t
cache_size(const struct blockdev_options_qcow2 *o)
{
	int64_t sum = 0;

	if (o->has_cache_size)
		return (uint64_t)o->cache_size;
	if (o->has_l2_cache_size)
		sum += o->l2_cache_size;
	if (o->has_refcount_cache_size)
		sum += o->refcount_cache_size;
	return (uint64_t)sum;
}

static struct link_image *
describe_qcow2(const struct node *n, bool read_only, int *fds, unsigned *nfds)
{
	struct link_image *i = common(n, LINK_DRIVER_QCOW2);
	struct link_image_qcow2 *to = i->u.qcow2 = xzalloc(sizeof *to);

	to->file = describe_child(n, CHILD_FILE, read_only, fds, nfds);
	to->backing = describe_child(n, CHILD_BACKING, true, fds, nfds);
	to->data_file =
		describe_child(n, CHILD_DATA_FILE, read_only, fds, nfds);
	to->cache_size = cache_size(n->options->u.qcow2);
	to->keep_bitmaps = n->keeps_bitmaps;
	return i;
}

/* --- all of them ------------------------------------------------------------------ */

static struct link_image *
by_driver(const struct node *n, bool read_only, int *fds, unsigned *nfds)
{
	switch (n->options->driver) {
	case BLOCKDEV_DRIVER_FILE:
	case BLOCKDEV_DRIVER_HOST_DEVICE: return describe_file(n, fds, nfds);
	case BLOCKDEV_DRIVER_RAW: return describe_raw(n, read_only, fds, nfds);
	case BLOCKDEV_DRIVER_NULL_AIO:
	case BLOCKDEV_DRIVER_NULL_CO: return describe_null(n);
	case BLOCKDEV_DRIVER_NBD: return describe_nbd(n);
	case BLOCKDEV_DRIVER_BLKDEBUG:
		return describe_blkdebug(n, read_only, fds, nfds);
	case BLOCKDEV_DRIVER_THROTTLE:
		return describe_throttle(n, read_only, fds, nfds);
	case BLOCKDEV_DRIVER_QCOW2:
		return describe_qcow2(n, read_only, fds, nfds);
	case BLOCKDEV_DRIVER_N: break;
	}
	assert(!"a driver");
	return NULL;
}

static struct link_image *
describe(const struct node *n, bool read_only, int *fds, unsigned *nfds)
{
	struct link_image *i = by_driver(n, read_only, fds, nfds);

	i->read_only = n->read_only || read_only;
	i->write_threshold = n->write_threshold;
	return i;
}

struct link_image *
describe_node(const struct node *n, int *fds, unsigned *nfds)
{
	return describe(n, false, fds, nfds);
}

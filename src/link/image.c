/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/qcow2/check.h"
#include "block/qcow2/qcow2.h"

#include "block/blkdebug.h"

static bool
open_file(const struct link_image *i, struct link_msg *msg, struct block **out,
	  struct err *e)
{
	const struct link_image_file *f = i->u.file;
	struct block_file_options o = { .read_only = i->read_only,
					.direct = f->direct,
					.name = f->name };

	return link_msg_take_fd(msg, f->fd, &o.fd, e) &&
	       block_file_open(&o, out, e);
}

static bool
open_raw(const struct link_image *i, struct link_msg *msg, struct block **out,
	 struct err *e)
{
	const struct link_image_raw *r = i->u.raw;
	struct block *file;

	return link_image_open(r->file, msg, &file, e) &&
	       block_raw_open(file, r->has_offset ? r->offset : 0, r->has_size,
			      r->size, out, e);
}

static bool
open_nbd(const struct link_image *i, struct block **out, struct err *e)
{
	const struct link_image_nbd *n = i->u.nbd;
	struct block_nbd_options o = {
		.unix_path = n->path,
		.host = n->host,
		.port = n->port,
		.export_name = n->export,
		.context = n->context,
		.tls = n->tls,
		.tls_certificates = n->tls_certificates,
		.tls_psk_file = n->tls_psk_file,
		.tls_username = n->tls_username,
		.tls_hostname = n->tls_hostname,
		.read_only = i->read_only,
		.reconnect_delay_s = n->reconnect_delay,
		.open_timeout_s = n->open_timeout,
		.connections = 4,
	};

	return block_nbd_open(&o, out, e);
}

static bool
take_rule(const struct link_blkdebug_rule *from, struct blkdebug_rule *to,
	  struct err *e)
{
	*to = (struct blkdebug_rule){
		.state = from->state,
		.sets = from->has_new_state,
		.new_state = from->new_state,
		.kinds = from->kinds,
		.os = from->os,
		.sector = from->sector,
		.once = from->once,
	};
	return block_event_parse(from->event, &to->event) ||
	       err_set(e, ERR_GENERIC, 0, "there is no event '%s'",
		       from->event);
}

static bool
open_blkdebug(const struct link_image *i, struct link_msg *msg,
	      struct block **out, struct err *e)
{
	const struct link_image_blkdebug *d = i->u.blkdebug;
	AUTO(free)
	struct blkdebug_rule *rules =
		calloc(d->rules.n ? d->rules.n : 1, sizeof *rules);
	struct blkdebug_options o = {
		.rules = rules,
		.n = d->rules.n,
		.align = d->align,
		.max_transfer = d->max_transfer,
		.max_zero = d->max_write_zero,
		.max_discard = d->max_discard,
	};
	struct block *image;

	if (!rules)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open '%s'",
			       i->node);
	for (size_t k = 0; k < d->rules.n; k++)
		if (!take_rule(d->rules.v[k], &rules[k], e))
			return false;
	return link_image_open(d->image, msg, &image, e) &&
	       block_blkdebug_open(image, &o, out, e);
}

bool
link_throttle_config_get(const struct link_throttle_limits *from,
			 struct throttle_config *to, struct err *e)
{
	if (from->avg.n != THROTTLE_BUCKETS ||
	    from->max.n != THROTTLE_BUCKETS ||
	    from->length.n != THROTTLE_BUCKETS)
		return err_set(e, ERR_GENERIC, 0, "limits of another kind");
	for (int i = 0; i < THROTTLE_BUCKETS; i++)
		to->of[i] = (struct throttle_limit){
			.avg = from->avg.v[i],
			.max = from->max.v[i],
			.length = from->length.v[i],
		};
	to->ops_size = from->iops_size;
	return throttle_config_check(to, e);
}

static bool
open_throttle(const struct link_image *i, struct link_msg *msg,
	      struct block **out, struct err *e)
{
	const struct link_image_throttle *t = i->u.throttle;
	struct throttle_config limits;
	struct block *file;

	return link_throttle_config_get(t->limits, &limits, e) &&
	       link_image_open(t->file, msg, &file, e) &&
	       block_throttle_open(file, t->group, &limits, out, e);
}

struct qcow2_children {
	struct block *file, *backing, *data; /* owned */
};

static void
children_free(struct qcow2_children *c)
{
	if (c->file)
		block_free(c->file);
	if (c->backing)
		block_free(c->backing);
	if (c->data)
		block_free(c->data);
}

static bool
open_qcow2(const struct link_image *i, struct link_msg *msg, struct block **out,
	   struct err *e)
{
	const struct link_image_qcow2 *q = i->u.qcow2;
	struct qcow2_children c = { 0 };
	struct qcow2_options o = { .read_only = i->read_only,
				   .live = q->live,
				   .keep_bitmaps = q->keep_bitmaps,
				   .cache_size = q->cache_size };

	if (!link_image_open(q->file, msg, &c.file, e) ||
	    (q->backing && !link_image_open(q->backing, msg, &c.backing, e)) ||
	    (q->data_file && !link_image_open(q->data_file, msg, &c.data, e)) ||
	    (!i->read_only && !qcow2_repair_dirty(c.file, e))) {
		children_free(&c);
		return false;
	}
	o.file = c.file;
	o.backing = c.backing;
	o.data = c.data;
	return qcow2_open(&o, out, e);
}

static bool
open_driver(const struct link_image *i, struct link_msg *msg,
	    struct block **out, struct err *e)
{
	switch (i->driver) {
	case LINK_DRIVER_FILE: return open_file(i, msg, out, e);
	case LINK_DRIVER_RAW: return open_raw(i, msg, out, e);
	case LINK_DRIVER_NULL_CO:
		return block_null_open(i->u.null_co->size,
				       i->u.null_co->latency_ns, out, e);
	case LINK_DRIVER_NBD: return open_nbd(i, out, e);
	case LINK_DRIVER_QCOW2: return open_qcow2(i, msg, out, e);
	case LINK_DRIVER_BLKDEBUG: return open_blkdebug(i, msg, out, e);
	case LINK_DRIVER_THROTTLE: return open_throttle(i, msg, out, e);
	case LINK_DRIVER_N: break;
	}
	return err_set(e, ERR_GENERIC, 0, "unknown driver");
}

static void
apply_common(const struct link_image *i, struct block *b)
{
	b->read_only = i->read_only;
	b->discard_unmap = i->discard_unmap;
	b->detect_zeroes = i->detect_zeroes;
	b->detect_unmap = i->detect_unmap;
	b->no_flush = i->no_flush;
}

bool
link_image_open(const struct link_image *i, struct link_msg *msg,
		struct block **out, struct err *e)
{
	AUTO(free) char *node = strdup(i->node);

	if (!node)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open '%s'",
			       i->node);
	if (!open_driver(i, msg, out, e))
		return false;
	(*out)->node = steal(&node);
	apply_common(i, *out);
	block_set_threshold(*out, i->write_threshold, NULL, NULL);
	return true;
}

/* --- other options for an open image ------------------------------------------- */

/* What is described below @i in place @k; NULL: nothing any more.  The order
 * is that of block_child().
 */
static const struct link_image *
below(const struct link_image *i, unsigned k)
{
	const struct link_image_qcow2 *q = i->u.qcow2;
	const struct link_image *all[3] = { NULL };

	switch (i->driver) {
	case LINK_DRIVER_RAW: all[0] = i->u.raw->file; break;
	case LINK_DRIVER_BLKDEBUG: all[0] = i->u.blkdebug->image; break;
	case LINK_DRIVER_THROTTLE: all[0] = i->u.throttle->file; break;
	case LINK_DRIVER_QCOW2:
		all[0] = q->file;
		all[1] = q->backing ? q->backing : q->data_file;
		all[2] = q->backing ? q->data_file : NULL;
		break;
	default: break;
	}
	return k < ARRAY_SIZE(all) ? all[k] : NULL;
}

static bool
driver_fits(const struct link_image *i, const struct link_msg *msg,
	    struct block *b, struct err *e)
{
	const struct link_image_raw *r = i->u.raw;
	struct throttle_config limits;

	switch (i->driver) {
	case LINK_DRIVER_THROTTLE:
		return link_throttle_config_get(i->u.throttle->limits, &limits,
						e) &&
		       block_throttle_prepare(b, i->u.throttle->group, e);
	case LINK_DRIVER_FILE:
		if (i->u.file->fd < msg->nfds && msg->fds[i->u.file->fd] >= 0)
			return true;
		return err_set(e, ERR_GENERIC, 0, "a descriptor is missing");
	case LINK_DRIVER_RAW:
		return block_raw_window_fits(b, r->has_offset ? r->offset : 0,
					     r->has_size, r->size, e);
	default: return true;
	}
}

/* A name that was made up is another one after a restart of stillpointd. */
static bool
is_same(const struct link_image *i, const struct block *b)
{
	const char *driver = link_driver_str(i->driver);
	bool file = i->driver == LINK_DRIVER_FILE &&
		    strcmp(b->ops->name, "host_device") == 0;

	if (!file && strcmp(b->ops->name, driver) != 0)
		return false;
	return i->node[0] == '#' ? b->node && b->node[0] == '#'
				 : b->node && strcmp(b->node, i->node) == 0;
}

bool
link_image_is(const struct link_image *i, const struct block *b)
{
	const struct link_image *c;
	unsigned k = 0;
	bool ok = is_same(i, b);

	for (; ok && (c = below(i, k)); k++)
		ok = block_child(b, k) && link_image_is(c, block_child(b, k));
	return ok && !block_child(b, k);
}

bool
link_image_has_tables(const struct link_image *i)
{
	const struct link_image *c;
	bool found = i->driver == LINK_DRIVER_QCOW2;

	for (unsigned k = 0; !found && (c = below(i, k)); k++)
		found = link_image_has_tables(c);
	return found;
}

/* It is. */
static bool
options_fit(const struct link_image *i, const struct link_msg *msg,
	    struct block *b, struct err *e)
{
	const struct link_image *c;
	bool ok = driver_fits(i, msg, b, e);

	for (unsigned k = 0; ok && (c = below(i, k)); k++)
		ok = options_fit(c, msg, block_child(b, k), e);
	return ok;
}

bool
link_image_fits(const struct link_image *i, const struct link_msg *msg,
		struct block *b, struct err *e)
{
	if (!link_image_is(i, b))
		return err_set(e, ERR_GENERIC, 0,
			       "node '%s' is not what it was", i->node);
	return options_fit(i, msg, b, e);
}

static void
apply_driver(const struct link_image *i, struct link_msg *msg, struct block *b)
{
	const struct link_image_raw *r = i->u.raw;
	struct throttle_config limits;
	struct err ignore = ERR_INIT;
	int fd;

	switch (i->driver) {
	case LINK_DRIVER_QCOW2:
		qcow2_set_cache(b, i->u.qcow2->cache_size);
		break;
	case LINK_DRIVER_THROTTLE:
		if (link_throttle_config_get(i->u.throttle->limits, &limits,
					     &ignore))
			block_throttle_regroup(b, &limits);
		break;
	case LINK_DRIVER_FILE:
		if (link_msg_take_fd(msg, i->u.file->fd, &fd, &ignore))
			block_file_set_fd(b, fd, i->u.file->direct);
		break;
	case LINK_DRIVER_RAW:
		block_raw_set_window(b, r->has_offset ? r->offset : 0,
				     r->has_size, r->size);
		break;
	case LINK_DRIVER_NBD:
		block_nbd_set_reconnect_delay(b, i->u.nbd->reconnect_delay);
		break;
	default: break;
	}
}

static void
apply_name(const struct link_image *i, struct block *b)
{
	char *name;

	if (strcmp(b->node, i->node) == 0)
		return;
	name = strdup(i->node);
	if (!name)
		return; /* it is only a name */
	free(b->node);
	b->node = name;
}

void
link_image_apply(const struct link_image *i, struct link_msg *msg,
		 struct block *b)
{
	const struct link_image *c;

	for (unsigned k = 0; (c = below(i, k)); k++)
		link_image_apply(c, msg, block_child(b, k));
	apply_driver(i, msg, b);
	apply_common(i, b);
	apply_name(i, b);
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/image.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

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
	case LINK_DRIVER_N: break;
	}
	return err_set(e, ERR_GENERIC, 0, "unknown driver");
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
	(*out)->read_only = i->read_only;
	(*out)->discard_unmap = i->discard_unmap;
	(*out)->detect_zeroes = i->detect_zeroes;
	(*out)->detect_unmap = i->detect_unmap;
	(*out)->no_flush = i->no_flush;
	return true;
}

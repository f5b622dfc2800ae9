/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/remote.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"

/* What servers must accept when they say nothing (the protocol's default). */
#define DEFAULT_MAX_BLOCK (UINT32_C(32) << 20)

#define RETRY_MS 200

struct remote {
	struct block_nbd_options o; /* all strings owned */
	char *address; /* owned */
};

/* A copy of an optional string; false when memory is gone. */
static bool
copy_string(const char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return !from || *to;
}

static bool
copy_options(struct block_nbd_options *to, const struct block_nbd_options *o)
{
	bool ok;

	*to = *o;
	/* every pointer is set before any of them is looked at */
	ok = copy_string(&to->unix_path, o->unix_path);
	ok &= copy_string(&to->host, o->host);
	ok &= copy_string(&to->port, o->port);
	ok &= copy_string(&to->export_name,
			  o->export_name ? o->export_name : "");
	ok &= copy_string(&to->context, o->context);
	ok &= copy_string(&to->tls_certificates, o->tls_certificates);
	ok &= copy_string(&to->tls_psk_file, o->tls_psk_file);
	ok &= copy_string(&to->tls_username, o->tls_username);
	ok &= copy_string(&to->tls_hostname, o->tls_hostname);
	return ok;
}

static char *
make_address(const struct block_nbd_options *o)
{
	char *s;

	if (o->unix_path)
		return strdup(o->unix_path);
	if (asprintf(&s, "%s:%s", o->host ? o->host : "",
		     o->port ? o->port : "") < 0)
		return NULL;
	return s;
}

static bool
check_options(const struct block_nbd_options *o, struct err *e)
{
	if (!o->unix_path && (!o->host || !o->port))
		return err_set(e, ERR_GENERIC, 0,
			       "an NBD server needs a host and a port, or the "
			       "path of a socket");
	if (!o->tls)
		return true;
	/* libnbd (1.14) verifies the name that it connects to, no other */
	if (o->tls_hostname && !o->tls_psk_file &&
	    (!o->host || strcmp(o->host, o->tls_hostname) != 0))
		return err_set(e, ERR_GENERIC, 0,
			       "this libnbd cannot verify a TLS host name "
			       "other than the host's");
	/* and without a name it does not look at the certificate at all */
	if (o->tls_certificates && o->unix_path)
		return err_set(e, ERR_GENERIC, 0,
			       "this libnbd cannot verify the certificate of a "
			       "server on a unix socket");
	return true;
}

bool
remote_new(const struct block_nbd_options *o, struct remote **out,
	   struct err *e)
{
	AUTO(remote_free) struct remote *r = NULL;

	if (!check_options(o, e))
		return false;
	r = calloc(1, sizeof *r);
	if (!r || !copy_options(&r->o, o))
		return err_set(e, ERR_GENERIC, ENOMEM, "NBD server");
	r->address = make_address(o);
	if (!r->address)
		return err_set(e, ERR_GENERIC, ENOMEM, "NBD server");
	*out = steal(&r);
	return true;
}

void
remote_free(struct remote *r)
{
	free((char *)r->o.unix_path);
	free((char *)r->o.host);
	free((char *)r->o.port);
	free((char *)r->o.export_name);
	free((char *)r->o.context);
	free((char *)r->o.tls_certificates);
	free((char *)r->o.tls_psk_file);
	free((char *)r->o.tls_username);
	free((char *)r->o.tls_hostname);
	free(r->address);
	free(r);
}

const char *
remote_address(const struct remote *r)
{
	return r->address;
}

const char *
remote_context(const struct remote *r)
{
	return r->o.context ? r->o.context : LIBNBD_CONTEXT_BASE_ALLOCATION;
}

/* Drop "nbd_some_call: " in front of a message of libnbd. */
static const char *
without_call(const char *msg)
{
	const char *colon;

	if (strncmp(msg, "nbd_", 4) != 0)
		return msg;
	colon = strstr(msg, ": ");
	return colon ? colon + 2 : msg;
}

bool
remote_connect_error(const struct remote *r, struct err *e)
{
	const char *msg = nbd_get_error();
	int os = nbd_get_errno();

	/* the usual reasons need no words of libnbd's */
	if (os == ECONNREFUSED || os == ETIMEDOUT || os == EHOSTUNREACH ||
	    os == ENETUNREACH || os == ECONNRESET || os == EACCES ||
	    (msg && os && strstr(msg, "connect: ")))
		return err_set(e, ERR_GENERIC, os, "Failed to connect to '%s'",
			       r->address);
	err_set(e, ERR_GENERIC, 0, "Failed to connect to '%s': %s", r->address,
		msg ? without_call(msg) : "unknown error");
	if (e)
		e->os = os ? os : EIO;
	return false;
}

static int
set_tls(const struct block_nbd_options *o, struct nbd_handle *h)
{
	if (!o->tls)
		return nbd_set_tls(h, LIBNBD_TLS_DISABLE);
	if (nbd_set_tls(h, LIBNBD_TLS_REQUIRE) == -1)
		return -1;
	if (o->tls_certificates &&
	    nbd_set_tls_certificates(h, o->tls_certificates) == -1)
		return -1;
	if (o->tls_psk_file && nbd_set_tls_psk_file(h, o->tls_psk_file) == -1)
		return -1;
	if (o->tls_username && nbd_set_tls_username(h, o->tls_username) == -1)
		return -1;
	return 0;
}

/* libnbd trusts everybody when it finds no authority's certificate. */
static bool
check_authority(const struct remote *r, struct err *e)
{
	char path[PATH_MAX];
	int n;

	if (!r->o.tls_certificates)
		return true;
	n = snprintf(path, sizeof path, "%s/ca-cert.pem",
		     r->o.tls_certificates);
	if (n > 0 && (size_t)n < sizeof path && access(path, R_OK) == 0)
		return true;
	return err_set(
		e, ERR_GENERIC, errno,
		"Failed to connect to '%s': cannot read '%s/ca-cert.pem'",
		r->address, r->o.tls_certificates);
}

/* Sizes are checked by whoever sends: the tail of a disk may be shorter than
 * the server's minimum block.  Buffers of reads are ours to trust.
 */
static int
set_up(const struct remote *r, struct nbd_handle *h)
{
	const struct block_nbd_options *o = &r->o;
	uint32_t strict = nbd_get_strict_mode(h);

	if (nbd_set_strict_mode(h, strict & ~(uint32_t)LIBNBD_STRICT_ALIGN) ==
	    -1)
		return -1;
	if (nbd_set_pread_initialize(h, false) == -1)
		return -1;
	if (nbd_add_meta_context(h, remote_context(r)) == -1)
		return -1;
	if (nbd_set_export_name(h, o->export_name) == -1)
		return -1;
	return set_tls(o, h);
}

bool
remote_connect_begin(const struct remote *r, struct nbd_handle **out,
		     struct err *e)
{
	struct nbd_handle *h;
	int n;

	if (!check_authority(r, e))
		return false;
	h = nbd_create();
	if (!h) {
		remote_connect_error(r, e);
		return false;
	}
	n = set_up(r, h);
	if (n == 0)
		n = r->o.unix_path
			    ? nbd_aio_connect_unix(h, r->o.unix_path)
			    : nbd_aio_connect_tcp(h, r->o.host, r->o.port);
	if (n == -1) {
		remote_connect_error(r, e);
		nbd_close(h);
		return false;
	}
	*out = h;
	return true;
}

uint64_t
remote_now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static bool
connect_once(const struct remote *r, uint64_t until, struct nbd_handle **out,
	     struct err *e)
{
	struct nbd_handle *h;

	if (!remote_connect_begin(r, &h, e))
		return false;
	while (nbd_aio_is_connecting(h) > 0) {
		uint64_t now = remote_now_ms();

		if (now >= until) {
			nbd_close(h);
			return err_set(e, ERR_GENERIC, ETIMEDOUT,
				       "Failed to connect to '%s'", r->address);
		}
		if (nbd_poll(h, (int)min_u64(until - now, 1000)) == -1)
			break;
	}
	if (nbd_aio_is_ready(h) > 0) {
		*out = h;
		return true;
	}
	remote_connect_error(r, e);
	nbd_close(h);
	return false;
}

bool
remote_connect(const struct remote *r, struct nbd_handle **out, struct err *e)
{
	uint64_t limit = remote_now_ms() + (uint64_t)r->o.open_timeout_s * 1000;

	for (;;) {
		struct err failed = ERR_INIT;
		uint64_t now = remote_now_ms();
		uint64_t until =
			r->o.open_timeout_s
				? min_u64(limit, now + REMOTE_CONNECT_MS)
				: now + REMOTE_CONNECT_MS;

		if (connect_once(r, until, out, &failed))
			return true;
		if (remote_now_ms() + RETRY_MS >= limit)
			return err_move(e, &failed);
		(void)nanosleep(
			&(struct timespec){ .tv_nsec = RETRY_MS * 1000000L },
			NULL);
	}
}

static uint32_t
block_size(struct nbd_handle *h, int which)
{
	int64_t n = nbd_get_block_size(h, which);

	return n > 0 && n <= UINT32_MAX ? (uint32_t)n : 0;
}

bool
remote_get_info(const struct remote *r, struct nbd_handle *h,
		struct remote_info *info, struct err *e)
{
	int64_t size = nbd_get_size(h);

	if (size < 0)
		return err_set(e, ERR_GENERIC, 0,
			       "the server '%s' does not tell a size",
			       r->address);
	*info = (struct remote_info){
		.size = (uint64_t)size,
		.min_block = block_size(h, LIBNBD_SIZE_MINIMUM),
		.pref_block = block_size(h, LIBNBD_SIZE_PREFERRED),
		.max_block = block_size(h, LIBNBD_SIZE_MAXIMUM),
		.read_only = nbd_is_read_only(h) > 0,
		.rotational = nbd_is_rotational(h) > 0,
		.can_flush = nbd_can_flush(h) > 0,
		.can_zero = nbd_can_zero(h) > 0,
		.can_fast_zero = nbd_can_fast_zero(h) > 0,
		.can_trim = nbd_can_trim(h) > 0,
		.can_cache = nbd_can_cache(h) > 0,
		.can_multi_conn = nbd_can_multi_conn(h) > 0,
		.has_allocation =
			nbd_can_meta_context(h, remote_context(r)) > 0,
	};
	if (r->o.context && !info->has_allocation)
		return err_set(e, ERR_GENERIC, 0,
			       "requested x-dirty-bitmap %s not found",
			       r->o.context);
	if (!is_pow2(info->min_block))
		info->min_block = 1;
	if (info->max_block == 0 || info->max_block > DEFAULT_MAX_BLOCK)
		info->max_block = DEFAULT_MAX_BLOCK;
	info->max_block =
		(uint32_t)round_down(info->max_block, info->min_block);
	if (info->max_block == 0)
		return err_set(e, ERR_GENERIC, 0,
			       "the server '%s' contradicts itself about its "
			       "block sizes",
			       r->address);
	return true;
}

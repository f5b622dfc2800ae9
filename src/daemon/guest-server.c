/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/guest-server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/daemon.h"
#include "daemon/exports.h"
#include "daemon/lost.h"
#include "daemon/paths.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "schema/qmp-commands.h"

#define DEFAULT_CONNECTIONS 100 /* QEMU's */
#define PORT_MAX            65535

bool
guest_server_check(const struct daemon *d, struct err *e)
{
	if (plane_is_serving(d->plane))
		return true;
	return err_set(e, ERR_GENERIC, 0, "NBD server not running");
}

/* --- addresses ------------------------------------------------------------------ */

static bool
read_port(const char *text, unsigned *port, struct err *e)
{
	size_t n = strspn(text, "0123456789");

	if (n == 0 || text[n] || n > 5 || atol(text) > PORT_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "port '%s' is not a number from 0 to %d", text,
			       PORT_MAX);
	*port = (unsigned)atol(text);
	return true;
}

/* QEMU's rule: what is not said is yes, unless the other one is yes. */
static bool
choose_family(const struct inet_socket_address *i, int *family, struct err *e)
{
	bool no4 = i->has_ipv4 ? !i->ipv4 : i->has_ipv6 && i->ipv6;
	bool no6 = i->has_ipv6 ? !i->ipv6 : i->has_ipv4 && i->ipv4;

	if (no4 && no6)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot disable IPv4 and IPv6 at same time");
	*family = no6 ? AF_INET : no4 ? AF_INET6 : AF_UNSPEC;
	return true;
}

static bool
inet_address(const struct inet_socket_address *i, struct address *a,
	     struct err *e)
{
	unsigned port = 0;

	if (!read_port(i->port, &port, e) || !choose_family(i, &a->family, e))
		return false;
	a->kind = ADDRESS_TCP;
	(void)snprintf(a->port, sizeof a->port, "%u", port);
	/* every interface; [::] is for both protocols */
	a->host = i->host[0] ? xstrdup(i->host)
			     : xstrdup(a->family == AF_INET ? "0.0.0.0" : "::");
	a->text = xasprintf("tcp:%s:%s", a->host, a->port);
	return true;
}

static bool
unix_address(const struct unix_socket_address *u, struct address *a,
	     struct err *e)
{
	struct sockaddr_un un;

	if (u->has_abstract && u->abstract)
		return err_set(e, ERR_GENERIC, 0,
			       "abstract socket '%s' is refused: every user of "
			       "the host could connect to it",
			       u->path);
	if (!u->path[0] || strlen(u->path) >= sizeof un.sun_path)
		return err_set(e, ERR_GENERIC, 0,
			       "UNIX socket path '%s' is empty or longer than "
			       "%zu bytes",
			       u->path, sizeof un.sun_path - 1);
	a->kind = ADDRESS_UNIX;
	a->path = xstrdup(u->path);
	a->text = xasprintf("unix:%s", u->path);
	return true;
}

/* Syntax; @a is to be destroyed also after a failure. */
static bool
read_address(const struct listen_address *l, struct address *a, struct err *e)
{
	switch (l->type) {
	case LISTEN_ADDRESS_TYPE_INET:
		return inet_address(l->u.inet->data, a, e);
	case LISTEN_ADDRESS_TYPE_UNIX:
		return unix_address(l->u.q_unix->data, a, e);
	case LISTEN_ADDRESS_TYPE_VSOCK:
		return err_set(e, ERR_GENERIC, 0,
			       "vsock addresses are not supported");
	case LISTEN_ADDRESS_TYPE_FD:
		return err_set(e, ERR_GENERIC, 0,
			       "File descriptor named '%s' has not been found",
			       l->u.fd->data->str);
	case LISTEN_ADDRESS_TYPE_N: break;
	}
	return err_set(e, ERR_GENERIC, 0, "this address is not supported");
}

/* --- what is remembered ---------------------------------------------------------- */

void
guest_server_recall(struct daemon *d, const struct registry_doc *doc)
{
	if (d->cfg.n_nbd == 0 && doc && doc->server)
		d->guests = guest_server_options_clone(doc->server);
}

void
guest_server_forget(struct daemon *d)
{
	guest_server_options_free(d->guests);
	d->guests = NULL;
}

static unsigned
max_connections(const struct guest_server_options *o)
{
	return o->has_max_connections ? o->max_connections
				      : DEFAULT_CONNECTIONS;
}

bool
guest_server_remembered(const struct daemon *d, struct address *a,
			unsigned *max)
{
	struct err e = ERR_INIT;

	if (!d->guests)
		return false;
	if (!read_address(d->guests->addr, a, &e)) {
		log_error("the registry's address for guests: %s", e.msg);
		address_destroy(a);
		return false;
	}
	*max = max_connections(d->guests);
	return true;
}

/* The port that the kernel chose, or that was free, is the one to keep. */
static void
keep_port(struct guest_server_options *o, const struct listeners *l)
{
	struct inet_socket_address *i;

	if (o->addr->type != LISTEN_ADDRESS_TYPE_INET)
		return;
	i = o->addr->u.inet->data;
	i->has_to = false;
	free(i->port);
	i->port = xstrdup(strrchr(l->v[0].name, ':') + 1);
}

/* --- nbd-server-start --------------------------------------------------------------- */

struct starting {
	struct daemon *d;
	struct qmp_call *call;
	struct guest_server_options *o; /* owned */
	struct address a; /* owned */
	unsigned last; /* port to try */
	struct listeners l; /* owned */
	struct work work;
	struct task settled;
	struct err e;
};

static void
start_end(struct starting *s)
{
	pending_end(s->d);
	if (err_is_set(&s->e))
		qmp_call_fail(s->call, &s->e);
	else
		qmp_nbd_server_start_return(s->call);
	listeners_close(&s->l, true);
	address_destroy(&s->a);
	guest_server_options_free(s->o);
	free(s);
}

static void
on_start_settled(struct task *t)
{
	struct starting *s = container_of(t, struct starting, settled);

	PARK("guests.listening");
	if (!plane_is_up(s->d->plane))
		(void)err_set(&s->e, ERR_GENERIC, 0,
			      "the data plane (nbdkit) does not run");
	start_end(s);
}

static void
on_start_saved(void *opaque, const struct err *e)
{
	struct starting *s = opaque;
	struct daemon *d = s->d;

	PARK("guests.saved");
	if (e)
		(void)err_move(&s->e, e);
	else
		(void)!plane_relisten(d->plane, &s->l,
				      max_connections(d->guests), &s->e);
	if (err_is_set(&s->e)) {
		guest_server_forget(d);
		start_end(s);
		return;
	}
	s->settled.fn = on_start_settled;
	plane_when_settled(d->plane, &s->settled);
}

/* Worker: a name may have to be looked up. */
static void
start_listen(struct work *w)
{
	struct starting *s = container_of(w, struct starting, work);
	struct address *a = &s->a;
	char *path = NULL;

	if (a->kind == ADDRESS_UNIX) {
		if (!paths_socket(s->d->paths, a->path, &path, &s->e))
			return;
		free(a->path);
		a->path = path;
		if (strlen(path) >= sizeof((struct sockaddr_un *)0)->sun_path) {
			(void)err_set(&s->e, ERR_GENERIC, 0,
				      "UNIX socket path '%s' is too long",
				      path);
			return;
		}
	}
	while (!listeners_add(&s->l, a, 0, &s->e)) {
		unsigned port = (unsigned)atol(a->port) + 1;

		if (s->e.os != EADDRINUSE || port > s->last)
			return;
		err_clear(&s->e);
		(void)snprintf(a->port, sizeof a->port, "%u", port % 100000);
	}
}

static void
start_listening(struct work *w)
{
	struct starting *s = container_of(w, struct starting, work);
	struct daemon *d = s->d;

	if (err_is_set(&s->e)) {
		start_end(s);
		return;
	}
	keep_port(s->o, &s->l);
	guest_server_forget(d);
	d->guests = steal(&s->o);
	registry_save(d->registry, on_start_saved, s);
}

static bool
start_check(struct starting *s)
{
	const struct guest_server_options *o = s->o;

	if (plane_is_serving(s->d->plane))
		return err_set(&s->e, ERR_GENERIC, 0,
			       "NBD server already running");
	if (o->tls_creds)
		return err_set(&s->e, ERR_GENERIC, 0,
			       "No TLS credentials with id '%s'", o->tls_creds);
	if (o->tls_authz)
		return err_set(&s->e, ERR_GENERIC, 0, "object '%s' not found",
			       o->tls_authz);
	if (o->addr->type == LISTEN_ADDRESS_TYPE_INET &&
	    o->addr->u.inet->data->has_to)
		s->last = o->addr->u.inet->data->to;
	return read_address(o->addr, &s->a, &s->e);
}

void
qmp_nbd_server_start(struct qmp_call *call, struct guest_server_options *arg)
{
	struct starting *s = xzalloc(sizeof *s);

	s->d = qmp_call_opaque(call);
	s->call = call;
	s->o = arg;
	pending_begin(s->d);
	if (!start_check(s)) {
		start_end(s);
		return;
	}
	s->work = (struct work){ .run = start_listen, .done = start_listening };
	work_submit(s->d->work, &s->d->loop, &s->work);
}

/* --- nbd-server-stop ----------------------------------------------------------------- */

struct stopping {
	struct daemon *d;
	struct qmp_call *call;
	struct task settled;
	struct err e;
};

static void
stop_end(struct stopping *s, const struct err *e)
{
	pending_end(s->d);
	if (e)
		qmp_call_fail(s->call, e);
	else
		qmp_nbd_server_stop_return(s->call);
	free(s);
}

static void
on_stop_settled(struct task *t)
{
	stop_end(container_of(t, struct stopping, settled), NULL);
}

static void
on_stop_saved(void *opaque, const struct err *e)
{
	struct stopping *s = opaque;
	struct listeners none = { 0 };

	if (e || !plane_relisten(s->d->plane, &none, 0, &s->e)) {
		stop_end(s, e ? e : &s->e);
		return;
	}
	s->settled.fn = on_stop_settled;
	plane_when_settled(s->d->plane, &s->settled);
}

static void
stop_next(void *opaque, const struct err *e)
{
	struct stopping *s = opaque;
	struct daemon *d = s->d;

	if (e)
		log_warn("nbd-server-stop: %s", e->msg);
	if (d->graph->exports) {
		export_delete(d, d->graph->exports, EXPORT_DELETE_ANYHOW,
			      stop_next, s);
		return;
	}
	lost_forget_exports(d->lost);
	guest_server_forget(d);
	registry_save(d->registry, on_stop_saved, s);
}

void
qmp_nbd_server_stop(struct qmp_call *call)
{
	struct daemon *d = qmp_call_opaque(call);
	struct err e = ERR_INIT;
	struct stopping *s;

	if (!guest_server_check(d, &e)) {
		qmp_call_fail(call, &e);
		return;
	}
	s = xzalloc(sizeof *s);
	s->d = d;
	s->call = call;
	pending_begin(d);
	stop_next(s, NULL);
}

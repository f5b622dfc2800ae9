/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/listen.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/log.h"

static bool
parse_unix(const char *path, struct address *a, struct err *e)
{
	struct sockaddr_un un;

	if (!path[0])
		return err_set(e, ERR_GENERIC, 0,
			       "address '%s': a path must follow 'unix:'",
			       a->text);
	if (strlen(path) >= sizeof un.sun_path)
		return err_set(
			e, ERR_GENERIC, 0,
			"address '%s': the path is longer than %zu bytes",
			a->text, sizeof un.sun_path - 1);
	a->kind = ADDRESS_UNIX;
	a->path = xstrdup(path);
	return true;
}

static bool
parse_port(const char *text, struct address *a, struct err *e)
{
	size_t n = strspn(text, "0123456789");

	if (n == 0 || text[n] || n > 5 || atol(text) > 65535)
		return err_set(e, ERR_GENERIC, 0,
			       "address '%s': the port must be a number from "
			       "0 to 65535",
			       a->text);
	(void)snprintf(a->port, sizeof a->port, "%s", text);
	return true;
}

static bool
parse_tcp(const char *text, struct address *a, struct err *e)
{
	const char *colon = strrchr(text, ':');
	size_t len;

	if (!colon)
		return err_set(e, ERR_GENERIC, 0,
			       "address '%s': it must be tcp:HOST:PORT",
			       a->text);
	len = (size_t)(colon - text);
	if (len >= 2 && text[0] == '[' && text[len - 1] == ']') {
		text++;
		len -= 2;
	} else if (memchr(text, ':', len)) {
		return err_set(e, ERR_GENERIC, 0,
			       "address '%s': an IPv6 address must stand in "
			       "brackets",
			       a->text);
	}
	if (!parse_port(colon + 1, a, e))
		return false;
	a->kind = ADDRESS_TCP;
	a->host =
		len ? xasprintf("%.*s", (int)len, text) : xstrdup("127.0.0.1");
	return true;
}

bool
address_parse(const char *text, struct address *a, struct err *e)
{
	bool ok;

	memset(a, 0, sizeof *a);
	a->text = xstrdup(text);
	if (strncmp(text, "unix:", 5) == 0)
		ok = parse_unix(text + 5, a, e);
	else if (strncmp(text, "tcp:", 4) == 0)
		ok = parse_tcp(text + 4, a, e);
	else
		ok = err_set(e, ERR_GENERIC, 0,
			     "address '%s': it must be unix:PATH or "
			     "tcp:HOST:PORT",
			     text);
	if (!ok)
		address_destroy(a);
	return ok;
}

void
address_copy(struct address *to, const struct address *from)
{
	*to = *from;
	to->text = xstrdup(from->text);
	to->path = from->path ? xstrdup(from->path) : NULL;
	to->host = from->host ? xstrdup(from->host) : NULL;
}

void
address_destroy(struct address *a)
{
	free(a->text);
	free(a->path);
	free(a->host);
	memset(a, 0, sizeof *a);
}

static void
inet_name(const struct sockaddr_storage *sa, char *out, size_t size)
{
	char host[INET6_ADDRSTRLEN] = "?";

	if (sa->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)sa;

		(void)inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
		(void)snprintf(out, size, "tcp:%s:%u", host,
			       ntohs(in->sin_port));
	} else {
		const struct sockaddr_in6 *in6 = (const void *)sa;

		(void)inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
		(void)snprintf(out, size, "tcp:[%s]:%u", host,
			       ntohs(in6->sin6_port));
	}
}

void
sockaddr_name(const struct sockaddr_storage *sa, socklen_t len, char *out,
	      size_t size)
{
	const struct sockaddr_un *un = (const void *)sa;
	size_t head = offsetof(struct sockaddr_un, sun_path);

	if (sa->ss_family == AF_INET || sa->ss_family == AF_INET6)
		inet_name(sa, out, size);
	else if (sa->ss_family == AF_UNIX && len > head && un->sun_path[0])
		(void)snprintf(out, size, "unix:%.*s", (int)(len - head),
			       un->sun_path);
	else
		(void)snprintf(out, size, "unix:(unnamed)");
}

/* The loopback networks, also as IPv6 writes IPv4 addresses. */
static bool
is_loopback(const struct sockaddr *sa)
{
	if (sa->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)sa;

		return ntohl(in->sin_addr.s_addr) >> 24 == 127;
	}
	if (sa->sa_family == AF_INET6) {
		const struct in6_addr *a =
			&((const struct sockaddr_in6 *)(const void *)sa)
				 ->sin6_addr;

		return IN6_IS_ADDR_LOOPBACK(a) ||
		       (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127);
	}
	return false;
}

static int
make_socket(int family, unsigned flags)
{
	int type = SOCK_STREAM | SOCK_CLOEXEC;

	if (flags & LISTEN_NONBLOCK)
		type |= SOCK_NONBLOCK;
	return socket(family, type, 0);
}

/* Does the socket file @un have somebody who listens?  When not, it is a
 * leftover and is removed.
 */
static bool
remove_stale(const struct sockaddr_un *un, const char *name, struct err *e)
{
	AUTO(close) int fd = -1;
	struct stat st;

	if (lstat(un->sun_path, &st) < 0)
		return errno == ENOENT ||
		       err_set(e, ERR_GENERIC, errno, "cannot listen on '%s'",
			       name);
	if (!S_ISSOCK(st.st_mode))
		return err_set(e, ERR_GENERIC, 0,
			       "cannot listen on '%s': the file exists and is "
			       "not a socket",
			       name);
	fd = make_socket(AF_UNIX, LISTEN_NONBLOCK);
	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot make a socket");
	if (connect(fd, (const void *)un, sizeof *un) == 0 || errno == EAGAIN) {
		(void)err_set(e, ERR_GENERIC, 0,
			      "cannot listen on '%s': another process "
			      "listens there",
			      name);
		e->os = EADDRINUSE;
		return false;
	}
	if (errno != ECONNREFUSED)
		return err_set(e, ERR_GENERIC, errno, "cannot listen on '%s'",
			       name);
	if (unlink(un->sun_path) < 0 && errno != ENOENT)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot remove the old socket '%s'", name);
	return true;
}

/* On Linux the mode of a socket before bind is the mode of its file, so it is
 * never open to others, not even for an instant.
 */
static bool
bind_unix(int fd, const struct sockaddr_un *un, unsigned flags)
{
	if ((flags & LISTEN_OWNER_ONLY) && fchmod(fd, 0600) < 0)
		return false;
	return bind(fd, (const void *)un, sizeof *un) == 0;
}

static bool
bind_inet(int fd, const struct addrinfo *ai)
{
	int on = 1, off = 0;
	const struct sockaddr_in6 *in6 = (const void *)ai->ai_addr;

	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
		return false;
	/* [::] means every interface and both protocols. */
	if (ai->ai_family == AF_INET6) {
		bool any = IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr);

		if (setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, any ? &off : &on,
			       sizeof on) < 0)
			return false;
	}
	return bind(fd, ai->ai_addr, ai->ai_addrlen) == 0;
}

/* @fd is bound: describe it in the next free place of @l, which owns it. */
static void
append(struct listeners *l, int fd)
{
	struct listener *x = &l->v[l->n];
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof sa;
	char name[200];
	struct stat st;

	assert(l->n < LISTEN_MAX);
	(void)getsockname(fd, (void *)&sa, &len);
	sockaddr_name(&sa, len, name, sizeof name);
	*x = (struct listener){ .fd = fd, .name = xstrdup(name) };
	if (strncmp(name, "unix:", 5) == 0 && stat(name + 5, &st) == 0) {
		x->path = xstrdup(name + 5);
		x->dev = st.st_dev;
		x->ino = st.st_ino;
	}
	l->n++;
}

static bool
start_listening(int fd, const char *name, struct err *e)
{
	if (listen(fd, SOMAXCONN) < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot listen on '%s'",
			       name);
	return true;
}

static bool
add_unix(struct listeners *l, const struct address *a, unsigned flags,
	 struct err *e)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	AUTO(close) int fd = make_socket(AF_UNIX, flags);

	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot make a socket");
	assert(strlen(a->path) < sizeof un.sun_path);
	memcpy(un.sun_path, a->path, strlen(a->path));
	if (!remove_stale(&un, a->text, e))
		return false;
	if (!bind_unix(fd, &un, flags))
		return err_set(e, ERR_GENERIC, errno, "cannot listen on '%s'",
			       a->text);
	if (!(flags & LISTEN_BIND_ONLY) && !start_listening(fd, a->text, e)) {
		(void)unlink(a->path);
		return false;
	}
	append(l, steal_fd(&fd));
	return true;
}

/* One of the addresses that a name stands for.  @absent: the machine does not
 * have this address (an IPv6 loopback without IPv6), which is fine as long as
 * it has another one.
 */
static bool
add_inet(struct listeners *l, const struct addrinfo *ai,
	 const struct address *a, unsigned flags, bool *absent, struct err *e)
{
	AUTO(close) int fd = -1;

	*absent = false;
	if ((flags & LISTEN_LOOPBACK_ONLY) && !is_loopback(ai->ai_addr))
		return err_set(e, ERR_GENERIC, 0,
			       "cannot listen on '%s': TLS is needed for an "
			       "address that is not a loopback address, and "
			       "is not supported here yet",
			       a->text);
	fd = make_socket(ai->ai_family, flags);
	if (fd < 0 || !bind_inet(fd, ai)) {
		*absent = errno == EADDRNOTAVAIL || errno == EAFNOSUPPORT;
		return err_set(e, ERR_GENERIC, errno, "cannot listen on '%s'",
			       a->text);
	}
	if (!(flags & LISTEN_BIND_ONLY) && !start_listening(fd, a->text, e))
		return false;
	append(l, steal_fd(&fd));
	return true;
}

/* With port 0 only the first address is used: they could not have one port. */
static bool
add_all_inet(struct listeners *l, const struct addrinfo *list,
	     const struct address *a, unsigned flags, struct err *e)
{
	size_t before = l->n;
	struct err one = ERR_INIT;
	bool absent;

	for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
		if (l->n == LISTEN_MAX)
			return err_set(e, ERR_GENERIC, 0,
				       "cannot listen on '%s': more than %d "
				       "sockets",
				       a->text, LISTEN_MAX);
		err_clear(&one);
		if (add_inet(l, ai, a, flags, &absent, &one)) {
			if (atol(a->port) == 0)
				break;
		} else if (!absent) {
			return err_move(e, &one);
		}
	}
	return l->n > before || err_move(e, &one);
}

static void
close_one(struct listener *x, bool unlink_file)
{
	struct stat st;

	if (unlink_file && x->path && lstat(x->path, &st) == 0 &&
	    st.st_dev == x->dev && st.st_ino == x->ino)
		(void)unlink(x->path);
	(void)close(x->fd);
	free(x->name);
	free(x->path);
}

static bool
add_tcp(struct listeners *l, const struct address *a, unsigned flags,
	struct err *e)
{
	const struct addrinfo hints = {
		.ai_family = a->family,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
	};
	struct addrinfo *list;
	size_t before = l->n;
	bool ok;
	int r = getaddrinfo(a->host, a->port, &hints, &list);

	if (r)
		return err_set(e, ERR_GENERIC, 0, "cannot listen on '%s': %s",
			       a->text, gai_strerror(r));
	ok = add_all_inet(l, list, a, flags, e);
	freeaddrinfo(list);
	while (!ok && l->n > before)
		close_one(&l->v[--l->n], false);
	return ok;
}

bool
listeners_add(struct listeners *l, const struct address *a, unsigned flags,
	      struct err *e)
{
	if (l->n == LISTEN_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "cannot listen on '%s': more than %d sockets",
			       a->text, LISTEN_MAX);
	return a->kind == ADDRESS_UNIX ? add_unix(l, a, flags, e)
				       : add_tcp(l, a, flags, e);
}

bool
listeners_listen(struct listeners *l, struct err *e)
{
	for (size_t i = 0; i < l->n; i++)
		if (!start_listening(l->v[i].fd, l->v[i].name, e))
			return false;
	return true;
}

bool
listeners_adopt(struct listeners *l, int fd, struct err *e)
{
	AUTO(close) int owned = fd;
	int yes = 0;
	socklen_t len = sizeof yes;

	if (l->n == LISTEN_MAX)
		return err_set(e, ERR_GENERIC, 0, "more than %d sockets",
			       LISTEN_MAX);
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &len) < 0 || !yes)
		return err_set(e, ERR_GENERIC, 0,
			       "descriptor %d is no listening socket", fd);
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot take a socket");
	append(l, steal_fd(&owned));
	return true;
}

static bool
have_name(const struct listeners *l, const char *name)
{
	for (size_t i = 0; i < l->n; i++)
		if (strcmp(l->v[i].name, name) == 0)
			return true;
	return false;
}

/* "tcp:127.0.0.1:" of "tcp:127.0.0.1:10809" */
static bool
have_host(const struct listeners *l, const char *name)
{
	size_t len = (size_t)(strrchr(name, ':') - name) + 1;

	for (size_t i = 0; i < l->n; i++)
		if (strncmp(l->v[i].name, name, len) == 0)
			return true;
	return false;
}

bool
listeners_cover(const struct listeners *l, const struct address *a)
{
	const struct addrinfo hints = {
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
	};
	struct addrinfo *list;
	char name[200];
	bool found = false;

	if (a->kind == ADDRESS_UNIX)
		return have_name(l, a->text);
	if (getaddrinfo(a->host, a->port, &hints, &list))
		return false;
	for (const struct addrinfo *ai = list; ai && !found; ai = ai->ai_next) {
		struct sockaddr_storage sa = { 0 };

		memcpy(&sa, ai->ai_addr, ai->ai_addrlen);
		sockaddr_name(&sa, ai->ai_addrlen, name, sizeof name);
		found = atol(a->port) ? have_name(l, name) : have_host(l, name);
	}
	freeaddrinfo(list);
	return found;
}

void
listeners_close(struct listeners *l, bool unlink_files)
{
	while (l->n)
		close_one(&l->v[--l->n], unlink_files);
}

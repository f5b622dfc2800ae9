/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Where the daemon listens: addresses as an operator writes them, and the
 * sockets behind them.  Blocking (host names are resolved): for the start of
 * the program only.
 *
 *   unix:PATH        a socket file; PATH may not exceed 107 bytes
 *   tcp:HOST:PORT    HOST is a name, an IPv4 address or an IPv6 address in
 *                    brackets; empty: the loopback address.  Every interface
 *                    is written 0.0.0.0 or [::].  PORT 0: the kernel chooses.
 */
#ifndef DAEMON_LISTEN_H
#define DAEMON_LISTEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/err.h"

enum address_kind { ADDRESS_UNIX, ADDRESS_TCP };

struct address {
	enum address_kind kind;
	char *text; /* owned: as it was written, for messages */
	char *path; /* owned, ADDRESS_UNIX */
	char *host; /* owned, ADDRESS_TCP; without brackets */
	char port[6]; /* ADDRESS_TCP, decimal */
	int family; /* ADDRESS_TCP: AF_INET or AF_INET6 only; 0: both */
};

/* Syntax only; @a is to be destroyed after success. */
bool address_parse(const char *text, struct address *a, struct err *e)
	MUST_CHECK;
void address_copy(struct address *to, const struct address *from);
void address_destroy(struct address *a);

/* One listening (or bound) socket. */
struct listener {
	int fd; /* owned; -1: none */
	char *name; /* owned: the address it got, with the real port */
	char *path; /* owned; ADDRESS_UNIX: the socket file, else NULL */
	dev_t dev; /* of the socket file, so that only ours is removed */
	ino_t ino;
};

#define LISTEN_MAX 32 /* sockets of one list */

struct listeners {
	size_t n;
	struct listener v[LISTEN_MAX];
};

enum listen_flags {
	LISTEN_LOOPBACK_ONLY = 1 << 0, /* refuse any other tcp address */
	LISTEN_OWNER_ONLY = 1 << 1, /* socket files get mode 0600 */
	LISTEN_NONBLOCK = 1 << 2,
	LISTEN_BIND_ONLY = 1 << 3, /* listeners_listen() comes later */
};

/* Make the sockets of @a and append them to @l: several when a name stands
 * for several addresses.  A socket file that nobody listens on any more is
 * replaced.  On failure @l is as it was.
 */
bool listeners_add(struct listeners *l, const struct address *a, unsigned flags,
		   struct err *e) MUST_CHECK;

/* After LISTEN_BIND_ONLY: from now on connections are accepted. */
bool listeners_listen(struct listeners *l, struct err *e) MUST_CHECK;

/* Take over @fd (consumed), a listening socket that another process made.
 * False, with @fd closed, when it is not one.
 */
bool listeners_adopt(struct listeners *l, int fd, struct err *e) MUST_CHECK;

/* Is one of these sockets bound to what @a says? */
bool listeners_cover(const struct listeners *l, const struct address *a);

/* Close all; @unlink_files: and remove the socket files. */
void listeners_close(struct listeners *l, bool unlink_files);

/* "tcp:127.0.0.1:4444", "unix:/run/x.sock", "unix:(unnamed)". */
void sockaddr_name(const struct sockaddr_storage *sa, socklen_t len, char *out,
		   size_t size);

#endif

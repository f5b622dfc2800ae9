/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/uri.h"

#include <stdlib.h>
#include <string.h>

#define DEFAULT_PORT "10809"
#define EXPORT_NAME  ":exportname="

bool
uri_is_nbd(const char *name)
{
	return strncmp(name, "nbd:", 4) == 0 ||
	       (strncmp(name, "nbd+", 4) == 0 && strchr(name, ':'));
}

/* --- pieces --------------------------------------------------------------------- */

static int
hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* The first @len bytes of @s with %XX replaced (owned by the caller), or NULL
 * for what no string can hold.
 */
static char *
unescape(const char *s, size_t len)
{
	AUTO(free) char *out = xzalloc(len + 1);
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		out[n] = s[i];
		if (s[i] == '%') {
			int high = i + 2 < len ? hex(s[i + 1]) : -1;
			int low = high >= 0 ? hex(s[i + 2]) : -1;

			if (low < 0 || (high | low) == 0)
				return NULL;
			out[n] = (char)(high << 4 | low);
			i += 2;
		}
		n++;
	}
	return steal(&out);
}

static bool
port_is_valid(const char *s)
{
	unsigned long n;
	char *end;

	if (s[0] < '0' || s[0] > '9' || strlen(s) > 5)
		return false;
	n = strtoul(s, &end, 10);
	return !*end && n >= 1 && n <= 65535;
}

static struct blockdev_options_nbd *
options(enum socket_address_type type)
{
	struct blockdev_options_nbd *o = xzalloc(sizeof *o);

	o->server = xzalloc(sizeof *o->server);
	o->server->type = type;
	if (type == SOCKET_ADDRESS_TYPE_UNIX)
		o->server->u.q_unix = xzalloc(sizeof *o->server->u.q_unix);
	else
		o->server->u.inet = xzalloc(sizeof *o->server->u.inet);
	return o;
}

static bool
invalid(struct err *e)
{
	return err_set(e, ERR_GENERIC, 0, "No valid URL specified");
}

/* --- URIs ------------------------------------------------------------------------- */

/* [USER@]HOST[:PORT], HOST perhaps in brackets. */
static bool
parse_authority(const char *s, size_t len, struct inet_socket_address *to)
{
	const char *at = memchr(s, '@', len), *end = s + len;
	const char *host = at ? at + 1 : s, *after;

	if (host < end && *host == '[') {
		after = memchr(host, ']', (size_t)(end - host));
		if (!after)
			return false;
		to->host = unescape(host + 1, (size_t)(after - host - 1));
		after++;
	} else {
		after = memchr(host, ':', (size_t)(end - host));
		if (!after)
			after = end;
		to->host = unescape(host, (size_t)(after - host));
	}
	if (after < end && *after != ':')
		return false;
	to->port = after + 1 < end ? xasprintf("%.*s", (int)(end - after - 1),
					       after + 1)
				   : xstrdup(DEFAULT_PORT);
	return to->host && to->host[0] && port_is_valid(to->port);
}

/* socket=PATH, and nothing else. */
static char *
parse_socket(const char *query)
{
	static const char name[] = "socket=";
	size_t skip = sizeof name - 1;

	if (strncmp(query, name, skip) != 0 || strpbrk(query, "&;"))
		return NULL;
	return unescape(query + skip, strlen(query + skip));
}

static struct blockdev_options_nbd *
parse_uri(const char *rest, bool local)
{
	size_t authority = strcspn(rest, "/?");
	const char *path = rest + authority;
	const char *query = strchr(path, '?');
	size_t path_len = query ? (size_t)(query - path) : strlen(path);
	AUTO(blockdev_options_nbd_free)
	struct blockdev_options_nbd *o = options(
		local ? SOCKET_ADDRESS_TYPE_UNIX : SOCKET_ADDRESS_TYPE_INET);

	if (strchr(rest, '#'))
		return NULL;
	if (local && (authority || !query))
		return NULL;
	if (local)
		o->server->u.q_unix->path = parse_socket(query + 1);
	else if (query || !parse_authority(rest, authority, o->server->u.inet))
		return NULL;
	if (local &&
	    (!o->server->u.q_unix->path || !o->server->u.q_unix->path[0]))
		return NULL;
	if (path_len > 0) { /* one slash, then the name */
		o->export = unescape(path + 1, path_len - 1);
		if (!o->export)
			return NULL;
	}
	return steal(&o);
}

/* --- the old form ------------------------------------------------------------------ */

static struct blockdev_options_nbd *
parse_old(const char *rest)
{
	const char *name = strstr(rest, EXPORT_NAME);
	size_t len = name ? (size_t)(name - rest) : strlen(rest);
	bool local = len > 5 && strncmp(rest, "unix:", 5) == 0;
	AUTO(blockdev_options_nbd_free)
	struct blockdev_options_nbd *o = options(
		local ? SOCKET_ADDRESS_TYPE_UNIX : SOCKET_ADDRESS_TYPE_INET);

	if (name)
		o->export = xstrdup(name + strlen(EXPORT_NAME));
	if (local) {
		o->server->u.q_unix->path =
			xasprintf("%.*s", (int)(len - 5), rest + 5);
		return steal(&o);
	}
	/* the port is not optional here */
	if (!memchr(rest, ':', len) || memchr(rest, '@', len) ||
	    !parse_authority(rest, len, o->server->u.inet) ||
	    rest[len - 1] == ':')
		return NULL;
	return steal(&o);
}

bool
uri_parse_nbd(const char *name, struct blockdev_options_nbd **out,
	      struct err *e)
{
	static const struct {
		const char *scheme;
		bool local;
	} schemes[] = {
		{ "nbd://", false },
		{ "nbd+tcp://", false },
		{ "nbd+unix://", true },
	};

	for (size_t i = 0; i < ARRAY_SIZE(schemes); i++) {
		size_t n = strlen(schemes[i].scheme);

		if (strncmp(name, schemes[i].scheme, n) != 0)
			continue;
		*out = parse_uri(name + n, schemes[i].local);
		return *out || invalid(e);
	}
	if (strncmp(name, "nbd:", 4) == 0 && name[4] != '/') {
		*out = parse_old(name + 4);
		return *out || invalid(e);
	}
	return invalid(e);
}

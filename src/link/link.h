/* SPDX-License-Identifier: BSD-3-Clause
 *
 * link: framing and descriptors between the two processes.  It may use base,
 * json, block and the generated messages (schema/link.json).
 *
 * A message is a header (struct link_header), then that many bytes of JSON
 * text.  Descriptors travel with the header's first byte (SCM_RIGHTS).  The
 * text is a request {"execute", "arguments", "id"}, a reply {"return", "id"}
 * or {"error", "id"}, or an event {"event", "data"}.
 *
 * Every header carries the version.  A side that sees another version or an
 * impossible header closes the connection.
 */
#ifndef LINK_LINK_H
#define LINK_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define LINK_VERSION     2
#define LINK_MAX_TEXT    (1u << 20) /* bytes of JSON in one message */
#define LINK_MAX_FDS     240 /* descriptors with one message */
#define LINK_MAX_LISTENS 32 /* listening sockets of one nbdkit */

struct link_header {
	uint32_t magic;
	uint16_t version;
	uint16_t fds;
	uint32_t length;
	uint32_t reserved;
};

/* A message, received or to be sent. */
struct link_msg {
	char *text; /* owned, @len bytes and a NUL */
	size_t len;
	int fds[LINK_MAX_FDS]; /* owned */
	unsigned nfds;
};

/* Closes descriptors that are still there (not -1) and frees the text. */
void link_msg_clear(struct link_msg *m);

/* Take descriptor @index out of a received message: the caller owns it.
 * False when there is no such descriptor (any more).
 */
bool link_msg_take_fd(struct link_msg *m, uint32_t index, int *fd,
		      struct err *e) MUST_CHECK;

/* Collects the bytes of messages from a stream socket.  One thread. */
struct link_input {
	int sock; /* borrowed */
	struct link_header header;
	size_t header_got, text_got;
	struct link_msg msg;
};

enum link_result { LINK_MSG, LINK_AGAIN, LINK_CLOSED };

/* One message, or LINK_AGAIN when a non-blocking socket has no more bytes
 * now.  LINK_MSG moves the message into *out.  LINK_CLOSED: end of file, or
 * *e says what was wrong.
 */
enum link_result link_receive(struct link_input *in, struct link_msg *out,
			      struct err *e);

/* Send some of @m from byte *at of header and text on.  Advances *at; true
 * when the message is out.  False with *os 0: the socket is full now; else
 * an errno value.  Descriptors go with the first byte and stay the caller's.
 */
bool link_send_some(int sock, const struct link_msg *m, size_t *at, int *os);

/* Send all of it on a blocking socket.  0 or an errno value. */
int link_send(int sock, const struct link_msg *m);

#endif

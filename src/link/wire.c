/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/link.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define LINK_MAGIC UINT32_C(0x4b4e4c53) /* "SLNK" on the wire */

void
link_msg_clear(struct link_msg *m)
{
	for (unsigned i = 0; i < m->nfds; i++)
		if (m->fds[i] >= 0)
			(void)close(m->fds[i]);
	free(m->text);
	*m = (struct link_msg){ 0 };
}

bool
link_msg_take_fd(struct link_msg *m, uint32_t index, int *fd, struct err *e)
{
	if (index >= m->nfds || m->fds[index] < 0)
		return err_set(e, ERR_GENERIC, 0,
			       "the message has no descriptor %" PRIu32, index);
	*fd = steal_fd(&m->fds[index]);
	return true;
}

/* Keep what came with these bytes; more than fits is closed. */
static void
keep_fds(struct link_msg *m, struct msghdr *h)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
			if (m->nfds < LINK_MAX_FDS)
				m->fds[m->nfds++] = fd;
			else
				(void)close(fd);
		}
	}
}

static ssize_t
receive_some(struct link_input *in, void *buf, size_t len)
{
	_Alignas(struct cmsghdr) char
		control[CMSG_SPACE(LINK_MAX_FDS * sizeof(int))];
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	struct msghdr h = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = sizeof control };
	ssize_t n;

	do
		n = recvmsg(in->sock, &h, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		keep_fds(&in->msg, &h);
	return n;
}

static bool
header_ok(const struct link_header *h, struct err *e)
{
	if (h->magic != LINK_MAGIC)
		return err_set(e, ERR_GENERIC, 0, "not a link message");
	if (h->version != LINK_VERSION)
		return err_set(e, ERR_GENERIC, 0,
			       "link version %u, and we speak %u", h->version,
			       LINK_VERSION);
	if (h->length > LINK_MAX_TEXT || h->fds > LINK_MAX_FDS)
		return err_set(e, ERR_GENERIC, 0,
			       "link message of %" PRIu32 " bytes is too large",
			       h->length);
	return true;
}

static enum link_result
fail(struct link_input *in)
{
	link_msg_clear(&in->msg);
	in->header_got = in->text_got = 0;
	return LINK_CLOSED;
}

/* Fill [*got, want) of @buf. */
static enum link_result
fill(struct link_input *in, void *buf, size_t *got, size_t want, struct err *e)
{
	while (*got < want) {
		ssize_t n = receive_some(in, (char *)buf + *got, want - *got);

		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return LINK_AGAIN;
		if (n < 0)
			(void)err_set(e, ERR_GENERIC, errno,
				      "cannot read from the link");
		if (n <= 0)
			return fail(in);
		*got += (size_t)n;
	}
	return LINK_MSG;
}

enum link_result
link_receive(struct link_input *in, struct link_msg *out, struct err *e)
{
	enum link_result r;

	r = fill(in, &in->header, &in->header_got, sizeof in->header, e);
	if (r != LINK_MSG)
		return r;
	if (!in->msg.text) {
		if (!header_ok(&in->header, e))
			return fail(in);
		in->msg.text = malloc((size_t)in->header.length + 1);
		in->msg.len = in->header.length;
	}
	if (!in->msg.text) {
		(void)err_set(e, ERR_GENERIC, ENOMEM, "cannot read a message");
		return fail(in);
	}
	r = fill(in, in->msg.text, &in->text_got, in->msg.len, e);
	if (r != LINK_MSG)
		return r;
	if (in->msg.nfds != in->header.fds) {
		(void)err_set(e, ERR_GENERIC, 0,
			      "link message with %u of %u descriptors",
			      in->msg.nfds, in->header.fds);
		return fail(in);
	}
	in->msg.text[in->msg.len] = '\0';
	*out = in->msg;
	in->msg = (struct link_msg){ 0 };
	in->header_got = in->text_got = 0;
	return LINK_MSG;
}

static void
attach_fds(struct msghdr *h, const struct link_msg *m)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(h);

	h->msg_controllen = CMSG_SPACE(m->nfds * sizeof(int));
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(m->nfds * sizeof(int));
	memcpy(CMSG_DATA(c), m->fds, m->nfds * sizeof(int));
}

bool
link_send_some(int sock, const struct link_msg *m, size_t *at, int *os)
{
	_Alignas(struct cmsghdr) char
		control[CMSG_SPACE(LINK_MAX_FDS * sizeof(int))] = { 0 };
	struct link_header header = { .magic = LINK_MAGIC,
				      .version = LINK_VERSION,
				      .fds = (uint16_t)m->nfds,
				      .length = (uint32_t)m->len };
	size_t total = sizeof header + m->len;

	assert(m->len <= LINK_MAX_TEXT && m->nfds <= LINK_MAX_FDS);
	*os = 0;
	while (*at < total) {
		size_t in_header =
			*at < sizeof header ? sizeof header - *at : 0;
		size_t in_text = *at + in_header - sizeof header;
		struct iovec iov[2] = {
			{ (char *)&header + (sizeof header - in_header),
			  in_header },
			{ m->text + in_text, m->len - in_text },
		};
		struct msghdr h = { .msg_iov = iov,
				    .msg_iovlen = 2,
				    .msg_control = control,
				    .msg_controllen = sizeof control };
		ssize_t n;

		if (*at == 0 && m->nfds) {
			attach_fds(&h, m);
		} else {
			h.msg_control = NULL;
			h.msg_controllen = 0;
		}
		n = sendmsg(sock, &h, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			*os = errno == EAGAIN || errno == EWOULDBLOCK ? 0
								      : errno;
			return false;
		}
		*at += (size_t)n;
	}
	return true;
}

int
link_send(int sock, const struct link_msg *m)
{
	size_t at = 0;
	int os;

	if (link_send_some(sock, m, &at, &os))
		return 0;
	return os ? os : ETIMEDOUT; /* SO_SNDTIMEO ran out */
}

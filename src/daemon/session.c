/* SPDX-License-Identifier: BSD-3-Clause */
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/log.h"
#include "daemon/qmp-priv.h"
#include "daemon/version.h"
#include "schema/qmp-commands.h"

#define SEND_CHUNKS 16 /* of the output in one system call */

static void session_turn(struct session *s);

/* Rules 1, 4 and 5: may the next request be looked at? */
static bool
may_read(const struct session *s)
{
	return !s->dead && !s->call && !s->server->closing &&
	       s->out.size <= QMP_OUT_SOFT;
}

void
session_send(struct session *s, const void *p, size_t n)
{
	if (s->dead)
		return;
	if (!outq_append(&s->out, p, n)) {
		session_drop(s, "it does not read what was sent");
		return;
	}
	s->server->out_total += n;
	server_enforce_budgets(s->server);
	session_kick(s);
}

static void
sent(struct session *s, size_t n)
{
	outq_consume(&s->out, n);
	s->server->out_total -= n;
}

static void
charge_input(struct session *s, size_t bytes)
{
	s->server->in_total += bytes;
	s->server->in_total -= s->in_bytes;
	s->in_bytes = bytes;
}

void
session_kick(struct session *s)
{
	if (!s->in_turn && !s->turn.queued)
		loop_defer(s->server->loop, &s->turn);
}

/* A client that has just sent something would lose our last words to a reset
 * if its bytes were left unread.
 */
static void
close_politely(struct session *s)
{
	char unread[4096];

	(void)shutdown(s->fd, SHUT_WR);
	for (int i = 0; i < 16; i++)
		if (recv(s->fd, unread, sizeof unread, MSG_DONTWAIT) <= 0)
			break;
	(void)close(s->fd);
	s->fd = -1;
}

static void
forget_call(struct session *s)
{
	struct qmp_call *c = s->call;

	s->call = NULL;
	if (c)
		c->session = NULL; /* rule 3 */
}

void
session_drop(struct session *s, const char *why)
{
	if (s->dead)
		return;
	if (why)
		log_warn("QMP session %" PRIu64 " (%s) is closed: %s",
			 s->number, s->peer, why);
	else
		log_debug("QMP session %" PRIu64 " (%s) ended", s->number,
			  s->peer);
	s->dead = true;
	ev_io_stop(s->server->loop->ev, &s->rd);
	ev_io_stop(s->server->loop->ev, &s->wr);
	close_politely(s);
	charge_input(s, 0);
	sent(s, s->out.size);
	forget_call(s);
	server_session_gone(s->server, s);
	session_kick(s);
}

void
session_free(struct session *s)
{
	frame_free(s->frame);
	outq_destroy(&s->out);
	free(s->left);
	free(s);
}

/* Send what waits, as far as the socket takes it. */
static void
flush_output(struct session *s)
{
	struct iovec v[SEND_CHUNKS];
	struct msghdr m = { .msg_iov = v };
	ssize_t n;

	if (s->dead || !s->out.size)
		return;
	m.msg_iovlen = outq_peek(&s->out, v, SEND_CHUNKS);
	n = sendmsg(s->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n >= 0)
		sent(s, (size_t)n);
	else if (errno != EAGAIN && errno != EINTR)
		session_drop(s, NULL);
}

/* One complete value from the client. */
static void
take_value(struct session *s, struct json *tree, size_t bytes)
{
	AUTO(json_free) struct json *owned = tree;
	struct err e = ERR_INIT;
	struct qmp_request rq = { 0 };
	struct qmp_call *c;

	if (!qmp_request_parse(tree, &rq, &e)) {
		session_send_error(s, rq.id, &e);
		return;
	}
	if (!s->negotiated && strcmp(rq.command, "qmp_capabilities") != 0) {
		(void)err_set(&e, ERR_COMMAND_NOT_FOUND, 0,
			      "Expecting capabilities negotiation with "
			      "'qmp_capabilities'");
		session_send_error(s, rq.id, &e);
		return;
	}
	c = call_new(s, steal(&owned), &rq, bytes);
	if (c->info && !c->info->is_query)
		server_queue_call(s->server, c);
	else
		call_run(c);
}

/* Look at input until one request is in progress, the turn's share is used up
 * or nothing is left; *p and *n are moved on.
 */
static void
take_input(struct session *s, const char **p, size_t *n, unsigned *share)
{
	struct json *tree;
	struct err e = ERR_INIT;
	const char *before;
	size_t bytes, out = s->out.size;

	while (*n && *share && may_read(s)) {
		before = *p;
		switch (frame_feed(s->frame, p, n, &tree, &e)) {
		case FRAME_MORE:
			charge_input(s, frame_is_inside(s->frame)
						? s->in_bytes +
							  (size_t)(*p - before)
						: 0);
			server_enforce_budgets(s->server);
			break;
		case FRAME_VALUE:
			bytes = s->in_bytes + (size_t)(*p - before);
			charge_input(s, 0);
			(*share)--;
			take_value(s, tree, bytes);
			if (s->out.size > out + QMP_TURN_OUT)
				*share = 0;
			break;
		case FRAME_ERROR:
			charge_input(s, 0);
			(*share)--;
			session_send_error(s, NULL, &e);
			err_clear(&e);
			break;
		}
	}
}

static void
take_left(struct session *s, unsigned *share)
{
	const char *p = s->left + s->left_at;
	size_t n = s->left_len - s->left_at;

	take_input(s, &p, &n, share);
	s->left_at = s->left_len - n;
	if (!n) {
		free(s->left);
		s->left = NULL;
	}
}

static void
take_fresh(struct session *s, size_t n, unsigned *share)
{
	const char *p = s->server->scratch;

	take_input(s, &p, &n, share);
	if (!n || s->dead)
		return;
	s->left = malloc(n);
	if (!s->left) {
		session_drop(s, "out of memory");
		return;
	}
	memcpy(s->left, p, n);
	s->left_at = 0;
	s->left_len = n;
}

static void
receive(struct session *s, unsigned *share)
{
	ssize_t n = recv(s->fd, s->server->scratch, sizeof s->server->scratch,
			 MSG_DONTWAIT);

	s->readable = n == (ssize_t)sizeof s->server->scratch;
	if (n > 0)
		take_fresh(s, (size_t)n, share);
	else if (n == 0)
		s->eof = true;
	else if (errno != EAGAIN && errno != EINTR)
		session_drop(s, NULL);
}

/* Ask for what the session needs next. */
static void
arm(struct session *s)
{
	struct ev_loop *ev = s->server->loop->ev;
	bool more = may_read(s) && !s->eof;

	if (s->out.size)
		ev_io_start(ev, &s->wr);
	else
		ev_io_stop(ev, &s->wr);
	if (more && !s->left && !s->readable)
		ev_io_start(ev, &s->rd);
	else
		ev_io_stop(ev, &s->rd);
	if (may_read(s) && (s->left || s->readable))
		session_kick(s);
	else if ((s->eof || s->server->closing) && !s->call && !s->out.size)
		session_drop(s, NULL);
}

static void
session_turn(struct session *s)
{
	unsigned share = QMP_TURN_REQUESTS;

	s->in_turn = true;
	if (s->left && may_read(s))
		take_left(s, &share);
	if (!s->left && s->readable && share && may_read(s))
		receive(s, &share);
	flush_output(s);
	s->in_turn = false;
	if (s->dead)
		session_kick(s);
	else
		arm(s);
}

static void
on_turn(struct task *t)
{
	struct session *s = container_of(t, struct session, turn);
	struct qmp_server *server = s->server;

	if (!s->dead) {
		session_turn(s);
		return;
	}
	session_free(s);
	server_session_freed(server);
}

static void
on_readable(struct ev_loop *ev, ev_io *w, int revents)
{
	struct session *s = container_of(w, struct session, rd);

	(void)ev;
	(void)revents;
	s->readable = true;
	session_turn(s);
}

static void
on_writable(struct ev_loop *ev, ev_io *w, int revents)
{
	(void)ev;
	(void)revents;
	session_turn(container_of(w, struct session, wr));
}

static void
greet(struct session *s)
{
	AUTO(json_out_destroy) struct json_out o;

	json_out_init(&o, 4096);
	json_out_object_begin(&o);
	json_out_key(&o, "QMP");
	json_out_object_begin(&o);
	json_out_key(&o, "version");
	json_out_object_begin(&o);
	json_out_key(&o, "qemu");
	json_out_object_begin(&o);
	json_out_key(&o, "micro");
	json_out_int(&o, QMP_MICRO);
	json_out_key(&o, "minor");
	json_out_int(&o, QMP_MINOR);
	json_out_key(&o, "major");
	json_out_int(&o, QMP_MAJOR);
	json_out_object_end(&o);
	json_out_key(&o, "package");
	json_out_string(&o, QMP_PACKAGE);
	json_out_object_end(&o);
	json_out_key(&o, "capabilities");
	json_out_array_begin(&o);
	json_out_array_end(&o);
	json_out_object_end(&o);
	json_out_object_end(&o);
	json_out_bytes(&o, "\r\n", 2);
	if (json_out_check(&o, NULL))
		session_send(s, o.text, o.len);
}

struct session *
session_new(struct qmp_server *server, int fd, const char *peer)
{
	AUTO(close) int owned = fd;
	struct session *s = calloc(1, sizeof *s);

	if (!s)
		return NULL;
	s->frame = frame_new(&frame_limits_qmp);
	if (!s->frame) {
		free(s);
		return NULL;
	}
	s->server = server;
	s->number = ++server->n_ever;
	s->fd = steal_fd(&owned);
	s->turn.fn = on_turn;
	outq_init(&s->out, QMP_OUT_HARD);
	(void)snprintf(s->peer, sizeof s->peer, "%s", peer);
	ev_io_init(&s->rd, on_readable, fd, EV_READ);
	ev_io_init(&s->wr, on_writable, fd, EV_WRITE);
	server_session_born(server, s);
	greet(s);
	return s;
}

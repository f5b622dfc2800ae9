/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/qmp-server.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/qmp-priv.h"
#include "schema/qmp-commands.h"

#define ACCEPT_PAUSE  1.0 /* seconds, when out of descriptors */
#define REFUSAL_LOG   1.0 /* seconds between log lines about refusals */
#define ACCEPT_TURN   16 /* connections in one wake-up */
#define WAITING_TURN  16 /* waiting calls in one wake-up */
#define SHUTDOWN_TEXT "stillpointd is shutting down"

static void on_accept(struct ev_loop *ev, ev_io *w, int revents);
static void on_accept_again(struct ev_loop *ev, ev_timer *w, int revents);
static void on_close_timeout(struct ev_loop *ev, ev_timer *w, int revents);
static void on_run_waiting(struct task *t);

struct qmp_server *
qmp_server_new(struct loop *l, void *opaque)
{
	struct qmp_server *s = xzalloc(sizeof *s);

	s->loop = l;
	s->opaque = opaque;
	s->events.server = s;
	s->waiting_tail = &s->waiting;
	s->run_waiting.fn = on_run_waiting;
	s->logged_refusal = -REFUSAL_LOG;
	ev_init(&s->accept_again, on_accept_again);
	ev_init(&s->close_timer, on_close_timeout);
	return s;
}

static void
stop_accepting(struct qmp_server *s)
{
	for (size_t i = 0; i < s->listeners.n; i++)
		ev_io_stop(s->loop->ev, &s->accept[i]);
	ev_timer_stop(s->loop->ev, &s->accept_again);
}

void
qmp_server_free(struct qmp_server *s)
{
	struct qmp_call *next;

	assert(!s->sessions && !s->n_dead);
	stop_accepting(s);
	ev_timer_stop(s->loop->ev, &s->close_timer);
	listeners_close(&s->listeners, true);
	for (struct qmp_call *c = s->calls; c; c = next) {
		next = c->next;
		call_free(c);
	}
	free(s);
}

bool
qmp_server_add(struct qmp_server *s, const struct address *a, struct err *e)
{
	return listeners_add(&s->listeners, a,
			     LISTEN_LOOPBACK_ONLY | LISTEN_OWNER_ONLY |
				     LISTEN_NONBLOCK | LISTEN_BIND_ONLY,
			     e);
}

bool
qmp_server_open(struct qmp_server *s, struct err *e)
{
	ASSERT_LOOP(s->loop);
	if (!listeners_listen(&s->listeners, e))
		return false;
	for (size_t i = 0; i < s->listeners.n; i++) {
		ev_io_init(&s->accept[i], on_accept, s->listeners.v[i].fd,
			   EV_READ);
		s->accept[i].data = s;
		ev_io_start(s->loop->ev, &s->accept[i]);
		log_info("QMP listens on %s", s->listeners.v[i].name);
	}
	return true;
}

/* Who it is, for logs. */
static void
describe_peer(int fd, const struct sockaddr_storage *sa, socklen_t len,
	      char *out, size_t size)
{
	struct ucred cred;
	socklen_t n = sizeof cred;

	if (sa->ss_family != AF_UNIX)
		sockaddr_name(sa, len, out, size);
	else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) == 0)
		(void)snprintf(out, size, "unix: pid %ld, uid %ld",
			       (long)cred.pid, (long)cred.uid);
	else
		(void)snprintf(out, size, "unix:");
}

/* Rule 5: one session too many.  An answer, as far as the socket takes it. */
static void
refuse(struct qmp_server *s, int fd, const char *peer)
{
	AUTO(json_out_destroy) struct json_out o;
	struct err e = ERR_INIT;
	ev_tstamp now = ev_now(s->loop->ev);

	(void)err_set(&e, ERR_GENERIC, 0,
		      "Too many QMP sessions: the limit is %d",
		      QMP_MAX_SESSIONS);
	if (now - s->logged_refusal >= REFUSAL_LOG) {
		s->logged_refusal = now;
		log_warn("QMP client %s is refused: %s", peer, e.msg);
	}
	json_out_init(&o, 4096);
	json_out_object_begin(&o);
	qmp_error_put(&o, &e);
	json_out_object_end(&o);
	json_out_bytes(&o, "\r\n", 2);
	if (json_out_check(&o, NULL))
		(void)!send(fd, o.text, o.len, MSG_NOSIGNAL | MSG_DONTWAIT);
	(void)close(fd);
}

/* A TCP peer that vanished without a word must not keep its place for ever. */
static void
tune_tcp(int fd)
{
	int on = 1, idle = 60, interval = 10, count = 6;

	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval,
			 sizeof interval);
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

static void
welcome(struct qmp_server *s, int fd, const struct sockaddr_storage *sa,
	socklen_t len)
{
	char peer[120];

	describe_peer(fd, sa, len, peer, sizeof peer);
	if (s->n_sessions >= QMP_MAX_SESSIONS) {
		refuse(s, fd, peer);
		return;
	}
	if (sa->ss_family != AF_UNIX)
		tune_tcp(fd);
	if (!session_new(s, fd, peer))
		log_warn("QMP client %s is refused: out of memory", peer);
}

static void
pause_accepting(struct qmp_server *s, int os)
{
	char text[128];

	log_warn("cannot accept QMP clients for a while: %s",
		 strerror_r(os, text, sizeof text));
	stop_accepting(s);
	ev_timer_set(&s->accept_again, ACCEPT_PAUSE, 0);
	ev_timer_start(s->loop->ev, &s->accept_again);
}

static void
accept_some(struct qmp_server *s, int listener)
{
	for (int i = 0; i < ACCEPT_TURN; i++) {
		struct sockaddr_storage sa = { 0 };
		socklen_t len = sizeof sa;
		int fd = accept4(listener, (void *)&sa, &len,
				 SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			welcome(s, fd, &sa, len);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM ||
		    errno == ENOBUFS)
			pause_accepting(s, errno);
		if (errno != EINTR && errno != ECONNABORTED)
			break;
	}
}

static void
on_accept(struct ev_loop *ev, ev_io *w, int revents)
{
	(void)ev;
	(void)revents;
	accept_some(w->data, w->fd);
}

static void
on_accept_again(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct qmp_server *s = container_of(w, struct qmp_server, accept_again);

	(void)revents;
	for (size_t i = 0; i < s->listeners.n; i++)
		ev_io_start(ev, &s->accept[i]);
}

void
server_session_born(struct qmp_server *s, struct session *x)
{
	x->next = s->sessions;
	if (x->next)
		x->next->prev = x;
	s->sessions = x;
	s->n_sessions++;
}

void
server_session_gone(struct qmp_server *s, struct session *x)
{
	if (x->prev)
		x->prev->next = x->next;
	else
		s->sessions = x->next;
	if (x->next)
		x->next->prev = x->prev;
	s->n_sessions--;
	s->n_dead++;
}

static void
finish_close(struct qmp_server *s)
{
	if (!s->closing || s->n_sessions || s->n_dead)
		return;
	s->closing = false;
	ev_timer_stop(s->loop->ev, &s->close_timer);
	s->closed(s->opaque);
}

void
server_session_freed(struct qmp_server *s)
{
	s->n_dead--;
	finish_close(s);
}

void
server_call_born(struct qmp_server *s, struct qmp_call *c)
{
	c->next = s->calls;
	if (c->next)
		c->next->prev = c;
	s->calls = c;
}

static void
kick_waiting(struct qmp_server *s)
{
	if (s->waiting && !s->exclusive && !s->run_waiting.queued)
		loop_defer(s->loop, &s->run_waiting);
}

void
server_call_over(struct qmp_server *s, struct qmp_call *c)
{
	if (c->prev)
		c->prev->next = c->next;
	else
		s->calls = c->next;
	if (c->next)
		c->next->prev = c->prev;
	s->held_total -= c->held;
	if (s->exclusive == c)
		s->exclusive = NULL;
	kick_waiting(s);
}

static void
fail_shutting_down(struct qmp_call *c)
{
	struct err e = ERR_INIT;

	(void)err_set(&e, ERR_GENERIC, 0, SHUTDOWN_TEXT);
	qmp_call_fail(c, &e);
}

static void
go(void *call)
{
	call_run(call);
}

/* Run a command that changes something: nothing else does meanwhile. */
static void
run_exclusively(struct qmp_server *s, struct qmp_call *c)
{
	assert(!s->exclusive);
	if (s->draining) {
		fail_shutting_down(c);
		return;
	}
	s->exclusive = c;
	if (!s->before || !s->before(s->opaque, c->name, c->args, go, c))
		call_run(c);
}

static struct qmp_call *
next_waiting(struct qmp_server *s)
{
	struct qmp_call *c = s->waiting;

	s->waiting = c->after;
	if (!s->waiting)
		s->waiting_tail = &s->waiting;
	return c;
}

/* A client that went away while its command waited does not get it done. */
static void
on_run_waiting(struct task *t)
{
	struct qmp_server *s = container_of(t, struct qmp_server, run_waiting);
	int n = 0;

	while (s->waiting && !s->exclusive && n++ < WAITING_TURN) {
		struct qmp_call *c = next_waiting(s);

		if (c->session) {
			run_exclusively(s, c);
		} else {
			server_call_over(s, c);
			call_free(c);
		}
	}
	kick_waiting(s);
}

/* Rule 5: what is kept of requests that are not answered at once. */
static bool
hold(struct qmp_server *s, struct qmp_call *c, struct err *e)
{
	if (s->held_total && s->held_total + c->bytes > QMP_HELD_TOTAL)
		return err_set(e, ERR_GENERIC, 0,
			       "Too many large commands are waiting: try again "
			       "later");
	c->held = c->bytes;
	s->held_total += c->held;
	return true;
}

void
server_queue_call(struct qmp_server *s, struct qmp_call *c)
{
	struct err e = ERR_INIT;

	if (s->draining) {
		fail_shutting_down(c);
	} else if (!hold(s, c, &e)) {
		qmp_call_fail(c, &e);
	} else if (!s->exclusive && !s->waiting) {
		run_exclusively(s, c);
	} else {
		*s->waiting_tail = c;
		s->waiting_tail = &c->after;
	}
}

void
server_enforce_budgets(struct qmp_server *s)
{
	struct session *most = s->sessions;

	if (s->out_total > QMP_OUT_TOTAL) {
		for (struct session *x = most; x; x = x->next)
			if (x->out.size > most->out.size)
				most = x;
		session_drop(most, "all clients together read too slowly, and "
				   "it most of all");
	} else if (s->in_total > QMP_IN_TOTAL) {
		for (struct session *x = most; x; x = x->next)
			if (x->in_bytes > most->in_bytes)
				most = x;
		session_drop(most, "all clients together send too large "
				   "requests, and it the largest");
	}
}

void
qmp_server_drain(struct qmp_server *s)
{
	ASSERT_LOOP(s->loop);
	s->draining = true;
	while (s->waiting)
		fail_shutting_down(next_waiting(s));
}

/* Drop who has nothing to read any more, or everybody. */
static void
drop_sessions(struct qmp_server *s, bool all)
{
	struct session *next;

	for (struct session *x = s->sessions; x; x = next) {
		next = x->next;
		if (all || !x->out.size)
			session_drop(x, NULL);
	}
}

static void
on_close_timeout(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct qmp_server *s = container_of(w, struct qmp_server, close_timer);

	(void)ev;
	(void)revents;
	drop_sessions(s, true);
	finish_close(s);
}

void
qmp_server_close(struct qmp_server *s, void (*done)(void *opaque))
{
	ASSERT_LOOP(s->loop);
	s->closed = done;
	s->closing = true;
	stop_accepting(s);
	qmp_server_drain(s);
	drop_sessions(s, false);
	ev_timer_set(&s->close_timer, s->n_sessions ? QMP_CLOSE_SECONDS : 0, 0);
	ev_timer_start(s->loop->ev, &s->close_timer);
}

void
qmp_server_set_before(struct qmp_server *s, qmp_before *fn)
{
	s->before = fn;
}

struct qmp_events *
qmp_server_events(struct qmp_server *s)
{
	return &s->events;
}

unsigned
qmp_server_sessions(const struct qmp_server *s)
{
	return s->n_sessions;
}

/* Rule 6. */
void
qmp_event_emit(struct qmp_events *sink, const char *name,
	       const struct json_out *text)
{
	struct qmp_server *s = sink->server;

	ASSERT_LOOP(s->loop);
	if (!text) {
		log_warn("out of memory: the event %s is lost", name);
		return;
	}
	for (struct session *x = s->sessions; x; x = x->next) {
		if (!x->negotiated)
			continue;
		session_send(x, text->text, text->len);
		session_send(x, "\r\n", 2);
	}
}

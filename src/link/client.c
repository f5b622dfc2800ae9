/* SPDX-License-Identifier: BSD-3-Clause */
#include "link/client.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "json/envelope.h"

/* A message that waits for room in the socket. */
struct outgoing {
	struct outgoing *next;
	struct link_msg msg; /* owned */
	size_t at;
};

struct link_client {
	struct link_client_options o;
	int sock; /* owned */
	struct link_input input;
	ev_io readable, writable;
	struct outgoing *out, **out_tail;
	struct link_request *waiting, **waiting_tail;
	struct task fail_task; /* close from outside of a callback */
	uint64_t next_id;
	bool closed;
	struct err why;
};

static void
stop_io(struct link_client *c)
{
	struct outgoing *m;

	ev_io_stop(c->o.loop->ev, &c->readable);
	ev_io_stop(c->o.loop->ev, &c->writable);
	while ((m = c->out)) {
		c->out = m->next;
		link_msg_clear(&m->msg);
		free(m);
	}
	c->out_tail = &c->out;
	link_msg_clear(&c->input.msg);
	c->closed = true;
}

static void
answer_all(struct link_client *c)
{
	struct link_request *r;

	while ((r = c->waiting)) {
		c->waiting = r->next;
		if (!c->waiting)
			c->waiting_tail = &c->waiting;
		r->done(r, NULL, NULL, &c->why);
	}
}

static void
report_closed(struct task *t)
{
	struct link_client *c = container_of(t, struct link_client, fail_task);

	answer_all(c);
	c->o.on_closed(c->o.opaque);
}

/* The connection is of no use any more. */
static void
fail(struct link_client *c, const struct err *e)
{
	if (c->closed)
		return;
	if (err_is_set(e))
		(void)err_move(&c->why, e);
	else
		(void)err_set(&c->why, ERR_GENERIC, 0,
			      "the data plane (nbdkit) is gone");
	stop_io(c);
	loop_defer(c->o.loop, &c->fail_task);
}

static struct link_request *
take_waiting(struct link_client *c, uint64_t id)
{
	for (struct link_request **p = &c->waiting; *p; p = &(*p)->next) {
		struct link_request *r = *p;

		if (r->id != id)
			continue;
		*p = r->next;
		if (c->waiting_tail == &r->next)
			c->waiting_tail = p;
		return r;
	}
	return NULL;
}

static bool
handle(struct link_client *c, struct link_msg *m, const struct json *j,
       struct err *e)
{
	struct link_request *r;
	struct qmp_reply reply;
	struct err why = ERR_INIT;

	if (!qmp_reply_parse(j, &reply, e))
		return false;
	if (reply.event) {
		c->o.on_event(c->o.opaque, reply.event, reply.data);
		return true;
	}
	r = reply.id && json_type(reply.id) == JSON_INT
		    ? take_waiting(c, json_get_uint(reply.id))
		    : NULL;
	if (!r)
		return err_set(e, ERR_GENERIC, 0,
			       "an answer that nobody asked for");
	if (reply.ret) {
		r->done(r, reply.ret, m, NULL);
		return true;
	}
	(void)err_set(&why, reply.cls, 0, "%s", reply.desc);
	r->done(r, NULL, NULL, &why);
	return true;
}

static void
read_some(struct link_client *c)
{
	/* bounded work for each wake-up */
	for (int i = 0; i < 16 && !c->closed; i++) {
		AUTO(json_free) struct json *j = NULL;
		struct link_msg m = { 0 };
		struct err e = ERR_INIT;
		bool ok;

		switch (link_receive(&c->input, &m, &e)) {
		case LINK_AGAIN: return;
		case LINK_CLOSED: fail(c, &e); return;
		case LINK_MSG: break;
		}
		ok = json_parse(m.text, m.len, &j, &e) && handle(c, &m, j, &e);
		link_msg_clear(&m);
		if (!ok)
			fail(c, &e);
	}
}

static void
on_readable(struct ev_loop *ev, ev_io *w, int revents)
{
	(void)ev;
	(void)revents;
	read_some(container_of(w, struct link_client, readable));
}

static void
write_some(struct link_client *c)
{
	struct outgoing *m;
	struct err e = ERR_INIT;
	int os;

	while ((m = c->out)) {
		if (!link_send_some(c->sock, &m->msg, &m->at, &os)) {
			if (os) {
				(void)err_set(&e, ERR_GENERIC, os,
					      "cannot write to the link");
				fail(c, &e);
				return;
			}
			ev_io_start(c->o.loop->ev, &c->writable);
			return;
		}
		c->out = m->next;
		if (!c->out)
			c->out_tail = &c->out;
		link_msg_clear(&m->msg);
		free(m);
	}
	ev_io_stop(c->o.loop->ev, &c->writable);
}

static void
on_writable(struct ev_loop *ev, ev_io *w, int revents)
{
	(void)ev;
	(void)revents;
	write_some(container_of(w, struct link_client, writable));
}

struct link_client *
link_client_new(const struct link_client_options *o)
{
	struct link_client *c = xzalloc(sizeof *c);

	c->o = *o;
	c->sock = o->sock;
	c->input.sock = o->sock;
	c->out_tail = &c->out;
	c->waiting_tail = &c->waiting;
	c->fail_task.fn = report_closed;
	c->next_id = 1;
	(void)fcntl(c->sock, F_SETFL, fcntl(c->sock, F_GETFL) | O_NONBLOCK);
	ev_io_init(&c->readable, on_readable, c->sock, EV_READ);
	ev_io_init(&c->writable, on_writable, c->sock, EV_WRITE);
	ev_io_start(o->loop->ev, &c->readable);
	return c;
}

bool
link_client_alive(const struct link_client *c)
{
	return !c->closed;
}

void
link_client_free(struct link_client *c)
{
	if (!c->closed) {
		(void)err_set(&c->why, ERR_GENERIC, 0,
			      "the link to the data plane was closed");
		stop_io(c);
	}
	loop_cancel(c->o.loop, &c->fail_task);
	answer_all(c);
	(void)close(c->sock);
	free(c);
}

static struct outgoing *
make_outgoing(struct json_out *o, const int *fds, unsigned nfds)
{
	struct outgoing *m = xzalloc(sizeof *m);

	assert(nfds <= LINK_MAX_FDS);
	m->msg.len = o->len;
	m->msg.text = xzalloc(o->len + 1);
	memcpy(m->msg.text, o->text, o->len);
	for (unsigned i = 0; i < nfds; i++) {
		m->msg.fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
		m->msg.nfds++;
	}
	return m;
}

void
link_client_ask(struct link_client *c, struct link_request *r,
		struct json_out *o, const int *fds, unsigned nfds)
{
	struct outgoing *m;
	struct err e = ERR_INIT;

	r->id = c->next_id++;
	r->next = NULL;
	*c->waiting_tail = r;
	c->waiting_tail = &r->next;
	json_out_key(o, "id");
	json_out_uint(o, r->id);
	json_out_object_end(o);
	if (c->closed) {
		if (!c->fail_task.queued)
			loop_defer(c->o.loop, &c->fail_task);
	} else if (!json_out_check(o, &e) || o->len > LINK_MAX_TEXT) {
		if (!err_is_set(&e))
			(void)err_set(&e, ERR_GENERIC, 0,
				      "a message for the data plane is too "
				      "large");
		fail(c, &e);
	} else {
		m = make_outgoing(o, fds, nfds);
		*c->out_tail = m;
		c->out_tail = &m->next;
		write_some(c);
	}
	json_out_destroy(o);
}

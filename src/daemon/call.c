/* SPDX-License-Identifier: BSD-3-Clause */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/control.h"
#include "daemon/qmp-priv.h"
#include "schema/qmp-commands.h"

/* End the open response object with the id and the line's end. */
static void
finish(struct json_out *o, const struct json *id)
{
	if (id) {
		json_out_key(o, "id");
		json_out_json(o, id);
	}
	json_out_object_end(o);
	json_out_bytes(o, "\r\n", 2);
}

void
session_send_error(struct session *s, const struct json *id,
		   const struct err *e)
{
	AUTO(json_out_destroy) struct json_out o;

	json_out_init(&o, QMP_OUT_HARD);
	json_out_object_begin(&o);
	qmp_error_put(&o, e);
	finish(&o, id);
	if (json_out_check(&o, NULL))
		session_send(s, o.text, o.len);
	else
		session_drop(s, "out of memory for a response");
}

struct qmp_call *
call_new(struct session *s, struct json *tree, const struct qmp_request *rq,
	 size_t bytes)
{
	struct qmp_call *c = xzalloc(sizeof *c);

	assert(!s->call);
	c->server = s->server;
	c->session = s;
	c->info = qmp_command_lookup(rq->command);
	c->tree = tree;
	c->name = rq->command;
	c->args = rq->args;
	c->id = rq->id;
	c->bytes = bytes;
	s->call = c;
	server_call_born(s->server, c);
	return c;
}

/* The call is over: tell the session and the server.  Frees @c. */
static void
end(struct qmp_call *c)
{
	struct session *s = c->session;
	struct qmp_server *server = c->server;

	if (s) {
		assert(s->call == c);
		s->call = NULL;
		session_kick(s);
	}
	server_call_over(server, c);
	call_free(c);
}

void
call_free(struct qmp_call *c)
{
	if (c->has_out)
		json_out_destroy(&c->out);
	json_free(c->tree);
	json_free(c->own_id);
	free(c);
}

/* The id outlives the request, of which it was a part.  An asynchronous call
 * keeps a copy, so that the arguments do not stay in memory as well.
 */
static bool
keep_id(struct qmp_call *c, struct err *e)
{
	if (!c->id || !c->info || !c->info->is_async)
		return true;
	c->own_id = json_clone(c->id);
	if (!c->own_id)
		return err_set(e, ERR_GENERIC, 0, "out of memory");
	c->id = c->own_id;
	return true;
}

/* An asynchronous call may be over, and freed, when qmp_dispatch returns; a
 * synchronous one is.
 */
void
call_run(struct qmp_call *c)
{
	struct json *tree = steal(&c->tree);
	struct err e = ERR_INIT;

	if (!keep_id(c, &e) || !qmp_dispatch(c, c->name, c->args, &e))
		qmp_call_fail(c, &e);
	json_free(tree);
}

void *
qmp_call_opaque(const struct qmp_call *c)
{
	return c->server->opaque;
}

struct json_out *
qmp_call_begin(struct qmp_call *c)
{
	assert(!c->has_out);
	c->has_out = true;
	json_out_init(&c->out, QMP_OUT_HARD);
	json_out_object_begin(&c->out);
	json_out_key(&c->out, "return");
	return &c->out;
}

void
qmp_call_done(struct qmp_call *c)
{
	struct err e = ERR_INIT;

	assert(c->has_out);
	finish(&c->out, c->id);
	if (!json_out_check(&c->out, &e)) {
		(void)err_prefix(&e, "the response to '%s' cannot be sent: ",
				 c->info ? c->info->name : "?");
		qmp_call_fail(c, &e);
		return;
	}
	if (c->session)
		session_send(c->session, c->out.text, c->out.len);
	end(c);
}

void
qmp_call_fail(struct qmp_call *c, const struct err *e)
{
	if (c->session)
		session_send_error(c->session, c->id, e);
	end(c);
}

bool
qmp_call_is_negotiated(const struct qmp_call *c)
{
	return c->session && c->session->negotiated;
}

void
qmp_call_set_negotiated(struct qmp_call *c)
{
	if (c->session)
		c->session->negotiated = true;
}

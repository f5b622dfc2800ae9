/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Inside the QMP server: who owns what.
 *
 *   server --owns--> sessions --borrow--> their one call
 *   server --owns--> calls    --borrow--> their session, NULL when it is gone
 *
 * qmp-server.c has the sockets and what concerns all sessions, session.c one
 * connection, call.c one command, outq.c the bytes that wait for a client.
 */
#ifndef DAEMON_QMP_PRIV_H
#define DAEMON_QMP_PRIV_H

#include <stdint.h>

#include "daemon/outq.h"
#include "daemon/qmp-server.h"
#include "json/envelope.h"
#include "json/frame.h"
#include "json/out.h"

struct session {
	struct qmp_server *server; /* borrowed */
	struct session *prev, *next; /* the server's list */
	uint64_t number; /* for logs */
	char peer[120];
	int fd; /* owned; -1 when dead */
	bool dead; /* closed; the task frees it */
	bool negotiated; /* in command mode */
	bool eof; /* the client sends no more */
	bool readable; /* the socket may have input */
	bool in_turn; /* session_turn is on the stack */
	struct frame *frame; /* owned */
	struct qmp_call *call; /* borrowed: in progress or waiting */
	size_t in_bytes; /* of the request that is not yet complete */
	char *left; /* owned: read, not yet looked at */
	size_t left_at, left_len;
	struct outq out;
	ev_io rd, wr;
	struct task turn;
};

struct qmp_call {
	struct qmp_server *server; /* borrowed */
	struct session *session; /* borrowed; NULL: the client is gone */
	struct qmp_call *prev, *next; /* the server's list of all calls */
	struct qmp_call *after; /* the next one that waits */
	const struct qmp_command_info *info; /* static; NULL: unknown command */
	struct json *tree; /* owned until it runs: the whole request */
	const char *name; /* borrowed from @tree */
	const struct json *args; /* borrowed from @tree; may be NULL */
	const struct json *id; /* borrowed from @tree or @own_id, or NULL */
	struct json *own_id; /* owned: a copy that outlives @tree */
	size_t bytes; /* of the request's text */
	size_t held; /* of them, charged to the server */
	struct json_out out; /* the response, between begin and done */
	bool has_out;
};

struct qmp_events {
	struct qmp_server *server; /* borrowed */
};

struct qmp_server {
	struct loop *loop; /* borrowed */
	void *opaque;
	struct qmp_events events;
	struct listeners listeners;
	ev_io accept[LISTEN_MAX];
	ev_timer accept_again; /* after running out of descriptors */
	struct session *sessions;
	unsigned n_sessions;
	unsigned n_dead; /* closed, not freed yet */
	uint64_t n_ever;
	ev_tstamp logged_refusal;
	struct qmp_call *calls;
	struct qmp_call *exclusive; /* borrowed; rule 2 */
	qmp_before *before; /* or NULL */
	struct qmp_call *waiting, **waiting_tail;
	struct task run_waiting;
	size_t out_total, in_total, held_total;
	bool draining, closing;
	void (*closed)(void *opaque);
	ev_timer close_timer;
	char scratch[QMP_READ_SIZE]; /* what recv() fills */
};

/* qmp-server.c */
void server_queue_call(struct qmp_server *s, struct qmp_call *c);
void server_call_born(struct qmp_server *s, struct qmp_call *c);
void server_call_over(struct qmp_server *s, struct qmp_call *c);
void server_enforce_budgets(struct qmp_server *s);
/* It stays readable, with its @next, until server_session_freed. */
void server_session_born(struct qmp_server *s, struct session *x);
void server_session_gone(struct qmp_server *s, struct session *x);
void server_session_freed(struct qmp_server *s);

/* session.c.  session_new consumes @fd, also on failure (NULL). */
struct session *session_new(struct qmp_server *server, int fd,
			    const char *peer);
/* Bytes for the client, sent in the next turn. */
void session_send(struct session *s, const void *p, size_t n);
/* Close it now and free it later.  @why: for the log, NULL: nothing odd. */
void session_drop(struct session *s, const char *why);
/* The session's turn comes soon. */
void session_kick(struct session *s);
void session_free(struct session *s);

/* call.c */
struct qmp_call *call_new(struct session *s, struct json *tree,
			  const struct qmp_request *rq, size_t bytes);
void call_run(struct qmp_call *c);
void call_free(struct qmp_call *c);
/* A finished error response for what never became a call. */
void session_send_error(struct session *s, const struct json *id,
			const struct err *e);

#endif

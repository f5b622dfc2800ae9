/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The commands of schema/stand-in.json.
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "schema/qmp-commands.h"
#include "stand-in.h"

/* The changes that were done. */
static struct str_list changes;

/* A command that takes its time. */
struct slow {
	struct slow *next;
	ev_timer timer;
	struct daemon *d;
	struct qmp_call *call;
	char *tag; /* owned; NULL: a query */
	bool fail;
};

static struct slow *in_progress;

static void
log_change(const char *tag)
{
	changes.v = xrealloc(changes.v, changes.n + 1, sizeof changes.v[0]);
	changes.v[changes.n++] = xstrdup(tag);
}

static void
free_slow(struct slow *s)
{
	struct slow **p = &in_progress;

	while (*p != s)
		p = &(*p)->next;
	*p = s->next;
	ev_timer_stop(s->d->loop.ev, &s->timer);
	free(s->tag);
	free(s);
}

void
stand_in_forget(void)
{
	str_list_clear(&changes);
	while (in_progress)
		free_slow(in_progress);
}

static char *
long_text(uint32_t bytes)
{
	char *s = xzalloc((size_t)bytes + 1);

	memset(s, 'x', bytes);
	return s;
}

bool
qmp_query_status(struct qmp_call *call, struct status_info **ret, struct err *e)
{
	(void)call;
	(void)e;
	*ret = xzalloc(sizeof **ret);
	(*ret)->running = true;
	(*ret)->status = RUN_STATE_RUNNING;
	return true;
}

bool
qmp_test_echo(struct qmp_call *call, const struct qmp_test_echo_args *arg,
	      struct test_number **ret, struct err *e)
{
	(void)call;
	(void)e;
	*ret = xzalloc(sizeof **ret);
	(*ret)->value = arg->value;
	return true;
}

bool
qmp_test_big(struct qmp_call *call, const struct qmp_test_big_args *arg,
	     struct test_text **ret, struct err *e)
{
	(void)call;
	(void)e;
	*ret = xzalloc(sizeof **ret);
	(*ret)->text = long_text(arg->bytes);
	return true;
}

bool
qmp_test_change(struct qmp_call *call, const struct qmp_test_change_args *arg,
		struct err *e)
{
	(void)call;
	(void)e;
	log_change(arg->tag);
	return true;
}

static void
on_slow_done(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct slow *s = container_of(w, struct slow, timer);
	struct err e = ERR_INIT;

	(void)ev;
	(void)revents;
	if (s->tag)
		log_change(s->tag);
	if (s->fail) {
		(void)err_set(&e, ERR_GENERIC, 0, "asked to fail");
		qmp_call_fail(s->call, &e);
	} else if (s->tag) {
		qmp_test_slow_change_return(s->call);
	} else {
		qmp_test_slow_query_return(s->call);
	}
	free_slow(s);
}

static void
start_slow(struct qmp_call *call, uint32_t ms, const char *tag, bool will_fail)
{
	struct slow *s = xzalloc(sizeof *s);

	s->d = qmp_call_opaque(call);
	s->next = in_progress;
	in_progress = s;
	s->call = call;
	s->tag = tag ? xstrdup(tag) : NULL;
	s->fail = will_fail;
	ev_timer_init(&s->timer, on_slow_done, ms / 1000.0, 0);
	ev_now_update(s->d->loop.ev);
	ev_timer_start(s->d->loop.ev, &s->timer);
}

void
qmp_test_slow_change(struct qmp_call *call,
		     struct qmp_test_slow_change_args *arg)
{
	start_slow(call, arg->ms, arg->tag, arg->has_fail && arg->fail);
	qmp_test_slow_change_args_free(arg);
}

void
qmp_test_slow_query(struct qmp_call *call, struct qmp_test_slow_query_args *arg)
{
	start_slow(call, arg->ms, NULL, false);
	qmp_test_slow_query_args_free(arg);
}

bool
qmp_test_log(struct qmp_call *call, struct str_list *ret, struct err *e)
{
	(void)call;
	(void)e;
	ret->v = xcalloc(changes.n, sizeof ret->v[0]);
	for (ret->n = 0; ret->n < changes.n; ret->n++)
		ret->v[ret->n] = xstrdup(changes.v[ret->n]);
	return true;
}

bool
qmp_test_events(struct qmp_call *call, const struct qmp_test_events_args *arg,
		struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);
	AUTO(free) char *text = long_text(arg->has_bytes ? arg->bytes : 0);

	(void)e;
	for (uint32_t i = 0; i < arg->count; i++)
		qmp_event_test(qmp_server_events(d->qmp), i, text);
	return true;
}

bool
qmp_test_sessions(struct qmp_call *call, struct test_number **ret,
		  struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);

	(void)e;
	*ret = xzalloc(sizeof **ret);
	(*ret)->value = qmp_server_sessions(d->qmp);
	return true;
}

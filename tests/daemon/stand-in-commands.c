/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The commands of schema/stand-in.json.
 */
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/qmp-priv.h"
#include "schema/qmp-commands.h"
#include "stand-in.h"

/* The changes that were done. */
static struct str_list changes;

/* What is in progress until a test releases it. */
struct held {
	struct held *next;
	struct task task; /* queued when it was released */
	struct daemon *d;
	char *tag; /* owned */
	struct qmp_call *call; /* or NULL: @end */
	void (*end)(struct daemon *d);
	bool is_change, fail;
};

static struct held *in_progress;

static void
log_change(const char *tag)
{
	changes.v = xrealloc(changes.v, changes.n + 1, sizeof changes.v[0]);
	changes.v[changes.n++] = xstrdup(tag);
}

static void
free_held(struct held *h)
{
	struct held **p = &in_progress;

	while (*p != h)
		p = &(*p)->next;
	*p = h->next;
	loop_cancel(&h->d->loop, &h->task);
	free(h->tag);
	free(h);
}

void
stand_in_forget(void)
{
	str_list_clear(&changes);
	while (in_progress)
		free_held(in_progress);
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
end_call(struct held *h)
{
	struct err e = ERR_INIT;

	if (h->is_change)
		log_change(h->tag);
	if (h->fail) {
		(void)err_set(&e, ERR_GENERIC, 0, "asked to fail");
		qmp_call_fail(h->call, &e);
	} else if (h->is_change) {
		qmp_test_held_change_return(h->call);
	} else {
		qmp_test_held_query_return(h->call);
	}
}

static void
on_released(struct task *t)
{
	struct held *h = container_of(t, struct held, task);
	void (*end)(struct daemon * d) = h->end;
	struct daemon *d = h->d;

	if (h->call)
		end_call(h);
	free_held(h);
	if (end)
		end(d);
}

static struct held *
hold(struct daemon *d, const char *tag)
{
	struct held *h = xzalloc(sizeof *h);

	h->d = d;
	h->tag = xstrdup(tag);
	h->task.fn = on_released;
	h->next = in_progress;
	in_progress = h;
	return h;
}

void
stand_in_hold(struct daemon *d, const char *tag, void (*end)(struct daemon *d))
{
	hold(d, tag)->end = end;
}

void
qmp_test_held_change(struct qmp_call *call,
		     struct qmp_test_held_change_args *arg)
{
	struct held *h = hold(qmp_call_opaque(call), arg->tag);

	h->call = call;
	h->is_change = true;
	h->fail = arg->has_fail && arg->fail;
	qmp_test_held_change_args_free(arg);
}

void
qmp_test_held_query(struct qmp_call *call, struct qmp_test_held_query_args *arg)
{
	hold(qmp_call_opaque(call), arg->tag)->call = call;
	qmp_test_held_query_args_free(arg);
}

bool
qmp_test_held(struct qmp_call *call, struct str_list *ret, struct err *e)
{
	(void)call;
	(void)e;
	for (const struct held *h = in_progress; h; h = h->next)
		xassert_memory(str_list_append(ret, h->tag));
	return true;
}

bool
qmp_test_release(struct qmp_call *call, const struct qmp_test_release_args *arg,
		 struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);
	struct held *h = in_progress;

	while (h && strcmp(h->tag, arg->tag) != 0)
		h = h->next;
	if (!h || h->task.queued)
		return err_set(e, ERR_GENERIC, 0, "'%s' is not held", arg->tag);
	loop_defer(&d->loop, &h->task);
	return true;
}

bool
qmp_test_waiting(struct qmp_call *call, struct test_number **ret, struct err *e)
{
	const struct qmp_call *c = call->server->waiting;

	(void)e;
	*ret = xzalloc(sizeof **ret);
	for (; c; c = c->after)
		(*ret)->value++;
	return true;
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

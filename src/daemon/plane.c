/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/plane.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/log.h"
#include "base/park.h"
#include "daemon/blockstats.h"
#include "daemon/daemon.h"
#include "daemon/damage.h"
#include "daemon/guest-server.h"
#include "daemon/recover.h"
#include "daemon/supervisor.h"

#define CONNECT_EVERY   0.01 /* seconds, while nbdkit starts */
#define CONNECT_SECONDS 10.0 /* then it is killed and started again */
#define BEGIN_EVERY     0.05 /* seconds between attempts to begin */
#define BEGIN_SECONDS   3.0 /* how long somebody may use our addresses */

/* A data plane that cannot do what it must, say for lack of memory, has
 * guests: it is asked again before it is killed.
 */
#define TROUBLE_EVERY 0.5 /* seconds */
#define TROUBLE_MAX   10

enum plane_state { DOWN, RESTORING, UP };

struct plane {
	struct daemon *d; /* borrowed */
	enum plane_state state;
	char *path; /* owned: the link's socket */
	char *idle; /* owned: see supervisor.h */
	bool replacing; /* another nbdkit takes this one's place */
	struct supervisor *sup;
	struct link_client *client; /* owned, or NULL */
	bool adopting; /* the first connection is to an earlier nbdkit */
	bool failed; /* no more attempts are made */
	bool stopping;
	ev_timer begin;
	double begun; /* seconds since the first attempt */
	ev_timer connect;
	double waited;
	ev_timer again;
	unsigned troubles; /* since it was up */
	struct plane_request hello;
	/* Those who wait for the plane to be up. */
	struct task *waiting;
	ev_timer patience;
	void (*stopped)(struct daemon *d);
};

bool
plane_is_up(const struct plane *p)
{
	return p->state == UP && p->client && link_client_alive(p->client);
}

/* --- waiting --------------------------------------------------------------------- */

/* Tasks are linked by their own members while nobody has queued them. */
static void
release_waiting(struct plane *p)
{
	struct task *t;

	ev_timer_stop(p->d->loop.ev, &p->patience);
	while ((t = p->waiting)) {
		p->waiting = t->next;
		loop_defer(&p->d->loop, t);
	}
}

static void
on_patience(struct ev_loop *ev, ev_timer *w, int revents)
{
	(void)ev;
	(void)revents;
	release_waiting(container_of(w, struct plane, patience));
}

void
plane_when_settled(struct plane *p, struct task *t)
{
	struct task **tail = &p->waiting;

	if (plane_is_up(p) || p->failed || p->stopping) {
		loop_defer(&p->d->loop, t);
		return;
	}
	while (*tail)
		tail = &(*tail)->next;
	t->next = NULL;
	*tail = t;
	if (!ev_is_active(&p->patience)) {
		ev_timer_set(&p->patience, PLANE_WAIT_SECONDS, 0);
		ev_timer_start(p->d->loop.ev, &p->patience);
	}
}

/* --- asking ------------------------------------------------------------------------ */

void
plane_begin(struct json_out *o)
{
	json_out_init(o, LINK_MAX_TEXT);
	json_out_object_begin(o);
}

static void
on_answer(struct link_request *r, const struct json *ret, struct link_msg *msg,
	  const struct err *e)
{
	struct plane_request *pr = container_of(r, struct plane_request, link);

	pr->done(pr, ret, msg, e);
}

struct refusal {
	struct task task;
	struct plane_request *r;
};

static void
on_refusal(struct task *t)
{
	struct refusal *f = container_of(t, struct refusal, task);
	struct err e = ERR_INIT;

	(void)err_set(&e, ERR_GENERIC, 0,
		      "the data plane (nbdkit) does not run");
	f->r->done(f->r, NULL, NULL, &e);
	free(f);
}

void
plane_ask(struct plane *p, struct plane_request *r, struct json_out *o,
	  const int *fds, unsigned nfds)
{
	struct refusal *f;

	r->link.done = on_answer;
	if (p->client) {
		link_client_ask(p->client, &r->link, o, fds, nfds);
		return;
	}
	json_out_destroy(o);
	f = xzalloc(sizeof *f);
	f->task.fn = on_refusal;
	f->r = r;
	loop_defer(&p->d->loop, &f->task);
}

/* --- the connection ------------------------------------------------------------------ */

static void start_connecting(struct plane *p);

static bool try_connect(struct plane *p);

static void
begin_later(struct plane *p)
{
	ev_timer_set(&p->begin, BEGIN_EVERY, 0);
	ev_timer_start(p->d->loop.ev, &p->begin);
}

/* Adopt the nbdkit that runs, or start one.  An earlier stillpointd may have
 * died when it had just started a nbdkit, which does not answer yet but has
 * the guests' sockets; and one that was just killed has them for a moment.
 */
static bool
begin(struct plane *p, struct err *e)
{
	p->adopting = try_connect(p);
	if (p->adopting)
		return true;
	if (supervisor_listen(p->sup, e)) {
		supervisor_start(p->sup);
		return true;
	}
	if (e->os == EADDRINUSE && p->begun < BEGIN_SECONDS) {
		err_clear(e);
		begin_later(p);
		return true;
	}
	if (!p->d->guests)
		return false;
	/* What nbd-server-start was told, a life ago, is no reason to refuse
	 * every client of QMP: one of them can tell us another address.
	 */
	log_error("guests cannot connect: %s", e->msg);
	err_clear(e);
	guest_server_forget(p->d);
	supervisor_forget_addresses(p->sup);
	return begin(p, e);
}

static void
on_begin(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct plane *p = container_of(w, struct plane, begin);
	struct err e = ERR_INIT;

	(void)ev;
	(void)revents;
	p->begun += BEGIN_EVERY;
	if (!begin(p, &e))
		daemon_fail(p->d, &e);
}

static void
on_event(void *opaque, const char *name, const struct json *data)
{
	AUTO(link_view_broken_data_free)
	struct link_view_broken_data *v = NULL;
	struct err e = ERR_INIT;

	struct plane *p = opaque;

	if (blockstats_event(p->d, name, data) ||
	    damage_event(p->d, name, data))
		return;
	/* The stream that reads the view sees by itself that it broke. */
	if (strcmp(name, "VIEW_BROKEN") == 0 && data &&
	    link_view_broken_data_decode(data, NULL, &v, &e))
		log_warn("node '%s': a snapshot was given up: %s", v->node,
			 strerror(v->os));
}

static void
connect_later(struct plane *p)
{
	ev_timer_stop(p->d->loop.ev, &p->again);
	ev_timer_set(&p->again, TROUBLE_EVERY, 0);
	ev_timer_start(p->d->loop.ev, &p->again);
}

static void
drop_link(struct plane *p)
{
	p->state = DOWN;
	ev_timer_stop(p->d->loop.ev, &p->again);
	if (!p->client)
		return;
	link_client_free(steal(&p->client));
	recover_interrupted(p->d);
}

static void
on_link_closed(void *opaque)
{
	struct plane *p = opaque;
	bool was_up = p->state == UP;

	if (!p->stopping && !p->replacing)
		log_error("lost the link to the data plane");
	drop_link(p);
	if (p->stopping)
		return;
	/* If nbdkit died it is started again, and that ends the wait. */
	if (p->adopting) /* it is gone before we knew it */
		begin_later(p);
	else if (was_up)
		start_connecting(p);
	else
		connect_later(p);
}

static void
on_again(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct plane *p = container_of(w, struct plane, again);

	(void)ev;
	(void)revents;
	drop_link(p);
	if (p->stopping)
		return;
	if (p->adopting)
		begin_later(p);
	else
		start_connecting(p);
}

/* Is it worth to ask once more? */
static bool
bear_with(struct plane *p, const struct err *e)
{
	p->state = DOWN;
	if (++p->troubles == TROUBLE_MAX) {
		p->troubles = 0;
		return false;
	}
	log_warn("the data plane is asked again: %s", e->msg);
	connect_later(p);
	return true;
}

/* It answers, but not as it should. */
static void
refused(struct plane *p, const struct err *e)
{
	if (!p->adopting)
		plane_give_up(p, e);
	else if (!bear_with(p, e))
		daemon_fail(p->d, e);
}

/* It goes on; or, when it idles and should not, another one follows. */
static bool
adopt(struct plane *p, const struct link_hello *h, struct link_msg *msg)
{
	int fds[LINK_MAX_LISTENS];
	struct err e = ERR_INIT;
	size_t n = 0;

	while (n < msg->nfds && n < LINK_MAX_LISTENS) {
		fds[n] = steal_fd(&msg->fds[n]);
		n++;
	}
	p->adopting = false;
	if (!supervisor_adopt(p->sup, (pid_t)h->pid, fds, n, &e)) {
		daemon_fail(p->d, &e);
		return false;
	}
	log_info("adopted nbdkit, process %lld", (long long)h->pid);
	if (!supervisor_wake(p->sup, &p->replacing, &e))
		log_error("guests cannot connect: %s", e.msg);
	return !p->replacing;
}

static void
on_hello(struct plane_request *r, const struct json *ret, struct link_msg *msg,
	 const struct err *e)
{
	struct plane *p = container_of(r, struct plane, hello);
	AUTO(link_hello_free) struct link_hello *h = NULL;
	struct err why = ERR_INIT;

	if (e && !link_client_alive(p->client)) {
		log_error("the data plane does not answer: %s", e->msg);
		return;
	}
	if (e)
		(void)err_move(&why, e);
	if (e || !link_got_hello(ret, &h, &why)) {
		refused(p, &why);
		return;
	}
	if (p->adopting && !adopt(p, h, msg))
		return;
	supervisor_confirm(p->sup);
	p->state = RESTORING;
	PARK("plane.hello");
	recover_begin(p->d, steal(&h));
}

static bool
try_connect(struct plane *p)
{
	AUTO(close) int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct link_client_options o = { .loop = &p->d->loop,
					 .on_event = on_event,
					 .on_closed = on_link_closed,
					 .opaque = p };
	struct link_hello_args arg = { .version = LINK_VERSION };
	struct json_out out;

	if (sock < 0)
		return false;
	memcpy(a.sun_path, p->path, strlen(p->path) + 1);
	if (connect(sock, (struct sockaddr *)&a, sizeof a) < 0)
		return false;
	o.sock = steal_fd(&sock);
	p->client = link_client_new(&o);
	p->hello.done = on_hello;
	plane_begin(&out);
	link_put_hello(&out, &arg);
	plane_ask(p, &p->hello, &out, NULL, 0);
	return true;
}

static void
on_connect(struct ev_loop *ev, ev_timer *w, int revents)
{
	struct plane *p = container_of(w, struct plane, connect);

	(void)revents;
	p->waited += CONNECT_EVERY;
	if (try_connect(p)) {
		ev_timer_stop(ev, w);
		return;
	}
	if (p->waited < CONNECT_SECONDS || supervisor_pid(p->sup) == 0)
		return;
	log_error("nbdkit does not open its link: it is started again");
	p->waited = 0;
	supervisor_kill(p->sup);
}

static void
start_connecting(struct plane *p)
{
	/* whoever is connected to from now on has done no wrong yet */
	ev_timer_stop(p->d->loop.ev, &p->again);
	p->waited = 0;
	if (p->client || ev_is_active(&p->connect))
		return;
	ev_timer_set(&p->connect, CONNECT_EVERY, CONNECT_EVERY);
	ev_timer_start(p->d->loop.ev, &p->connect);
}

/* --- the process ------------------------------------------------------------------------ */

static void
on_start(void *opaque, pid_t pid)
{
	struct plane *p = opaque;

	log_info("nbdkit runs as process %d", (int)pid);
	p->replacing = false;
	start_connecting(p);
}

static void
on_exit_of_nbdkit(void *opaque, pid_t pid, int status, bool again)
{
	struct plane *p = opaque;

	(void)status;
	if (p->stopping) {
		if (p->stopped)
			p->stopped(p->d);
		p->stopped = NULL;
		return;
	}
	if (p->replacing)
		return;
	log_error("nbdkit (process %d) died%s", (int)pid,
		  again ? " and is started again" : "");
}

static void
on_failure(void *opaque, const struct err *e)
{
	struct plane *p = opaque;

	p->failed = true;
	release_waiting(p);
	daemon_fail(p->d, e);
}

static const struct supervisor_events events = {
	.on_start = on_start,
	.on_exit = on_exit_of_nbdkit,
	.on_failure = on_failure,
};

struct plane *
plane_new(struct daemon *d)
{
	struct plane *p = xzalloc(sizeof *p);
	const struct config *c = &d->cfg;
	struct address remembered = { 0 };
	struct supervisor_options o = {
		.program = c->nbdkit,
		.plugin = c->plugin,
		.args = (const char *const *)c->nbdkit_args,
		.nbd = c->nbd,
		.n_nbd = c->n_nbd,
		.threads = c->threads,
		.niceness = d->niceness,
	};

	p->d = d;
	p->path = xasprintf("%s/link.sock", d->state.path);
	p->idle = xasprintf("%s/idle.sock", d->state.path);
	o.link = p->path;
	o.idle = p->idle;
	if (guest_server_remembered(d, &remembered, &o.max_connections)) {
		o.nbd = &remembered;
		o.n_nbd = 1;
	}
	p->sup = supervisor_new(&d->loop, &o, &events, p);
	address_destroy(&remembered);
	ev_timer_init(&p->begin, on_begin, 0, 0);
	ev_timer_init(&p->connect, on_connect, 0, 0);
	ev_timer_init(&p->patience, on_patience, 0, 0);
	ev_timer_init(&p->again, on_again, 0, 0);
	return p;
}

void
plane_free(struct plane *p)
{
	ev_timer_stop(p->d->loop.ev, &p->begin);
	ev_timer_stop(p->d->loop.ev, &p->connect);
	ev_timer_stop(p->d->loop.ev, &p->patience);
	ev_timer_stop(p->d->loop.ev, &p->again);
	if (p->client)
		link_client_free(p->client);
	supervisor_free(p->sup);
	free(p->path);
	free(p->idle);
	free(p);
}

bool
plane_start(struct plane *p, struct err *e)
{
	struct sockaddr_un a;

	if (strlen(p->path) >= sizeof a.sun_path)
		return err_set(e, ERR_GENERIC, 0,
			       "the state directory's name '%s' is too long "
			       "for a socket in it",
			       p->d->state.path);
	return begin(p, e);
}

void
plane_restored(struct plane *p)
{
	p->state = UP;
	p->troubles = 0;
	release_waiting(p);
}

void
plane_give_up(struct plane *p, const struct err *e)
{
	if (bear_with(p, e))
		return;
	log_error("the data plane cannot be used: %s", e->msg);
	supervisor_kill(p->sup);
}

bool
plane_is_serving(const struct plane *p)
{
	return supervisor_listeners(p->sup)->n > 0;
}

const struct listeners *
plane_listeners(const struct plane *p)
{
	return supervisor_listeners(p->sup);
}

bool
plane_relisten(struct plane *p, struct listeners *l, unsigned max_connections,
	       struct err *e)
{
	if (!supervisor_relisten(p->sup, l, max_connections, e))
		return false;
	p->replacing = true;
	p->state = DOWN; /* what is connected is on its way out */
	return true;
}

void
plane_hurry(struct plane *p)
{
	p->stopping = true;
	release_waiting(p);
}

void
plane_stop(struct plane *p, bool keep, void (*done)(struct daemon *d))
{
	p->stopping = true;
	ev_timer_stop(p->d->loop.ev, &p->begin);
	ev_timer_stop(p->d->loop.ev, &p->connect);
	release_waiting(p);
	supervisor_set_restart(p->sup, false);
	if (keep) {
		done(p->d);
		return;
	}
	p->stopped = done;
	supervisor_stop(p->sup);
}

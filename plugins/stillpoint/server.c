/* SPDX-License-Identifier: BSD-3-Clause */
#include "server.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/log.h"
#include "notices.h"
#include "schema/link-commands.h"
#include "json/envelope.h"

/* An answer is small and stillpointd always reads: one that does not take an
 * answer within this time has lost its link.
 */
#define SEND_SECONDS 5

/* Niceness of the link's thread. */
#define LINK_NICE (-10)

struct link_events {
	struct server *server;
};

struct server {
	struct table *table; /* borrowed */
	unsigned listen_fds;
	struct cut cut;
	struct cut_stats stats;
	struct link_events events;
	int listener, sock, wake; /* owned; sock -1: nobody is connected */
	unsigned generation;
	struct link_input input;
	unsigned images; /* that are being opened or closed */
	struct link_call *after_images; /* owned: they wait for that */
	pthread_t thread;
	_Atomic bool stop;
	struct mtx lock; /* LOCK_MAILBOX; guards the next two */
	struct link_call *finished;
	unsigned running; /* threads of server_run */
	pthread_cond_t idle;
};

struct table *
server_table(struct server *s)
{
	return s->table;
}

struct cut *
server_cut(struct server *s)
{
	return &s->cut;
}

struct cut_stats *
server_stats(struct server *s)
{
	return &s->stats;
}

unsigned
server_listen_fds(const struct server *s)
{
	return s->listen_fds;
}

void
server_wake(struct server *s)
{
	uint64_t one = 1;

	(void)!write(s->wake, &one, sizeof one);
}

static void
disconnect(struct server *s)
{
	if (s->sock < 0)
		return;
	link_msg_clear(&s->input.msg);
	(void)close(s->sock);
	s->sock = -1;
	s->generation++;
	cut_clear(&s->cut); /* whoever prepared it is gone */
	log_info("link: stillpointd disconnected");
}

static void
send_text(struct server *s, const struct json_out *o, const int *fds,
	  unsigned nfds)
{
	struct link_msg m = { .text = o->text, .len = o->len, .nfds = nfds };
	struct err e = ERR_INIT;
	int r;

	if (s->sock < 0)
		return;
	if (!json_out_check(o, &e)) {
		log_error("link: cannot answer: %s", e.msg);
		disconnect(s);
		return;
	}
	for (unsigned i = 0; i < nfds; i++)
		m.fds[i] = fds[i];
	r = link_send(s->sock, &m);
	if (r) {
		log_error("link: cannot send to stillpointd: %s", strerror(r));
		disconnect(s);
	}
}

/* --- calls ------------------------------------------------------------------ */

static void
call_free(struct link_call *call)
{
	json_free(call->id);
	link_msg_clear(&call->msg);
	json_out_destroy(&call->out);
	for (unsigned i = 0; i < call->nfds; i++)
		(void)close(call->fds[i]);
	free(call);
}

bool
link_call_add_fd(struct link_call *call, int fd)
{
	int copy;

	if (call->nfds == ARRAY_SIZE(call->fds))
		return false;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return false;
	call->fds[call->nfds++] = copy;
	return true;
}

bool
link_call_is_current(const struct link_call *call)
{
	return call->generation == call->server->generation;
}

static void
end_and_send(struct link_call *call)
{
	if (call->id) {
		json_out_key(&call->out, "id");
		json_out_json(&call->out, call->id);
	}
	json_out_object_end(&call->out);
	if (link_call_is_current(call))
		send_text(call->server, &call->out, call->fds, call->nfds);
	call_free(call);
}

struct json_out *
link_call_begin(struct link_call *call)
{
	json_out_object_begin(&call->out);
	json_out_key(&call->out, "return");
	return &call->out;
}

void
link_call_done(struct link_call *call)
{
	end_and_send(call);
}

void
link_call_fail(struct link_call *call, const struct err *e)
{
	json_out_reset(&call->out);
	json_out_object_begin(&call->out);
	qmp_error_put(&call->out, e);
	end_and_send(call);
}

static void *
run_call(void *arg)
{
	struct link_call *call = arg;
	struct server *s = call->server;

	call->run(call);
	mtx_lock(&s->lock);
	call->next = s->finished;
	s->finished = call;
	s->running--;
	server_wake(s);
	(void)pthread_cond_broadcast(&s->idle);
	mtx_unlock(&s->lock); /* server_stop may free @s from here on */
	return NULL;
}

bool
server_run(struct link_call *call, void (*run)(struct link_call *call))
{
	struct server *s = call->server;
	pthread_t t;

	call->run = run;
	mtx_lock(&s->lock);
	s->running++;
	mtx_unlock(&s->lock);
	if (pthread_create(&t, NULL, run_call, call) == 0) {
		(void)pthread_detach(t);
		return true;
	}
	mtx_lock(&s->lock);
	s->running--;
	mtx_unlock(&s->lock);
	return false;
}

void
server_image_begin(struct server *s)
{
	s->images++;
}

void
server_image_end(struct server *s)
{
	struct link_call *call, *next;

	if (--s->images)
		return;
	call = s->after_images;
	s->after_images = NULL;
	for (; call; call = next) {
		next = call->next;
		call->finish(call);
	}
}

void
server_after_images(struct link_call *call,
		    void (*then)(struct link_call *call))
{
	struct server *s = call->server;

	if (!s->images) {
		then(call);
		return;
	}
	call->finish = then;
	call->next = s->after_images;
	s->after_images = call;
}

static void
finish_calls(struct server *s)
{
	struct link_call *call, *next;

	mtx_lock(&s->lock);
	call = s->finished;
	s->finished = NULL;
	mtx_unlock(&s->lock);
	for (; call; call = next) {
		next = call->next;
		call->finish(call);
	}
}

/* --- events ----------------------------------------------------------------- */

void
link_event_emit(struct link_events *sink, const char *name,
		const struct json_out *text)
{
	if (text)
		send_text(sink->server, text, NULL, 0);
	else
		log_error("link: no memory for event %s", name);
}

/* Tell which views broke since the last time.  Told once, also when nobody
 * is connected: stillpointd looks at the states themselves when it comes back.
 */
static void
tell_broken(struct server *s)
{
	for (struct node *n = s->table->nodes; n; n = n->next)
		for (struct attached *a = n->views; a; a = a->next) {
			int os = atomic_load(&a->broken);

			if (!os || a->told)
				continue;
			a->told = true;
			log_warn("node '%s': a snapshot was given up: %s",
				 n->name, strerror(os));
			link_event_view_broken(&s->events, n->name, a->id, os);
		}
}

/* --- the connection --------------------------------------------------------- */

static bool
handle(struct server *s, struct link_msg *m)
{
	AUTO(json_free) struct json *j = NULL;
	struct link_call *call = calloc(1, sizeof *call);
	struct qmp_request req;
	struct err e = ERR_INIT;

	if (!call)
		return false;
	call->server = s;
	call->generation = s->generation;
	call->msg = *m;
	*m = (struct link_msg){ 0 };
	json_out_init(&call->out, LINK_MAX_TEXT);
	if (!json_parse(call->msg.text, call->msg.len, &j, &e) ||
	    !qmp_request_parse(j, &req, &e)) {
		log_error("link: %s", e.msg);
		call_free(call);
		return false;
	}
	call->id = req.id ? json_clone(req.id) : NULL;
	if (req.id && !call->id) {
		call_free(call);
		return false;
	}
	if (!link_dispatch(call, req.command, req.args, &e))
		link_call_fail(call, &e);
	return true;
}

static void
read_messages(struct server *s)
{
	for (int i = 0; i < 16 && s->sock >= 0; i++) {
		struct link_msg m = { 0 };
		struct err e = ERR_INIT;
		struct pollfd p = { .fd = s->sock, .events = POLLIN };

		if (i && poll(&p, 1, 0) != 1)
			return;
		switch (link_receive(&s->input, &m, &e)) {
		case LINK_AGAIN: return;
		case LINK_CLOSED:
			if (err_is_set(&e))
				log_error("link: %s", e.msg);
			disconnect(s);
			return;
		case LINK_MSG: break;
		}
		if (!handle(s, &m))
			disconnect(s);
		link_msg_clear(&m);
	}
}

/* Only processes of the same user may control the data plane. */
static bool
peer_allowed(int sock)
{
	struct ucred c;
	socklen_t len = sizeof c;

	return getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &c, &len) == 0 &&
	       (c.uid == geteuid() || c.uid == 0);
}

static void
accept_one(struct server *s)
{
	struct timeval limit = { .tv_sec = SEND_SECONDS };
	int sock = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);

	if (sock < 0)
		return;
	if (s->sock >= 0 || !peer_allowed(sock)) {
		log_warn("link: refused a second stillpointd");
		(void)close(sock);
		return;
	}
	(void)setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	(void)setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	s->sock = sock;
	s->input = (struct link_input){ .sock = sock };
	log_info("link: stillpointd connected");
}

/* Views that were given up. */
static int
leave(struct table *t)
{
	int again = -1;

	for (struct node *n = t->nodes; n; n = n->next)
		again = sooner(again, node_leave(n));
	return again;
}

static void *
serve(void *arg)
{
	struct server *s = arg;

	/* Cuts need little time, but soon, also while guests fill the
	 * processors.  Without the right to ask for that, as it comes.
	 */
	(void)setpriority(PRIO_PROCESS, (id_t)gettid(), LINK_NICE);
	while (!atomic_load(&s->stop)) {
		int ms = sooner(notices_tell(s->table, &s->events),
				leave(s->table));
		struct pollfd p[3] = {
			{ .fd = s->wake, .events = POLLIN },
			{ .fd = s->listener, .events = POLLIN },
			{ .fd = s->sock, .events = POLLIN },
		};
		uint64_t n;

		if (poll(p, 3, ms) < 0)
			continue;
		if (p[0].revents)
			(void)!read(s->wake, &n, sizeof n);
		finish_calls(s);
		tell_broken(s);
		if (p[2].revents)
			read_messages(s);
		if (p[1].revents)
			accept_one(s);
	}
	disconnect(s);
	return NULL;
}

/* --- life -------------------------------------------------------------------- */

static bool
listen_at(const char *path, int *out, struct err *e)
{
	AUTO(close) int fd = -1;
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	mode_t old;
	int r;

	if (strlen(path) >= sizeof a.sun_path)
		return err_set(e, ERR_GENERIC, 0, "link path '%s' is too long",
			       path);
	memcpy(a.sun_path, path, strlen(path) + 1);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_set(e, ERR_GENERIC, errno, "cannot make the link");
	(void)unlink(path);
	old = umask(0177);
	r = bind(fd, (struct sockaddr *)&a, sizeof a);
	(void)umask(old);
	if (r < 0 || listen(fd, 4) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot listen on the link '%s'", path);
	*out = steal_fd(&fd);
	return true;
}

static bool
start_thread(struct server *s, struct err *e)
{
	sigset_t all, old;
	int r;

	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&s->thread, NULL, serve, s);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r == 0 || err_set(e, ERR_GENERIC, r, "cannot start the link");
}

bool
server_start(const struct server_options *o, struct server **out, struct err *e)
{
	AUTO(free) struct server *s = calloc(1, sizeof *s);
	AUTO(close) int listener = -1;
	AUTO(close) int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	if (!s || wake < 0)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot make the link");
	if (!listen_at(o->path, &listener, e))
		return false;
	s->table = o->table;
	s->listen_fds = o->listen_fds;
	s->events.server = s;
	s->listener = listener;
	s->wake = wake;
	s->sock = -1;
	mtx_init(&s->lock, LOCK_MAILBOX);
	cond_init(&s->idle);
	if (!start_thread(s, e))
		return false;
	(void)steal_fd(&listener);
	(void)steal_fd(&wake);
	*out = steal(&s);
	return true;
}

void
server_stop(struct server *s)
{
	bool more;

	atomic_store(&s->stop, true);
	server_wake(s);
	(void)pthread_join(s->thread, NULL);
	do { /* the end of one call may begin another */
		finish_calls(s);
		mtx_lock(&s->lock);
		while (s->running)
			mtx_wait(&s->lock, &s->idle);
		more = s->finished != NULL;
		mtx_unlock(&s->lock);
	} while (more);
	(void)close(s->listener);
	(void)close(s->wake);
	(void)pthread_cond_destroy(&s->idle);
	mtx_destroy(&s->lock);
	free(s);
}

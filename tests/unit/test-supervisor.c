/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of daemon/supervisor: the rules at the head of supervisor.h.  nbdkit
 * is played by shell scripts that say in a file how they were started, except
 * in the last test, where it is nbdkit.
 */
#include "daemon/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "unit.h"

/* What the script does after it has written down its arguments. */
#define LIVE "exec sleep 1000\n"

struct scene {
	char top[64];
	char program[128];
	char said[128];
	struct loop loop;
	struct supervisor *s;
	struct address nbd[2];
	int starts, exits, failures;
	pid_t pid; /* of the last exit */
	int status;
	bool again;
	struct err failure;
	int stop_after_starts, stop_after_exits;
	ev_timer guard;
};

static void
on_start(void *opaque, pid_t pid)
{
	struct scene *t = opaque;

	assert_int_equal(pid, supervisor_pid(t->s));
	if (++t->starts == t->stop_after_starts)
		loop_stop(&t->loop);
}

static void
on_exit_(void *opaque, pid_t pid, int status, bool again)
{
	struct scene *t = opaque;

	t->pid = pid;
	t->status = status;
	t->again = again;
	if (++t->exits == t->stop_after_exits)
		loop_stop(&t->loop);
}

static void
on_failure(void *opaque, const struct err *e)
{
	struct scene *t = opaque;

	t->failures++;
	t->failure = *e;
	loop_stop(&t->loop);
}

static const struct supervisor_events events = {
	.on_start = on_start,
	.on_exit = on_exit_,
	.on_failure = on_failure,
};

static void
on_guard(struct ev_loop *ev, ev_timer *w, int revents)
{
	(void)ev;
	(void)w;
	(void)revents;
	fail_msg("nothing happened for 20 seconds");
}

static void
run(struct scene *t)
{
	ev_timer_init(&t->guard, on_guard, 20, 0);
	ev_timer_start(t->loop.ev, &t->guard);
	loop_run(&t->loop);
	ev_timer_stop(t->loop.ev, &t->guard);
}

static void
run_until_starts(struct scene *t, int n)
{
	t->stop_after_starts = t->starts + n;
	run(t);
	t->stop_after_starts = 0;
}

static void
run_until_exits(struct scene *t, int n)
{
	t->stop_after_exits = t->exits + n;
	run(t);
	t->stop_after_exits = 0;
}

static void
write_program(struct scene *t, const char *body)
{
	FILE *f = fopen(t->program, "w");

	assert_non_null(f);
	(void)fprintf(f,
		      "#!/bin/sh\n"
		      "{ echo \"pid=$$ LISTEN_PID=$LISTEN_PID "
		      "LISTEN_FDS=$LISTEN_FDS\"; echo \"$@\"; "
		      "for i in 3 4 5 6 7 8; do [ -e /proc/$$/fd/$i ] && "
		      "readlink /proc/$$/fd/$i; done; "
		      "grep -E 'Sig(Ign|Blk)' /proc/self/status; "
		      "cut -d' ' -f6 /proc/$$/stat; "
		      "} > %s.new && mv %s.new %s\n%s",
		      t->said, t->said, t->said, body);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(t->program, 0700), 0);
}

static void
make_without_sockets(struct scene *t, const char *program)
{
	static const char *const args[] = { "--tls=off", NULL };
	const struct supervisor_options o = {
		.program = program,
		.plugin = "/x/plugin.so",
		.link = "/x/link",
		.args = args,
		.nbd = t->nbd,
		.n_nbd = 2,
		.threads = 7,
	};

	t->s = supervisor_new(&t->loop, &o, &events, t);
}

static void
make_supervisor(struct scene *t, const char *program)
{
	struct err e = ERR_INIT;

	make_without_sockets(t, program);
	assert_true(supervisor_listen(t->s, &e));
}

static int
setup(void **state)
{
	struct scene *t = xzalloc(sizeof *t);
	char text[128];

	strcpy(t->top, "/tmp/test-supervisor-XXXXXX");
	assert_non_null(mkdtemp(t->top));
	(void)snprintf(t->program, sizeof t->program, "%s/nbdkit", t->top);
	(void)snprintf(t->said, sizeof t->said, "%s/said", t->top);
	(void)snprintf(text, sizeof text, "unix:%s/s", t->top);
	assert_true(address_parse(text, &t->nbd[0], NULL));
	assert_true(address_parse("tcp:127.0.0.1:0", &t->nbd[1], NULL));
	assert_true(loop_init(&t->loop));
	*state = t;
	return 0;
}

static int
teardown(void **state)
{
	struct scene *t = *state;
	char command[128];
	pid_t pid = t->s ? supervisor_pid(t->s) : 0;

	if (pid)
		(void)kill(pid, SIGKILL);
	supervisor_free(t->s);
	(void)snprintf(command, sizeof command, "rm -rf '%s'", t->top);
	assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c) */
	address_destroy(&t->nbd[0]);
	address_destroy(&t->nbd[1]);
	loop_destroy(&t->loop);
	free(t);
	return 0;
}

/* What the script wrote, when it has. */
static char *
read_said(struct scene *t)
{
	static char text[2000];
	FILE *f;
	size_t n;

	while ((f = fopen(t->said, "r")) == NULL)
		(void)usleep(1000);
	n = fread(text, 1, sizeof text - 1, f);
	text[n] = '\0';
	(void)fclose(f);
	(void)unlink(t->said);
	return text;
}

static void
sockets_are_handed_over_by_activation(void **state)
{
	struct scene *t = *state;
	char expect[200];
	char *said;

	write_program(t, LIVE);
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	said = read_said(t);
	(void)snprintf(expect, sizeof expect, "pid=%ld LISTEN_PID=%ld ",
		       (long)supervisor_pid(t->s), (long)supervisor_pid(t->s));
	assert_non_null(strstr(said, expect));
	assert_non_null(strstr(said, "LISTEN_FDS=2\n"));
	assert_non_null(strstr(said, "--foreground --threads 7 --tls=off "
				     "/x/plugin.so link=/x/link "
				     "listen-fds=2\n"));
	/* Two sockets, and nothing else that we had open. */
	assert_non_null(said = strstr(said, "socket:["));
	assert_non_null(said = strstr(said + 1, "socket:["));
	assert_null(strstr(said + 1, "\n/"));
	assert_null(strstr(said + 1, "socket:["));
	assert_null(strstr(said + 1, "pipe:["));
	assert_null(strstr(said + 1, "anon_inode"));
}

static void
nothing_of_our_signals_is_inherited(void **state)
{
	struct scene *t = *state;
	void (*hup)(int) = signal(SIGHUP, SIG_IGN);
	void (*pip)(int) = signal(SIGPIPE, SIG_IGN);
	char *said;

	write_program(t, LIVE);
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	said = read_said(t);
	assert_non_null(strstr(said, "SigBlk:\t0000000000000000\n"));
	assert_non_null(strstr(said, "SigIgn:\t0000000000000000\n"));
	(void)signal(SIGHUP, hup);
	(void)signal(SIGPIPE, pip);
}

static void
rule_2_it_has_a_session_of_its_own(void **state)
{
	struct scene *t = *state;
	char expect[40];

	write_program(t, LIVE);
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	(void)snprintf(expect, sizeof expect, "\n%ld\n",
		       (long)supervisor_pid(t->s));
	assert_non_null(strstr(read_said(t), expect));
}

static void
rule_2_it_survives_its_supervisor(void **state)
{
	struct scene *t = *state;
	pid_t pid;

	write_program(t, LIVE);
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	pid = supervisor_pid(t->s);
	supervisor_free(t->s);
	t->s = NULL;
	assert_int_equal(kill(pid, 0), 0);
	assert_int_equal(access(t->nbd[0].path, F_OK), 0);
	(void)kill(pid, SIGKILL);
}

static void
rule_4_it_is_started_again_on_the_same_sockets(void **state)
{
	struct scene *t = *state;
	const struct listeners *l;
	char name[100];
	pid_t first;

	write_program(t, LIVE);
	make_supervisor(t, t->program);
	l = supervisor_listeners(t->s);
	(void)snprintf(name, sizeof name, "%s", l->v[1].name);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	first = supervisor_pid(t->s);
	assert_int_equal(kill(first, SIGKILL), 0);
	run_until_starts(t, 1);
	assert_int_equal(t->exits, 1);
	assert_int_equal(t->pid, first);
	assert_true(t->again);
	assert_true(WIFSIGNALED(t->status));
	assert_int_equal(WTERMSIG(t->status), SIGKILL);
	assert_int_not_equal(supervisor_pid(t->s), first);
	assert_string_equal(l->v[1].name, name);
}

static bool
can_connect(const char *path)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	AUTO(close) int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	(void)snprintf(un.sun_path, sizeof un.sun_path, "%s", path);
	return connect(fd, (void *)&un, sizeof un) == 0;
}

static void
rule_5_other_addresses_take_another_nbdkit(void **state)
{
	struct scene *t = *state;
	AUTO(free) char *idle = xasprintf("%s/idle", t->top);
	const struct supervisor_options o = { .program = t->program,
					      .plugin = "/x/plugin.so",
					      .link = "/x/link",
					      .idle = idle };
	struct listeners l = { 0 };
	struct err e = ERR_INIT;
	pid_t first;

	write_program(t, LIVE);
	t->s = supervisor_new(&t->loop, &o, &events, t);
	assert_true(supervisor_listen(t->s, &e));
	assert_int_equal(supervisor_listeners(t->s)->n, 0);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	first = supervisor_pid(t->s);
	assert_non_null(strstr(read_said(t), "listen-fds=1\n"));

	assert_true(listeners_add(&l, &t->nbd[0], 0, &e));
	assert_true(supervisor_relisten(t->s, &l, 9, &e));
	assert_int_equal(l.n, 0);
	run_until_starts(t, 1);
	assert_int_equal(t->pid, first);
	assert_true(t->again);
	assert_non_null(
		strstr(read_said(t), "listen-fds=1 max-connections=9\n"));
	assert_true(can_connect(t->nbd[0].path));

	assert_true(supervisor_relisten(t->s, &l, 0, &e));
	run_until_starts(t, 1);
	assert_int_equal(supervisor_listeners(t->s)->n, 0);
	assert_false(can_connect(t->nbd[0].path));
	assert_true(can_connect(idle));
	assert_int_equal(t->failures, 0);
}

static void
rule_1_a_guest_waits_while_none_runs(void **state)
{
	struct scene *t = *state;
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	AUTO(close) int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	write_program(t, LIVE);
	make_supervisor(t, t->program);
	strcpy(un.sun_path, t->nbd[0].path);
	assert_int_equal(connect(fd, (void *)&un, sizeof un), 0);
}

static void
rule_4_one_that_never_works_is_given_up(void **state)
{
	struct scene *t = *state;

	write_program(t, "exit 3\n");
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run(t);
	assert_int_equal(t->failures, 1);
	assert_int_equal(t->starts, SUPERVISOR_MAX_QUICK);
	assert_int_equal(t->exits, SUPERVISOR_MAX_QUICK);
	assert_false(t->again);
	assert_non_null(strstr(t->failure.msg, "exit status 3"));
	assert_non_null(strstr(t->failure.msg, t->program));
}

static void
rule_4_one_that_once_worked_is_never_given_up(void **state)
{
	struct scene *t = *state;

	write_program(t, "exit 3\n");
	make_supervisor(t, t->program);
	supervisor_confirm(t->s);
	supervisor_start(t->s);
	run_until_exits(t, SUPERVISOR_MAX_QUICK + 1);
	assert_int_equal(t->failures, 0);
	assert_true(t->again);
}

static void
rule_4_a_program_that_cannot_be_run_is_a_failure(void **state)
{
	struct scene *t = *state;
	FILE *f = fopen(t->program, "w");

	assert_non_null(f);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(t->program, 0700), 0);
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run(t);
	assert_int_equal(t->failure.os, ENOEXEC);
	assert_int_equal(t->exits, 1);
}

static void
rule_4_a_program_that_is_missing_is_a_failure(void **state)
{
	struct scene *t = *state;

	make_supervisor(t, "no-such-program-anywhere");
	supervisor_start(t->s);
	run(t);
	assert_int_equal(t->failures, 1);
	assert_non_null(strstr(t->failure.msg, "no-such-program-anywhere"));
	assert_int_equal(t->starts, 0);
}

static void
a_stopped_one_is_not_started_again(void **state)
{
	struct scene *t = *state;

	write_program(t, LIVE);
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	(void)read_said(t);
	supervisor_stop(t->s);
	run_until_exits(t, 1);
	assert_false(t->again);
	assert_int_equal(WTERMSIG(t->status), SIGTERM);
	assert_int_equal(supervisor_pid(t->s), 0);
	supervisor_stop(t->s);
	run_until_exits(t, 1);
	assert_int_equal(t->pid, 0);
}

static void
stopping_cancels_a_restart(void **state)
{
	struct scene *t = *state;

	write_program(t, "exit 3\n");
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run_until_exits(t, 3);
	supervisor_stop(t->s);
	run_until_exits(t, 1);
	assert_int_equal(t->pid, 0);
	assert_int_equal(t->starts, 3);
}

static void
without_restart_death_is_only_reported(void **state)
{
	struct scene *t = *state;

	write_program(t, LIVE);
	make_supervisor(t, t->program);
	supervisor_set_restart(t->s, false);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	supervisor_kill(t->s);
	run_until_exits(t, 1);
	assert_false(t->again);
	assert_int_equal(WTERMSIG(t->status), SIGKILL);
}

/* A process that is no child of ours: its parent, a shell, has ended. */
static pid_t
start_stranger(void)
{
	FILE *p = popen("sleep 1000 >/dev/null 2>&1 & echo $!", "r");
	long pid = 0;

	assert_non_null(p);
	assert_int_equal(fscanf(p, "%ld", &pid), 1);
	(void)pclose(p);
	return (pid_t)pid;
}

/* Two sockets as an earlier daemon left them. */
static void
take_sockets(struct scene *t, int *fds)
{
	make_supervisor(t, t->program);
	for (int i = 0; i < 2; i++)
		fds[i] = dup(supervisor_listeners(t->s)->v[i].fd);
	supervisor_free(t->s);
	make_without_sockets(t, t->program);
}

static void
rule_3_the_death_of_an_adopted_one_is_noticed(void **state)
{
	struct scene *t = *state;
	struct err e = ERR_INIT;
	pid_t stranger = start_stranger();
	int fds[2];

	write_program(t, LIVE);
	take_sockets(t, fds);
	assert_true(supervisor_adopt(t->s, stranger, fds, 2, &e));
	assert_int_equal(supervisor_pid(t->s), stranger);
	assert_int_equal(kill(stranger, SIGKILL), 0);
	run_until_starts(t, 1);
	assert_int_equal(t->pid, stranger);
	assert_int_equal(t->status, -1);
	assert_non_null(strstr(read_said(t), "LISTEN_FDS=2\n"));
}

static void
what_cannot_be_adopted_leaves_no_trace(void **state)
{
	struct scene *t = *state;
	struct err e = ERR_INIT;
	int fds[2];

	take_sockets(t, fds);
	assert_false(supervisor_adopt(t->s, 0x3fffff, fds, 2, &e));
	assert_int_equal(e.os, ESRCH);
	err_clear(&e);
	assert_int_equal(fcntl(fds[0], F_GETFD), -1);
	assert_int_equal(fcntl(fds[1], F_GETFD), -1);
	fds[0] = open("/dev/null", O_RDONLY);
	fds[1] = open("/dev/null", O_RDONLY);
	assert_false(supervisor_adopt(t->s, getpid(), fds, 2, &e));
	assert_int_equal(fcntl(fds[1], F_GETFD), -1);
	assert_int_equal(supervisor_pid(t->s), 0);
	assert_true(supervisor_listen(t->s, NULL));
}

/* The real program: it answers on a socket that it was handed. */
static void
nbdkit_serves_guests_on_our_sockets(void **state)
{
	struct scene *t = *state;
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	AUTO(close) int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char magic[9] = "";

	if (system("nbdkit --version >/dev/null") != 0) /* NOLINT */
		skip();
	write_program(t, "exec nbdkit --foreground memory 1M\n");
	make_supervisor(t, t->program);
	supervisor_start(t->s);
	run_until_starts(t, 1);
	strcpy(un.sun_path, t->nbd[0].path);
	assert_int_equal(connect(fd, (void *)&un, sizeof un), 0);
	assert_int_equal(recv(fd, magic, 8, MSG_WAITALL), 8);
	assert_string_equal(magic, "NBDMAGIC");
	/* nbdkit waits for a client in the middle of its handshake. */
	(void)close(steal_fd(&fd));
	supervisor_stop(t->s);
	run_until_exits(t, 1);
	assert_true(WIFEXITED(t->status));
	assert_int_equal(WEXITSTATUS(t->status), 0);
}

static void
nbdkit_with_a_plugin_that_is_missing_is_a_failure(void **state)
{
	struct scene *t = *state;

	if (system("nbdkit --version >/dev/null") != 0) /* NOLINT */
		skip();
	make_supervisor(t, "nbdkit");
	supervisor_start(t->s);
	run(t);
	assert_int_equal(t->failures, 1);
	assert_non_null(strstr(t->failure.msg, "'nbdkit' does not work"));
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(sockets_are_handed_over_by_activation),
		TEST(nothing_of_our_signals_is_inherited),
		TEST(rule_1_a_guest_waits_while_none_runs),
		TEST(rule_2_it_has_a_session_of_its_own),
		TEST(rule_2_it_survives_its_supervisor),
		TEST(rule_3_the_death_of_an_adopted_one_is_noticed),
		TEST(rule_4_it_is_started_again_on_the_same_sockets),
		TEST(rule_4_one_that_never_works_is_given_up),
		TEST(rule_4_one_that_once_worked_is_never_given_up),
		TEST(rule_4_a_program_that_cannot_be_run_is_a_failure),
		TEST(rule_4_a_program_that_is_missing_is_a_failure),
		TEST(rule_5_other_addresses_take_another_nbdkit),
		TEST(a_stopped_one_is_not_started_again),
		TEST(stopping_cancels_a_restart),
		TEST(without_restart_death_is_only_reported),
		TEST(what_cannot_be_adopted_leaves_no_trace),
		TEST(nbdkit_serves_guests_on_our_sockets),
		TEST(nbdkit_with_a_plugin_that_is_missing_is_a_failure),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

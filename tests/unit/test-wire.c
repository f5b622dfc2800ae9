/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of link/wire: messages whole and in pieces, descriptors, and headers
 * that are refused.
 */
#include "link/link.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "unit.h"

struct pair {
	int a, b; /* owned; b does not block */
	struct link_input in;
};

static void
pair_init(struct pair *p)
{
	int v[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, v),
			 0);
	p->a = v[0];
	p->b = v[1];
	assert_int_equal(fcntl(p->b, F_SETFL, O_NONBLOCK), 0);
	p->in = (struct link_input){ .sock = p->b };
}

static void
pair_destroy(struct pair *p)
{
	link_msg_clear(&p->in.msg);
	(void)close(p->a);
	(void)close(p->b);
}

static struct link_msg
message(const char *text)
{
	return (struct link_msg){ .text = strdup(text), .len = strlen(text) };
}

static void
send_text(struct pair *p, const char *text)
{
	struct link_msg m = message(text);

	assert_int_equal(link_send(p->a, &m), 0);
	link_msg_clear(&m);
}

static void
receive_text(struct pair *p, const char *text)
{
	struct link_msg m = { 0 };
	struct err e = ERR_INIT;

	assert_int_equal(link_receive(&p->in, &m, &e), LINK_MSG);
	assert_int_equal(m.len, strlen(text));
	assert_string_equal(m.text, text);
	assert_int_equal(m.nfds, 0);
	link_msg_clear(&m);
}

static void
messages_arrive_one_by_one_as_they_were_sent(void **s)
{
	struct pair p;
	struct link_msg m = { 0 };
	struct err e = ERR_INIT;

	(void)s;
	pair_init(&p);
	send_text(&p, "{\"one\": 1}");
	send_text(&p, "");
	send_text(&p, "{\"two\": 2}");
	receive_text(&p, "{\"one\": 1}");
	receive_text(&p, "");
	receive_text(&p, "{\"two\": 2}");
	assert_int_equal(link_receive(&p.in, &m, &e), LINK_AGAIN);
	assert_false(err_is_set(&e));
	pair_destroy(&p);
}

/* All bytes of a message, as they are on the wire. */
static size_t
bytes_of(const char *text, char *to, size_t size)
{
	struct pair p;
	ssize_t n;

	pair_init(&p);
	send_text(&p, text);
	n = read(p.b, to, size);
	assert_int_equal(n, sizeof(struct link_header) + strlen(text));
	pair_destroy(&p);
	return (size_t)n;
}

static void
a_message_may_come_byte_by_byte(void **s)
{
	struct pair p;
	char raw[256];
	size_t n = bytes_of("{\"execute\": \"x\"}", raw, sizeof raw);
	struct link_msg m = { 0 };
	struct err e = ERR_INIT;

	(void)s;
	pair_init(&p);
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(link_receive(&p.in, &m, &e), LINK_AGAIN);
		assert_int_equal(write(p.a, raw + i, 1), 1);
	}
	receive_text(&p, "{\"execute\": \"x\"}");
	/* and the next one is not harmed */
	send_text(&p, "{}");
	receive_text(&p, "{}");
	pair_destroy(&p);
}

static void
the_end_of_the_connection_is_no_error(void **s)
{
	struct pair p;
	struct link_msg m = { 0 };
	struct err e = ERR_INIT;

	(void)s;
	pair_init(&p);
	(void)close(p.a);
	p.a = -1;
	assert_int_equal(link_receive(&p.in, &m, &e), LINK_CLOSED);
	assert_false(err_is_set(&e));
	pair_destroy(&p);
}

static void
a_message_that_is_cut_off_is_never_delivered(void **s)
{
	char raw[256];
	size_t n = bytes_of("{\"execute\": \"x\"}", raw, sizeof raw);

	(void)s;
	for (size_t cut = 1; cut < n; cut++) {
		struct pair p;
		struct link_msg m = { 0 };
		struct err e = ERR_INIT;

		pair_init(&p);
		assert_int_equal(write(p.a, raw, cut), cut);
		(void)close(p.a);
		p.a = -1;
		assert_int_equal(link_receive(&p.in, &m, &e), LINK_CLOSED);
		assert_null(m.text);
		pair_destroy(&p);
	}
}

/* --- descriptors ---------------------------------------------------------------- */

static void
descriptors_arrive_with_their_message_and_are_taken_once(void **s)
{
	struct pair p;
	struct link_msg m = message("{}"), got = { 0 };
	struct err e = ERR_INIT;
	char text[3] = { 0 };
	int v[2], fd;

	(void)s;
	pair_init(&p);
	assert_int_equal(pipe2(v, O_CLOEXEC), 0);
	send_text(&p, "before");
	m.fds[m.nfds++] = v[1];
	m.fds[m.nfds++] = v[0];
	assert_int_equal(link_send(p.a, &m), 0);
	assert_int_equal(fcntl(v[0], F_GETFD), FD_CLOEXEC); /* still ours */
	send_text(&p, "behind");
	receive_text(&p, "before");
	assert_int_equal(link_receive(&p.in, &got, &e), LINK_MSG);
	assert_int_equal(got.nfds, 2);
	receive_text(&p, "behind");
	assert_ok(link_msg_take_fd(&got, 0, &fd, &e), &e);
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(write(fd, "hi", 2), 2);
	assert_int_equal(read(v[0], text, 2), 2);
	assert_string_equal(text, "hi");
	(void)close(fd);
	assert_fails(link_msg_take_fd(&got, 0, &fd, &e), &e,
		     "the message has no descriptor 0");
	assert_fails(link_msg_take_fd(&got, 2, &fd, &e), &e,
		     "the message has no descriptor 2");
	assert_fails(link_msg_take_fd(&got, UINT32_MAX, &fd, &e), &e,
		     "the message has no descriptor 4294967295");
	fd = got.fds[1];
	link_msg_clear(&got);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* what is left is closed */
	link_msg_clear(&m);
	pair_destroy(&p);
}

static void
as_many_descriptors_as_allowed_fit_and_no_more_are_announced(void **s)
{
	struct pair p;
	struct link_msg m = message("{}"), got = { 0 };
	struct err e = ERR_INIT;

	(void)s;
	pair_init(&p);
	while (m.nfds < LINK_MAX_FDS)
		m.fds[m.nfds++] = dup(0);
	assert_int_equal(link_send(p.a, &m), 0);
	assert_int_equal(link_receive(&p.in, &got, &e), LINK_MSG);
	assert_int_equal(got.nfds, LINK_MAX_FDS);
	link_msg_clear(&got);
	link_msg_clear(&m);
	pair_destroy(&p);
}

/* A header that promises descriptors which do not come. */
static void
a_message_that_lost_its_descriptors_is_refused(void **s)
{
	struct pair p;
	char raw[256];
	struct link_header h;
	size_t n = bytes_of("{}", raw, sizeof raw);
	struct link_msg m = { 0 };
	struct err e = ERR_INIT;

	(void)s;
	pair_init(&p);
	memcpy(&h, raw, sizeof h);
	h.fds = 1;
	memcpy(raw, &h, sizeof h);
	assert_int_equal(write(p.a, raw, n), n);
	assert_int_equal(link_receive(&p.in, &m, &e), LINK_CLOSED);
	assert_string_equal(e.msg, "link message with 0 of 1 descriptors");
	pair_destroy(&p);
}

static unsigned
open_descriptors(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* @nfds descriptors beside bytes whose header promises none. */
static void
send_with_unannounced(struct pair *p, const char *raw, size_t n, unsigned nfds)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(100 * sizeof(int))];
	struct iovec iov = { (char *)(uintptr_t)raw, n };
	struct msghdr h = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = control,
			    .msg_controllen = CMSG_SPACE(nfds * sizeof(int)) };
	struct cmsghdr *c = CMSG_FIRSTHDR(&h);
	int fds[100] = { 0 };

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
	memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	assert_int_equal(sendmsg(p->a, &h, 0), n);
}

static void
descriptors_that_nobody_announced_are_closed(void **s)
{
	char raw[256];
	size_t n = bytes_of("{}", raw, sizeof raw);

	(void)s;
	for (unsigned nfds = 1; nfds <= 100; nfds += 33) {
		unsigned before = open_descriptors();
		struct link_msg m = { 0 };
		struct err e = ERR_INIT;
		struct pair p;

		pair_init(&p);
		send_with_unannounced(&p, raw, n, nfds);
		assert_int_equal(link_receive(&p.in, &m, &e), LINK_CLOSED);
		assert_true(err_is_set(&e));
		pair_destroy(&p);
		assert_int_equal(open_descriptors(), before);
	}
}

/* --- headers that are refused ---------------------------------------------------- */

static void
refused(struct link_header h, const char *text)
{
	struct pair p;
	struct link_msg m = { 0 };
	struct err e = ERR_INIT;

	pair_init(&p);
	assert_int_equal(write(p.a, &h, sizeof h), sizeof h);
	assert_int_equal(link_receive(&p.in, &m, &e), LINK_CLOSED);
	assert_string_equal(e.msg, text);
	pair_destroy(&p);
}

static struct link_header
good_header(void)
{
	struct link_header h;
	char raw[256];

	(void)bytes_of("{}", raw, sizeof raw);
	memcpy(&h, raw, sizeof h);
	assert_int_equal(h.version, LINK_VERSION);
	return h;
}

static void
garbage_another_version_and_too_much_are_refused(void **s)
{
	struct link_header h = good_header();

	(void)s;
	memcpy(&h, "GET / HTTP/1.1\r\n", sizeof h);
	refused(h, "not a link message");
	h = good_header();
	h.version = LINK_VERSION + 1;
	refused(h, "link version 3, and we speak 2");
	h.version = 0;
	refused(h, "link version 0, and we speak 2");
	h = good_header();
	h.length = LINK_MAX_TEXT + 1;
	refused(h, "link message of 1048577 bytes is too large");
	h.length = UINT32_MAX;
	refused(h, "link message of 4294967295 bytes is too large");
	h = good_header();
	h.fds = LINK_MAX_FDS + 1;
	refused(h, "link message of 2 bytes is too large");
}

struct sending {
	int sock;
	struct link_msg m;
	int r;
};

static void *
send_it(void *arg)
{
	struct sending *s = arg;

	s->r = link_send(s->sock, &s->m);
	return NULL;
}

/* The largest message is larger than any socket buffer. */
static void
the_largest_message_arrives(void **s)
{
	struct pair p;
	struct sending out = { 0 };
	struct link_msg m = { 0 };
	struct err e = ERR_INIT;
	enum link_result r;
	pthread_t t;

	(void)s;
	pair_init(&p);
	out.sock = p.a;
	out.m.len = LINK_MAX_TEXT;
	out.m.text = malloc(LINK_MAX_TEXT);
	for (size_t i = 0; i < LINK_MAX_TEXT; i++)
		out.m.text[i] = (char)('a' + i % 26);
	out.m.fds[out.m.nfds++] = dup(0);
	assert_int_equal(pthread_create(&t, NULL, send_it, &out), 0);
	while ((r = link_receive(&p.in, &m, &e)) == LINK_AGAIN)
		(void)usleep(100);
	(void)pthread_join(t, NULL);
	assert_int_equal(out.r, 0);
	assert_int_equal(r, LINK_MSG);
	assert_int_equal(m.len, LINK_MAX_TEXT);
	assert_memory_equal(m.text, out.m.text, LINK_MAX_TEXT);
	assert_int_equal(m.nfds, 1); /* once, though it took several sends */
	link_msg_clear(&m);
	link_msg_clear(&out.m);
	pair_destroy(&p);
}

static void
a_full_socket_is_told_from_a_broken_one(void **s)
{
	struct pair p;
	struct link_msg m = { .len = LINK_MAX_TEXT,
			      .text = calloc(1, LINK_MAX_TEXT) };
	size_t at = 0, before;
	int os;

	(void)s;
	pair_init(&p);
	assert_int_equal(fcntl(p.a, F_SETFL, O_NONBLOCK), 0);
	assert_false(link_send_some(p.a, &m, &at, &os));
	assert_int_equal(os, 0);
	assert_true(at > 0 && at < LINK_MAX_TEXT);
	before = at;
	assert_false(link_send_some(p.a, &m, &at, &os));
	assert_int_equal(at, before);
	(void)close(p.b);
	p.b = -1;
	assert_false(link_send_some(p.a, &m, &at, &os));
	assert_int_equal(os, EPIPE); /* and no SIGPIPE */
	link_msg_clear(&m);
	pair_destroy(&p);
}

static void
a_send_to_somebody_who_does_not_read_ends(void **s)
{
	struct pair p;
	struct timeval limit = { .tv_usec = 30000 };
	struct link_msg m = { .len = LINK_MAX_TEXT,
			      .text = calloc(1, LINK_MAX_TEXT) };

	(void)s;
	pair_init(&p);
	assert_int_equal(
		setsockopt(p.a, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit),
		0);
	assert_int_equal(link_send(p.a, &m), ETIMEDOUT);
	link_msg_clear(&m);
	pair_destroy(&p);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(messages_arrive_one_by_one_as_they_were_sent),
		cmocka_unit_test(a_message_may_come_byte_by_byte),
		cmocka_unit_test(the_end_of_the_connection_is_no_error),
		cmocka_unit_test(a_message_that_is_cut_off_is_never_delivered),
		cmocka_unit_test(
			descriptors_arrive_with_their_message_and_are_taken_once),
		cmocka_unit_test(
			as_many_descriptors_as_allowed_fit_and_no_more_are_announced),
		cmocka_unit_test(
			a_message_that_lost_its_descriptors_is_refused),
		cmocka_unit_test(descriptors_that_nobody_announced_are_closed),
		cmocka_unit_test(
			garbage_another_version_and_too_much_are_refused),
		cmocka_unit_test(the_largest_message_arrives),
		cmocka_unit_test(a_full_socket_is_told_from_a_broken_one),
		cmocka_unit_test(a_send_to_somebody_who_does_not_read_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

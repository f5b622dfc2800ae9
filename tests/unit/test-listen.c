/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of daemon/listen: how addresses are written, what is refused, and
 * what becomes of socket files.
 */
#include "daemon/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "unit.h"

static struct err e;
static char dir[64];

static int
setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/test-listen-XXXXXX");
	assert_non_null(mkdtemp(dir));
	err_clear(&e);
	return 0;
}

static int
teardown(void **state)
{
	char path[128];

	(void)state;
	(void)snprintf(path, sizeof path, "%s/s", dir);
	(void)unlink(path);
	assert_int_equal(rmdir(dir), 0);
	return 0;
}

static struct address
parsed(const char *text)
{
	struct address a;

	assert_true(address_parse(text, &a, &e));
	return a;
}

static struct address
socket_in_dir(void)
{
	char text[128];

	(void)snprintf(text, sizeof text, "unix:%s/s", dir);
	return parsed(text);
}

static void
assert_refused(const char *text, const char *why)
{
	struct address a;

	err_clear(&e);
	assert_false(address_parse(text, &a, &e));
	assert_non_null(strstr(e.msg, why));
	assert_non_null(strstr(e.msg, text));
	err_clear(&e);
}

static void
addresses_are_read_as_documented(void **state)
{
	static const struct {
		const char *text, *host, *port;
	} good[] = {
		{ "tcp:127.0.0.1:4444", "127.0.0.1", "4444" },
		{ "tcp:[::1]:0", "::1", "0" },
		{ "tcp:localhost:65535", "localhost", "65535" },
		{ "tcp::10809", "127.0.0.1", "10809" },
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		struct address a = parsed(good[i].text);

		assert_int_equal(a.kind, ADDRESS_TCP);
		assert_string_equal(a.host, good[i].host);
		assert_string_equal(a.port, good[i].port);
		address_destroy(&a);
	}
}

static void
wrong_addresses_are_refused_with_the_reason(void **state)
{
	(void)state;
	assert_refused("4444", "unix:PATH or tcp:HOST:PORT");
	assert_refused("udp:1.2.3.4:5", "unix:PATH or tcp:HOST:PORT");
	assert_refused("tcp:localhost", "tcp:HOST:PORT");
	assert_refused("tcp:localhost:", "0 to 65535");
	assert_refused("tcp:localhost:65536", "0 to 65535");
	assert_refused("tcp:localhost:-1", "0 to 65535");
	assert_refused("tcp:localhost:12x", "0 to 65535");
	assert_refused("tcp:localhost:999999999999999999", "0 to 65535");
	assert_refused("tcp:::1:4444", "brackets");
	assert_refused("unix:", "path");
}

static void
a_socket_path_may_have_107_bytes_and_no_more(void **state)
{
	char text[5 + 108 + 1] = "unix:";
	struct address a;

	(void)state;
	memset(text + 5, 'x', 107);
	assert_true(address_parse(text, &a, &e));
	address_destroy(&a);
	memset(text + 5, 'x', 108);
	assert_refused(text, "longer than 107 bytes");
}

static void
only_loopback_is_accepted_without_tls(void **state)
{
	static const char *const bad[] = { "tcp:0.0.0.0:0", "tcp:[::]:0",
					   "tcp:192.0.2.1:0",
					   "tcp:[2001:db8::1]:0",
					   "tcp:[::ffff:192.0.2.1]:0" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct address a = parsed(bad[i]);
		struct listeners l = { 0 };

		assert_false(listeners_add(&l, &a, LISTEN_LOOPBACK_ONLY, &e));
		assert_non_null(strstr(e.msg, "TLS is needed"));
		assert_int_equal(l.n, 0);
		err_clear(&e);
		address_destroy(&a);
	}
}

static void
loopback_addresses_get_a_port_that_is_named(void **state)
{
	static const char *const good[] = { "tcp:127.0.0.1:0",
					    "tcp:127.1.2.3:0", "tcp::0",
					    "tcp:localhost:0" };

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		struct address a = parsed(good[i]);
		struct listeners l = { 0 };

		assert_true(listeners_add(&l, &a, LISTEN_LOOPBACK_ONLY, &e));
		assert_int_equal(l.n, 1);
		assert_int_equal(strncmp(l.v[0].name, "tcp:", 4), 0);
		assert_true(atoi(strrchr(l.v[0].name, ':') + 1) > 0);
		assert_true(fcntl(l.v[0].fd, F_GETFD) & FD_CLOEXEC);
		assert_true(listeners_cover(&l, &a));
		listeners_close(&l, true);
		address_destroy(&a);
	}
}

static void
a_port_that_is_taken_is_an_error(void **state)
{
	struct address a = parsed("tcp:127.0.0.1:0"), b;
	struct listeners l = { 0 };

	(void)state;
	assert_true(listeners_add(&l, &a, 0, &e));
	b = parsed(l.v[0].name);
	assert_false(listeners_add(&l, &b, 0, &e));
	assert_int_equal(e.os, EADDRINUSE);
	assert_int_equal(l.n, 1);
	listeners_close(&l, true);
	address_destroy(&a);
	address_destroy(&b);
}

static void
a_control_socket_belongs_to_its_owner_only(void **state)
{
	struct address a = socket_in_dir();
	struct listeners l = { 0 };
	mode_t old = umask(0);
	struct stat st;

	(void)state;
	assert_true(listeners_add(&l, &a, LISTEN_OWNER_ONLY, &e));
	(void)umask(old);
	assert_int_equal(stat(a.path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	listeners_close(&l, true);
	assert_int_equal(access(a.path, F_OK), -1);
	address_destroy(&a);
}

static void
a_socket_file_that_nobody_serves_is_replaced(void **state)
{
	struct address a = socket_in_dir();
	struct listeners l = { 0 };

	(void)state;
	assert_true(listeners_add(&l, &a, 0, &e));
	listeners_close(&l, false);
	assert_int_equal(access(a.path, F_OK), 0);
	assert_true(listeners_add(&l, &a, 0, &e));
	listeners_close(&l, true);
	address_destroy(&a);
}

static void
a_socket_that_is_served_is_left_alone(void **state)
{
	struct address a = socket_in_dir();
	struct listeners l = { 0 };

	(void)state;
	assert_true(listeners_add(&l, &a, 0, &e));
	assert_false(listeners_add(&l, &a, 0, &e));
	assert_non_null(strstr(e.msg, "another process listens there"));
	listeners_close(&l, true);
	address_destroy(&a);
}

static void
a_file_that_is_no_socket_is_left_alone(void **state)
{
	struct address a = socket_in_dir();
	struct listeners l = { 0 };
	AUTO(close) int fd = open(a.path, O_CREAT | O_WRONLY, 0600);

	(void)state;
	assert_true(fd >= 0);
	assert_false(listeners_add(&l, &a, 0, &e));
	assert_non_null(strstr(e.msg, "not a socket"));
	assert_int_equal(access(a.path, F_OK), 0);
	address_destroy(&a);
}

static void
a_socket_file_of_somebody_else_is_not_removed(void **state)
{
	struct address a = socket_in_dir();
	struct listeners l = { 0 }, other = { 0 };

	(void)state;
	assert_true(listeners_add(&l, &a, 0, &e));
	assert_int_equal(unlink(a.path), 0);
	assert_true(listeners_add(&other, &a, 0, &e));
	listeners_close(&l, true);
	assert_int_equal(access(a.path, F_OK), 0);
	listeners_close(&other, true);
	assert_int_equal(access(a.path, F_OK), -1);
	address_destroy(&a);
}

static void
only_listening_sockets_are_adopted(void **state)
{
	struct address a = parsed("tcp:127.0.0.1:0");
	struct listeners l = { 0 }, next = { 0 };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	(void)state;
	assert_true(listeners_add(&l, &a, 0, &e));
	assert_true(listeners_adopt(&next, dup(l.v[0].fd), &e));
	assert_string_equal(next.v[0].name, l.v[0].name);
	assert_true(fcntl(next.v[0].fd, F_GETFD) & FD_CLOEXEC);
	assert_false(listeners_adopt(&next, fd, &e));
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_int_equal(next.n, 1);
	listeners_close(&l, true);
	listeners_close(&next, true);
	address_destroy(&a);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(addresses_are_read_as_documented),
		TEST(wrong_addresses_are_refused_with_the_reason),
		TEST(a_socket_path_may_have_107_bytes_and_no_more),
		TEST(only_loopback_is_accepted_without_tls),
		TEST(loopback_addresses_get_a_port_that_is_named),
		TEST(a_port_that_is_taken_is_an_error),
		TEST(a_control_socket_belongs_to_its_owner_only),
		TEST(a_socket_file_that_nobody_serves_is_replaced),
		TEST(a_socket_that_is_served_is_left_alone),
		TEST(a_file_that_is_no_socket_is_left_alone),
		TEST(a_socket_file_of_somebody_else_is_not_removed),
		TEST(only_listening_sockets_are_adopted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

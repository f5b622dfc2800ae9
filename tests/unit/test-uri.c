/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of daemon/uri.
 */
#include "daemon/uri.h"

#include <stdlib.h>

#include "unit.h"

/* NULL where a part must not be there. */
struct row {
	const char *name, *host, *port, *path, *export;
};

static const struct row good[] = {
	{ "nbd://h/x", "h", "10809", NULL, "x" },
	{ "nbd://h", "h", "10809", NULL, NULL },
	{ "nbd://h/", "h", "10809", NULL, "" },
	{ "nbd://h:1/x", "h", "1", NULL, "x" },
	{ "nbd://h:65535/", "h", "65535", NULL, "" },
	{ "nbd://user@h:1/x", "h", "1", NULL, "x" },
	{ "nbd+tcp://10.0.0.1:10809/a/b", "10.0.0.1", "10809", NULL, "a/b" },
	{ "nbd://[::1]:5/x", "::1", "5", NULL, "x" },
	{ "nbd://[fe80::1%25eth0]/x", "fe80::1%eth0", "10809", NULL, "x" },
	{ "nbd://h//x", "h", "10809", NULL, "/x" },
	{ "nbd://h/a%20b%2Fc", "h", "10809", NULL, "a b/c" },
	{ "nbd+unix:///x?socket=/run/s", NULL, NULL, "/run/s", "x" },
	{ "nbd+unix:///?socket=/run/a%20b", NULL, NULL, "/run/a b", "" },
	{ "nbd+unix://?socket=s", NULL, NULL, "s", NULL },
	{ "nbd:h:5", "h", "5", NULL, NULL },
	{ "nbd:h:5:exportname=x:y", "h", "5", NULL, "x:y" },
	{ "nbd:[::1]:5:exportname=", "::1", "5", NULL, "" },
	{ "nbd:unix:/run/s", NULL, NULL, "/run/s", NULL },
	{ "nbd:unix:/run/s:exportname=a%20b", NULL, NULL, "/run/s", "a%20b" },
};

static const char *const bad[] = {
	"nbd://",
	"nbd:///x",
	"nbd://:5/x",
	"nbd://h:0/x",
	"nbd://h:65536/x",
	"nbd://h:x/x",
	"nbd://h:123456/x",
	"nbd://h:-1/x",
	"nbd://[::1/x",
	"nbd://[::1]5/x",
	"nbd://h/x?socket=/run/s",
	"nbd://h/x#y",
	"nbd://h/%",
	"nbd://h/%2",
	"nbd://h/%zz",
	"nbd://h/a%00b",
	"nbd+unix:///x",
	"nbd+unix:///x?",
	"nbd+unix:///x?socket=",
	"nbd+unix:///x?socket=a&socket=b",
	"nbd+unix:///x?other=a",
	"nbd+unix://h/x?socket=a",
	"nbd+vsock://1/x",
	"nbd:",
	"nbd:/x",
	"nbd:h",
	"nbd:h:",
	"nbd::5",
	"nbd:unix:",
	"nbd:h:5x",
};

static void
same(const char *got, const char *want)
{
	if (!want)
		assert_null(got);
	else
		assert_string_equal(got, want);
}

static void
good_names_are_taken_apart(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		AUTO(blockdev_options_nbd_free)
		struct blockdev_options_nbd *o = NULL;
		const struct row *r = &good[i];
		struct err e = ERR_INIT;

		print_message("%s\n", r->name);
		assert_true(uri_is_nbd(r->name));
		assert_ok(uri_parse_nbd(r->name, &o, &e), &e);
		same(o->export, r->export);
		if (r->path) {
			assert_int_equal(o->server->type,
					 SOCKET_ADDRESS_TYPE_UNIX);
			same(o->server->u.q_unix->path, r->path);
			continue;
		}
		assert_int_equal(o->server->type, SOCKET_ADDRESS_TYPE_INET);
		same(o->server->u.inet->host, r->host);
		same(o->server->u.inet->port, r->port);
	}
}

static void
bad_names_are_refused(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct blockdev_options_nbd *o = NULL;
		struct err e = ERR_INIT;

		print_message("%s\n", bad[i]);
		assert_true(uri_is_nbd(bad[i]));
		assert_fails(uri_parse_nbd(bad[i], &o, &e), &e,
			     "No valid URL specified");
		assert_null(o);
	}
}

/* Every beginning of every good name: no read beyond the end (sanitizers). */
static void
a_name_may_end_anywhere(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		for (size_t n = 0; n <= strlen(good[i].name); n++) {
			AUTO(free) char *part = strndup(good[i].name, n);
			AUTO(blockdev_options_nbd_free)
			struct blockdev_options_nbd *o = NULL;
			struct err e = ERR_INIT;

			if (!uri_parse_nbd(part, &o, &e))
				assert_null(o);
		}
	}
}

static void
other_names_are_none(void **state)
{
	(void)state;
	assert_false(uri_is_nbd("/nbd:/x"));
	assert_false(uri_is_nbd("nbd"));
	assert_false(uri_is_nbd("nbds://h/x"));
	assert_false(uri_is_nbd("nbd+x"));
	assert_false(uri_is_nbd("disk.img"));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_names_are_taken_apart),
		cmocka_unit_test(bad_names_are_refused),
		cmocka_unit_test(a_name_may_end_anywhere),
		cmocka_unit_test(other_names_are_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of daemon/statedir: one daemon for one directory, and what is said
 * about directories that cannot be used.  Read-only and full file systems are
 * real ones, mounted in a mount namespace of the test's own; where that is not
 * permitted these two tests are skipped.
 */
#include "daemon/statedir.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "unit.h"

static struct err e;
static char top[64];
static char dir[96];

static int
setup(void **state)
{
	(void)state;
	strcpy(top, "/tmp/test-statedir-XXXXXX");
	assert_non_null(mkdtemp(top));
	(void)snprintf(dir, sizeof dir, "%s/state", top);
	err_clear(&e);
	return 0;
}

static int
teardown(void **state)
{
	char command[128];

	(void)state;
	(void)snprintf(command, sizeof command, "rm -rf '%s'", top);
	assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c) */
	return 0;
}

static void
a_missing_directory_is_made_for_us_alone(void **state)
{
	struct statedir s;
	struct stat st;
	mode_t old = umask(0);

	(void)state;
	assert_true(statedir_open(&s, dir, &e));
	(void)umask(old);
	assert_int_equal(stat(dir, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	assert_int_equal(s.path[0], '/');
	statedir_close(&s);
}

static void
its_parent_must_exist(void **state)
{
	struct statedir s;

	(void)state;
	strcat(dir, "/deeper");
	assert_false(statedir_open(&s, dir, &e));
	assert_int_equal(e.os, ENOENT);
	assert_non_null(strstr(e.msg, dir));
}

static void
a_file_in_its_place_is_refused(void **state)
{
	struct statedir s;
	int fd = open(dir, O_CREAT | O_WRONLY, 0600);

	(void)state;
	assert_true(fd >= 0);
	(void)close(fd);
	assert_false(statedir_open(&s, dir, &e));
	assert_int_equal(e.os, ENOTDIR);
}

static void
a_second_daemon_is_refused_and_told_the_first(void **state)
{
	struct statedir first, second;
	char expect[200];

	(void)state;
	assert_true(statedir_open(&first, dir, &e));
	assert_false(statedir_open(&second, dir, &e));
	(void)snprintf(expect, sizeof expect,
		       "state directory '%s' is in use by another stillpointd "
		       "(pid %ld)",
		       dir, (long)getpid());
	assert_string_equal(e.msg, expect);
	statedir_close(&first);
}

static void
the_lock_ends_with_its_owner(void **state)
{
	struct statedir s;
	int status;
	pid_t pid = fork();

	(void)state;
	if (pid == 0) {
		if (!statedir_open(&s, dir, NULL))
			_exit(1);
		(void)raise(SIGKILL);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_true(statedir_open(&s, dir, &e));
	statedir_close(&s);
}

static void
a_directory_can_be_used_again(void **state)
{
	struct statedir s;

	(void)state;
	for (int i = 0; i < 2; i++) {
		assert_true(statedir_open(&s, dir, &e));
		statedir_close(&s);
	}
}

/* Run in a child with a mount of its own over @dir: 0 when opening it failed
 * with @os, 2 when this cannot be tried here.
 */
static int
open_in_mount(const char *options, unsigned long flags, size_t fill, int os)
{
	struct statedir s;
	char name[128], block[4096] = { 1 };
	int fd;

	if (unshare(CLONE_NEWNS) < 0 ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mkdir(dir, 0700) < 0 ||
	    mount("tmpfs", dir, "tmpfs", 0, options) < 0)
		return 2;
	(void)snprintf(name, sizeof name, "%s/fill", dir);
	fd = open(name, O_CREAT | O_WRONLY, 0600);
	while (fill && write(fd, block, sizeof block) > 0)
		;
	(void)close(fd);
	if (flags && mount("tmpfs", dir, "tmpfs", MS_REMOUNT | flags, NULL) < 0)
		return 2;
	if (statedir_open(&s, dir, &e))
		return 1;
	return e.os == os && strstr(e.msg, dir) ? 0 : 3;
}

static void
expect_in_mount(const char *options, unsigned long flags, size_t fill, int os)
{
	int status;
	pid_t pid = fork();

	if (pid == 0)
		_exit(open_in_mount(options, flags, fill, os));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 2)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void
a_read_only_file_system_is_named_as_the_reason(void **state)
{
	(void)state;
	expect_in_mount("size=64k", MS_RDONLY, 0, EROFS);
}

static void
a_full_file_system_is_named_as_the_reason(void **state)
{
	(void)state;
	expect_in_mount("size=64k", 0, 1, ENOSPC);
}

static void
private_directories_must_be_closed_to_others(void **state)
{
	(void)state;
	assert_true(private_dir_make(dir, "the store", &e));
	assert_true(private_dir_make(dir, "the store", &e));
	assert_int_equal(chmod(dir, 0750), 0);
	assert_false(private_dir_make(dir, "the store", &e));
	assert_non_null(strstr(e.msg, "others have access"));
	assert_non_null(strstr(e.msg, "the store"));
}

static void
a_private_directory_is_not_found_through_a_link(void **state)
{
	char link[128];

	(void)state;
	assert_true(private_dir_make(dir, "the store", &e));
	(void)snprintf(link, sizeof link, "%s/link", top);
	assert_int_equal(symlink(dir, link), 0);
	assert_false(private_dir_make(link, "the store", &e));
	assert_non_null(strstr(e.msg, "not a directory"));
}

static void
each_state_directory_has_its_own_shm_directory(void **state)
{
	AUTO(free) char *a = shm_dir_default("/var/lib/a");
	AUTO(free) char *same = shm_dir_default("/var/lib/a");
	AUTO(free) char *b = shm_dir_default("/var/lib/b");

	(void)state;
	assert_string_equal(a, same);
	assert_string_not_equal(a, b);
	assert_int_equal(strncmp(a, "/dev/shm/stillpoint-", 20), 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_missing_directory_is_made_for_us_alone),
		TEST(its_parent_must_exist),
		TEST(a_file_in_its_place_is_refused),
		TEST(a_second_daemon_is_refused_and_told_the_first),
		TEST(the_lock_ends_with_its_owner),
		TEST(a_directory_can_be_used_again),
		TEST(a_read_only_file_system_is_named_as_the_reason),
		TEST(a_full_file_system_is_named_as_the_reason),
		TEST(private_directories_must_be_closed_to_others),
		TEST(a_private_directory_is_not_found_through_a_link),
		TEST(each_state_directory_has_its_own_shm_directory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

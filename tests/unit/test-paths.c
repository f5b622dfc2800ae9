/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of daemon/paths: the rules at the head of paths.h, one test each, and
 * the ways round them that come to mind.
 *
 * The scene: TOP/in (allowed), TOP/out; TOP/in/disk, TOP/in/sub/deep,
 * TOP/out/secret, and links between them.
 */
#include "daemon/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "unit.h"

struct scene {
	char top[64];
	struct paths *paths;
	struct err e;
	int fd;
};

static char *
name_in(struct scene *s, const char *rest)
{
	static char name[4096];

	(void)snprintf(name, sizeof name, "%s/%s", s->top, rest);
	return name;
}

static void
write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void
make_link(struct scene *s, const char *target, const char *rest)
{
	assert_int_equal(symlink(target, name_in(s, rest)), 0);
}

static int
setup(void **state)
{
	struct scene *s = xzalloc(sizeof *s);
	char absolute[200];

	strcpy(s->top, "/tmp/test-paths-XXXXXX");
	assert_non_null(mkdtemp(s->top));
	assert_int_equal(mkdir(name_in(s, "in"), 0700), 0);
	assert_int_equal(mkdir(name_in(s, "in/sub"), 0700), 0);
	assert_int_equal(mkdir(name_in(s, "out"), 0700), 0);
	write_file(name_in(s, "in/disk"), "disk");
	write_file(name_in(s, "in/sub/deep"), "deep");
	write_file(name_in(s, "out/secret"), "secret");
	make_link(s, "disk", "in/good-link");
	make_link(s, "sub/../disk", "in/round-link");
	make_link(s, "../out/secret", "in/bad-link");
	make_link(s, "../out", "in/bad-dir");
	(void)snprintf(absolute, sizeof absolute, "%s/in/disk", s->top);
	make_link(s, absolute, "in/absolute-link");
	make_link(s, "loop", "in/loop");
	make_link(s, "in", "alias");
	assert_int_equal(mkfifo(name_in(s, "in/fifo"), 0600), 0);
	s->paths = paths_new();
	assert_true(paths_allow(s->paths, name_in(s, "in"), &s->e));
	*state = s;
	return 0;
}

static int
teardown(void **state)
{
	struct scene *s = *state;
	char command[128];

	(void)snprintf(command, sizeof command, "rm -rf '%s'", s->top);
	assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c) */
	paths_free(s->paths);
	free(s);
	return 0;
}

/* The content of what opens, "" when it does not. */
static const char *
content(struct scene *s, const char *filename)
{
	static char text[32];
	ssize_t n;

	err_clear(&s->e);
	text[0] = '\0';
	if (!paths_open(s->paths, filename, O_RDONLY, &s->fd, &s->e))
		return text;
	n = read(s->fd, text, sizeof text - 1);
	assert_true(n >= 0);
	text[n] = '\0';
	assert_true(fcntl(s->fd, F_GETFD) & FD_CLOEXEC);
	assert_false(fcntl(s->fd, F_GETFL) & O_NONBLOCK);
	(void)close(s->fd);
	return text;
}

static void
assert_outside(struct scene *s, const char *filename)
{
	assert_string_equal(content(s, filename), "");
	assert_non_null(strstr(s->e.msg, "outside the allowed directories"));
	assert_non_null(strstr(s->e.msg, filename));
}

static void
files_below_an_allowed_directory_open(void **state)
{
	struct scene *s = *state;

	assert_string_equal(content(s, name_in(s, "in/disk")), "disk");
	assert_string_equal(content(s, name_in(s, "in/sub/deep")), "deep");
	assert_string_equal(content(s, name_in(s, "in//./sub///deep")), "deep");
}

static void
rule_1_links_and_dots_that_lead_out_are_refused(void **state)
{
	struct scene *s = *state;

	assert_outside(s, name_in(s, "out/secret"));
	assert_outside(s, name_in(s, "in/../out/secret"));
	assert_outside(s, name_in(s, "in/sub/../../out/secret"));
	assert_outside(s, name_in(s, "in/bad-link"));
	assert_outside(s, name_in(s, "in/bad-dir/secret"));
	assert_outside(s, "/etc/passwd");
	assert_outside(s, "../../../../../../etc/passwd");
}

static void
rule_1_links_and_dots_that_stay_inside_are_followed(void **state)
{
	struct scene *s = *state;

	assert_string_equal(content(s, name_in(s, "in/good-link")), "disk");
	assert_string_equal(content(s, name_in(s, "in/round-link")), "disk");
	assert_string_equal(content(s, name_in(s, "in/sub/../disk")), "disk");
}

static void
rule_1_a_name_that_only_begins_alike_is_outside(void **state)
{
	struct scene *s = *state;

	assert_int_equal(mkdir(name_in(s, "in2"), 0700), 0);
	write_file(name_in(s, "in2/disk"), "no");
	assert_outside(s, name_in(s, "in2/disk"));
}

static void
rule_2_absolute_links_count_as_leaving(void **state)
{
	struct scene *s = *state;

	assert_outside(s, name_in(s, "in/absolute-link"));
}

static void
rule_2_links_of_proc_are_not_followed(void **state)
{
	struct scene *s = *state;
	AUTO(close) int fd = open(name_in(s, "out/secret"), O_RDONLY);
	char link[64];

	assert_true(fd >= 0);
	assert_true(paths_allow(s->paths, "/proc/self/fd", &s->e));
	(void)snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	assert_string_equal(content(s, link), "");
	assert_true(err_is_set(&s->e));
}

static void
rule_3_a_fifo_is_refused_without_waiting(void **state)
{
	struct scene *s = *state;

	assert_string_equal(content(s, name_in(s, "in/fifo")), "");
	assert_non_null(strstr(s->e.msg, "not a regular file or block"));
}

static void
rule_3_directories_and_devices_are_refused(void **state)
{
	struct scene *s = *state;

	assert_string_equal(content(s, name_in(s, "in/sub")), "");
	assert_non_null(strstr(s->e.msg, "Is a directory"));
	assert_string_equal(content(s, name_in(s, "in")), "");
	assert_non_null(strstr(s->e.msg, "Is a directory"));
	assert_true(paths_allow(s->paths, "/dev", &s->e));
	assert_string_equal(content(s, "/dev/null"), "");
	assert_non_null(strstr(s->e.msg, "not a regular file or block"));
}

static void
rule_4_without_a_directory_nothing_opens(void **state)
{
	struct scene *s = *state;

	paths_free(s->paths);
	s->paths = paths_new();
	assert_outside(s, name_in(s, "in/disk"));
	assert_non_null(strstr(s->e.msg, "--allow"));
}

static void
a_directory_that_is_a_link_is_known_by_both_names(void **state)
{
	struct scene *s = *state;

	paths_free(s->paths);
	s->paths = paths_new();
	assert_true(paths_allow(s->paths, name_in(s, "alias"), &s->e));
	assert_string_equal(content(s, name_in(s, "alias/disk")), "disk");
	assert_string_equal(content(s, name_in(s, "in/disk")), "disk");
	assert_outside(s, name_in(s, "out/secret"));
}

static void
relative_names_start_at_the_working_directory(void **state)
{
	struct scene *s = *state;
	AUTO(close) int old = open(".", O_RDONLY | O_DIRECTORY);

	assert_true(old >= 0);
	assert_int_equal(chdir(s->top), 0);
	paths_free(s->paths);
	s->paths = paths_new();
	assert_true(paths_allow(s->paths, "in", &s->e));
	assert_int_equal(fchdir(old), 0);
	assert_string_equal(content(s, "in/disk"), "disk");
	assert_string_equal(content(s, "./in/sub/deep"), "deep");
	assert_outside(s, "out/secret");
}

static void
what_is_missing_is_said_as_qemu_says_it(void **state)
{
	struct scene *s = *state;
	char expect[5000];

	assert_string_equal(content(s, name_in(s, "in/none")), "");
	(void)snprintf(expect, sizeof expect,
		       "Could not open '%s': No such file or directory",
		       name_in(s, "in/none"));
	assert_string_equal(s->e.msg, expect);
	assert_int_equal(s->e.os, ENOENT);
	assert_string_equal(content(s, ""), "");
	assert_int_equal(s->e.os, ENOENT);
	assert_string_equal(content(s, name_in(s, "in/loop")), "");
	assert_int_equal(s->e.os, ELOOP);
}

static void
names_that_are_too_long_are_refused(void **state)
{
	struct scene *s = *state;
	char name[5000];

	memset(name, 'a', sizeof name);
	name[sizeof name - 1] = '\0';
	assert_string_equal(content(s, name), "");
	assert_int_equal(s->e.os, ENAMETOOLONG);
}

static void
what_is_allowed_must_be_a_directory(void **state)
{
	struct scene *s = *state;

	assert_false(paths_allow(s->paths, name_in(s, "in/disk"), &s->e));
	assert_int_equal(s->e.os, ENOTDIR);
	err_clear(&s->e);
	assert_false(paths_allow(s->paths, name_in(s, "none"), &s->e));
	assert_int_equal(s->e.os, ENOENT);
}

static void
a_file_opens_for_writing_as_asked(void **state)
{
	struct scene *s = *state;

	assert_true(paths_open(s->paths, name_in(s, "in/disk"), O_RDWR, &s->fd,
			       &s->e));
	assert_int_equal(pwrite(s->fd, "D", 1, 0), 1);
	(void)close(s->fd);
	assert_string_equal(content(s, name_in(s, "in/disk")), "Disk");
}

static void
refused_to_make(struct scene *s, const char *rest, const char *text)
{
	struct made_file made = MADE_FILE_INIT;

	assert_false(
		paths_create(s->paths, name_in(s, rest), &made, &s->fd, &s->e));
	if (!strstr(s->e.msg, text))
		fail_msg("%s: %s", rest, s->e.msg);
	assert_int_equal(made.dir, -1);
	err_clear(&s->e);
}

static void
a_file_that_is_not_there_is_made(void **state)
{
	struct made_file made = MADE_FILE_INIT;
	struct scene *s = *state;
	struct stat st;

	assert_ok(paths_create(s->paths, name_in(s, "in/sub/new"), &made,
			       &s->fd, &s->e),
		  &s->e);
	assert_true(made.dir >= 0);
	assert_int_equal(pwrite(s->fd, "new", 3, 0), 3);
	(void)close(s->fd);
	made_file_keep(&made);
	assert_string_equal(content(s, name_in(s, "in/sub/new")), "new");
	assert_int_equal(stat(name_in(s, "in/sub/new"), &st), 0);
	assert_int_equal(st.st_mode & 0133, 0);
}

static void
a_file_that_is_there_is_opened_and_not_taken_back(void **state)
{
	struct made_file made = MADE_FILE_INIT;
	struct scene *s = *state;

	assert_ok(paths_create(s->paths, name_in(s, "in/disk"), &made, &s->fd,
			       &s->e),
		  &s->e);
	(void)close(s->fd);
	assert_int_equal(made.dir, -1);
	made_file_remove(&made);
	assert_string_equal(content(s, name_in(s, "in/disk")), "disk");
}

static void
rule_5_nothing_is_made_outside(void **state)
{
	struct scene *s = *state;

	refused_to_make(s, "out/new", "outside the allowed directories");
	refused_to_make(s, "in/../out/new", "outside");
	refused_to_make(s, "in/bad-dir/new", "outside");
	refused_to_make(s, "in/sub/../../out/new", "outside");
	refused_to_make(s, "in/none/new", "No such file or directory");
	refused_to_make(s, "in/disk/new", "Not a directory");
	refused_to_make(s, "in/fifo", "not a regular file");
	refused_to_make(s, "in/sub/", "Is a directory");
	refused_to_make(s, "in/sub/none/..", "");
	/* a link without a target could lead anywhere when somebody makes it */
	make_link(s, "../out/later", "in/dangling");
	refused_to_make(s, "in/dangling", "");
	make_link(s, "later", "in/dangling-inside");
	refused_to_make(s, "in/dangling-inside", "File exists");
	assert_int_equal(access(name_in(s, "out/new"), F_OK), -1);
	assert_int_equal(access(name_in(s, "out/later"), F_OK), -1);
	assert_int_equal(access(name_in(s, "in/later"), F_OK), -1);
}

static void
rule_5_what_was_made_is_taken_back_and_nothing_else(void **state)
{
	struct made_file made = MADE_FILE_INIT, other = MADE_FILE_INIT;
	struct scene *s = *state;

	assert_ok(paths_create(s->paths, name_in(s, "in/new"), &made, &s->fd,
			       &s->e),
		  &s->e);
	(void)close(s->fd);
	made_file_remove(&made);
	assert_int_equal(made.dir, -1);
	assert_int_equal(access(name_in(s, "in/new"), F_OK), -1);
	/* somebody puts another file in its place */
	assert_ok(paths_create(s->paths, name_in(s, "in/new"), &other, &s->fd,
			       &s->e),
		  &s->e);
	write_file(name_in(s, "in/mine"), "mine");
	{
		char from[200];

		(void)snprintf(from, sizeof from, "%s/in/mine", s->top);
		assert_int_equal(rename(from, name_in(s, "in/new")), 0);
	}
	(void)close(s->fd);
	made_file_remove(&other);
	assert_string_equal(content(s, name_in(s, "in/new")), "mine");
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(files_below_an_allowed_directory_open),
		TEST(rule_1_links_and_dots_that_lead_out_are_refused),
		TEST(rule_1_links_and_dots_that_stay_inside_are_followed),
		TEST(rule_1_a_name_that_only_begins_alike_is_outside),
		TEST(rule_2_absolute_links_count_as_leaving),
		TEST(rule_2_links_of_proc_are_not_followed),
		TEST(rule_3_a_fifo_is_refused_without_waiting),
		TEST(rule_3_directories_and_devices_are_refused),
		TEST(rule_4_without_a_directory_nothing_opens),
		TEST(a_directory_that_is_a_link_is_known_by_both_names),
		TEST(relative_names_start_at_the_working_directory),
		TEST(what_is_missing_is_said_as_qemu_says_it),
		TEST(names_that_are_too_long_are_refused),
		TEST(what_is_allowed_must_be_a_directory),
		TEST(a_file_opens_for_writing_as_asked),
		TEST(a_file_that_is_not_there_is_made),
		TEST(a_file_that_is_there_is_opened_and_not_taken_back),
		TEST(rule_5_nothing_is_made_outside),
		TEST(rule_5_what_was_made_is_taken_back_and_nothing_else),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

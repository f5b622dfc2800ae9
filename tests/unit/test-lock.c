/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of block/lock: among ourselves, and against QEMU's tools both ways
 * with their exact words.
 */
#include "block/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"

#define WRITE_LOCK  "Failed to get \"write\" lock"
#define SHARED_LOCK "Failed to get shared \"write\" lock"

static char path[] = "/tmp/stillpoint-lock-XXXXXX";

static int
make_image(void **s)
{
	static const char block[4096] = "not a hole";
	int fd = mkstemp(path);

	(void)s;
	for (int i = 0; i < 1 << 20; i += (int)sizeof block)
		if (fd < 0 || write(fd, block, sizeof block) < 0)
			return -1;
	return close(fd);
}

/* Where a copy of the image goes. */
static char *
second_path(void)
{
	static char copy[sizeof path + 8];

	(void)snprintf(copy, sizeof copy, "%s.copy", path);
	return copy;
}

static int
remove_image(void **s)
{
	(void)s;
	(void)unlink(second_path());
	return unlink(path);
}

static int
open_image(int flags)
{
	int fd = open(path, flags | O_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

static bool
locks(int fd, bool writer)
{
	return image_lock(fd, writer, NULL);
}

static void
a_second_writer_is_refused(void **s)
{
	int a = open_image(O_RDWR), b = open_image(O_RDWR);
	struct err e = ERR_INIT;

	(void)s;
	assert_ok(image_lock(a, true, &e), &e);
	assert_fails(image_lock(b, true, &e), &e, WRITE_LOCK);
	(void)close(a);
	assert_ok(image_lock(b, true, &e), &e);
	(void)close(b);
}

static void
a_reader_and_a_writer_refuse_each_other(void **s)
{
	int a = open_image(O_RDWR), b = open_image(O_RDONLY);
	struct err e = ERR_INIT;

	(void)s;
	assert_ok(image_lock(a, true, &e), &e);
	assert_fails(image_lock(b, false, &e), &e, SHARED_LOCK);
	image_unlock(a);
	assert_ok(image_lock(b, false, &e), &e);
	assert_fails(image_lock(a, true, &e), &e, WRITE_LOCK);
	(void)close(a);
	(void)close(b);
}

static void
readers_share(void **s)
{
	int a = open_image(O_RDONLY), b = open_image(O_RDONLY);

	(void)s;
	assert_true(locks(a, false));
	assert_true(locks(b, false));
	(void)close(a);
	(void)close(b);
}

static void
who_was_refused_keeps_no_lock(void **s)
{
	int a = open_image(O_RDWR), b = open_image(O_RDWR);
	int c = open_image(O_RDWR);

	(void)s;
	assert_true(locks(a, true));
	assert_false(locks(b, true));
	image_unlock(a);
	assert_true(locks(c, true)); /* b is still open */
	(void)close(a);
	(void)close(b);
	(void)close(c);
}

static void
a_copy_of_the_descriptor_carries_the_lock(void **s)
{
	int a = open_image(O_RDWR), copy = dup(a), b = open_image(O_RDWR);

	(void)s;
	assert_true(locks(a, true));
	(void)close(a);
	assert_false(locks(b, true));
	(void)close(copy);
	assert_true(locks(b, true));
	(void)close(b);
}

/* --- QEMU's tools ------------------------------------------------------------- */

/* Run a command; its exit status, and what it said. */
static int
run(const char *command, char *said, size_t size)
{
	FILE *f = popen(command, "r");
	size_t n;
	int r;

	assert_non_null(f);
	n = fread(said, 1, size - 1, f);
	said[n] = '\0';
	r = pclose(f);
	return WIFEXITED(r) ? WEXITSTATUS(r) : -1;
}

static void
need_qemu_io(void)
{
	char said[256];

	if (run("qemu-io --version 2>&1", said, sizeof said) != 0) {
		print_message("qemu-io is not installed\n");
		skip();
	}
}

static void
says(const char *line, const char *text)
{
	char said[2048];

	(void)run(line, said, sizeof said);
	if (text ? !strstr(said, text) : strstr(said, "lock") != NULL)
		fail_msg("'%s' said: %s", line, said);
}

static void
qemu_says(const char *command, const char *text)
{
	char line[512];

	(void)snprintf(line, sizeof line, "%s %s 2>&1", command, path);
	says(line, text);
}

/* qemu-img convert shares what it reads with no writer, unlike qemu-io. */
static void
qemu_copies(const char *text)
{
	char line[512];

	(void)snprintf(line, sizeof line,
		       "qemu-img convert -f raw -O raw %s %s 2>&1", path,
		       second_path());
	says(line, text);
	(void)unlink(second_path());
}

#define QEMU_WRITES "qemu-io -f raw -c 'write 0 512'"
#define QEMU_READS  "qemu-io -r -f raw -c 'read 0 512'"

static void
qemu_is_refused_an_image_that_we_write(void **s)
{
	int fd = open_image(O_RDWR);

	(void)s;
	need_qemu_io();
	assert_true(locks(fd, true));
	qemu_says(QEMU_WRITES, WRITE_LOCK);
	qemu_says(QEMU_WRITES, "Is another process using the image");
	qemu_copies(SHARED_LOCK);
	image_unlock(fd);
	qemu_says(QEMU_WRITES, "wrote 512/512 bytes");
	(void)close(fd);
}

static void
qemu_may_read_and_not_write_what_we_read(void **s)
{
	int fd = open_image(O_RDONLY);

	(void)s;
	need_qemu_io();
	assert_true(locks(fd, false));
	qemu_says(QEMU_READS, "read 512/512 bytes");
	qemu_copies(NULL);
	qemu_says(QEMU_WRITES, WRITE_LOCK);
	(void)close(fd);
}

struct qemu {
	pid_t pid;
	int in; /* owned: it ends when this is closed */
};

static void
qemu_start(struct qemu *q, const char *const *argv)
{
	int in[2];

	assert_int_equal(pipe2(in, O_CLOEXEC), 0);
	q->pid = fork();
	assert_true(q->pid >= 0);
	if (q->pid == 0) {
		int null = open("/dev/null", O_WRONLY);

		(void)dup2(in[0], 0);
		(void)dup2(null, 1);
		(void)execvp(argv[0], (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	(void)close(in[0]);
	q->in = in[1];
}

static void
qemu_stop(struct qemu *q)
{
	(void)close(q->in);
	(void)kill(q->pid, SIGTERM);
	assert_int_equal(waitpid(q->pid, NULL, 0), q->pid);
}

/* Wait until QEMU has the image: we are refused. */
static void
wait_refused(int fd, bool writer, const char *text)
{
	struct err e = ERR_INIT;

	for (int i = 0; i < 5000 && image_lock(fd, writer, &e); i++) {
		image_unlock(fd);
		(void)usleep(1000);
	}
	assert_string_equal(e.msg, text);
}

static void
we_are_refused_an_image_that_qemu_writes(void **s)
{
	const char *const argv[] = { "qemu-io", "-f", "raw", path, NULL };
	int fd = open_image(O_RDWR);
	struct qemu q;

	(void)s;
	need_qemu_io();
	qemu_start(&q, argv);
	wait_refused(fd, false, SHARED_LOCK);
	/* qemu-io lets others write, we do not let it */
	wait_refused(fd, true, SHARED_LOCK);
	qemu_stop(&q);
	assert_true(locks(fd, true));
	(void)close(fd);
}

static void
we_may_read_and_not_write_what_qemu_copies(void **s)
{
	char *copy = second_path();
	const char *const argv[] = { "qemu-img", "convert", "-r", "4k",
				     "-f",       "raw",     "-O", "raw",
				     path,       copy,      NULL };
	int fd = open_image(O_RDWR);
	struct qemu q;

	(void)s;
	need_qemu_io();
	qemu_start(&q, argv);
	wait_refused(fd, true, WRITE_LOCK);
	assert_true(locks(fd, false));
	qemu_stop(&q);
	(void)unlink(copy);
	(void)close(fd);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_second_writer_is_refused),
		cmocka_unit_test(a_reader_and_a_writer_refuse_each_other),
		cmocka_unit_test(readers_share),
		cmocka_unit_test(who_was_refused_keeps_no_lock),
		cmocka_unit_test(a_copy_of_the_descriptor_carries_the_lock),
		cmocka_unit_test(qemu_is_refused_an_image_that_we_write),
		cmocka_unit_test(qemu_may_read_and_not_write_what_we_read),
		cmocka_unit_test(we_are_refused_an_image_that_qemu_writes),
		cmocka_unit_test(we_may_read_and_not_write_what_qemu_copies),
	};

	return cmocka_run_group_tests(tests, make_image, remove_image);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The order in which bitmaps are saved (src/daemon/saved.h); what comes of
 * them is tested by the whole system.
 */
#include "daemon/saved.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/daemon.h"
#include "unit.h"

#define SIZE (1 << 20)

int __real_fsync(int fd);
int __wrap_fsync(int fd);

/* What was synced, in order; and what cannot be. */
static ino_t synced[16];
static size_t n_synced;
static ino_t broken;

int
__wrap_fsync(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	assert_true(n_synced < ARRAY_SIZE(synced));
	synced[n_synced++] = st.st_ino;
	if (st.st_ino != broken)
		return __real_fsync(fd);
	errno = EIO;
	return -1;
}

struct scene {
	char dir[40];
	struct daemon d;
	struct node *n;
	struct bitmap *b;
};

static ino_t
inode(const struct scene *s, const char *name)
{
	AUTO(free) char *path = xasprintf("%s/%s", s->dir, name);
	struct stat st;

	return stat(path, &st) == 0 ? st.st_ino : 0;
}

static int
set_up(void **state)
{
	struct scene *s = *state = xzalloc(sizeof *s);
	AUTO(free) char *image = NULL;
	struct epoch_file *f;
	struct err e = ERR_INIT;

	strcpy(s->dir, "/tmp/stillpoint-saved-XXXXXX");
	assert_non_null(mkdtemp(s->dir));
	s->d.cfg.shm = s->dir;
	assert_ok(statedir_open(&s->d.state, s->dir, &e), &e);
	s->d.graph = graph_new(&s->d);
	image = xasprintf("%s/image", s->dir);
	s->n = xzalloc(sizeof *s->n);
	s->n->name = xstrdup("n");
	s->n->size = SIZE;
	s->n->options = xzalloc(sizeof *s->n->options);
	s->n->options->driver = BLOCKDEV_DRIVER_FILE;
	s->n->options->u.file = xzalloc(sizeof *s->n->options->u.file);
	s->n->options->u.file->filename = xstrdup(image);
	s->n->fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_true(s->n->fd >= 0);
	s->b = bitmap_new(s->n, "b", 65536, true);
	f = epoch_file_new(s->dir, 1, SIZE, 65536);
	assert_ok(epoch_file_make(f, &e), &e);
	epoch_set_add(&s->b->set, f);
	epoch_file_unref(f);
	n_synced = 0;
	broken = 0;
	return 0;
}

static int
tear_down(void **state)
{
	static const char *const left[] = { "epochs/epoch-1", "epochs",
					    "epoch-1", "image", "lock" };
	struct scene *s = *state;

	node_free(s->n);
	graph_free(s->d.graph);
	epochs_end(true);
	for (size_t i = 0; i < ARRAY_SIZE(left); i++) {
		AUTO(free) char *path = xasprintf("%s/%s", s->dir, left[i]);

		(void)remove(path);
	}
	statedir_close(&s->d.state);
	(void)rmdir(s->dir);
	free(s);
	return 0;
}

static void
save(struct scene *s)
{
	struct saving *saving = saved_plan(&s->d, s->n);

	assert_non_null(saving);
	saved_run(saving);
	saved_finish(saving);
}

static void
rule_2_the_image_is_synced_before_anything_is_saved(void **state)
{
	struct scene *s = *state;

	save(s);
	assert_true(s->b->saved);
	assert_true(n_synced >= 3);
	assert_int_equal(synced[0], inode(s, "image"));
	assert_int_equal(synced[n_synced - 2], inode(s, "epochs/epoch-1"));
	assert_int_equal(synced[n_synced - 1], inode(s, "epochs"));
}

static void
rule_2_without_a_synced_image_nothing_is_saved(void **state)
{
	struct scene *s = *state;

	broken = inode(s, "image");
	save(s);
	assert_false(s->b->saved);
	assert_int_equal(inode(s, "epochs/epoch-1"), 0);
}

static void
rule_3_what_is_not_on_the_disk_is_not_saved(void **state)
{
	struct scene *s = *state;

	save(s);
	s->b->saved = false;
	broken = inode(s, "epochs");
	save(s);
	assert_false(s->b->saved);
}

static void
what_need_not_be_saved_is_left_alone(void **state)
{
	struct scene *s = *state;

	s->b->persistent = false;
	assert_null(saved_plan(&s->d, s->n));
	s->b->persistent = true;
	s->b->in_image = true;
	assert_null(saved_plan(&s->d, s->n));
	s->b->in_image = false;
	bitmap_set_inconsistent(s->b, "of a test");
	assert_null(saved_plan(&s->d, s->n));
}

#define T(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(rule_2_the_image_is_synced_before_anything_is_saved),
		T(rule_2_without_a_synced_image_nothing_is_saved),
		T(rule_3_what_is_not_on_the_disk_is_not_saved),
		T(what_need_not_be_saved_is_left_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

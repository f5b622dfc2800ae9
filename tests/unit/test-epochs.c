/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The daemon's epochs (src/daemon/epochs.h): when their files come and go.
 */
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/epochs.h"
#include "unit.h"

static char dir[] = "/tmp/stillpoint-epochs-XXXXXX";

static struct epoch_file *
make(uint64_t id)
{
	struct epoch_file *f = epoch_file_new(dir, id, 1 << 20, 65536);
	struct err e = ERR_INIT;

	assert_true(epoch_file_make(f, &e));
	return f;
}

static bool
exists(uint64_t id)
{
	AUTO(free) char *path = xasprintf("%s/epoch-%d", dir, (int)id);

	return access(path, F_OK) == 0;
}

static void
file_stays_until_a_registry_without_it_is_on_the_disk(void **s)
{
	struct epoch_file *one = make(1), *two = make(2);
	uint64_t mark;

	(void)s;
	epoch_file_unref(one);
	mark = epochs_mark();
	epoch_file_unref(two); /* after the registry was described */
	assert_true(exists(1));
	epochs_forget(mark);
	assert_false(exists(1));
	assert_true(exists(2));
	epochs_forget(epochs_mark());
	assert_false(exists(2));
}

static void
file_that_is_kept_is_never_removed(void **s)
{
	struct epoch_file *f = make(3);

	(void)s;
	f->keep = true;
	epoch_file_unref(f);
	epochs_forget(epochs_mark());
	epochs_end(true);
	assert_true(exists(3));
}

static void
making_one_never_truncates_what_another_has_mapped(void **s)
{
	struct epoch_file *old = make(4), *again;

	(void)s;
	epoch_set(old->map, 0, 65536);
	again = make(4);
	assert_true(epoch_any(old->map, 0, 65536));
	assert_false(epoch_any(again->map, 0, 65536));
	epoch_set(old->map, 1 << 19, 65536); /* no SIGBUS */
	epoch_file_unref(old);
	epoch_file_unref(again);
	epochs_end(true);
}

static void
half_made_file_goes_at_once(void **s)
{
	struct epoch_file *f = epoch_file_new(dir, 5, 1 << 20, 3);
	struct err e = ERR_INIT;

	(void)s;
	assert_false(epoch_file_make(f, &e)); /* no such granularity */
	epoch_file_unref(f);
	assert_false(exists(5));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			file_stays_until_a_registry_without_it_is_on_the_disk),
		cmocka_unit_test(file_that_is_kept_is_never_removed),
		cmocka_unit_test(
			making_one_never_truncates_what_another_has_mapped),
		cmocka_unit_test(half_made_file_goes_at_once),
	};
	int failed;

	if (!mkdtemp(dir))
		return 99;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	for (int id = 1; id < 8; id++) {
		AUTO(free) char *path = xasprintf("%s/epoch-%d", dir, id);

		(void)unlink(path);
	}
	(void)rmdir(dir);
	return failed;
}

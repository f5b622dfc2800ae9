/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of tracking/epoch: the numbered rules of epoch.h, its edges, and
 * epochs and their unions against a slow and obvious model.
 */
#include "tracking/epoch.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "base/bits.h"
#include "epoch-made.h"
#include "fault.h"
#include "step.h"
#include "unit.h"

#define G64      (64 * KiB)
#define CHUNK_64 (32768 * G64) /* bytes that one page of bits stands for */

static uint64_t
bytes_used(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* --- rules ------------------------------------------------------------------ */

/* (That it is set before the write begins is rule 2 of node.h.) */
static void
rule_1_every_granule_that_a_write_touches_is_dirty_when_set_returns(void **s)
{
	struct epoch *ep = epoch_make(GiB, G64);

	(void)s;
	epoch_set(ep, 3 * G64 - 1, 2); /* the last byte of one, the first of
					* the next */
	assert_int_equal(epoch_next_dirty(ep, 0, GiB), 2 * G64);
	assert_int_equal(epoch_next_clean(ep, 2 * G64, GiB), 4 * G64);
	assert_int_equal(epoch_next_dirty(ep, 4 * G64, GiB), GiB);
	epoch_unref(ep);
}

static void
rule_2_a_chunk_whose_bits_cannot_be_allocated_is_all_changed(void **s)
{
	struct epoch *ep = epoch_make(3 * CHUNK_64, G64);

	(void)s;
	fault_fallocate(ENOSPC, 0, 1);
	epoch_set(ep, CHUNK_64 + G64, 1);
	assert_int_equal(fault_fallocate_calls(), 1);
	assert_int_equal(epoch_next_dirty(ep, 0, 3 * CHUNK_64), CHUNK_64);
	assert_int_equal(epoch_next_clean(ep, CHUNK_64, 3 * CHUNK_64),
			 2 * CHUNK_64);
	/* the page was not touched, and will never be */
	assert_int_equal(bytes_used(epoch_fd(ep)), 2 * 4096);
	epoch_set(ep, CHUNK_64 + 5 * G64, 1);
	assert_int_equal(fault_fallocate_calls(), 1);
	assert_int_equal(bytes_used(epoch_fd(ep)), 2 * 4096);
	epoch_unref(ep);
}

static void
rule_2_a_page_is_allocated_before_the_first_bit_and_once(void **s)
{
	struct epoch *ep = epoch_make(3 * CHUNK_64, G64);

	(void)s;
	fault_fallocate(0, 0, 0);
	epoch_set(ep, 0, 1);
	assert_int_equal(fault_fallocate_calls(), 1);
	epoch_set(ep, G64 * 100, G64 * 1000);
	assert_int_equal(fault_fallocate_calls(), 1);
	epoch_set(ep, CHUNK_64 - 1, 2); /* a second chunk */
	assert_int_equal(fault_fallocate_calls(), 2);
	assert_int_equal(bytes_used(epoch_fd(ep)), 4 * 4096);
	epoch_unref(ep);
}

/* Regression: a signal in the middle of fallocate() cost the precision. */
static void
an_allocation_that_a_signal_interrupts_is_tried_again(void **s)
{
	struct epoch *ep = epoch_make(CHUNK_64, G64);

	(void)s;
	fault_fallocate(EINTR, 0, 3);
	epoch_set(ep, G64, 1);
	assert_int_equal(epoch_next_dirty(ep, 0, CHUNK_64), G64);
	assert_int_equal(epoch_next_clean(ep, G64, CHUNK_64), 2 * G64);
	epoch_unref(ep);
}

/* Run in a child with its own mounts: a tmpfs of @pages pages is full. */
static int
write_in_a_full_tmpfs(const char *dir)
{
	struct err e = ERR_INIT;
	struct epoch *ep;
	char path[128];
	int fd;

	(void)snprintf(path, sizeof path, "%s/epoch", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0 || !epoch_format(fd, 8 * CHUNK_64, G64, &e) ||
	    !epoch_open(fd, &ep, &e))
		return 2;
	/* header and summary took two pages, two are left */
	for (uint64_t at = 0; at < 8 * CHUNK_64; at += CHUNK_64)
		epoch_set(ep, at + G64, 1);
	if (epoch_next_dirty(ep, 0, CHUNK_64) != G64 ||
	    epoch_next_clean(ep, G64, CHUNK_64) != 2 * G64)
		return 3; /* the first has its bits */
	if (epoch_next_dirty(ep, 7 * CHUNK_64, 8 * CHUNK_64) != 7 * CHUNK_64 ||
	    epoch_next_clean(ep, 7 * CHUNK_64, 8 * CHUNK_64) != 8 * CHUNK_64)
		return 4; /* the last is all changed */
	epoch_unref(ep);
	return 0;
}

static void
rule_2_a_full_tmpfs_costs_precision_and_raises_no_sigbus(void **s)
{
	char dir[] = "/tmp/stillpoint-test-XXXXXX";
	int status, r;
	pid_t pid;

	(void)s;
	assert_non_null(mkdtemp(dir));
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		if (unshare(CLONE_NEWNS) < 0 ||
		    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
		    mount("none", dir, "tmpfs", 0, "size=16k") < 0)
			_exit(77);
		_exit(write_in_a_full_tmpfs(dir));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	(void)rmdir(dir);
	assert_true(WIFEXITED(status));
	r = WEXITSTATUS(status);
	if (r == 77) {
		print_message("no right to mount a small tmpfs\n");
		skip();
	}
	assert_int_equal(r, 0);
}

static void
rule_3_what_is_all_changed_never_becomes_bits_again(void **s)
{
	struct epoch *ep = epoch_make(CHUNK_64, G64);

	(void)s;
	fault_fallocate(ENOSPC, 0, 1);
	epoch_set(ep, G64, 1);
	fault_fallocate(0, 0, 0); /* there is room again */
	epoch_set(ep, 9 * G64, 1);
	assert_int_equal(epoch_next_clean(ep, 0, CHUNK_64), CHUNK_64);
	epoch_unref(ep);
}

/* Both processes map one file. */
static void
rule_3_the_other_process_may_have_moved_the_summary_first(void **s)
{
	struct err e = ERR_INIT;
	struct epoch *a = epoch_make(CHUNK_64, G64), *b;

	(void)s;
	assert_ok(epoch_open(dup(epoch_fd(a)), &b, &e), &e);
	epoch_set(a, G64, 1);
	fault_fallocate(ENOSPC, 0, 1); /* would make it all changed */
	epoch_set(b, 3 * G64, 1);
	assert_int_equal(fault_fallocate_calls(), 0);
	assert_int_equal(epoch_next_clean(a, G64, CHUNK_64), 2 * G64);
	assert_true(epoch_any(a, 3 * G64, 1));
	fault_fallocate(0, 0, 0);
	epoch_unref(a);
	epoch_unref(b);
}

static void
rule_4_bits_are_only_ever_set(void **s)
{
	struct epoch *ep = epoch_make(GiB, G64);

	(void)s;
	for (uint64_t g = 0; g < 200; g += 3)
		epoch_set(ep, g * G64, 1);
	epoch_set(ep, 50 * G64, 20 * G64);
	for (uint64_t g = 0; g < 200; g++)
		assert_int_equal(epoch_any(ep, g * G64, 1),
				 g % 3 == 0 || (g >= 50 && g < 70));
	epoch_unref(ep);
}

static void
set_fifth(void *arg)
{
	epoch_set(arg, 5 * G64, 1);
}

/* Two bits of one word: one setter is parked with the old word in its hand. */
static void
rule_4_a_bit_does_not_undo_its_neighbours(void **s)
{
	struct epoch *ep = epoch_make(GiB, G64);
	struct actor a;

	(void)s;
	step_reset();
	step_arm("epoch.set");
	actor_start(&a, set_fifth, ep);
	step_wait_parked("epoch.set");
	epoch_set(ep, 4 * G64, 1);
	step_release("epoch.set");
	actor_join(&a);
	assert_int_equal(epoch_next_dirty(ep, 0, GiB), 4 * G64);
	assert_int_equal(epoch_next_clean(ep, 4 * G64, GiB), 6 * G64);
	epoch_unref(ep);
	step_end();
}

/* The same with many threads, for the sake of the thread sanitizer. */
struct setter {
	pthread_t thread;
	struct epoch *ep;
	unsigned i;
};

static void *
set_every_eighth(void *arg)
{
	struct setter *t = arg;

	for (uint64_t g = t->i; g < 40000; g += 8)
		epoch_set(t->ep, g * 512, 512);
	return NULL;
}

static void
rule_4_no_bit_is_lost_when_threads_set_neighbours(void **s)
{
	struct epoch *ep = epoch_make(40000 * 512, 512);
	struct setter t[8];

	(void)s;
	for (unsigned i = 0; i < 8; i++) {
		t[i] = (struct setter){ .ep = ep, .i = i };
		assert_int_equal(pthread_create(&t[i].thread, NULL,
						set_every_eighth, &t[i]),
				 0);
	}
	for (unsigned i = 0; i < 8; i++)
		(void)pthread_join(t[i].thread, NULL);
	assert_int_equal(epoch_next_clean(ep, 0, 40000 * 512), 40000 * 512);
	epoch_unref(ep);
}

/* --- edges ------------------------------------------------------------------ */

static void
a_disk_that_is_no_multiple_of_anything_has_a_short_last_granule(void **s)
{
	uint64_t size = GiB + 512;
	struct epoch *ep = epoch_make(size, G64);

	(void)s;
	epoch_set(ep, size - 1, 1);
	assert_int_equal(epoch_next_dirty(ep, 0, size), GiB);
	assert_int_equal(epoch_next_clean(ep, GiB, size), size);
	assert_int_equal(epoch_next_dirty(ep, 0, UINT64_MAX), GiB);
	assert_int_equal(epoch_next_clean(ep, GiB, UINT64_MAX), size);
	assert_true(epoch_any(ep, size - 512, 4096));
	assert_false(epoch_any(ep, size, 4096));
	epoch_set(ep, 0, size);
	assert_int_equal(epoch_next_clean(ep, 0, size), size);
	epoch_unref(ep);
}

static void
a_write_of_no_length_changes_nothing(void **s)
{
	struct epoch *ep = epoch_make(GiB, G64);

	(void)s;
	epoch_set(ep, 0, 0);
	epoch_set(ep, GiB, 0);
	assert_int_equal(epoch_next_dirty(ep, 0, GiB), GiB);
	epoch_unref(ep);
}

static void
an_empty_disk_has_an_epoch(void **s)
{
	struct epoch *ep = epoch_make(0, G64);

	(void)s;
	assert_int_equal(epoch_next_dirty(ep, 0, UINT64_MAX), 0);
	epoch_unref(ep);
}

static void
an_epoch_of_16_tib_is_made_and_scanned_in_no_time(void **s)
{
	struct epoch *ep;
	struct timespec t0, t1;
	double took;

	(void)s;
	(void)clock_gettime(CLOCK_MONOTONIC, &t0);
	ep = epoch_make(16 * TiB, G64);
	/* one byte for each of 8192 chunks, and the header */
	assert_int_equal(bytes_used(epoch_fd(ep)), 3 * 4096);
	epoch_set(ep, 15 * TiB, 1);
	assert_int_equal(bytes_used(epoch_fd(ep)), 4 * 4096);
	for (int i = 0; i < 10; i++)
		assert_int_equal(epoch_next_dirty(ep, 0, 16 * TiB), 15 * TiB);
	(void)clock_gettime(CLOCK_MONOTONIC, &t1);
	took = (double)(t1.tv_sec - t0.tv_sec) +
	       (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
	assert_true(took < 0.25);
	epoch_unref(ep);
}

static void
the_granularity_has_two_edges(void **s)
{
	struct err e = ERR_INIT;
	const char *no = "an epoch cannot have this geometry: Invalid argument";
	int fd = tmpfs_file();

	(void)s;
	assert_fails(epoch_format(fd, GiB, 256, &e), &e, no);
	assert_fails(epoch_format(fd, GiB, UINT64_C(1) << 32, &e), &e, no);
	assert_fails(epoch_format(fd, GiB, 3 * 4096, &e), &e, no);
	assert_fails(epoch_format(fd, GiB, 0, &e), &e, no);
	assert_fails(epoch_format(fd, (UINT64_C(1) << 62) + 1, G64, &e), &e,
		     no);
	assert_ok(epoch_format(fd, GiB, 512, &e), &e);
	assert_ok(epoch_format(fd, GiB, UINT64_C(1) << 31, &e), &e);
	(void)close(fd);
}

/* Overwrite @len bytes of a good epoch's header; what does open say? */
static void
open_with_header(size_t at, const void *bytes, size_t len, off_t grow,
		 const char *text)
{
	struct err e = ERR_INIT;
	struct epoch *ep;
	int fd = tmpfs_file();
	struct stat st;

	assert_ok(epoch_format(fd, GiB, G64, &e), &e);
	assert_int_equal(pwrite(fd, bytes, len, (off_t)at), len);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(ftruncate(fd, st.st_size + grow), 0);
	assert_fails_with(epoch_open(fd, &ep, &e), &e, text);
	assert_int_equal(fcntl(fd, F_GETFD), -1); /* consumed */
}

static void
a_file_that_is_no_epoch_of_ours_is_refused(void **s)
{
	struct err e = ERR_INIT;
	struct epoch *ep;
	uint32_t v2 = 2, bits = 8, bits_high = 32;
	uint64_t huge = UINT64_MAX, chunks = 2;

	(void)s;
	assert_fails(epoch_open(tmpfs_file(), &ep, &e), &e,
		     "not an epoch file");
	open_with_header(0, "WHATEVER", 8, 0, "not an epoch file");
	open_with_header(8, &v2, 4, 0, "unknown version 2");
	open_with_header(12, &bits, 4, 0, "impossible geometry");
	open_with_header(12, &bits_high, 4, 0, "impossible geometry");
	open_with_header(16, &huge, 8, 0, "impossible geometry");
	open_with_header(24, &chunks, 8, 0, "impossible geometry");
	open_with_header(0, "", 0, 4096, "wrong length");
	open_with_header(0, "", 0, -1, "wrong length");
}

static void
a_merge_rounds_outwards_and_takes_all(void **s)
{
	struct epoch *fine = epoch_make(GiB + 512, 4096);
	struct epoch *coarse = epoch_make(GiB + 512, MiB);
	struct epoch *back = epoch_make(GiB + 512, 4096);

	(void)s;
	epoch_set(fine, 5 * MiB + 4096, 1);
	epoch_set(fine, GiB, 512);
	epoch_merge(coarse, fine);
	assert_int_equal(epoch_next_dirty(coarse, 0, GiB), 5 * MiB);
	assert_int_equal(epoch_next_clean(coarse, 5 * MiB, GiB), 6 * MiB);
	assert_true(epoch_any(coarse, GiB, 512));
	epoch_merge(back, coarse);
	assert_int_equal(epoch_next_dirty(back, 0, GiB), 5 * MiB);
	assert_int_equal(epoch_next_clean(back, 5 * MiB, GiB), 6 * MiB);
	epoch_unref(fine);
	epoch_unref(coarse);
	epoch_unref(back);
}

static void
a_reference_keeps_the_map(void **s)
{
	struct epoch *ep = epoch_make(GiB, G64), *again = epoch_ref(ep);

	(void)s;
	epoch_set(ep, 0, 1);
	epoch_unref(ep);
	assert_true(epoch_any(again, 0, 1));
	assert_int_equal(epoch_size(again), GiB);
	assert_int_equal(epoch_granularity(again), G64);
	epoch_unref(again);
}

static void
a_union_of_nothing_is_everything(void **s)
{
	struct dirty d = { .size = 10000 * 512, .unit = G64 };
	uint64_t start, end;

	(void)s;
	assert_true(dirty_next(&d, 512, &start, &end));
	assert_int_equal(start, 512);
	assert_int_equal(end, d.size);
	assert_true(dirty_any(&d, 0, 1));
	assert_false(dirty_next(&d, d.size, &start, &end));
	assert_int_equal(dirty_count(&d), div_up(d.size, G64));
}

static void
a_unit_is_dirty_as_a_whole_and_cut_at_the_end_of_the_disk(void **s)
{
	uint64_t size = GiB + 512, start, end;
	struct epoch *ep = epoch_make(size, 4096);
	struct dirty d = { .v = &ep, .n = 1, .size = size, .unit = MiB };

	(void)s;
	epoch_set(ep, 7 * MiB - 1, 1); /* the end of unit 6 */
	epoch_set(ep, GiB + 511, 1);
	assert_true(dirty_next(&d, 0, &start, &end));
	assert_int_equal(start, 6 * MiB);
	assert_int_equal(end, 7 * MiB);
	assert_true(dirty_next(&d, end, &start, &end));
	assert_int_equal(start, GiB);
	assert_int_equal(end, size);
	assert_false(dirty_next(&d, end, &start, &end));
	/* from the middle of a unit on */
	assert_true(dirty_next(&d, 6 * MiB + 100, &start, &end));
	assert_int_equal(start, 6 * MiB + 100);
	assert_int_equal(dirty_count(&d), 2);
	assert_true(dirty_any(&d, 6 * MiB, 1));
	assert_false(dirty_any(&d, 7 * MiB, 1));
	epoch_unref(ep);
}

static void
a_bounded_look_finds_nothing_behind_its_limit(void **s)
{
	struct epoch *ep = epoch_make(GiB, G64);
	struct dirty d = { .v = &ep, .n = 1, .size = GiB, .unit = G64 };
	uint64_t start, end;

	(void)s;
	epoch_set(ep, 10 * G64, 5 * G64);
	assert_false(dirty_next_in(&d, 0, 10 * G64, &start, &end));
	assert_true(dirty_next_in(&d, 0, 10 * G64 + 1, &start, &end));
	assert_int_equal(start, 10 * G64);
	assert_int_equal(end, 11 * G64);
	assert_true(dirty_next_in(&d, 12 * G64, GiB, &start, &end));
	assert_int_equal(start, 12 * G64);
	assert_int_equal(end, 15 * G64);
	epoch_unref(ep);
}

/* --- the model --------------------------------------------------------------- */

#define SECTORS 6000
#define SIZE    (SECTORS * UINT64_C(512))

struct model {
	struct epoch *ep[3];
	bool bit[3][SECTORS]; /* dirty, by sector */
	bool all[SECTORS]; /* the union, rounded to the unit */
	struct dirty d;
};

static uint64_t
below(uint64_t n)
{
	return (uint64_t)rand() % n;
}

static void
model_set(struct model *m, unsigned i, uint64_t off, uint64_t len)
{
	uint64_t g = epoch_granularity(m->ep[i]);
	uint64_t at = round_down(off, g);
	uint64_t end = min_u64(round_up(off + len, g), SIZE);

	epoch_set(m->ep[i], off, len);
	for (; at < end; at += 512)
		m->bit[i][at / 512] = true;
}

static void
model_unite(struct model *m)
{
	uint64_t per = m->d.unit / 512;

	memset(m->all, 0, sizeof m->all);
	for (size_t k = 0; k < SECTORS; k++)
		for (size_t i = 0; i < m->d.n; i++)
			if (m->bit[i][k])
				for (uint64_t u = k / per * per;
				     u < (k / per + 1) * per && u < SECTORS;
				     u++)
					m->all[u] = true;
}

static uint64_t
model_find(const bool *v, uint64_t off, uint64_t end, bool dirty)
{
	while (off < end && v[off / 512] != dirty)
		off = min_u64(end, (off / 512 + 1) * 512);
	return off;
}

static void
compare_one(const struct model *m, unsigned i)
{
	uint64_t a = below(SIZE), b = a + below(SIZE - a) + 1;

	b = min_u64(b, SIZE);
	assert_int_equal(epoch_next_dirty(m->ep[i], a, b),
			 model_find(m->bit[i], a, b, true));
	assert_int_equal(epoch_next_clean(m->ep[i], a, b),
			 model_find(m->bit[i], a, b, false));
	assert_int_equal(epoch_any(m->ep[i], a, b - a),
			 model_find(m->bit[i], a, b, true) < b);
}

/* Walk with dirty_next and with the model; ranges may come in pieces. */
static void
compare_union(const struct model *m)
{
	uint64_t at = 0, start, end, units = 0;
	bool seen[SECTORS] = { 0 };

	while (dirty_next(&m->d, at, &start, &end)) {
		assert_true(start >= at && end > start && end <= SIZE);
		for (uint64_t k = start; k < end; k += 512)
			seen[k / 512] = true;
		at = end;
	}
	assert_memory_equal(seen, m->all, sizeof seen);
	for (uint64_t k = 0; k < SIZE; k += m->d.unit)
		units += m->all[k / 512];
	assert_int_equal(dirty_count(&m->d), units);
	for (int i = 0; i < 20; i++) {
		uint64_t a = below(SIZE), len = below(SIZE - a) + 1;
		uint64_t lim = a + len;
		uint64_t want = model_find(m->all, a, lim, true);
		bool found = dirty_next_in(&m->d, a, lim, &start, &end);

		assert_int_equal(dirty_any(&m->d, a, len), want < lim);
		assert_int_equal(found, want < lim);
		if (!found)
			continue;
		assert_int_equal(start, want);
		assert_true(end > start && end <= round_up(lim, m->d.unit));
		assert_int_equal(model_find(m->all, start, end, false), end);
	}
}

static void
one_model_run(unsigned seed)
{
	struct model m = { 0 };

	srand(seed);
	for (unsigned i = 0; i < 3; i++)
		m.ep[i] = epoch_make(SIZE, UINT64_C(512) << below(9));
	m.d = (struct dirty){ .v = m.ep,
			      .n = 1 + below(3),
			      .size = SIZE,
			      .unit = UINT64_C(512) << below(9) };
	for (int step = 0; step < 12; step++) {
		uint64_t off = below(SIZE);
		uint64_t len = 1 + below(min_u64(SIZE - off, 100000));

		model_set(&m, (unsigned)below(3), off, len);
		for (unsigned i = 0; i < 3; i++)
			compare_one(&m, i);
		model_unite(&m);
		compare_union(&m);
	}
	for (unsigned i = 0; i < 3; i++)
		epoch_unref(m.ep[i]);
}

static void
epochs_and_their_unions_are_what_the_model_says(void **s)
{
	(void)s;
	for (unsigned seed = 1; seed <= 150; seed++)
		one_model_run(seed);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			rule_1_every_granule_that_a_write_touches_is_dirty_when_set_returns),
		cmocka_unit_test(
			rule_2_a_chunk_whose_bits_cannot_be_allocated_is_all_changed),
		cmocka_unit_test(
			rule_2_a_page_is_allocated_before_the_first_bit_and_once),
		cmocka_unit_test(
			an_allocation_that_a_signal_interrupts_is_tried_again),
		cmocka_unit_test(
			rule_2_a_full_tmpfs_costs_precision_and_raises_no_sigbus),
		cmocka_unit_test(
			rule_3_what_is_all_changed_never_becomes_bits_again),
		cmocka_unit_test(
			rule_3_the_other_process_may_have_moved_the_summary_first),
		cmocka_unit_test(rule_4_bits_are_only_ever_set),
		cmocka_unit_test(rule_4_a_bit_does_not_undo_its_neighbours),
		cmocka_unit_test(
			rule_4_no_bit_is_lost_when_threads_set_neighbours),
		cmocka_unit_test(
			a_disk_that_is_no_multiple_of_anything_has_a_short_last_granule),
		cmocka_unit_test(a_write_of_no_length_changes_nothing),
		cmocka_unit_test(an_empty_disk_has_an_epoch),
		cmocka_unit_test(
			an_epoch_of_16_tib_is_made_and_scanned_in_no_time),
		cmocka_unit_test(the_granularity_has_two_edges),
		cmocka_unit_test(a_file_that_is_no_epoch_of_ours_is_refused),
		cmocka_unit_test(a_merge_rounds_outwards_and_takes_all),
		cmocka_unit_test(a_reference_keeps_the_map),
		cmocka_unit_test(a_union_of_nothing_is_everything),
		cmocka_unit_test(
			a_unit_is_dirty_as_a_whole_and_cut_at_the_end_of_the_disk),
		cmocka_unit_test(a_bounded_look_finds_nothing_behind_its_limit),
		cmocka_unit_test(
			epochs_and_their_unions_are_what_the_model_says),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

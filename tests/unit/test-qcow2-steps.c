/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The rules of qcow2-priv.h that are about threads and about the second open
 * of an image: one thread is parked where it hurts while others go on.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bits.h"
#include "qcow2-rig.h"
#include "step.h"
#include "unit.h"

#define CLUSTER (64 * KiB)
#define DISK    "disk.qcow2"

/* A request in a thread of its own. */
struct request {
	struct block *b;
	uint64_t off, len;
	unsigned char value; /* to write */
	unsigned char *buf; /* owned */
	int r;
	struct actor actor;
};

static void
request_init(struct request *q, struct block *b, uint64_t off, uint64_t len,
	     unsigned char value)
{
	*q = (struct request){ .b = b, .off = off, .len = len };
	q->buf = xzalloc(len);
	q->value = value;
	memset(q->buf, value, len);
}

static void
run_read(void *arg)
{
	struct request *q = arg;

	q->r = block_pread(q->b, q->buf, q->len, q->off);
}

static void
run_write(void *arg)
{
	struct request *q = arg;

	q->r = block_pwrite(q->b, q->buf, q->len, q->off);
}

static void
run_flush(void *arg)
{
	struct request *q = arg;

	q->r = block_flush(q->b);
}

/* Are all bytes @value? */
static bool
is_all(const unsigned char *buf, size_t len, unsigned char value)
{
	for (size_t i = 0; i < len; i++)
		if (buf[i] != value)
			return false;
	return true;
}

static void
fill(struct block *b, uint64_t off, uint64_t len, unsigned char value)
{
	unsigned char *buf = xzalloc(len);

	memset(buf, value, len);
	assert_int_equal(block_pwrite(b, buf, len, off), 0);
	free(buf);
}

static void
expect(struct block *b, uint64_t off, uint64_t len, unsigned char value)
{
	unsigned char *buf = xzalloc(len);

	assert_int_equal(block_pread(b, buf, len, off), 0);
	assert_true(is_all(buf, len, value));
	free(buf);
}

static void
pack(struct block *b, uint64_t off, uint64_t len, unsigned char value)
{
	unsigned char *buf = xzalloc(len);

	memset(buf, value, len);
	assert_int_equal(block_compress(b, buf, len, off), 0);
	free(buf);
}

static void
snapshot(struct block *b, const char *name)
{
	struct qcow2_snapshot_info info = { .name = name };

	assert_int_equal(qcow2_snapshot_create(b, &info), 0);
}

static void
new_image(const char *options)
{
	rig_run("qemu-img create -q -f qcow2 -o %s " DISK " 64M", options);
}

/* --- rule 5: each way to give up space -------------------------------------------- */

struct way {
	const char *park; /* where a reader has seen the old mapping */
	void (*prepare)(struct block *b);
	void (*give_up)(struct block *b);
};

static void
one_cluster(struct block *b)
{
	fill(b, 0, CLUSTER, 0x11);
}

static void
one_packed(struct block *b)
{
	pack(b, 0, CLUSTER, 0x11);
}

static void
one_shared(struct block *b)
{
	fill(b, 0, CLUSTER, 0x11);
	snapshot(b, "s");
}

static void
discard_it(struct block *b)
{
	assert_int_equal(block_discard(b, 0, CLUSTER), 0);
}

static void
zero_it(struct block *b)
{
	assert_int_equal(block_zero(b, 0, CLUSTER, BLOCK_ZERO_MAY_UNMAP), 0);
}

static void
rewrite_it(struct block *b)
{
	fill(b, 0, 512, 0x22);
}

static void
pack_it(struct block *b)
{
	pack(b, 0, CLUSTER, 0x22);
}

/* The write copies cluster and table; then nobody else has the old ones. */
static void
rewrite_and_delete(struct block *b)
{
	fill(b, 0, 512, 0x22);
	assert_int_equal(qcow2_snapshot_delete(b, 0), 0);
}

static const struct way ways[] = {
	{ "qcow2.mapped", one_cluster, discard_it },
	{ "qcow2.mapped", one_cluster, zero_it },
	{ "qcow2.mapped", one_cluster, pack_it },
	{ "qcow2.mapped", one_packed, rewrite_it },
	{ "qcow2.mapped", one_packed, discard_it },
	{ "qcow2.mapped", one_packed, pack_it },
	{ "qcow2.mapped", one_shared, rewrite_and_delete },
	{ "qcow2.table-found", one_shared, rewrite_and_delete },
};

/* Use whatever is free, several times over. */
static void
use_free_space(struct block *b)
{
	assert_int_equal(block_flush(b), 0);
	fill(b, 16 * MiB, 8 * MiB, 0x33);
	assert_int_equal(block_flush(b), 0);
	fill(b, 24 * MiB, 8 * MiB, 0x33);
}

/* A second open has seen a mapping; its space is given up; does it still find
 * what was there?
 */
static bool
is_still_there(const struct way *w, bool hold)
{
	struct block *b, *live;
	struct request q;
	bool same;

	step_reset();
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	w->prepare(b);
	block_free(b); /* and with it the packing: counts are true */
	b = rig_open(DISK, NULL);
	live = rig_open_live(DISK, NULL);
	if (hold)
		block_hold(b);
	request_init(&q, live, 0, CLUSTER, 0);
	step_arm(w->park);
	actor_start(&q.actor, run_read, &q);
	step_wait_parked(w->park);
	w->give_up(b);
	use_free_space(b);
	step_release(w->park);
	actor_join(&q.actor);
	same = q.r == 0 && is_all(q.buf, CLUSTER, 0x11);
	if (hold)
		block_release(b);
	step_end();
	block_free(live);
	block_free(b);
	rig_run("qemu-img check -q " DISK);
	free(q.buf);
	return same;
}

static void
space_that_is_given_up_is_held(void **s)
{
	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++)
		if (!is_still_there(&ways[i], true))
			fail_msg("way %zu", i);
}

/* The other test would not notice anything if the space were never used. */
static void
space_that_nobody_holds_is_used_again(void **s)
{
	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(ways); i++)
		if (is_still_there(&ways[i], false))
			fail_msg("way %zu", i);
}

/* A view outlives the data plane, or its node there: whoever closes the image
 * may not free what is held, nor may who opens it next use it.
 */
static void
space_stays_held_when_the_image_is_closed(void **s)
{
	struct block *b, *live;
	struct request q;

	(void)s;
	step_reset();
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	one_packed(b);
	block_free(b);
	b = rig_open(DISK, NULL);
	live = rig_open_live(DISK, NULL);
	block_hold(b);
	request_init(&q, live, 0, CLUSTER, 0);
	step_arm("qcow2.mapped");
	actor_start(&q.actor, run_read, &q);
	step_wait_parked("qcow2.mapped");
	rewrite_it(b);
	assert_int_equal(block_flush(b), 0);
	block_free(b);
	b = rig_open(DISK, NULL);
	use_free_space(b);
	step_release("qcow2.mapped");
	actor_join(&q.actor);
	assert_int_equal(q.r, 0);
	assert_true(is_all(q.buf, CLUSTER, 0x11));
	step_end();
	block_free(live);
	block_free(b);
	assert_int_equal(rig_status("qemu-img check -q " DISK " >leaks"), 3);
	free(q.buf);
}

/* A refcount may not go down before the barrier. */
static void
space_is_freed_after_a_flush_only(void **s)
{
	struct block *b;

	(void)s;
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	fill(b, 0, 4 * MiB, 1);
	assert_int_equal(block_flush(b), 0);
	rig_run("stat -c %%b " DISK " >before");
	assert_int_equal(block_discard(b, 0, 4 * MiB), 0);
	rig_run("stat -c %%b " DISK " >after; cmp -s before after");
	assert_int_equal(block_flush(b), 0);
	rig_run("bash -c 'test $(stat -c %%b " DISK
		") -lt $(($(cat before) - 8000))'");
	block_free(b);
	rig_run("qemu-img check -q " DISK);
}

/* --- rule 3 ------------------------------------------------------------------------- */

static void
a_mapping_is_published_after_its_data(void **s)
{
	struct block *b, *live;
	struct request w;

	(void)s;
	step_reset();
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	fill(b, MiB, 512, 9); /* the table is there */
	request_init(&w, b, 0, CLUSTER, 0x44);
	step_arm("qcow2.map-set");
	actor_start(&w.actor, run_write, &w);
	step_wait_parked("qcow2.map-set");
	/* the data are in the file by now, and not mapped */
	live = rig_open_live(DISK, NULL);
	expect(live, 0, CLUSTER, 0);
	rig_run("bash -c \"grep -qaP '\\x44{4096}' " DISK "\"");
	step_release("qcow2.map-set");
	actor_join(&w.actor);
	assert_int_equal(w.r, 0);
	assert_int_equal(block_refresh(live), 0);
	expect(live, 0, CLUSTER, 0x44);
	step_end();
	block_free(live);
	block_free(b);
	free(w.buf);
}

/* --- rule 7 ------------------------------------------------------------------------- */

static struct block *open_crash(struct crash_disk **d);

static void
an_entry_is_written_with_one_call(void **s)
{
	struct crash_disk *d;
	struct block *b;

	(void)s;
	new_image("extended_l2=on");
	b = open_crash(&d);
	fill(b, 0, 2048, 1);
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(d->changes, 0);
	fill(b, CLUSTER, 2048, 2); /* a subcluster of another cluster */
	assert_int_equal(d->changes, 2); /* the data, the entry */
	block_free(b);
}

/* --- who waits for whom ------------------------------------------------------------- */

static void
writers_to_mapped_clusters_do_not_wait(void **s)
{
	struct block *b;
	struct request w;

	(void)s;
	step_reset();
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	fill(b, 0, 2 * CLUSTER, 1);
	request_init(&w, b, 0, 4096, 2);
	step_arm("qcow2.in-place");
	actor_start(&w.actor, run_write, &w);
	step_wait_parked("qcow2.in-place");
	fill(b, 8192, 4096, 3); /* in the same cluster */
	expect(b, 8192, 4096, 3);
	step_release("qcow2.in-place");
	actor_join(&w.actor);
	expect(b, 0, 4096, 2);
	step_end();
	block_free(b);
	free(w.buf);
}

static void
an_allocating_write_holds_back_its_cluster_only(void **s)
{
	struct block *b;
	struct request w, same;

	(void)s;
	step_reset();
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	fill(b, MiB, 512, 1);
	request_init(&w, b, 0, 4096, 2);
	request_init(&same, b, 8192, 4096, 3);
	step_arm("qcow2.data-written");
	actor_start(&w.actor, run_write, &w);
	step_wait_parked("qcow2.data-written");
	fill(b, CLUSTER, 4096, 4); /* another cluster */
	fill(b, MiB, 4096, 5); /* a mapped one */
	actor_start(&same.actor, run_write, &same);
	assert_false(same.actor.returned);
	step_release("qcow2.data-written");
	actor_join(&w.actor);
	actor_join(&same.actor);
	expect(b, 0, 4096, 2);
	expect(b, 4096, 4096, 0);
	expect(b, 8192, 4096, 3);
	step_end();
	block_free(b);
	free(w.buf);
	free(same.buf);
}

/* A load that read the table before an entry changed must not publish what it
 * read after the change.
 */
static void
a_table_that_is_being_loaded_takes_part_in_changes(void **s)
{
	struct block *b;
	struct request r, w;

	(void)s;
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	fill(b, 0, CLUSTER, 1);
	block_free(b);
	step_reset();
	b = rig_open(DISK, NULL); /* nothing is cached */
	fill(b, 40 * MiB, 512, 1); /* a reservation is there */
	block_free(b);
	b = rig_open(DISK, NULL);
	request_init(&r, b, 0, 512, 0);
	request_init(&w, b, 10 * MiB, 512, 7);
	step_arm("qcow2.slice-read");
	actor_start(&r.actor, run_read, &r);
	step_wait_parked("qcow2.slice-read");
	actor_start(&w.actor, run_write, &w);
	assert_false(w.actor.returned);
	step_release("qcow2.slice-read");
	actor_join(&r.actor);
	actor_join(&w.actor);
	assert_int_equal(w.r, 0);
	expect(b, 10 * MiB, 512, 7);
	step_end();
	block_free(b);
	free(r.buf);
	free(w.buf);
}

static void
flushes_that_wait_share_one(void **s)
{
	struct block *b;
	struct request q[5];
	unsigned before;

	(void)s;
	step_reset();
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	fill(b, 0, 512, 1);
	before = step_passed("qcow2.flush");
	for (unsigned i = 0; i < 5; i++)
		request_init(&q[i], b, 0, 1, 0);
	step_arm("qcow2.flush");
	actor_start(&q[0].actor, run_flush, &q[0]);
	step_wait_parked("qcow2.flush");
	for (unsigned i = 1; i < 5; i++) {
		actor_start(&q[i].actor, run_flush, &q[i]);
		assert_true(actor_is_held_at(&q[i].actor, "qcow2.flush", 0));
	}
	assert_false(q[1].actor.returned);
	step_release("qcow2.flush");
	for (unsigned i = 0; i < 5; i++) {
		actor_join(&q[i].actor);
		assert_int_equal(q[i].r, 0);
		free(q[i].buf);
	}
	assert_int_equal(step_passed("qcow2.flush"), before + 2);
	step_end();
	block_free(b);
}

/* --- rules 8, 9 and 10 ---------------------------------------------------------------- */

static struct block *
open_crash(struct crash_disk **d)
{
	struct qcow2_options o = { 0 };
	struct err e = ERR_INIT;
	struct block *b;
	char path[128];

	(void)snprintf(path, sizeof path, "%s/" DISK, rig_dir());
	*d = crash_disk_load(path, 16 * MiB);
	o.file = &(*d)->block;
	assert_ok(qcow2_open(&o, &b, &e), &e);
	return b;
}

static void
after_a_failed_metadata_write_nothing_is_written(void **s)
{
	struct crash_disk *d;
	struct block *b;
	char buf[512] = { 1 };

	(void)s;
	new_image("compat=1.1");
	b = open_crash(&d);
	fill(b, 0, 512, 1);
	d->write_os = EIO;
	d->write_skip = 1; /* the data, then the entry */
	assert_int_equal(block_pwrite(b, buf, 512, CLUSTER), EIO);
	d->write_os = 0;
	assert_int_equal(block_pwrite(b, buf, 512, 0), EIO);
	assert_int_equal(block_zero(b, 0, 512, 0), EIO);
	assert_int_equal(block_flush(b), EIO);
	expect(b, 0, 512, 1);
	block_free(b);
}

static void
after_a_failed_flush_nothing_is_written(void **s)
{
	struct crash_disk *d;
	struct block *b;
	char buf[512] = { 1 };

	(void)s;
	new_image("compat=1.1");
	b = open_crash(&d);
	fill(b, 0, 512, 1);
	d->flush_os = EIO;
	assert_int_equal(block_flush(b), EIO);
	d->flush_os = 0;
	assert_int_equal(block_pwrite(b, buf, 512, 0), EIO);
	assert_int_equal(block_flush(b), EIO);
	block_free(b);
}

static void
a_full_disk_is_no_failure(void **s)
{
	struct crash_disk *d;
	struct block *b;
	char buf[512] = { 7 };

	(void)s;
	new_image("compat=1.1");
	b = open_crash(&d);
	fill(b, 0, 512, 1);
	for (unsigned skip = 0; skip < 2; skip++) {
		d->write_os = ENOSPC;
		d->write_skip = skip;
		assert_int_equal(block_pwrite(b, buf, 512, 2 * CLUSTER),
				 ENOSPC);
		d->write_os = 0;
	}
	assert_int_equal(block_pwrite(b, buf, 512, 2 * CLUSTER), 0);
	assert_int_equal(block_flush(b), 0);
	(void)rig_check(d, "after a full disk");
	block_free(b);
}

/* Point the first guest cluster's entry at @host. */
static void
point_at(struct crash_disk *d, uint64_t host)
{
	uint64_t l1 = be64_get(d->now + be64_get(d->now + 40));
	uint64_t l2 = l1 & QCOW2_L1_OFFSET;

	be64_put(d->now + l2, host | QCOW2_COPIED);
}

static void
data_do_not_land_on_metadata(void **s)
{
	struct crash_disk *d;
	struct block *b;
	unsigned char block[512], buf[512] = { 1 };

	(void)s;
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	fill(b, 0, 512, 1);
	block_free(b);
	for (uint64_t host = 0; host < 4 * CLUSTER; host += CLUSTER) {
		if (!host)
			continue; /* that is no mapping */
		b = open_crash(&d);
		point_at(d, host);
		memcpy(block, d->now + host, sizeof block);
		assert_int_equal(block_pwrite(b, buf, 512, 0), EIO);
		assert_memory_equal(block, d->now + host, sizeof block);
		/* and the image says so */
		assert_int_equal(be64_get(d->now + QCOW2_AT_INCOMPAT),
				 QCOW2_CORRUPT);
		block_free(b);
	}
}

static void
an_entry_without_sense_is_not_followed(void **s)
{
	struct crash_disk *d;
	struct block *b;
	char buf[512];

	(void)s;
	new_image("compat=1.1");
	b = rig_open(DISK, NULL);
	fill(b, 0, 512, 1);
	block_free(b);
	b = open_crash(&d);
	point_at(d, 512);
	assert_int_equal(block_pread(b, buf, 512, 0), EIO);
	assert_int_equal(block_pwrite(b, buf, 512, MiB), EIO);
	block_free(b);
	b = open_crash(&d);
	point_at(d, 8 * GiB); /* behind the end: no disk grows to it */
	assert_int_equal(block_pwrite(b, buf, 512, 0), EIO);
	block_free(b);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(space_that_is_given_up_is_held),
		cmocka_unit_test(space_that_nobody_holds_is_used_again),
		cmocka_unit_test(space_stays_held_when_the_image_is_closed),
		cmocka_unit_test(space_is_freed_after_a_flush_only),
		cmocka_unit_test(a_mapping_is_published_after_its_data),
		cmocka_unit_test(an_entry_is_written_with_one_call),
		cmocka_unit_test(writers_to_mapped_clusters_do_not_wait),
		cmocka_unit_test(
			an_allocating_write_holds_back_its_cluster_only),
		cmocka_unit_test(
			a_table_that_is_being_loaded_takes_part_in_changes),
		cmocka_unit_test(flushes_that_wait_share_one),
		cmocka_unit_test(
			after_a_failed_metadata_write_nothing_is_written),
		cmocka_unit_test(after_a_failed_flush_nothing_is_written),
		cmocka_unit_test(a_full_disk_is_no_failure),
		cmocka_unit_test(data_do_not_land_on_metadata),
		cmocka_unit_test(an_entry_without_sense_is_not_followed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

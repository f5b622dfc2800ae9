/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of the plugin's node: the numbered rules of node.h.
 */
#include "node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "block/throttle.h"
#include "epoch-made.h"
#include "fault.h"
#include "step.h"
#include "unit.h"

#define SIZE UINT64_C(1048576)

struct rig {
	struct node *node;
	struct mem_image *image; /* the node's */
	struct view *view[2];
};

static struct attached *
attached_make(struct mem_image *image, struct view **view, int store,
	      enum cbw_policy policy)
{
	struct err e = ERR_INIT;
	struct attached *a = xzalloc(sizeof *a);
	struct cbw_options o = { .image = &image->block,
				 .unit = 4096,
				 .store = store,
				 .policy = policy };
	int fd = tmpfs_file();

	assert_ok(view_format(fd, SIZE, &e), &e);
	assert_ok(view_open(fd, view, &e), &e);
	o.view = view_ref(*view);
	assert_ok(cbw_new(&o, &a->cbw, &e), &e);
	return a;
}

static void
rig_init(struct rig *r)
{
	step_reset();
	r->image = mem_image_new(SIZE);
	r->image->opaque = r;
	r->node = node_new("disk", &r->image->block);
	assert_non_null(r->node);
	r->node->epoch = epoch_make(SIZE, 4096);
	node_attach(r->node, attached_make(r->image, &r->view[0], tmpfs_file(),
					   CBW_BREAK_SNAPSHOT));
	node_attach(r->node, attached_make(r->image, &r->view[1], tmpfs_file(),
					   CBW_BREAK_SNAPSHOT));
}

static void
rig_destroy(struct rig *r)
{
	node_free(r->node);
	view_unref(r->view[0]);
	view_unref(r->view[1]);
	step_end();
}

/* The three ways in which a guest changes an image. */
enum change { WRITE, ZERO, DISCARD, CHANGES };

struct guest {
	struct rig *rig;
	enum change change;
	int r;
};

static int
change(struct rig *r, enum change c, uint64_t off, uint64_t len)
{
	static const char buf[4 * 4096] = { 1 };

	switch (c) {
	case WRITE: return node_pwrite(r->node, buf, len, off, false);
	case ZERO: return node_zero(r->node, off, len, 0, false);
	case DISCARD: return node_discard(r->node, off, len, false);
	case CHANGES: break;
	}
	return EINVAL;
}

static void
guest_changes(void *arg)
{
	struct guest *g = arg;

	g->r = change(g->rig, g->change, 8192, 4096);
}

static unsigned
changes_of(const struct mem_image *m)
{
	return m->writes + m->zeroes + m->discards;
}

static void
rule_1_every_change_waits_at_a_closed_gate(void **s)
{
	(void)s;
	for (enum change c = WRITE; c < CHANGES; c++) {
		struct rig r;
		struct guest g = { .rig = &r, .change = c };
		struct actor a;

		rig_init(&r);
		gate_close(&r.node->gate);
		actor_start(&a, guest_changes, &g);
		assert_true(actor_is_held_at(&a, "gate.wait", 1));
		assert_int_equal(changes_of(r.image), 0);
		assert_false(epoch_any(r.node->epoch, 0, SIZE));
		assert_int_equal(view_get(r.view[0], 2), VIEW_NEEDED);
		gate_open(&r.node->gate);
		actor_join(&a);
		assert_int_equal(g.r, 0);
		assert_int_equal(changes_of(r.image), 1);
		rig_destroy(&r);
	}
}

/* While the image changes, the gate must not be empty. */
static void
check_inside(struct mem_image *m, uint64_t off, uint64_t len)
{
	struct rig *r = m->opaque;

	(void)off;
	(void)len;
	assert_false(gate_wait_empty(&r->node->gate, 0));
}

static void
rule_1_the_image_changes_inside_the_gate(void **s)
{
	struct rig r;

	(void)s;
	rig_init(&r);
	r.image->before_write = check_inside;
	for (enum change c = WRITE; c < CHANGES; c++)
		assert_int_equal(change(&r, c, 8192, 4096), 0);
	assert_int_equal(changes_of(r.image), 3);
	assert_true(gate_wait_empty(&r.node->gate, 0));
	rig_destroy(&r);
}

static void
rule_1_all_steps_of_a_write_are_inside_the_gate(void **s)
{
	static const char *const places[] = { "node.tracked", "cbw.claimed",
					      "cbw.copied", "node.saved",
					      "node.written" };

	(void)s;
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		struct rig r;
		struct guest g = { .rig = &r, .change = WRITE };
		struct actor a;

		rig_init(&r);
		step_arm(places[i]);
		actor_start(&a, guest_changes, &g);
		step_wait_parked(places[i]);
		gate_close(&r.node->gate);
		assert_false(gate_wait_empty(&r.node->gate, 5));
		step_release(places[i]);
		assert_true(gate_wait_empty(&r.node->gate, 10000));
		gate_open(&r.node->gate);
		actor_join(&a);
		rig_destroy(&r);
	}
}

static void
check_tracked(struct mem_image *m, uint64_t off, uint64_t len)
{
	struct rig *r = m->opaque;

	for (uint64_t at = off / 4096 * 4096; at < off + len; at += 4096)
		assert_true(epoch_any(r->node->epoch, at, 1));
}

static void
rule_2_the_bits_are_set_before_the_image_changes(void **s)
{
	(void)s;
	for (enum change c = WRITE; c < CHANGES; c++) {
		struct rig r;

		rig_init(&r);
		r.image->before_write = check_tracked;
		assert_int_equal(change(&r, c, 4095, 4098), 0);
		assert_int_equal(changes_of(r.image), 1);
		assert_int_equal(epoch_next_clean(r.node->epoch, 0, SIZE),
				 3 * 4096);
		assert_false(
			epoch_any(r.node->epoch, 3 * 4096, SIZE - 3 * 4096));
		rig_destroy(&r);
	}
}

/* Part of it may have been written. */
static void
rule_2_a_write_that_fails_is_tracked_too(void **s)
{
	struct rig r;

	(void)s;
	rig_init(&r);
	r.image->write_os = EIO;
	for (enum change c = WRITE; c < CHANGES; c++) {
		assert_int_equal(change(&r, c, c * UINT64_C(8192), 512), EIO);
		assert_true(epoch_any(r.node->epoch, c * UINT64_C(8192), 512));
	}
	rig_destroy(&r);
}

static void
check_saved(struct mem_image *m, uint64_t off, uint64_t len)
{
	struct rig *r = m->opaque;

	for (uint64_t g = off / 4096; g * 4096 < off + len; g++) {
		assert_int_equal(view_get(r->view[0], g), VIEW_SAVED);
		assert_int_equal(view_get(r->view[1], g), VIEW_SAVED);
	}
}

static void
rule_3_every_view_has_saved_before_the_image_changes(void **s)
{
	(void)s;
	for (enum change c = WRITE; c < CHANGES; c++) {
		struct rig r;

		rig_init(&r);
		r.image->before_write = check_saved;
		assert_int_equal(change(&r, c, 4095, 4098), 0);
		assert_int_equal(changes_of(r.image), 1);
		rig_destroy(&r);
	}
}

static void
rule_3_a_write_that_cannot_be_saved_and_must_be_is_not_made(void **s)
{
	struct rig r;
	struct view *extra;

	(void)s;
	rig_init(&r);
	r.node->views->next->next = attached_make(
		r.image, &extra, dup(STDIN_FILENO), CBW_BREAK_GUEST_WRITE);
	r.image->read_os = EIO;
	for (enum change c = WRITE; c < CHANGES; c++)
		assert_int_equal(change(&r, c, 0, 4096), EIO);
	assert_int_equal(changes_of(r.image), 0);
	view_unref(extra);
	rig_destroy(&r);
}

static void
rule_3_a_view_that_breaks_does_not_keep_the_others_from_saving(void **s)
{
	struct rig r;

	(void)s;
	rig_init(&r);
	view_break(r.view[0], EIO);
	assert_int_equal(change(&r, WRITE, 0, 4096), 0);
	assert_int_equal(view_get(r.view[0], 0), VIEW_NEEDED);
	assert_int_equal(view_get(r.view[1], 0), VIEW_SAVED);
	rig_destroy(&r);
}

/* (Rule 4 is the cut's: test-cut.c.) */

static void
rule_5_reads_and_flushes_pass_a_closed_gate(void **s)
{
	struct rig r;
	unsigned char buf[512];

	(void)s;
	rig_init(&r);
	gate_close(&r.node->gate);
	assert_int_equal(node_pread(r.node, buf, sizeof buf, 0), 0);
	assert_int_equal(buf[7], mem_image_pattern(7));
	assert_int_equal(node_flush(r.node), 0);
	assert_int_equal(r.image->flushes, 1);
	assert_false(epoch_any(r.node->epoch, 0, SIZE));
	gate_open(&r.node->gate);
	rig_destroy(&r);
}

static void
throttle(struct rig *r)
{
	struct throttle_config c = { .of[THROTTLE_BPS_TOTAL].avg = 1 };
	struct err e = ERR_INIT;
	struct block *b;

	for (int i = 0; i < THROTTLE_BUCKETS; i++)
		c.of[i].length = 1;
	assert_ok(block_throttle_open(&r->image->block, "g", &c, &b, &e), &e);
	b->discard_unmap = true;
	r->node = node_new("disk", b);
	assert_non_null(r->node);
}

static void
rule_6_a_request_that_is_throttled_waits_outside_the_gate(void **s)
{
	(void)s;
	for (enum change c = WRITE; c < CHANGES; c++) {
		struct rig r = { .image = mem_image_new(SIZE) };
		struct guest g = { .rig = &r, .change = c };
		struct actor a;

		step_reset();
		throttle(&r);
		assert_int_equal(change(&r, c, 0, 4096), 0);
		actor_start(&a, guest_changes, &g); /* it would take an hour */
		assert_true(actor_is_held_at(&a, "throttle.queued", 2));
		gate_close(&r.node->gate);
		assert_true(gate_wait_empty(&r.node->gate, 0));
		gate_open(&r.node->gate);
		block_admit_all(r.node->image, true);
		actor_join(&a);
		block_admit_all(r.node->image, false);
		assert_int_equal(g.r, 0);
		assert_int_equal(changes_of(r.image), 2);
		node_free(r.node);
		step_end();
	}
}

static void
a_discard_that_the_image_drops_changes_nothing_and_records_nothing(void **s)
{
	struct rig r;

	(void)s;
	rig_init(&r);
	r.image->block.discard_unmap = false;
	gate_close(&r.node->gate); /* not even that is in its way */
	assert_int_equal(node_discard(r.node, 0, 4096, true), 0);
	gate_open(&r.node->gate);
	assert_int_equal(r.image->discards, 0);
	assert_int_equal(r.image->flushes, 1);
	assert_false(epoch_any(r.node->epoch, 0, SIZE));
	assert_int_equal(view_get(r.view[0], 0), VIEW_NEEDED);
	rig_destroy(&r);
}

static void
fua_flushes_after_the_change_and_not_after_a_failure(void **s)
{
	struct rig r;
	char buf[512] = { 1 };

	(void)s;
	rig_init(&r);
	assert_int_equal(node_pwrite(r.node, buf, 512, 0, true), 0);
	assert_int_equal(node_zero(r.node, 0, 512, 0, true), 0);
	assert_int_equal(node_discard(r.node, 0, 512, true), 0);
	assert_int_equal(r.image->flushes, 3);
	assert_int_equal(node_pwrite(r.node, buf, 512, 0, false), 0);
	assert_int_equal(r.image->flushes, 3);
	r.image->write_os = EIO;
	assert_int_equal(node_pwrite(r.node, buf, 512, 0, true), EIO);
	assert_int_equal(r.image->flushes, 3);
	rig_destroy(&r);
}

static void
rule_7_the_image_holds_space_while_a_view_is_attached(void **s)
{
	struct attached *a;
	struct rig r;

	(void)s;
	rig_init(&r);
	assert_int_equal(r.image->holds, 2);
	a = r.node->views;
	node_detach(r.node, a);
	attached_free(a);
	assert_int_equal(r.image->holds, 1);
	a = r.node->views;
	node_detach(r.node, a);
	attached_free(a);
	assert_int_equal(r.image->holds, 0);
	assert_null(r.node->views);
	rig_destroy(&r);
}

/* Holds that are left when the image is closed. */
static unsigned left_at_close;

static void
note_holds(struct block *b)
{
	struct mem_image *m = container_of(b, struct mem_image, block);

	left_at_close = m->holds;
	mem_image_free(m);
}

static void
rule_7_an_image_that_is_closed_under_a_view_holds_on(void **s)
{
	struct block_ops ops;
	struct rig r;

	(void)s;
	rig_init(&r);
	ops = *r.image->block.ops;
	ops.free = note_holds;
	r.image->block.ops = &ops;
	left_at_close = 0;
	rig_destroy(&r);
	assert_int_equal(left_at_close, 2);
}

static void
a_node_without_epoch_and_views_just_writes(void **s)
{
	struct mem_image *m = mem_image_new(SIZE);
	struct node *n = node_new("plain", &m->block);
	char buf[512] = { 1 };

	(void)s;
	step_reset();
	assert_int_equal(node_pwrite(n, buf, sizeof buf, 0, false), 0);
	assert_int_equal(m->data[0], 1);
	assert_int_equal(m->reads, 0);
	node_free(n);
	step_end();
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rule_1_every_change_waits_at_a_closed_gate),
		cmocka_unit_test(rule_1_the_image_changes_inside_the_gate),
		cmocka_unit_test(
			rule_1_all_steps_of_a_write_are_inside_the_gate),
		cmocka_unit_test(
			rule_2_the_bits_are_set_before_the_image_changes),
		cmocka_unit_test(rule_2_a_write_that_fails_is_tracked_too),
		cmocka_unit_test(
			rule_3_every_view_has_saved_before_the_image_changes),
		cmocka_unit_test(
			rule_3_a_write_that_cannot_be_saved_and_must_be_is_not_made),
		cmocka_unit_test(
			rule_3_a_view_that_breaks_does_not_keep_the_others_from_saving),
		cmocka_unit_test(rule_5_reads_and_flushes_pass_a_closed_gate),
		cmocka_unit_test(
			rule_6_a_request_that_is_throttled_waits_outside_the_gate),
		cmocka_unit_test(
			rule_7_the_image_holds_space_while_a_view_is_attached),
		cmocka_unit_test(
			rule_7_an_image_that_is_closed_under_a_view_holds_on),
		cmocka_unit_test(
			a_discard_that_the_image_drops_changes_nothing_and_records_nothing),
		cmocka_unit_test(
			fua_flushes_after_the_change_and_not_after_a_failure),
		cmocka_unit_test(a_node_without_epoch_and_views_just_writes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

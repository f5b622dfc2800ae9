/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of the plugin's cut: rule 4 of node.h and of view.h, rule 3 of gate.h
 * as the cut keeps it, rule 1 of cut.h and what else it promises.
 */
#include "cut.h"

#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "epoch-made.h"
#include "fault.h"
#include "step.h"
#include "unit.h"

#define SIZE UINT64_C(1048576)

static struct node *
node_make(void)
{
	struct node *n = node_new("disk", &mem_image_new(SIZE)->block);

	assert_non_null(n);
	n->epoch = epoch_make(SIZE, 4096);
	n->epoch_id = 1;
	return n;
}

static struct attached *
attached_make(struct node *n, struct view **view)
{
	struct err e = ERR_INIT;
	struct attached *a = xzalloc(sizeof *a);
	struct cbw_options o = { .image = n->image,
				 .unit = 4096,
				 .store = tmpfs_file() };
	int fd = tmpfs_file();

	assert_ok(view_format(fd, SIZE, &e), &e);
	assert_ok(view_open(fd, view, &e), &e);
	o.view = view_ref(*view);
	assert_ok(cbw_new(&o, &a->cbw, &e), &e);
	return a;
}

static struct cut_part *
part_make(struct cut *c, struct node *n, struct epoch *epoch)
{
	struct cut_part *p = xzalloc(sizeof *p);

	p->node = n;
	p->epoch = epoch;
	p->epoch_id = 2;
	p->next = c->parts;
	c->parts = p;
	return p;
}

struct guest {
	struct node *n;
	uint64_t off;
	int r;
};

static void
guest_writes(void *arg)
{
	static const char buf[4096] = { 1 };
	struct guest *g = arg;

	g->r = node_pwrite(g->n, buf, sizeof buf, g->off, false);
}

struct cutter {
	struct cut *cut;
	unsigned ms;
	struct cut_stats stats;
	uint64_t closed_ns;
	struct err e;
	bool ok;
};

static void
cutter_cuts(void *arg)
{
	struct cutter *c = arg;

	c->ok = cut_commit(c->cut, c->ms, &c->stats, &c->closed_ns, &c->e);
}

/* A guest's write gets in when those of before have ended and the gates are
 * about to be closed; it is held in the middle.
 */
static void
start_cut_with_a_late_write(struct actor *closer, struct cutter *k,
			    struct actor *writer, struct guest *g)
{
	step_arm("cut.turned");
	actor_start(closer, cutter_cuts, k);
	step_wait_parked("cut.turned");
	step_arm("node.tracked");
	actor_start(writer, guest_writes, g);
	step_wait_parked("node.tracked");
	step_release("cut.turned");
}

static void
rule_4_epoch_and_views_change_only_when_no_write_is_in_flight(void **s)
{
	struct node *n = node_make();
	struct epoch *old = epoch_ref(n->epoch), *new = epoch_make(SIZE, 4096);
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 60000 };
	struct guest g = { .n = n };
	struct view *view;
	struct actor writer, closer;

	(void)s;
	step_reset();
	part_make(&c, n, new)->views = attached_make(n, &view);
	start_cut_with_a_late_write(&closer, &k, &writer, &g);
	assert_true(actor_is_held_at(&closer, "cut.closed", 1));
	assert_ptr_equal(n->epoch, old);
	assert_null(n->views);
	step_release("node.tracked");
	actor_join(&closer);
	actor_join(&writer);
	assert_true(k.ok);
	assert_ptr_equal(n->epoch, new);
	assert_int_equal(n->epoch_id, 2);
	assert_non_null(n->views);
	/* the write belongs to what was before: it is not saved, not new */
	assert_true(epoch_any(old, 0, 4096));
	assert_false(epoch_any(new, 0, SIZE));
	assert_int_equal(view_get(view, 0), VIEW_NEEDED);
	epoch_unref(old);
	view_unref(view);
	node_free(n);
	step_end();
}

static void
rule_4_a_write_that_comes_during_the_cut_belongs_behind_it(void **s)
{
	struct node *n = node_make();
	struct epoch *old = epoch_ref(n->epoch), *new = epoch_make(SIZE, 4096);
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 60000 };
	struct guest g = { .n = n };
	struct view *view;
	struct actor writer, closer;

	(void)s;
	step_reset();
	part_make(&c, n, new)->views = attached_make(n, &view);
	step_arm("cut.closed");
	actor_start(&closer, cutter_cuts, &k);
	step_wait_parked("cut.closed");
	actor_start(&writer, guest_writes, &g);
	assert_true(actor_is_held_at(&writer, "gate.wait", 1));
	step_release("cut.closed");
	actor_join(&closer);
	actor_join(&writer);
	assert_false(epoch_any(old, 0, SIZE));
	assert_true(epoch_any(new, 0, 4096));
	assert_int_equal(view_get(view, 0), VIEW_SAVED);
	epoch_unref(old);
	view_unref(view);
	node_free(n);
	step_end();
}

static void
rule_4_gates_are_still_closed_when_all_parts_are_applied(void **s)
{
	struct node *n = node_make();
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 60000 };
	struct guest g = { .n = n };
	struct actor writer, closer;

	(void)s;
	step_reset();
	(void)part_make(&c, n, epoch_make(SIZE, 4096));
	step_arm("cut.applied");
	actor_start(&closer, cutter_cuts, &k);
	step_wait_parked("cut.applied");
	actor_start(&writer, guest_writes, &g);
	assert_true(actor_is_held_at(&writer, "gate.wait", 1));
	step_release("cut.applied");
	actor_join(&closer);
	actor_join(&writer);
	node_free(n);
	step_end();
}

/* A write in flight on one disk: the other disk's gate is closed already. */
static void
all_gates_are_closed_before_any_write_is_waited_for(void **s)
{
	(void)s;
	for (int slow = 0; slow < 2; slow++) {
		struct node *n[2] = { node_make(), node_make() };
		struct cut c = { 0 };
		struct cutter k = { .cut = &c, .ms = 60000 };
		struct guest first = { .n = n[slow] };
		struct guest second = { .n = n[1 - slow] };
		struct actor a, b, closer;

		step_reset();
		(void)part_make(&c, n[0], epoch_make(SIZE, 4096));
		(void)part_make(&c, n[1], epoch_make(SIZE, 4096));
		start_cut_with_a_late_write(&closer, &k, &a, &first);
		assert_true(actor_is_held_at(&closer, "cut.closed", 1));
		actor_start(&b, guest_writes, &second);
		assert_true(actor_is_held_at(&b, "gate.wait", 1));
		step_release("node.tracked");
		actor_join(&closer);
		actor_join(&a);
		actor_join(&b);
		assert_true(k.ok);
		assert_false(epoch_any(n[slow]->epoch, 0, SIZE));
		assert_true(epoch_any(n[1 - slow]->epoch, 0, 4096));
		node_free(n[0]);
		node_free(n[1]);
		step_end();
	}
}

/* The write belongs to the time before the cut, and so do those that other
 * threads begin and end meanwhile, on its disk and on another.  @tries cuts
 * have failed for it already.
 */
static void
hang_holds_up_no_other(unsigned tries)
{
	struct node *n[2] = { node_make(), node_make() };
	struct epoch *old[2] = { epoch_ref(n[0]->epoch),
				 epoch_ref(n[1]->epoch) };
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 60000 };
	struct guest hangs = { .n = n[0] };
	struct actor a, closer, b[2];
	unsigned looks;

	step_reset();
	for (int i = 0; i < 2; i++)
		(void)part_make(&c, n[i], epoch_make(SIZE, 4096));
	step_arm("node.tracked");
	actor_start(&a, guest_writes, &hangs);
	step_wait_parked("node.tracked");
	for (unsigned i = 0; i < tries; i++) {
		struct cutter fails = { .cut = &c, .ms = 30 };

		cutter_cuts(&fails);
		assert_false(fails.ok);
		err_clear(&fails.e);
	}
	looks = step_passed("cut.old-writes");
	actor_start(&closer, cutter_cuts, &k);
	assert_true(actor_is_held_at(&closer, "cut.old-writes", looks + 3));
	for (int i = 0; i < 2; i++) {
		struct guest g = { .n = n[i], .off = 8192 };

		actor_start(&b[i], guest_writes, &g);
		actor_join(&b[i]);
		assert_true(epoch_any(old[i], 8192, 4096));
	}
	assert_int_equal(step_passed("cut.closed"), 0);
	step_release("node.tracked");
	actor_join(&a);
	actor_join(&closer);
	assert_true(k.ok);
	for (int i = 0; i < 2; i++) {
		assert_ptr_not_equal(n[i]->epoch, old[i]);
		epoch_unref(old[i]);
		node_free(n[i]);
	}
	step_end();
}

static void
rule_1_a_write_that_hangs_holds_up_no_other(void **s)
{
	(void)s;
	hang_holds_up_no_other(0);
}

static void
rule_1_neither_when_the_cut_is_tried_again(void **s)
{
	(void)s;
	for (unsigned tries = 1; tries <= 2; tries++)
		hang_holds_up_no_other(tries);
}

/* Nodes 0 and 1 are as they were, and can be written to. */
static void
assert_not_cut(struct cut *c, struct node *n[2], struct epoch *old[2])
{
	struct guest g = { .n = n[1] };

	for (int i = 0; i < 2; i++) {
		assert_ptr_equal(n[i]->epoch, old[i]);
		assert_null(n[i]->views);
		assert_true(cut_has(c, n[i]));
	}
	guest_writes(&g);
	assert_int_equal(g.r, 0);
}

static void
a_write_that_does_not_end_stops_the_cut_and_nothing_is_changed(void **s)
{
	(void)s;
	for (int late = 0; late < 2; late++) {
		struct node *n[2] = { node_make(), node_make() };
		struct epoch *old[2] = { n[0]->epoch, n[1]->epoch };
		struct cut c = { 0 };
		struct cutter k = { .cut = &c, .ms = 30 };
		struct guest g = { .n = n[0] };
		struct view *view;
		struct actor a, closer;

		step_reset();
		part_make(&c, n[0], epoch_make(SIZE, 4096))->views =
			attached_make(n[0], &view);
		(void)part_make(&c, n[1], epoch_make(SIZE, 4096));
		if (late) {
			k.ms = 1000; /* and the write gets in */
			start_cut_with_a_late_write(&closer, &k, &a, &g);
			actor_join(&closer);
		} else {
			step_arm("node.tracked");
			actor_start(&a, guest_writes, &g);
			step_wait_parked("node.tracked");
			cutter_cuts(&k);
		}
		assert_false(k.ok);
		assert_int_equal(step_passed("cut.closed"), late);
		assert_string_equal(k.e.msg,
				    late ? "a write to node 'disk' has been in "
					   "flight for more than 1000 ms"
					 : "a write to node 'disk' has been in "
					   "flight for more than 30 ms");
		assert_not_cut(&c, n, old);
		assert_int_equal(k.stats.cuts, 0);
		step_release("node.tracked");
		actor_join(&a);
		/* and it can be tried again */
		err_clear(&k.e);
		k.ms = 10000;
		cutter_cuts(&k);
		assert_true(k.ok);
		assert_ptr_not_equal(n[0]->epoch, old[0]);
		view_unref(view);
		node_free(n[0]);
		node_free(n[1]);
		step_end();
	}
}

static void
a_cut_that_stops_ends_recording(void **s)
{
	struct node *n = node_make();
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 1000 };

	(void)s;
	part_make(&c, n, NULL)->stop = true;
	cutter_cuts(&k);
	assert_true(k.ok);
	assert_null(n->epoch);
	node_free(n);
}

static void
a_part_without_an_epoch_leaves_the_open_one(void **s)
{
	struct node *n = node_make();
	struct epoch *old = n->epoch;
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 1000 };
	struct view *view;

	(void)s;
	part_make(&c, n, NULL)->views = attached_make(n, &view);
	cutter_cuts(&k);
	assert_ptr_equal(n->epoch, old);
	assert_int_equal(n->epoch_id, 1);
	assert_non_null(n->views);
	view_unref(view);
	node_free(n);
}

static void
views_are_attached_behind_those_that_are_there(void **s)
{
	struct node *n = node_make();
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 1000 };
	struct view *v[3];
	struct attached *first = attached_make(n, &v[0]);

	(void)s;
	n->views = first;
	part_make(&c, n, NULL)->views = attached_make(n, &v[1]);
	c.parts->views->next = attached_make(n, &v[2]);
	cutter_cuts(&k);
	assert_ptr_equal(n->views, first);
	assert_non_null(first->next);
	assert_non_null(first->next->next);
	assert_null(first->next->next->next);
	for (int i = 0; i < 3; i++)
		view_unref(v[i]);
	node_free(n);
}

static void
a_cut_uses_its_parts_up_and_is_counted(void **s)
{
	struct node *n = node_make();
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 1000 };
	uint64_t sum = 0;

	(void)s;
	(void)part_make(&c, n, epoch_make(SIZE, 4096));
	assert_true(cut_has(&c, n));
	cutter_cuts(&k);
	assert_null(c.parts);
	assert_false(cut_has(&c, n));
	assert_int_equal(k.stats.cuts, 1);
	assert_true(k.closed_ns > 0);
	assert_int_equal(k.stats.max_closed_ns, k.closed_ns);
	for (int i = 0; i < CUT_BARS; i++)
		sum += k.stats.bars[i];
	assert_int_equal(sum, 1);
	node_free(n);
}

/* The time that a gate was closed is put into the bar that has room for it. */
static void
a_long_cut_is_counted_in_a_high_bar(void **s)
{
	struct node *n = node_make();
	struct cut c = { 0 };
	struct cutter k = { .cut = &c, .ms = 1000 };
	struct guest g = { .n = n };
	struct actor a, closer;
	unsigned bar = 0;

	(void)s;
	step_reset();
	(void)part_make(&c, n, epoch_make(SIZE, 4096));
	start_cut_with_a_late_write(&closer, &k, &a, &g);
	actor_join(&closer); /* it failed, and guests waited meanwhile */
	step_release("node.tracked");
	actor_join(&a);
	assert_false(k.ok);
	while (bar < CUT_BARS && !k.stats.bars[bar])
		bar++;
	assert_true(k.closed_ns > 0);
	assert_true(bar < CUT_BARS - 1);
	assert_true(k.closed_ns < UINT64_C(1000) << bar);
	assert_true(k.closed_ns >= UINT64_C(1000) << (bar - 1));
	cut_clear(&c);
	node_free(n);
	step_end();
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(
			rule_4_epoch_and_views_change_only_when_no_write_is_in_flight),
		cmocka_unit_test(
			rule_4_a_write_that_comes_during_the_cut_belongs_behind_it),
		cmocka_unit_test(
			rule_4_gates_are_still_closed_when_all_parts_are_applied),
		cmocka_unit_test(
			all_gates_are_closed_before_any_write_is_waited_for),
		cmocka_unit_test(rule_1_a_write_that_hangs_holds_up_no_other),
		cmocka_unit_test(rule_1_neither_when_the_cut_is_tried_again),
		cmocka_unit_test(
			a_write_that_does_not_end_stops_the_cut_and_nothing_is_changed),
		cmocka_unit_test(a_cut_that_stops_ends_recording),
		cmocka_unit_test(a_part_without_an_epoch_leaves_the_open_one),
		cmocka_unit_test(
			views_are_attached_behind_those_that_are_there),
		cmocka_unit_test(a_cut_uses_its_parts_up_and_is_counted),
		cmocka_unit_test(a_long_cut_is_counted_in_a_high_bar),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

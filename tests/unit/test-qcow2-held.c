/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The limit of the space that is given up and held (QCOW2_HELD_MAX): what does
 * not fit stays allocated, which check finds and repairs, and nothing else.
 */
#include "base/bits.h"
#include "block/qcow2/qcow2-priv.h"
#include "qcow2-rig.h"
#include "unit.h"

#define CLUSTER (64 * KiB)
#define DISK    "disk.qcow2"
#define NOWHERE (UINT64_C(1) << 40) /* a host cluster that is none */

/* Runs that the test invents, so that there are @n in the list. */
static void
fill_list(struct qcow2 *q, uint32_t n)
{
	for (uint64_t i = q->held.pending.n; i < n; i++)
		qcow2_give_up(q, NOWHERE + 2 * i, 1);
	assert_int_equal(q->held.pending.n, n);
}

/* Take them away again: nobody counts them. */
static void
drop_invented(struct qcow2_held_list *l)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < l->n; i++)
		if (l->run[i].first < NOWHERE)
			l->run[n++] = l->run[i];
		else
			l->clusters -= l->run[i].n;
	l->n = n;
}

/* An image with four clusters of data; number 1 and 3 are given up while the
 * list has @n runs.  How many clusters leak?
 */
static uint64_t
leaks_with(uint32_t n, int check_status)
{
	unsigned char *buf = xzalloc(4 * CLUSTER);
	struct block *b;
	uint64_t leaked;

	rig_run("qemu-img create -q -f qcow2 " DISK " 16M");
	b = rig_open(DISK, NULL);
	assert_int_equal(block_pwrite(b, buf, 4 * CLUSTER, 0), 0);
	block_hold(b);
	fill_list(to_qcow2(b), n);
	assert_int_equal(block_discard(b, 1 * CLUSTER, CLUSTER), 0);
	assert_int_equal(block_discard(b, 3 * CLUSTER, CLUSTER), 0);
	leaked = to_qcow2(b)->held.leaked;
	drop_invented(&to_qcow2(b)->held.pending);
	block_release(b);
	block_free(b);
	free(buf);
	assert_int_equal(
		rig_status("qemu-img check -q " DISK " >/dev/null 2>&1"),
		check_status);
	if (check_status)
		rig_run("qemu-img check -q -r leaks " DISK " >/dev/null");
	return leaked;
}

static void
what_fits_is_freed(void **s)
{
	(void)s;
	assert_int_equal(leaks_with(QCOW2_HELD_MAX - 2, 0), 0);
}

static void
what_does_not_fit_leaks(void **s)
{
	(void)s;
	assert_int_equal(leaks_with(QCOW2_HELD_MAX - 1, 3), 1);
	assert_int_equal(leaks_with(QCOW2_HELD_MAX, 3), 2);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_fits_is_freed),
		cmocka_unit_test(what_does_not_fit_leaks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

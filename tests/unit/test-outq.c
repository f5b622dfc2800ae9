/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Tests of daemon/outq: bytes come out as they went in, and the bound holds.
 */
#include "daemon/outq.h"

#include <stdlib.h>
#include <string.h>

#include "unit.h"

/* Take @n bytes out, through the vectors that would be sent. */
static void
take(struct outq *q, char *to, size_t n)
{
	struct iovec v[3];

	while (n) {
		size_t k = outq_peek(q, v, ARRAY_SIZE(v)), got = 0;

		assert_true(k > 0);
		for (size_t i = 0; i < k && n; i++) {
			size_t part = v[i].iov_len < n ? v[i].iov_len : n;

			memcpy(to, v[i].iov_base, part);
			to += part;
			got += part;
			n -= part;
		}
		outq_consume(q, got);
	}
}

static void
an_empty_queue_has_nothing_to_send(void **state)
{
	struct outq q;
	struct iovec v;

	(void)state;
	outq_init(&q, 10);
	assert_int_equal(outq_peek(&q, &v, 1), 0);
	outq_destroy(&q);
}

static void
bytes_come_out_in_order(void **state)
{
	struct outq q;
	unsigned in = 0, out = 0, seed = 1;

	(void)state;
	outq_init(&q, 1 << 20);
	for (int round = 0; round < 2000; round++) {
		unsigned char buf[9000];
		size_t n = (size_t)rand_r(&seed) % sizeof buf;

		for (size_t i = 0; i < n; i++)
			buf[i] = (unsigned char)(in++ * 7);
		assert_true(outq_append(&q, buf, n));
		n = (size_t)rand_r(&seed) % sizeof buf;
		n = n < q.size ? n : q.size;
		if (round % 10 == 9)
			n = q.size < sizeof buf ? q.size : sizeof buf;
		take(&q, (char *)buf, n);
		for (size_t i = 0; i < n; i++)
			assert_int_equal(buf[i], (unsigned char)(out++ * 7));
		while (q.size > (512 << 10)) {
			take(&q, (char *)buf, sizeof buf);
			out += sizeof buf;
		}
	}
	assert_int_equal(q.size, in - out);
	outq_destroy(&q);
}

static void
the_bound_holds_at_both_edges(void **state)
{
	struct outq q;
	char buf[100] = { 0 };

	(void)state;
	outq_init(&q, 100);
	assert_false(outq_append(&q, buf, 101));
	assert_true(outq_append(&q, buf, 60));
	assert_false(outq_append(&q, buf, 41));
	assert_int_equal(q.size, 60);
	assert_true(outq_append(&q, buf, 40));
	assert_false(outq_append(&q, buf, 1));
	outq_consume(&q, 1);
	assert_true(outq_append(&q, buf, 1));
	outq_destroy(&q);
	assert_int_equal(q.size, 0);
}

static void
what_was_sent_takes_no_memory(void **state)
{
	struct outq q;
	char buf[5000] = { 0 };

	(void)state;
	outq_init(&q, 1 << 20);
	for (int i = 0; i < 50; i++)
		assert_true(outq_append(&q, buf, sizeof buf));
	outq_consume(&q, q.size);
	assert_null(q.head);
	assert_null(q.tail);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_queue_has_nothing_to_send),
		cmocka_unit_test(bytes_come_out_in_order),
		cmocka_unit_test(the_bound_holds_at_both_edges),
		cmocka_unit_test(what_was_sent_takes_no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

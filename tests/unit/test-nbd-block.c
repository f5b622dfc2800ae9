/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The nbd driver against real servers: its requests, many of them at once,
 * and connections that are lost and come back.
 */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "block/block.h"
#include "captive.h"
#include "unit.h"

#define MB (UINT64_C(1) << 20)

struct rig {
	struct captive server;
	struct block_nbd_options o;
	struct block *b;
};

static int
set_up(void **state)
{
	struct rig *r = xzalloc(sizeof *r);

	captive_init(&r->server);
	r->o.unix_path = r->server.socket;
	r->o.open_timeout_s = 5;
	r->o.connections = 4;
	*state = r;
	return 0;
}

static int
tear_down(void **state)
{
	struct rig *r = *state;

	if (r->b)
		block_free(r->b);
	captive_destroy(&r->server);
	free(r);
	return 0;
}

#define NBDKIT(r, ...) \
	captive_nbdkit(&(r)->server, (const char *const[]){ __VA_ARGS__, NULL })

static void
open_image(struct rig *r)
{
	struct err e = ERR_INIT;

	assert_ok(block_nbd_open(&r->o, &r->b, &e), &e);
	r->b->discard_unmap = true;
}

static uint64_t
now_ms(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void
nap_ms(unsigned ms)
{
	(void)nanosleep(
		&(struct timespec){ .tv_sec = ms / 1000,
				    .tv_nsec = (long)(ms % 1000) * 1000000 },
		NULL);
}

/* --- requests ----------------------------------------------------------------------------- */

static void
what_is_written_is_read(void **state)
{
	struct rig *r = *state;
	char *out = xzalloc(3 * MB), *in = xzalloc(3 * MB);

	NBDKIT(r, "memory", "8M");
	open_image(r);
	assert_int_equal(r->b->size, 8 * MB);
	assert_string_equal(r->b->ops->name, "nbd");
	assert_true(r->b->coherent);
	assert_false(r->b->read_only);
	memset(out, 0x55, 3 * MB);
	assert_int_equal(block_pwrite(r->b, out, 3 * MB, 4096), 0);
	assert_int_equal(block_zero(r->b, 1 * MB, 65536, 0), 0);
	memset(out + 1 * MB - 4096, 0, 65536);
	assert_int_equal(block_discard(r->b, 2 * MB, 65536), 0);
	memset(out + 2 * MB - 4096, 0, 65536);
	assert_int_equal(block_flush(r->b), 0);
	assert_int_equal(block_cache(r->b, 0, 1 * MB), 0);
	assert_int_equal(block_pread(r->b, in, 3 * MB, 4096), 0);
	assert_memory_equal(in, out, 3 * MB);
	free(in);
	free(out);
}

static void
extents_are_the_servers(void **state)
{
	struct rig *r = *state;
	char page[4096];
	uint64_t n;
	unsigned flags;

	NBDKIT(r, "memory", "8M");
	open_image(r);
	memset(page, 1, sizeof page);
	assert_int_equal(block_pwrite(r->b, page, 4096, 4 * MB), 0);
	assert_int_equal(block_extent(r->b, 512, 8 * MB - 512, &n, &flags), 0);
	assert_int_equal(flags, BLOCK_HOLE | BLOCK_ZERO);
	assert_int_equal(n, 4 * MB - 512);
	assert_int_equal(block_extent(r->b, 4 * MB, 4 * MB, &n, &flags), 0);
	assert_int_equal(flags, BLOCK_DATA);
	assert_in_range(n, 4096, 65536);
	assert_int_equal(block_extent(r->b, 6 * MB, 4096, &n, &flags), 0);
	assert_int_equal(n, 4096);
}

static void
a_server_without_extents_has_data(void **state)
{
	struct rig *r = *state;
	uint64_t n;
	unsigned flags;

	NBDKIT(r, "--no-sr", "memory", "8M");
	open_image(r);
	assert_int_equal(block_extent(r->b, 0, 8 * MB, &n, &flags), 0);
	assert_int_equal(n, 8 * MB);
	assert_int_equal(flags, BLOCK_DATA);
}

static void
requests_are_cut_to_what_the_server_takes(void **state)
{
	struct rig *r = *state;
	char *out = xzalloc(1 * MB), *in = xzalloc(1 * MB);

	NBDKIT(r, "--filter=blocksize-policy", "memory", "8M",
	       "blocksize-minimum=4K", "blocksize-preferred=4K",
	       "blocksize-maximum=64K", "blocksize-error-policy=error");
	open_image(r);
	assert_int_equal(r->b->min_block, 4096);
	memset(out, 0x55, 1 * MB);
	assert_int_equal(block_pwrite(r->b, out, 1 * MB, 0), 0);
	assert_int_equal(block_pread(r->b, in, 1 * MB, 0), 0);
	assert_memory_equal(in, out, 1 * MB);
	free(in);
	free(out);
}

/* A backup reads what belongs together, and saves granules of 4 KiB. */
static void
reads_need_not_be_aligned_to_the_servers_blocks(void **state)
{
	struct rig *r = *state;
	unsigned char *out = xzalloc(1 * MB), *in = xzalloc(1 * MB);
	const uint64_t at[] = { 0, 4096, 60 * 1024, 64 * 1024, 200 * 1024 };
	const uint64_t len[] = { 512, 4096, 68 * 1024, 128 * 1024, 300 * 1024 };

	NBDKIT(r, "--filter=blocksize-policy", "memory", "1M",
	       "blocksize-minimum=64K", "blocksize-preferred=64K",
	       "blocksize-maximum=128K", "blocksize-error-policy=error");
	open_image(r);
	assert_int_equal(r->b->min_block, 64 * 1024);
	for (size_t i = 0; i < 1 * MB; i++)
		out[i] = (unsigned char)(i / 512 + 1);
	assert_int_equal(block_pwrite(r->b, out, 1 * MB, 0), 0);
	for (size_t i = 0; i < ARRAY_SIZE(at); i++)
		for (size_t k = 0; k < ARRAY_SIZE(len); k++) {
			memset(in, 0, len[k]);
			assert_int_equal(block_pread(r->b, in, len[k], at[i]),
					 0);
			assert_memory_equal(in, out + at[i], len[k]);
		}
	free(in);
	free(out);
}

static void
a_server_that_cannot_zero_gets_zeroes(void **state)
{
	struct rig *r = *state;
	char page[4096];

	NBDKIT(r, "--filter=nozero", "memory", "1M");
	open_image(r);
	memset(page, 1, sizeof page);
	assert_int_equal(block_pwrite(r->b, page, 4096, 300 * 1024), 0);
	assert_int_equal(block_zero(r->b, 0, 1 * MB, BLOCK_ZERO_FAST), ENOTSUP);
	assert_int_equal(block_zero(r->b, 0, 1 * MB, 0), 0);
	assert_int_equal(block_pread(r->b, page, 4096, 300 * 1024), 0);
	for (size_t i = 0; i < sizeof page; i++)
		assert_int_equal(page[i], 0);
}

static void
a_last_sector_may_be_incomplete(void **state)
{
	struct rig *r = *state;
	char sector[512];
	uint64_t n;
	unsigned flags;

	(void)captive_open(&r->server, "disk", 1 * MB + 100);
	NBDKIT(r, "file", "@/disk");
	open_image(r);
	assert_int_equal(r->b->size, 1 * MB + 512);
	memset(sector, 1, sizeof sector);
	assert_int_equal(block_pwrite(r->b, sector, 512, 1 * MB), ENOSPC);
	memset(sector + 100, 0, 412);
	assert_int_equal(block_pwrite(r->b, sector, 512, 1 * MB), 0);
	memset(sector, 2, sizeof sector);
	assert_int_equal(block_pread(r->b, sector, 512, 1 * MB), 0);
	for (size_t i = 0; i < sizeof sector; i++)
		assert_int_equal(sector[i], i < 100 ? 1 : 0);
	assert_int_equal(block_extent(r->b, 1 * MB + 100, 412, &n, &flags), 0);
	assert_int_equal(n, 412);
	assert_int_equal(flags, BLOCK_HOLE | BLOCK_ZERO);
	assert_int_equal(block_zero(r->b, 1 * MB, 512, 0), 0);
}

static void
errors_of_the_server_arrive(void **state)
{
	struct rig *r = *state;
	char page[4096] = { 0 };

	NBDKIT(r, "--filter=error", "memory", "1M", "error-pread=EIO",
	       "error-pread-rate=1", "error-pwrite=ENOSPC",
	       "error-pwrite-rate=1");
	open_image(r);
	assert_int_equal(block_pread(r->b, page, 4096, 0), EIO);
	assert_int_equal(block_pwrite(r->b, page, 4096, 0), ENOSPC);
	assert_int_equal(block_flush(r->b), 0);
}

static void
a_read_only_export_is_refused_for_writing(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;

	NBDKIT(r, "-r", "memory", "1M");
	assert_fails_with(block_nbd_open(&r->o, &r->b, &e), &e, "is read-only");
	r->b = NULL;
	r->o.read_only = true;
	open_image(r);
	assert_true(r->b->read_only);
}

static void
one_connection_without_multi_conn(void **state)
{
	struct rig *r = *state;
	char page[4096];

	NBDKIT(r, "--filter=multi-conn", "--filter=log", "memory", "1M",
	       "multi-conn-mode=disable", "logfile=@/log");
	open_image(r);
	assert_false(r->b->coherent);
	assert_int_equal(block_pread(r->b, page, 4096, 0), 0);
	nap_ms(50);
	assert_int_equal(captive_count(&r->server, "log", " Connect "), 1);
}

/* --- many at once --------------------------------------------------------------------------- */

struct worker {
	struct rig *r;
	pthread_t thread;
	uint64_t begin, len;
	unsigned rounds;
	_Atomic unsigned done;
	atomic_bool *stop;
	int error;
};

/* Writes its own part of the disk over and over, and reads it back. */
static void *
work(void *arg)
{
	struct worker *w = arg;
	char out[16384], in[16384];

	while (w->rounds-- > 0 && !(w->stop && *w->stop)) {
		uint64_t at = w->begin;

		for (; at < w->begin + w->len && !w->error; at += sizeof out) {
			memset(out, (char)(w->rounds + at / sizeof out),
			       sizeof out);
			w->error = block_pwrite(w->r->b, out, sizeof out, at);
			if (!w->error)
				w->error =
					block_pread(w->r->b, in, sizeof in, at);
			if (!w->error && memcmp(in, out, sizeof in) != 0)
				w->error = EILSEQ;
			w->done++;
		}
		if (w->error)
			break;
	}
	return NULL;
}

#define WORKERS 12

static void
start_workers(struct rig *r, struct worker *w, unsigned rounds,
	      atomic_bool *stop)
{
	for (unsigned i = 0; i < WORKERS; i++) {
		w[i] = (struct worker){ .r = r,
					.begin = i * 256 * 1024,
					.len = 256 * 1024,
					.rounds = rounds,
					.stop = stop };
		assert_int_equal(
			pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
}

static void
join_workers(struct worker *w)
{
	for (unsigned i = 0; i < WORKERS; i++)
		(void)pthread_join(w[i].thread, NULL);
}

static unsigned
done_by(const struct worker *w)
{
	unsigned n = 0;

	for (unsigned i = 0; i < WORKERS; i++)
		n += w[i].done;
	return n;
}

static void
many_threads_share_several_connections(void **state)
{
	struct rig *r = *state;
	struct worker w[WORKERS];

	NBDKIT(r, "--filter=log", "memory", "8M", "logfile=@/log");
	open_image(r);
	start_workers(r, w, 8, NULL);
	join_workers(w);
	for (unsigned i = 0; i < WORKERS; i++)
		assert_int_equal(w[i].error, 0);
	assert_int_equal(captive_count(&r->server, "log", " Connect "), 4);
}

/* With 10 ms for each answer, 12 threads one after the other would need
 * 2 x 12 x 16 x 10 ms.
 */
static void
requests_are_in_flight_together(void **state)
{
	struct rig *r = *state;
	struct worker w[WORKERS];
	uint64_t begin;

	NBDKIT(r, "--filter=delay", "memory", "8M", "delay-read=10ms",
	       "delay-write=10ms");
	r->o.connections = 1;
	open_image(r);
	begin = now_ms();
	start_workers(r, w, 1, NULL);
	join_workers(w);
	for (unsigned i = 0; i < WORKERS; i++)
		assert_int_equal(w[i].error, 0);
	assert_true(now_ms() - begin < 2 * WORKERS * 16 * 10 / 3);
}

/* --- lost connections ------------------------------------------------------------------------- */

static void
requests_survive_servers_that_are_killed(void **state)
{
	struct rig *r = *state;
	atomic_bool stop = false;
	struct worker w[WORKERS];

	(void)captive_open(&r->server, "disk", 8 * MB);
	NBDKIT(r, "file", "@/disk");
	r->o.reconnect_delay_s = 10;
	open_image(r);
	start_workers(r, w, 1000000, &stop);
	for (int i = 0; i < 4; i++) {
		unsigned before = done_by(w);

		while (done_by(w) < before + 200)
			nap_ms(2);
		captive_restart(&r->server);
	}
	stop = true;
	join_workers(w);
	for (unsigned i = 0; i < WORKERS; i++)
		assert_int_equal(w[i].error, 0);
}

static void
requests_wait_for_a_server_and_then_fail(void **state)
{
	struct rig *r = *state;
	char page[4096];
	uint64_t begin;

	NBDKIT(r, "memory", "1M");
	r->o.reconnect_delay_s = 1;
	open_image(r);
	assert_int_equal(block_pread(r->b, page, 4096, 0), 0);
	captive_kill(&r->server);
	begin = now_ms();
	assert_int_equal(block_pread(r->b, page, 4096, 0), EIO);
	assert_in_range(now_ms() - begin, 700, 2000);
	/* after that time nothing waits any more */
	begin = now_ms();
	assert_int_equal(block_pread(r->b, page, 4096, 0), EIO);
	assert_true(now_ms() - begin < 300);
	/* and when it comes back, it is used again */
	captive_restart(&r->server);
	begin = now_ms();
	while (block_pread(r->b, page, 4096, 0) != 0) {
		nap_ms(20);
		assert_true(now_ms() - begin < 8000);
	}
}

static void
without_a_delay_requests_fail_at_once(void **state)
{
	struct rig *r = *state;
	struct worker w[WORKERS];
	uint64_t begin;

	/* three in flight and more */
	NBDKIT(r, "--filter=delay", "memory", "8M", "delay-write=2");
	open_image(r);
	start_workers(r, w, 1, NULL);
	nap_ms(200);
	begin = now_ms();
	captive_kill(&r->server);
	join_workers(w);
	assert_true(now_ms() - begin < 1000);
	for (unsigned i = 0; i < WORKERS; i++)
		assert_int_equal(w[i].error, EIO);
}

static void
another_size_is_not_accepted(void **state)
{
	struct rig *r = *state;
	char page[4096];

	NBDKIT(r, "memory", "1M");
	r->o.reconnect_delay_s = 1;
	open_image(r);
	captive_kill(&r->server);
	NBDKIT(r, "memory", "2M");
	assert_int_equal(block_pread(r->b, page, 4096, 0), EIO);
}

static void
free_does_not_wait_for_a_hung_server(void **state)
{
	struct rig *r = *state;
	uint64_t begin;

	NBDKIT(r, "memory", "1M");
	open_image(r);
	captive_signal(&r->server, SIGSTOP);
	begin = now_ms();
	block_free(steal(&r->b));
	assert_true(now_ms() - begin < 200);
}

static void
a_server_that_is_not_there_is_named(void **state)
{
	struct rig *r = *state;
	struct err e = ERR_INIT;

	r->o.unix_path = NULL;
	r->o.host = "localhost";
	r->o.port = "1";
	r->o.open_timeout_s = 0;
	assert_fails(block_nbd_open(&r->o, &r->b, &e), &e,
		     "Failed to connect to 'localhost:1': Connection refused");
	r->o.unix_path = r->server.socket;
	r->o.tls = true;
	r->o.tls_psk_file = "/nowhere";
	NBDKIT(r, "memory", "1M");
	assert_fails_with(block_nbd_open(&r->o, &r->b, &e), &e,
			  "Failed to connect to '");
	r->b = NULL;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
		T(what_is_written_is_read),
		T(extents_are_the_servers),
		T(a_server_without_extents_has_data),
		T(requests_are_cut_to_what_the_server_takes),
		T(reads_need_not_be_aligned_to_the_servers_blocks),
		T(a_server_that_cannot_zero_gets_zeroes),
		T(a_last_sector_may_be_incomplete),
		T(errors_of_the_server_arrive),
		T(a_read_only_export_is_refused_for_writing),
		T(one_connection_without_multi_conn),
		T(many_threads_share_several_connections),
		T(requests_are_in_flight_together),
		T(requests_survive_servers_that_are_killed),
		T(requests_wait_for_a_server_and_then_fail),
		T(without_a_delay_requests_fail_at_once),
		T(another_size_is_not_accepted),
		T(free_does_not_wait_for_a_hung_server),
		T(a_server_that_is_not_there_is_named),
	};

	/* what is freed looks negative: libnbd 1.14 reads the cookie of a
	 * command that failed while it was submitted after freeing it
	 */
	(void)mallopt(M_PERTURB, 0xbf);
	if (!captive_has("nbdkit"))
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}

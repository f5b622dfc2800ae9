/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Copy an image file to an NBD server or another file through struct stream,
 * without a view: for profiles, and for figures without the daemon around it.
 *
 *   stream-bench IMAGE unix:PATH|HOST:PORT|file:PATH [LANES [SPEED]]
 *
 * Prints one line of JSON.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "stream/stream.h"

static struct loop loop;

static double
seconds(clockid_t clock)
{
	struct timespec t;

	(void)clock_gettime(clock, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void
on_done(struct stream *s, void *opaque)
{
	(void)s;
	(void)opaque;
	loop_stop(&loop);
}

static void
on_log(enum log_level level, const char *line)
{
	(void)level;
	fprintf(stderr, "stream-bench: %s\n", line);
}

static void
fail(const struct err *e)
{
	fprintf(stderr, "stream-bench: %s\n", e->msg);
	exit(1);
}

static struct target *
open_file_target(const char *path)
{
	struct block_file_options o = { .name = path };
	struct err e = ERR_INIT;
	struct target *t;
	struct block *b;

	o.fd = open(path, O_RDWR | O_CLOEXEC);
	if (o.fd < 0) {
		perror(path);
		exit(1);
	}
	if (!block_file_open(&o, &b, &e))
		fail(&e);
	b->discard_unmap = true;
	if (!target_open_block(b, path, &t, &e))
		fail(&e);
	return t;
}

static struct target *
open_target(char *where, unsigned lanes)
{
	struct target_options o = { .server = { .connections = lanes } };
	struct err e = ERR_INIT;
	struct target *t;
	char *colon;

	if (strncmp(where, "file:", 5) == 0)
		return open_file_target(where + 5);
	if (strncmp(where, "unix:", 5) == 0) {
		o.server.unix_path = where + 5;
	} else {
		colon = strrchr(where, ':');
		if (!colon) {
			err_set(&e, ERR_GENERIC, 0, "'%s': no port", where);
			fail(&e);
		}
		*colon = '\0';
		o.server.host = where;
		o.server.port = colon + 1;
	}
	if (!target_open(&o, &t, &e))
		fail(&e);
	return t;
}

static void
report(const struct stream *s, double wall, double cpu)
{
	const struct stream_result *r = stream_result(s);
	struct rusage u;

	(void)getrusage(RUSAGE_SELF, &u);
	printf("{\"seconds\": %.4f, \"cpu\": %.4f, \"sent\": %" PRIu64
	       ", \"zeroed\": %" PRIu64 ", \"requests\": %" PRIu64
	       ", \"flushes\": %" PRIu64
	       ", \"lanes\": %u, \"maxrss_kib\": %ld}\n",
	       wall, cpu, r->bytes_sent, r->bytes_zeroed, r->requests,
	       r->flushes, r->lanes, u.ru_maxrss);
}

int
main(int argc, char **argv)
{
	struct view_reader reader = { .store = -1 };
	struct stream_options o = { .loop = &loop,
				    .reader = &reader,
				    .cluster = 65536,
				    .done = on_done,
				    .name = "bench" };
	struct block_file_options file = { .read_only = true };
	struct err e = ERR_INIT;
	struct stream *s;
	double wall, cpu;

	if (argc < 3) {
		fprintf(stderr, "usage: stream-bench IMAGE "
				"unix:PATH|HOST:PORT|file:PATH "
				"[LANES [SPEED]]\n");
		return 2;
	}
	log_set_sink(on_log);
	if (!loop_init(&loop))
		return 1;
	file.name = argv[1];
	file.fd = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (file.fd < 0) {
		perror(argv[1]);
		return 1;
	}
	if (!block_file_open(&file, &reader.image, &e))
		fail(&e);
	o.target = open_target(argv[2], argc > 3 ? (unsigned)atoi(argv[3]) : 0);
	o.max_lanes = argc > 3 ? (unsigned)atoi(argv[3]) : 0;
	o.speed = argc > 4 ? strtoull(argv[4], NULL, 0) : 0;
	o.size = reader.image->size;
	reader.mask.size = o.size;
	wall = seconds(CLOCK_MONOTONIC);
	cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
	if (!stream_start(&o, &s, &e))
		fail(&e);
	loop_run(&loop);
	report(s, seconds(CLOCK_MONOTONIC) - wall,
	       seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu);
	if (err_is_set(&stream_result(s)->error))
		fail(&stream_result(s)->error);
	stream_free(s);
	target_free(o.target);
	block_free(reader.image);
	loop_destroy(&loop);
	return 0;
}

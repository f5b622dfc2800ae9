/* SPDX-License-Identifier: BSD-3-Clause
 *
 * model-guests: guests that know what their disks must hold.
 *
 * Opens --connections to each disk and keeps them busy with random requests,
 * at most --rate per second in all: writes, zeroes, trims and reads of random
 * places that overlap, some with FUA, and flushes.  Every request goes into the
 * model (history.h); what a read returns is judged at once.  A lost
 * connection is made anew, for as long as --patience says; requests that were
 * lost with it stay unknown to the model.
 *
 * Orders on standard input, one per line, and their answers:
 *
 *   pause		 paused OPS	   nothing is in flight any more
 *   resume		 running
 *   status		 acked OPS LOST RECONNECTIONS
 *   horizon NS		 (none)		   nothing earlier will be checked
 *   check NS NS FILE... ok NS | bad TEXT  FILE is DISK:OFFSET:PATH, an image
 *			 of the disk at OFFSET in the file; all must be from
 *			 one instant between the two
 *   quit		 done OPS LOST RECONNECTIONS
 *
 * Any error that is not a lost connection ends it with status 1.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#include "../tools/tool.h"
#include "history.h"

enum {
	MAX_DISKS = 8,
	MAX_CONNECTIONS = 64,
	DEPTH = 8,
	MAX_SECTORS = 128, /* of one request */
	LINE_BYTES = 4096,
	FIRST_SEQ = 1 << 20, /* below are what images hold at the start */
	TICK_MS = 5,
};

enum kind { READ, WRITE, ZERO, TRIM, FLUSH };

struct guest_disk {
	unsigned number;
	uint64_t sectors;
	bool unmap; /* a trim zeroes; otherwise it does nothing */
	const char *uri;
	struct history *history;
};

struct connection;

struct slot {
	struct connection *c;
	enum kind kind;
	bool flying;
	uint64_t first, n;
	int64_t sent;
	struct op *op; /* of the model, or NULL */
	uint8_t data[MAX_SECTORS * SECTOR];
};

struct connection {
	struct guest_disk *disk;
	struct nbd_handle *nbd; /* NULL while it is lost */
	struct slot slots[DEPTH];
	unsigned flying;
};

static struct {
	struct guest_disk disks[MAX_DISKS];
	unsigned n_disks;
	struct connection *v; /* owned */
	unsigned n;
	uint64_t random, seq, per_disk, rate;
	double patience, budget, last;
	int64_t horizon;
	bool paused, quit;
	uint64_t ops, lost, reconnections;
} all = { .random = 1,
	  .seq = FIRST_SEQ,
	  .per_disk = 2,
	  .rate = 2000,
	  .patience = 60 };

static int64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static uint64_t
dice(uint64_t sides)
{
	uint64_t x = all.random;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	all.random = x;
	return (x * 0x2545f4914f6cdd1dULL >> 16) % sides;
}

/* --- answers ---------------------------------------------------------------- */

static void
judge_read(struct slot *s, int64_t now)
{
	struct guest_disk *d = s->c->disk;
	char text[HISTORY_TEXT];
	struct gaps g;

	gaps_init(&g, s->sent, now);
	if (!history_check(d->history, s->data, s->first, s->n, false, &g,
			   text))
		die("a read of %" PRIu64 "+%" PRIu64 ": %s", s->first, s->n,
		    text);
	gaps_clear(&g);
}

static int
on_completion(void *user_data, int *error)
{
	struct slot *s = user_data;
	int64_t now = now_ns();
	bool lost = *error == ENOTCONN || *error == ESHUTDOWN;

	if (*error && !lost)
		die("disk %u: request of kind %d at %" PRIu64 "+%" PRIu64
		    " failed: %s",
		    s->c->disk->number, (int)s->kind, s->first, s->n,
		    strerror(*error));
	s->flying = false;
	s->c->flying--;
	if (lost) {
		all.lost++;
		if (s->op)
			history_lost(s->c->disk->history, s->op, now);
		return 1;
	}
	all.ops++;
	if (s->op)
		history_end(s->c->disk->history, s->op, now);
	else if (s->kind == READ)
		judge_read(s, now);
	return 1;
}

/* --- requests --------------------------------------------------------------- */

static void
fill(struct slot *s, uint64_t seq)
{
	uint64_t words[SECTOR / sizeof(uint64_t)];

	for (uint64_t i = 0; i < s->n; i++) {
		uint64_t w =
			history_word(seq, s->c->disk->number, s->first + i);

		for (size_t k = 0; k < SECTOR / sizeof w; k++)
			words[k] = w;
		memcpy(s->data + i * SECTOR, words, SECTOR);
	}
}

/* Half of the requests go to a few places, so that they meet. */
static void
choose_place(struct slot *s)
{
	uint64_t sectors = s->c->disk->sectors;

	switch (dice(4)) {
	case 0: s->n = 1 + dice(MAX_SECTORS); break;
	case 1: s->n = 1 + dice(16); break;
	default: s->n = 8; break;
	}
	if (dice(2))
		s->first = dice(sectors);
	else
		s->first = dice(16) * (sectors / 16) + dice(64);
	if (s->n == 8)
		s->first &= ~(uint64_t)7;
	if (s->first >= sectors)
		s->first = sectors - 1;
	if (s->n > sectors - s->first)
		s->n = sectors - s->first;
}

static void
choose(struct slot *s)
{
	uint64_t d = dice(100);

	s->kind = d < 60   ? WRITE
		  : d < 72 ? ZERO
		  : d < 80 ? TRIM
		  : d < 98 ? READ
			   : FLUSH;
	choose_place(s);
	s->op = NULL;
	s->sent = now_ns();
	if (s->kind == WRITE) {
		fill(s, ++all.seq);
		s->op = history_begin(s->c->disk->history, all.seq, s->first,
				      s->n, s->sent);
	} else if (s->kind == ZERO || (s->kind == TRIM && s->c->disk->unmap)) {
		s->op = history_begin(s->c->disk->history, 0, s->first, s->n,
				      s->sent);
	}
}

static void
send_request(struct slot *s)
{
	nbd_completion_callback done = { .callback = on_completion,
					 .user_data = s };
	struct nbd_handle *nbd = s->c->nbd;
	uint64_t at, n;
	uint32_t flags = dice(8) ? 0 : LIBNBD_CMD_FLAG_FUA;
	int64_t cookie = -1;

	choose(s);
	at = s->first * SECTOR;
	n = s->n * SECTOR;
	s->flying = true;
	s->c->flying++;
	switch (s->kind) {
	case READ: cookie = nbd_aio_pread(nbd, s->data, n, at, done, 0); break;
	case WRITE:
		cookie = nbd_aio_pwrite(nbd, s->data, n, at, done, flags);
		break;
	case ZERO:
		if (dice(2))
			flags |= LIBNBD_CMD_FLAG_NO_HOLE;
		cookie = nbd_aio_zero(nbd, n, at, done, flags);
		break;
	case TRIM: cookie = nbd_aio_trim(nbd, n, at, done, flags); break;
	case FLUSH: cookie = nbd_aio_flush(nbd, done, 0); break;
	}
	if (cookie < 0 && s->flying) {
		int error = ENOTCONN;

		if (nbd_aio_is_ready(nbd) > 0)
			die("disk %u: %s", s->c->disk->number, nbd_get_error());
		(void)on_completion(s, &error);
	}
}

/* --- connections ------------------------------------------------------------ */

static void
lose(struct connection *c)
{
	int error = ENOTCONN;

	nbd_close(c->nbd); /* may or may not complete what is in flight */
	c->nbd = NULL;
	for (unsigned i = 0; i < DEPTH; i++)
		if (c->slots[i].flying)
			(void)on_completion(&c->slots[i], &error);
}

static void
connect_disk(struct connection *c)
{
	struct disk d = { .uri = c->disk->uri,
			  .length = c->disk->sectors * SECTOR };

	disk_connect(&d, all.patience);
	if (nbd_get_size(d.nbd) != (int64_t)d.length)
		die("%s has %" PRIi64 " bytes instead of %" PRIu64, d.uri,
		    nbd_get_size(d.nbd), d.length);
	c->nbd = d.nbd;
}

static bool
is_broken(struct nbd_handle *nbd)
{
	return nbd_aio_is_dead(nbd) > 0 || nbd_aio_is_closed(nbd) > 0;
}

static void
refill(void)
{
	double now = now_seconds(), most = (double)all.rate / 20;

	all.budget += (now - all.last) * (double)all.rate;
	all.last = now;
	if (all.budget > most)
		all.budget = most;
}

static void
send_some(void)
{
	for (unsigned tries = 0; all.budget >= 1 && tries < all.n * 2;
	     tries++) {
		struct connection *c = &all.v[dice(all.n)];
		struct slot *s = &c->slots[dice(DEPTH)];

		if (s->flying || is_broken(c->nbd))
			continue;
		all.budget -= 1;
		send_request(s);
	}
}

static void
notify(struct connection *c, short events)
{
	unsigned wanted = nbd_aio_get_direction(c->nbd);

	if (events & (POLLIN | POLLHUP | POLLERR) &&
	    wanted & LIBNBD_AIO_DIRECTION_READ)
		(void)nbd_aio_notify_read(c->nbd);
	else if (events & POLLOUT && wanted & LIBNBD_AIO_DIRECTION_WRITE)
		(void)nbd_aio_notify_write(c->nbd);
}

/* Returns whether an order waits on standard input. */
static bool
wait_for_something(void)
{
	struct pollfd p[MAX_CONNECTIONS + 1];

	for (unsigned i = 0; i < all.n; i++) {
		unsigned wanted = nbd_aio_get_direction(all.v[i].nbd);

		p[i].fd = nbd_aio_get_fd(all.v[i].nbd);
		p[i].events = 0;
		if (wanted & LIBNBD_AIO_DIRECTION_READ)
			p[i].events |= POLLIN;
		if (wanted & LIBNBD_AIO_DIRECTION_WRITE)
			p[i].events |= POLLOUT;
	}
	p[all.n] = (struct pollfd){ .fd = STDIN_FILENO, .events = POLLIN };
	if (poll(p, all.n + 1, all.paused ? 100 : TICK_MS) < 0)
		die("poll: %s", strerror(errno));
	for (unsigned i = 0; i < all.n; i++)
		if (p[i].revents)
			notify(&all.v[i], p[i].revents);
	return p[all.n].revents != 0;
}

static void
mend(void)
{
	bool lost = false;

	/* First take note of all losses: connecting takes time. */
	for (unsigned i = 0; i < all.n; i++)
		if (is_broken(all.v[i].nbd)) {
			lose(&all.v[i]);
			lost = true;
		}
	for (unsigned i = 0; lost && i < all.n; i++)
		if (!all.v[i].nbd) {
			connect_disk(&all.v[i]);
			all.reconnections++;
		}
}

static unsigned
flying(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < all.n; i++)
		n += all.v[i].flying;
	return n;
}

/* --- orders ----------------------------------------------------------------- */

static void
update_horizon(void)
{
	int64_t when = all.horizon;

	for (unsigned i = 0; i < all.n; i++)
		for (unsigned k = 0; k < DEPTH; k++)
			if (all.v[i].slots[k].flying &&
			    all.v[i].slots[k].sent < when)
				when = all.v[i].slots[k].sent;
	for (unsigned i = 0; i < all.n_disks; i++)
		history_set_horizon(all.disks[i].history, when);
}

/* Map [@offset, @offset + @len) of a file; exits when it is not there. */
static uint8_t *
map_image(const char *path, uint64_t offset, uint64_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *data = malloc(len);

	if (fd < 0 || !data || fstat(fd, &st) < 0)
		die("%s: %s", path, strerror(errno));
	if (pread(fd, data, len, (off_t)offset) != (ssize_t)len)
		die("%s: it has %" PRIi64 " bytes, which is too short", path,
		    (int64_t)st.st_size);
	(void)close(fd);
	return data;
}

/* Splits DISK:OFFSET:PATH; returns PATH. */
static const char *
parse_place(char *text, uint64_t *disk, uint64_t *offset)
{
	char *one = strchr(text, ':'), *two = one ? strchr(one + 1, ':') : NULL;

	if (!two)
		die("an image is written DISK:OFFSET:PATH, not '%s'", text);
	*one = *two = '\0';
	*disk = number(text, "the number of a disk", MAX_DISKS - 1);
	*offset = number(one + 1, "an offset", INT64_MAX);
	if (*disk >= all.n_disks)
		die("there is no disk %" PRIu64, *disk);
	return two + 1;
}

static bool
check_file(char *word, struct gaps *g, char text[HISTORY_TEXT])
{
	uint64_t number, offset;
	const char *path = parse_place(word, &number, &offset);
	struct guest_disk *d = &all.disks[number];
	uint8_t *data = map_image(path, offset, d->sectors * SECTOR);
	bool ok = history_check(d->history, data, 0, d->sectors, true, g, text);

	free(data);
	return ok;
}

static void
order_check(char **rest)
{
	char text[HISTORY_TEXT], *from = strtok_r(NULL, " ", rest);
	char *to = strtok_r(NULL, " ", rest), *word;
	struct gaps g;
	int64_t when = 0;
	bool ok = true;

	if (!from || !to)
		die("check needs two times");
	gaps_init(&g, (int64_t)number(from, "a time", INT64_MAX),
		  (int64_t)number(to, "a time", INT64_MAX));
	while (ok && (word = strtok_r(NULL, " ", rest)))
		ok = check_file(word, &g, text);
	ok = ok && gaps_instant(&g, &when, text);
	if (ok)
		say("ok %" PRIi64, when);
	else
		say("bad %s", text);
	gaps_clear(&g);
}

static void
obey(char *line)
{
	char *rest = NULL, *word = strtok_r(line, " ", &rest);

	if (!word)
		return;
	if (strcmp(word, "pause") == 0) {
		all.paused = true;
		while (flying()) {
			(void)wait_for_something();
			mend();
		}
		say("paused %" PRIu64, all.ops);
	} else if (strcmp(word, "resume") == 0) {
		all.paused = false;
		say("running");
	} else if (strcmp(word, "status") == 0) {
		say("acked %" PRIu64 " %" PRIu64 " %" PRIu64, all.ops, all.lost,
		    all.reconnections);
	} else if (strcmp(word, "horizon") == 0) {
		all.horizon = (int64_t)number(rest, "a time", INT64_MAX);
	} else if (strcmp(word, "check") == 0) {
		order_check(&rest);
	} else if (strcmp(word, "quit") == 0) {
		all.quit = true;
	} else {
		die("unknown order '%s'", word);
	}
}

static void
read_orders(void)
{
	static char buffer[LINE_BYTES];
	static size_t used;
	ssize_t r = read(STDIN_FILENO, buffer + used, LINE_BYTES - 1 - used);
	char *end;

	if (r <= 0) {
		all.quit = true;
		return;
	}
	used += (size_t)r;
	buffer[used] = '\0';
	while ((end = strchr(buffer, '\n'))) {
		*end = '\0';
		obey(buffer);
		used -= (size_t)(end + 1 - buffer);
		memmove(buffer, end + 1, used + 1);
	}
	if (used == LINE_BYTES - 1)
		die("an order of more than %d bytes", LINE_BYTES - 1);
}

/* --- start ------------------------------------------------------------------ */

static void
usage(void)
{
	puts("model-guests [OPTIONS] DISK...\n"
	     "Guests that know what their disks must hold.\n"
	     "A DISK is written BYTES,ignore|unmap,OFFSET:PATH@URI: its size,\n"
	     "what a trim does, and where in which file its content is now.\n\n"
	     "  --connections N  to each disk (default 2)\n"
	     "  --rate N         requests per second in all (default 2000)\n"
	     "  --patience S     how long to try to connect again (60)\n"
	     "  --seed N         of everything random (default 1)\n"
	     "  --help           this text");
}

static void
add_disk(char *text)
{
	struct guest_disk *d = &all.disks[all.n_disks];
	char *how = strchr(text, ','),
	     *where = how ? strchr(how + 1, ',') : NULL;
	char *uri = strchr(text, '@'),
	     *path = where ? strchr(where, ':') : NULL;
	uint64_t offset;
	uint8_t *data;

	if (!path || !uri || all.n_disks == MAX_DISKS)
		die("too many disks, or a wrong one: '%s'", text);
	*how = *where = *uri = *path = '\0';
	d->number = all.n_disks++;
	d->sectors = number(text, "the size of a disk", 1ULL << 33) / SECTOR;
	d->unmap = strcmp(how + 1, "unmap") == 0;
	d->uri = uri + 1;
	offset = number(where + 1, "an offset", INT64_MAX);
	data = map_image(path + 1, offset, d->sectors * SECTOR);
	d->history = history_new(d->number, d->sectors, data);
	free(data);
}

static void
parse_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "connections", required_argument, NULL, 'c' },
		{ "rate", required_argument, NULL, 'r' },
		{ "patience", required_argument, NULL, 'p' },
		{ "seed", required_argument, NULL, 's' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (o) {
		case 'c':
			all.per_disk = number(optarg, "--connections",
					      MAX_CONNECTIONS / MAX_DISKS);
			break;
		case 'r': all.rate = number(optarg, "--rate", 1000000); break;
		case 'p':
			all.patience =
				(double)number(optarg, "--patience", 3600);
			break;
		case 's':
			all.random += number(optarg, "--seed", UINT32_MAX) *
				      0x9e3779b97f4a7c15ULL;
			break;
		case 'h': usage(); exit(0);
		default: exit(1);
		}
	}
	while (optind < argc)
		add_disk(argv[optind++]);
	if (all.n_disks == 0 || all.per_disk == 0)
		die("give disks and connections, see --help");
}

static void
connect_all(void)
{
	all.n = all.n_disks * (unsigned)all.per_disk;
	all.v = calloc(all.n, sizeof all.v[0]);
	if (!all.v)
		die("no memory for %u connections", all.n);
	for (unsigned i = 0; i < all.n; i++) {
		all.v[i].disk = &all.disks[i % all.n_disks];
		for (unsigned k = 0; k < DEPTH; k++)
			all.v[i].slots[k].c = &all.v[i];
		connect_disk(&all.v[i]);
	}
}

int
main(int argc, char **argv)
{
	parse_options(argc, argv);
	connect_all();
	say("ready");
	all.last = now_seconds();
	while (!all.quit || flying()) {
		refill();
		update_horizon();
		if (!all.paused && !all.quit)
			send_some();
		if (wait_for_something())
			read_orders();
		mend();
	}
	say("done %" PRIu64 " %" PRIu64 " %" PRIu64, all.ops, all.lost,
	    all.reconnections);
	for (unsigned i = 0; i < all.n; i++)
		nbd_close(all.v[i].nbd);
	for (unsigned i = 0; i < all.n_disks; i++)
		history_free(all.disks[i].history);
	free(all.v);
	return 0;
}

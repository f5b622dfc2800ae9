/* SPDX-License-Identifier: BSD-3-Clause
 *
 * counter-writer: a guest whose writes depend on each other across disks.
 *
 * One counter goes up by one with every write.  Value v is written to disk
 * (v % disks), into slot (v / disks) % slots of that disk's area.  Value v + 1
 * is sent only after v was acknowledged and a flush that followed it was
 * acknowledged too.  So at any instant the disks hold every value up to some
 * M and none above it: a restored set of disks shows whether it is one
 * instant.  counter-check proves it.
 *
 * A slot is 4096 bytes, all integers little endian:
 *   0  magic "STILLCNT"        8  value (u64)
 *  16  disk (u32)             20  disks (u32)
 *  24  slot (u64)             32  slots (u64)
 *  40  filler made of value   4092  CRC-32 (zlib's) of bytes 0..4091
 *
 * Says "ready", then answers control (tool.h) with "paused N", "running",
 * "acked N"; at the end "done N R" with R the number of reconnections.
 */
#include <assert.h>
#include <endian.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "tool.h"

enum { SLOT_BYTES = 4096, CRC_AT = 4092, FILL_AT = 40, MAX_DISKS = 256 };

struct counter {
	struct disk disks[MAX_DISKS];
	uint32_t n_disks;
	uint64_t slots; /* per disk */
	uint64_t next; /* value that is written next */
	uint64_t acked; /* the last one that is written and flushed */
	uint64_t limit; /* stop after this value; 0: never */
	uint64_t rate; /* writes per second; 0: as fast as it goes */
	double patience; /* seconds to wait for a lost connection; 0: fail */
	uint64_t reconnections;
	uint32_t crc_table[256];
	uint8_t slot[SLOT_BYTES];
};

static void
crc_init(uint32_t table[256])
{
	uint32_t i, bit, c;

	for (i = 0; i < 256; i++) {
		c = i;
		for (bit = 0; bit < 8; bit++)
			c = (c >> 1) ^ ((c & 1) ? 0xedb88320U : 0);
		table[i] = c;
	}
}

static uint32_t
crc_of(const uint32_t table[256], const uint8_t *p, size_t n)
{
	uint32_t c = 0xffffffffU;

	while (n--)
		c = (c >> 8) ^ table[(c ^ *p++) & 0xff];
	return c ^ 0xffffffffU;
}

static void
put32(uint8_t *p, uint32_t v)
{
	v = htole32(v);
	memcpy(p, &v, sizeof(v));
}

static void
put64(uint8_t *p, uint64_t v)
{
	v = htole64(v);
	memcpy(p, &v, sizeof(v));
}

static void
fill_slot(struct counter *c, uint64_t value, uint64_t slot)
{
	uint64_t x = value * 0x9e3779b97f4a7c15ULL;
	size_t i;

	memcpy(c->slot, "STILLCNT", 8);
	put64(c->slot + 8, value);
	put32(c->slot + 16, (uint32_t)(value % c->n_disks));
	put32(c->slot + 20, c->n_disks);
	put64(c->slot + 24, slot);
	put64(c->slot + 32, c->slots);
	for (i = FILL_AT; i + 8 <= CRC_AT; i += 8, x += 0x632be59bd9b4e019ULL)
		put64(c->slot + i, x);
	put32(c->slot + CRC_AT, crc_of(c->crc_table, c->slot, CRC_AT));
}

/* Write the next value and flush; reconnects as long as patience allows.  The
 * write is the same however often it is sent.
 */
static void
write_next(struct counter *c)
{
	struct disk *d = &c->disks[c->next % c->n_disks];
	uint64_t slot = c->next / c->n_disks % c->slots;
	uint64_t at = d->offset + slot * SLOT_BYTES;

	fill_slot(c, c->next, slot);
	for (;;) {
		if (nbd_pwrite(d->nbd, c->slot, SLOT_BYTES, at, 0) == 0 &&
		    nbd_flush(d->nbd, 0) == 0)
			break;
		if (c->patience <= 0)
			die("value %" PRIu64 " to %s: %s", c->next, d->uri,
			    nbd_get_error());
		disk_close(d);
		disk_connect(d, c->patience);
		c->reconnections++;
	}
	c->acked = c->next++;
}

/* Returns false when the writer must stop. */
static bool
obey(const struct counter *c, enum control order)
{
	while (order != CONTROL_NONE) {
		switch (order) {
		case CONTROL_QUIT: return false;
		case CONTROL_STATUS: say("acked %" PRIu64, c->acked); break;
		case CONTROL_RESUME: say("running"); return true;
		case CONTROL_PAUSE:
			say("paused %" PRIu64, c->acked);
			do {
				order = control_poll(-1);
				if (order == CONTROL_STATUS)
					say("acked %" PRIu64, c->acked);
			} while (order == CONTROL_STATUS);
			continue;
		case CONTROL_NONE: break;
		}
		order = control_poll(0);
	}
	return true;
}

static void
run(struct counter *c)
{
	double start = now_seconds(), due, now;
	uint64_t first = c->next;

	assert(c->n_disks > 0 && c->slots > 0);
	while (obey(c, control_poll(0))) {
		if (c->limit && c->acked >= c->limit)
			break;
		write_next(c);
		if (c->rate == 0)
			continue;
		due = start + (double)(c->next - first) / (double)c->rate;
		now = now_seconds();
		if (due > now)
			poll(NULL, 0, (int)((due - now) * 1000));
	}
}

static void
usage(void)
{
	puts("counter-writer [OPTIONS] OFFSET+LENGTH@URI...\n"
	     "Writes one counter round robin to all disks, each write and a "
	     "flush acknowledged\nbefore the next is sent.  Orders on standard "
	     "input: pause, resume, status, quit.\n\n"
	     "  --start N      first value (default 1)\n"
	     "  --limit N      stop after value N (default: never)\n"
	     "  --rate N       at most N writes per second (default: no limit)\n"
	     "  --reconnect S  wait up to S seconds for a lost connection\n"
	     "  --help         this text");
}

static void
parse_options(struct counter *c, int argc, char **argv)
{
	static const struct option options[] = {
		{ "start", required_argument, NULL, 's' },
		{ "limit", required_argument, NULL, 'l' },
		{ "rate", required_argument, NULL, 'r' },
		{ "reconnect", required_argument, NULL, 'c' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (o) {
		case 's':
			c->next = number(optarg, "--start", 1ULL << 48);
			break;
		case 'l':
			c->limit = number(optarg, "--limit", 1ULL << 48);
			break;
		case 'r': c->rate = number(optarg, "--rate", 1000000); break;
		case 'c':
			c->patience =
				(double)number(optarg, "--reconnect", 3600);
			break;
		case 'h': usage(); exit(0);
		default: exit(1);
		}
	}
	if (c->next == 0)
		die("--start must be at least 1: an empty slot counts as 0");
}

static void
open_disks(struct counter *c, int n, char **texts)
{
	int i;

	if (n < 1 || n > MAX_DISKS)
		die("give 1 to %d disks, see --help", (int)MAX_DISKS);
	c->n_disks = (uint32_t)n;
	c->slots = UINT64_MAX;
	for (i = 0; i < n; i++) {
		disk_parse(&c->disks[i], texts[i]);
		if (c->disks[i].length / SLOT_BYTES < c->slots)
			c->slots = c->disks[i].length / SLOT_BYTES;
	}
	if (c->slots == 0)
		die("an area is smaller than one slot of %d bytes",
		    (int)SLOT_BYTES);
	for (i = 0; i < n; i++)
		disk_connect(&c->disks[i], c->patience);
}

int
main(int argc, char **argv)
{
	static struct counter c = { .next = 1 };
	uint32_t i;

	parse_options(&c, argc, argv);
	c.acked = c.next - 1;
	crc_init(c.crc_table);
	open_disks(&c, argc - optind, argv + optind);
	say("ready");
	run(&c);
	say("done %" PRIu64 " %" PRIu64, c.acked, c.reconnections);
	for (i = 0; i < c.n_disks; i++)
		disk_close(&c.disks[i]);
	return 0;
}

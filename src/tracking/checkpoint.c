/* SPDX-License-Identifier: BSD-3-Clause */
#include "tracking/checkpoint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bits.h"

#define MAGIC   UINT64_C(0x3150434b43455053) /* "SPECKCP1" on disk */
#define VERSION 1
#define PAGE    4096
#define CHUNK   (PAGE * 8) /* granules of a record */
#define WORDS   (PAGE / sizeof(uint64_t))

enum kind { END = 0, BITS = 1, ALL = 2 };

/* Little endian hosts only, as epochs are. */
struct head {
	uint64_t magic, version;
	uint64_t id, size, granularity;
};

/* Before a page of bits, or alone. */
struct record {
	uint64_t kind;
	uint64_t chunk; /* END: the checksum */
};

/* A file that is read or written from its beginning, in large pieces. */
struct pipe {
	int fd; /* borrowed */
	uint64_t sum; /* of what went through */
	size_t at, len; /* in @buf */
	char buf[64 << 10];
};

/* All parts have a length that is a multiple of a word. */
static void
count(struct pipe *p, const void *part, size_t len)
{
	uint64_t word;

	for (size_t i = 0; i < len; i += sizeof word) {
		memcpy(&word, (const char *)part + i, sizeof word);
		p->sum = (p->sum ^ word) * UINT64_C(0x9e3779b97f4a7c15);
		p->sum ^= p->sum >> 29;
	}
}

/* --- saving ----------------------------------------------------------------------- */

static bool
flush(struct pipe *p, struct err *e)
{
	size_t at = 0;

	while (at < p->len) {
		ssize_t n = write(p->fd, p->buf + at, p->len - at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_set(e, ERR_GENERIC, errno,
				       "cannot write a checkpoint");
		at += (size_t)n;
	}
	p->len = 0;
	return true;
}

static bool
put(struct pipe *p, const void *part, size_t len, struct err *e)
{
	if (p->len + len > sizeof p->buf && !flush(p, e))
		return false;
	memcpy(p->buf + p->len, part, len);
	p->len += len;
	count(p, part, len);
	return true;
}

/* The bits of granules [0, n) that are dirty, of those that begin at @off. */
static void
collect(const struct epoch *ep, uint64_t off, uint64_t end, uint64_t *bits)
{
	uint64_t unit = epoch_granularity(ep), at = off;

	memset(bits, 0, PAGE);
	while ((at = epoch_next_dirty(ep, at, end)) < end) {
		uint64_t g = (at - off) / unit;
		uint64_t stop = epoch_next_clean(ep, at, end);

		for (at = stop; off + g * unit < stop; g++)
			bits[g / 64] |= UINT64_C(1) << g % 64;
	}
}

static bool
put_chunk(struct pipe *p, const struct epoch *ep, uint64_t chunk, struct err *e)
{
	uint64_t span = CHUNK * epoch_granularity(ep), off = chunk * span;
	uint64_t end = min_u64(off + span, epoch_size(ep));
	struct record r = { .kind = BITS, .chunk = chunk };
	uint64_t bits[WORDS];

	if (epoch_next_dirty(ep, off, end) >= end)
		return true;
	if (epoch_next_clean(ep, off, end) >= end) {
		r.kind = ALL;
		return put(p, &r, sizeof r, e);
	}
	collect(ep, off, end, bits);
	return put(p, &r, sizeof r, e) && put(p, bits, sizeof bits, e);
}

static uint64_t
chunks_of(const struct epoch *ep)
{
	return div_up(div_up(epoch_size(ep), epoch_granularity(ep)), CHUNK);
}

bool
checkpoint_save(int fd, uint64_t id, const struct epoch *ep, struct err *e)
{
	AUTO(free) struct pipe *p = calloc(1, sizeof *p);
	struct head h = { .magic = MAGIC,
			  .version = VERSION,
			  .id = id,
			  .size = epoch_size(ep),
			  .granularity = epoch_granularity(ep) };
	struct record end = { .kind = END };

	if (!p)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot write a checkpoint");
	p->fd = fd;
	if (!put(p, &h, sizeof h, e))
		return false;
	for (uint64_t c = 0; c < chunks_of(ep); c++)
		if (!put_chunk(p, ep, c, e))
			return false;
	end.chunk = p->sum;
	return put(p, &end, sizeof end, e) && flush(p, e);
}

/* --- loading ------------------------------------------------------------------------ */

static bool
damaged(struct err *e)
{
	return err_set(e, ERR_GENERIC, 0, "the checkpoint is damaged");
}

/* The next bytes; a file that ends before them is damaged. */
static bool
get(struct pipe *p, void *part, size_t len, struct err *e)
{
	size_t done = 0;

	while (done < len) {
		size_t n = min_u64(p->len - p->at, len - done);
		ssize_t more;

		memcpy((char *)part + done, p->buf + p->at, n);
		p->at += n;
		done += n;
		if (done == len)
			break;
		more = read(p->fd, p->buf, sizeof p->buf);
		if (more < 0 && errno == EINTR)
			continue;
		if (more < 0)
			return err_set(e, ERR_GENERIC, errno,
				       "cannot read a checkpoint");
		if (more == 0)
			return damaged(e);
		p->at = 0;
		p->len = (size_t)more;
	}
	return true;
}

static bool
check_head(const struct head *h, struct err *e)
{
	if (h->magic != MAGIC)
		return err_set(e, ERR_GENERIC, 0, "it is not a checkpoint");
	if (h->version != VERSION)
		return err_set(e, ERR_GENERIC, 0,
			       "a checkpoint of unknown version");
	return true;
}

bool
checkpoint_look(int fd, struct checkpoint *c, struct err *e)
{
	struct head h;
	ssize_t n = pread(fd, &h, sizeof h, 0);

	if (n < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot read a checkpoint");
	if (n != (ssize_t)sizeof h)
		return damaged(e);
	if (!check_head(&h, e))
		return false;
	*c = (struct checkpoint){ .id = h.id,
				  .size = h.size,
				  .granularity = h.granularity };
	return true;
}

static void
spread(struct epoch *to, uint64_t off, uint64_t end, const uint64_t *bits)
{
	uint64_t unit = epoch_granularity(to);

	for (uint64_t g = 0; off + g * unit < end; g++) {
		uint64_t at = off + g * unit;

		if (bits[g / 64] >> g % 64 & 1)
			epoch_set(to, at, min_u64(unit, end - at));
	}
}

static bool
get_chunk(struct pipe *p, struct epoch *to, const struct record *r,
	  struct err *e)
{
	uint64_t span = CHUNK * epoch_granularity(to), off = r->chunk * span;
	uint64_t end = min_u64(off + span, epoch_size(to));
	uint64_t bits[WORDS];

	if (r->kind == ALL) {
		epoch_set(to, off, end - off);
		return true;
	}
	if (!get(p, bits, sizeof bits, e))
		return false;
	count(p, bits, sizeof bits);
	spread(to, off, end, bits);
	return true;
}

static bool
get_all(struct pipe *p, struct epoch *to, struct err *e)
{
	struct record r;

	for (uint64_t next = 0;; next = r.chunk + 1) {
		if (!get(p, &r, sizeof r, e))
			return false;
		if (r.kind == END)
			return r.chunk == p->sum || damaged(e);
		if (r.kind > ALL || r.chunk < next || r.chunk >= chunks_of(to))
			return damaged(e);
		count(p, &r, sizeof r);
		if (!get_chunk(p, to, &r, e))
			return false;
	}
}

bool
checkpoint_load(int fd, struct epoch *to, struct err *e)
{
	AUTO(free) struct pipe *p = calloc(1, sizeof *p);
	struct head h;

	if (!p)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot read a checkpoint");
	p->fd = fd;
	if (lseek(fd, 0, SEEK_SET) < 0)
		return err_set(e, ERR_GENERIC, errno,
			       "cannot read a checkpoint");
	if (!get(p, &h, sizeof h, e) || !check_head(&h, e))
		return false;
	count(p, &h, sizeof h);
	if (h.size != epoch_size(to) || h.granularity != epoch_granularity(to))
		return damaged(e);
	return get_all(p, to, e);
}

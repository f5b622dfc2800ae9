/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/qcow2/header.h"

#include <errno.h>
#include <stdlib.h>

#include "base/bits.h"
#include "base/mem.h"

/* A header on its way from @old to @now. */
struct change {
	const struct qcow2_header_file *f;
	const uint8_t *old;
	uint8_t *now; /* owned; what it shall be */
	uint8_t *between; /* owned; says the same, in the first sector and, for
			   * the name, in [@name_at, @name_end) */
	size_t size; /* of the cluster */
	size_t name_at, name_end;
};

static int
put(const struct change *c, const uint8_t *area, size_t from, size_t to)
{
	int r = from < to ? c->f->write(c->f->opaque, area + from, to - from,
					from)
			  : 0;

	return r ? r : c->f->flush(c->f->opaque);
}

/* Bytes up to the last that is not zero. */
static size_t
used(const uint8_t *area, size_t size)
{
	while (size && !area[size - 1])
		size--;
	return size;
}

static bool
serialise(const struct change *c, struct qcow2_header *h, uint8_t *to,
	  size_t len)
{
	return qcow2_header_serialise(h, to, len, c->old, NULL);
}

/* All of it in the first sector, which leaves no room for feature names. */
static bool
fits_one_sector(struct change *c, struct qcow2_header *h)
{
	memset(c->between, 0, c->size);
	return serialise(c, h, c->between, c->f->sector);
}

/* Whole sectors for @len bytes behind what is new, in which the old header has
 * nothing; the cluster's size: there are none.
 */
static size_t
free_place(const struct change *c, size_t len)
{
	size_t sector = c->f->sector, need = round_up(len, sector);
	size_t least = max_u64(sector, round_up(used(c->now, c->size), sector));

	if (need > c->size)
		return c->size;
	for (size_t at = c->size - need; at >= least; at -= sector)
		if (buf_is_zero(c->old + at, need))
			return at;
	return c->size;
}

/* The name where neither header has anything. */
static bool
make_between(struct change *c, const struct qcow2_header *h)
{
	size_t name = h->has_backing ? strlen(h->backing) : 0;
	AUTO(free) struct qcow2_header *copy = malloc(sizeof *copy);

	if (!copy)
		return false;
	*copy = *h;
	copy->has_backing = false;
	memset(c->between, 0, c->size);
	if (!serialise(c, copy, c->between, c->f->sector))
		return false;
	c->name_at = c->name_end = c->size;
	if (!name)
		return true;
	c->name_at = free_place(c, name);
	if (c->name_at == c->size)
		return false;
	c->name_end = c->name_at + round_up(name, c->f->sector);
	be64_put(c->between + QCOW2_AT_BACKING, c->name_at);
	be32_put(c->between + QCOW2_AT_BACKING + 8, (uint32_t)name);
	memcpy(c->between + c->name_at, h->backing, name);
	return true;
}

/* Rule 1. */
static int
go_between(const struct change *c)
{
	size_t sector = c->f->sector;
	int r = put(c, c->between, c->name_at, c->name_end);

	if (!r)
		r = put(c, c->between, 0, sector);
	if (!r)
		r = put(c, c->now, sector, c->name_at);
	if (!r)
		r = put(c, c->now, 0, sector);
	return r ? r : put(c, c->now, c->name_at, c->size);
}

static int
replace(struct change *c, struct qcow2_header *h)
{
	size_t sector = c->f->sector;
	int r;

	if (c->size <= sector ||
	    !memcmp(c->now + sector, c->old + sector, c->size - sector))
		return put(c, c->now, 0, min_u64(sector, c->size));
	if (make_between(c, h))
		return go_between(c);
	if (!fits_one_sector(c, h)) {
		(void)serialise(c, h, c->now, c->size);
		return put(c, c->now, 0, c->size);
	}
	r = put(c, c->between, 0, sector);
	return r ? r : put(c, c->between, sector, c->size);
}

int
qcow2_header_replace(const struct qcow2_header_file *f, struct qcow2_header *h,
		     const void *old)
{
	size_t size = (size_t)1 << h->cluster_bits;
	AUTO(free) uint8_t *now = malloc(size);
	AUTO(free) uint8_t *between = malloc(size);
	struct change c = {
		.f = f, .old = old, .now = now, .between = between, .size = size
	};

	if (!now || !between)
		return ENOMEM;
	return serialise(&c, h, now, size) ? replace(&c, h) : EMSGSIZE;
}

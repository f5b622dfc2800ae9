/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/qcow2/check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "base/log.h"
#include "block/qcow2/check-priv.h"
#include "block/qcow2/qcow2.h"

#define CACHE_BYTES (4 * MiB) /* of refcount blocks, two of them at least */

void
qcow2_found(struct qcow2_checker *c, uint64_t *counter, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	(*counter)++;
	if (!c->o->report)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	c->o->report(c->o->opaque, text);
}

bool
qcow2_check_read(struct qcow2_checker *c, void *buf, size_t len, uint64_t off)
{
	size_t n = 0;
	int r = 0;

	if (off < c->file->size) {
		n = (size_t)min_u64(len, c->file->size - off);
		r = block_pread(c->file, buf, n, off);
	}
	memset((char *)buf + n, 0, len - n);
	if (r)
		qcow2_found(c, &c->res->check_errors,
			    "cannot read %zu bytes at %#" PRIx64 ": %s", len,
			    off, strerror(r));
	return r == 0;
}

int
qcow2_check_go_on(const struct qcow2_checker *c)
{
	return c->o->cancelled && c->o->cancelled(c->o->opaque) ? ECANCELED : 0;
}

bool
qcow2_stored_refcount(struct qcow2_checker *c, uint64_t cluster, uint64_t *out)
{
	uint64_t i = cluster >> c->g.refblock_bits;
	uint64_t mask = (UINT64_C(1) << c->g.refblock_bits) - 1;
	size_t place = i % c->cache_n;
	uint8_t *block = c->cache + place * c->g.cluster_size;

	*out = 0;
	if (i >= c->reftable_n || !qcow2_refblock_usable(c, i))
		return true;
	if (c->cached[place] != i + 1) {
		c->cached[place] = 0;
		if (!qcow2_check_read(c, block, c->g.cluster_size,
				      c->reftable[i]))
			return false;
		c->cached[place] = i + 1;
	}
	*out = qcow2_refcount_get(block, c->g.refcount_order, cluster & mask);
	return true;
}

/* --- the checker ------------------------------------------------------------ */

static bool
no_memory(struct err *e)
{
	return err_set(e, ERR_GENERIC, ENOMEM, "cannot check the image");
}

static bool
load_reftable(struct qcow2_checker *c, struct err *e)
{
	uint64_t bytes = (uint64_t)c->h.reftable_clusters << c->h.cluster_bits;
	int r;

	if (bytes > QCOW2_REFTABLE_BYTES_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "the refcount table is too large");
	free(c->reftable);
	c->reftable = malloc(bytes ? bytes : 1);
	c->reftable_n = bytes / 8;
	if (!c->reftable)
		return no_memory(e);
	memset(c->reftable, 0, bytes);
	bytes = c->h.reftable_offset < c->file->size
			? min_u64(bytes, c->file->size - c->h.reftable_offset)
			: 0;
	r = block_pread(c->file, c->reftable, bytes, c->h.reftable_offset);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "cannot read the refcount table");
	for (uint64_t i = 0; i < c->reftable_n; i++)
		c->reftable[i] = be64_get(&c->reftable[i]);
	return true;
}

bool
qcow2_checker_load(struct qcow2_checker *c, struct err *e)
{
	AUTO(free) struct qcow2_info *info = malloc(sizeof *info);

	if (!info)
		return no_memory(e);
	if (!qcow2_probe(c->file, info, e))
		return false;
	c->h = info->header;
	qcow2_geometry_init(&c->g, &c->h);
	if (c->cached)
		memset(c->cached, 0, c->cache_n * sizeof *c->cached);
	return load_reftable(c, e);
}

static bool
init_cache(struct qcow2_checker *c)
{
	c->cache_n = (size_t)max_u64(CACHE_BYTES / c->g.cluster_size, 2);
	c->cached = calloc(c->cache_n, sizeof *c->cached);
	c->cache = malloc(c->cache_n * c->g.cluster_size);
	return c->cached && c->cache;
}

static bool
checker_init(struct qcow2_checker *c, struct err *e)
{
	size_t memory =
		c->o->memory ? c->o->memory : QCOW2_CHECK_MEMORY_DEFAULT;

	if (!qcow2_checker_load(c, e))
		return false;
	memory = (size_t)max_u64(memory, QCOW2_CHECK_MEMORY_MIN);
	c->refs = calloc(QCOW2_L2_REFS, sizeof *c->refs);
	c->table = malloc(c->g.cluster_size);
	c->block = malloc(c->g.cluster_size);
	c->piece = malloc(QCOW2_PIECE);
	if (!c->refs || !c->table || !c->block || !c->piece ||
	    qcow2_counts_init(&c->counts, memory) || !init_cache(c))
		return no_memory(e);
	return true;
}

static void
checker_destroy(struct qcow2_checker *c)
{
	free(c->cached);
	free(c->cache);
	qcow2_counts_destroy(&c->counts);
	free(c->reftable);
	free(c->refs);
	free(c->table);
	free(c->block);
	free(c->piece);
	free(c);
}
DEFINE_CLEANUP(struct qcow2_checker, checker_destroy);

/* --- the order of things ------------------------------------------------------ */

static bool
failed(int r, const char *what, struct err *e)
{
	return err_set(e, ERR_GENERIC, r, "cannot %s the image", what);
}

static bool
examine(struct qcow2_checker *c, struct err *e)
{
	int r;

	memset(c->res, 0, sizeof *c->res);
	c->res->total_clusters = div_up(c->h.size, c->g.cluster_size);
	c->end = 0;
	c->rebuild = false;
	c->first_pass = true;
	r = qcow2_passes(c, qcow2_compare, NULL);
	if (!r)
		r = qcow2_check_flags(c, false);
	return r ? failed(r, "check", e) : true;
}

static bool
is_marked(const struct qcow2_checker *c)
{
	return c->h.version >= 3 &&
	       c->h.incompat & (QCOW2_DIRTY | QCOW2_CORRUPT);
}

/* Rules 3 and 4. */
static bool
may_repair(const struct qcow2_checker *c)
{
	const struct qcow2_check_result *res = c->res;

	if (!c->o->fix || res->check_errors)
		return false;
	if (c->o->fix & QCOW2_FIX_ERRORS)
		return res->corruptions || is_marked(c) ||
		       (res->leaks && c->o->fix & QCOW2_FIX_LEAKS);
	return res->leaks && !res->corruptions;
}

/* Rule 5. */
static bool
repair(struct qcow2_checker *c, struct err *e)
{
	int r = c->rebuild ? qcow2_rebuild(c)
			   : qcow2_passes(c, qcow2_repair_refcounts, NULL);

	if (!r)
		r = block_flush(c->file);
	if (r)
		return failed(r, "repair", e);
	if (!(c->o->fix & QCOW2_FIX_ERRORS))
		return true;
	if (!qcow2_checker_load(c, e))
		return false;
	r = qcow2_check_flags(c, true);
	if (!r)
		r = block_flush(c->file);
	return r ? failed(r, "repair", e) : true;
}

/* Rule 6: what is marked and was found to be right loses the marks. */
static bool
unmark(struct qcow2_checker *c, struct err *e)
{
	uint8_t field[8];
	int r;

	if (!(c->o->fix & QCOW2_FIX_ERRORS) || !is_marked(c) ||
	    c->res->corruptions || c->res->check_errors)
		return true;
	c->h.incompat &= ~(QCOW2_DIRTY | QCOW2_CORRUPT);
	be64_put(field, c->h.incompat);
	r = block_flush(c->file);
	if (!r)
		r = block_pwrite(c->file, field, sizeof field,
				 QCOW2_AT_INCOMPAT);
	if (!r)
		r = block_flush(c->file);
	return r ? failed(r, "repair", e) : true;
}

static uint64_t
less(uint64_t before, uint64_t after)
{
	return before > after ? before - after : 0;
}

bool
qcow2_check(struct block *file, const struct qcow2_check_options *o,
	    struct qcow2_check_result *res, struct err *e)
{
	AUTO(checker_destroy) struct qcow2_checker *c = calloc(1, sizeof *c);
	struct qcow2_check_result before;

	if (!c)
		return no_memory(e);
	c->file = file;
	c->o = o;
	c->res = res;
	if (!checker_init(c, e) || !examine(c, e))
		return false;
	if (!may_repair(c))
		return true;
	before = *res;
	if (!repair(c, e) || !qcow2_checker_load(c, e) || !examine(c, e) ||
	    !unmark(c, e))
		return false;
	res->corruptions_fixed = less(before.corruptions, res->corruptions);
	res->leaks_fixed = less(before.leaks, res->leaks);
	return true;
}

bool
qcow2_repair_dirty(struct block *file, struct err *e)
{
	const struct qcow2_check_options o = { .fix = QCOW2_FIX_LEAKS |
						      QCOW2_FIX_ERRORS };
	AUTO(free) struct qcow2_info *info = malloc(sizeof *info);
	struct qcow2_check_result res;

	if (!info)
		return no_memory(e);
	if (!qcow2_probe(file, info, e))
		return false;
	/* what is corrupt is refused by who opens it */
	if ((info->header.incompat & (QCOW2_DIRTY | QCOW2_CORRUPT)) !=
	    QCOW2_DIRTY)
		return true;
	if (!qcow2_check(file, &o, &res, e))
		return err_prefix(e, "qcow2: Could not repair dirty image: ");
	log_info("qcow2: the image was not closed properly and is repaired: "
		 "%" PRIu64 " leaked clusters, %" PRIu64 " wrong entries",
		 res.leaks_fixed, res.corruptions_fixed);
	if (!res.corruptions && !res.check_errors)
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "qcow2: Could not repair dirty image: %" PRIu64
		       " corruptions are left",
		       res.corruptions + res.check_errors);
}

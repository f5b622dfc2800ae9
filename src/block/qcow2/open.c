/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Opening and closing an image.  The header and the tables that are always in
 * memory are read and checked here; what is written afterwards relies on it.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "block/qcow2/check.h"
#include "block/qcow2/qcow2-priv.h"

static const struct block_ops qcow2_ops;

/* --- the header -------------------------------------------------------------------- */

static bool
read_header(struct block *file, struct qcow2_header *h, struct err *e)
{
	AUTO(free) uint8_t *area = NULL;
	uint8_t head[QCOW2_HEADER_V2];
	uint32_t len;
	int r = qcow2_child_read(file, head, sizeof head, 0);

	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not read qcow2 header");
	if (!qcow2_header_area(head, &len, e))
		return false;
	area = malloc(len);
	r = area ? qcow2_child_read(file, area, len, 0) : ENOMEM;
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not read qcow2 header");
	return qcow2_header_parse(h, area, len, file->size, e);
}

bool
qcow2_probe(struct block *file, struct qcow2_info *out, struct err *e)
{
	if (!read_header(file, &out->header, e))
		return false;
	out->needs_data_file = out->header.incompat & QCOW2_DATA_FILE;
	return true;
}

/* May it be opened as the caller wants? */
static bool
check_state(const struct qcow2_options *o, const struct qcow2_header *h,
	    struct err *e)
{
	bool external = h->incompat & QCOW2_DATA_FILE;

	if (external && !o->data)
		return err_set(e, ERR_GENERIC, 0,
			       "'data-file' is required for this image");
	if (!external && o->data)
		return err_set(e, ERR_GENERIC, 0,
			       "'data-file' can only be set for images with an "
			       "external data file");
	if (!o->read_only && h->incompat & QCOW2_CORRUPT)
		return err_set(e, ERR_GENERIC, 0,
			       "qcow2: Image is corrupt; cannot be opened "
			       "read/write");
	return true;
}

/* "Dirty bit": the refcounts may be wrong. */
static bool
repair(struct qcow2 *q, struct err *e)
{
	struct qcow2_check_options o = { .fix = QCOW2_FIX_LEAKS |
						QCOW2_FIX_ERRORS };
	struct qcow2_check_result res;

	log_warn("qcow2: an image was not closed; repairing it");
	if (!qcow2_check(q->file, &o, &res, e))
		return err_prefix(e, "Could not repair dirty image: ");
	if (res.corruptions || res.check_errors)
		return err_set(e, ERR_GENERIC, 0,
			       "Could not repair dirty image: %" PRIu64
			       " corruptions and %" PRIu64 " check errors",
			       res.corruptions, res.check_errors);
	return read_header(q->file, &q->h, e);
}

/* --- tables in memory ----------------------------------------------------------------- */

/* @n entries at @off, into the host's byte order. */
static int
read_table(struct block *file, uint64_t off, uint64_t n,
	   void (*put)(void *to, uint64_t i, uint64_t v), void *to)
{
	uint8_t raw[8192];
	uint64_t done = 0;

	while (done < n) {
		uint64_t some = min_u64(n - done, sizeof raw / 8);
		int r = qcow2_child_read(file, raw, (size_t)some * 8,
					 off + done * 8);

		if (r)
			return r;
		for (uint64_t i = 0; i < some; i++)
			put(to, done + i, be64_get(raw + i * 8));
		done += some;
	}
	return 0;
}

static void
put_l1(void *to, uint64_t i, uint64_t v)
{
	_Atomic uint64_t *l1 = to;

	atomic_store_explicit(&l1[i], v, memory_order_relaxed);
}

static void
put_reftable(void *to, uint64_t i, uint64_t v)
{
	((uint64_t *)to)[i] = v;
}

static int
load_l1(struct qcow2 *q)
{
	_Atomic uint64_t *l1 = calloc(q->h.l1_size + 1, sizeof *l1);
	int r;

	if (!l1)
		return ENOMEM;
	r = read_table(q->file, q->h.l1_offset, q->h.l1_size, put_l1, l1);
	free(q->l1);
	q->l1 = l1;
	q->l1_max = q->h.l1_size;
	return r;
}

static int
load_reftable(struct qcow2 *q)
{
	uint64_t n =
		((uint64_t)q->h.reftable_clusters << q->g.cluster_bits) / 8;

	q->reftable = calloc(n, sizeof *q->reftable);
	if (!q->reftable)
		return ENOMEM;
	q->reftable_n = (uint32_t)n;
	return read_table(q->file, q->h.reftable_offset, n, put_reftable,
			  q->reftable);
}

/* --- rule 8: what the metadata occupy ---------------------------------------------------- */

struct claimer {
	struct qcow2 *q;
	const char *what; /* what overlapped first */
	uint64_t at;
	int os;
};

static void
claim(struct claimer *c, const char *what, uint64_t off, uint64_t bytes)
{
	uint64_t end = atomic_load(&c->q->file_end);
	int r;

	if (c->os || !bytes)
		return;
	r = EINVAL;
	if (off % c->q->g.cluster_size == 0 && range_fits(off, bytes, end))
		r = qcow2_claim(c->q, off, bytes);
	if (!r)
		return;
	c->os = r;
	c->what = what;
	c->at = off;
}

static uint64_t
count_tables(const struct qcow2 *q)
{
	uint64_t n = 16 + q->h.reftable_clusters +
		     qcow2_clusters(q, (uint64_t)q->h.l1_size * 8);

	for (uint64_t i = 0; i < q->h.l1_size; i++)
		n += (q->l1[i] & QCOW2_L1_OFFSET) != 0;
	for (uint64_t i = 0; i < q->reftable_n; i++)
		n += q->reftable[i] != 0;
	return n;
}

static bool
claim_metadata(struct qcow2 *q, struct err *e)
{
	struct claimer c = { .q = q };
	const struct qcow2_header *h = &q->h;

	if (!qcow2_claims_init(q, count_tables(q)))
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open qcow2");
	claim(&c, "the header", 0, q->g.cluster_size);
	claim(&c, "the refcount table", h->reftable_offset,
	      (uint64_t)h->reftable_clusters << q->g.cluster_bits);
	claim(&c, "the active L1 table", h->l1_offset,
	      (uint64_t)h->l1_size * 8);
	for (uint64_t i = 0; i < q->reftable_n; i++)
		if (q->reftable[i])
			claim(&c, "a refcount block",
			      q->reftable[i] & QCOW2_REFTABLE_OFFSET,
			      q->g.cluster_size);
	for (uint64_t i = 0; i < h->l1_size; i++)
		if (q->l1[i] & QCOW2_L1_OFFSET)
			claim(&c, "an L2 table", q->l1[i] & QCOW2_L1_OFFSET,
			      q->g.cluster_size);
	for (uint32_t i = 0; i < h->snapshots; i++)
		claim(&c, "a snapshot's L1 table", q->snapshot[i].l1_offset,
		      (uint64_t)q->snapshot[i].l1_size * 8);
	if (h->snapshots)
		claim(&c, "the snapshot table", h->snapshots_offset,
		      q->snapshots_bytes);
	if (!c.os)
		return true;
	if (c.os == ENOMEM)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open qcow2");
	return err_set(e, ERR_GENERIC, 0,
		       "qcow2: Image is corrupt: %s at offset %#" PRIx64
		       " overlaps other metadata or lies behind the end of the "
		       "file; cannot be opened read/write",
		       c.what, c.at);
}

/* --- opening --------------------------------------------------------------------------------- */

static void
init_locks(struct qcow2 *q)
{
	pthread_rwlockattr_t a;

	(void)pthread_rwlockattr_init(&a);
	(void)pthread_rwlockattr_setkind_np(
		&a, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	for (unsigned i = 0; i < QCOW2_SHARDS; i++)
		(void)pthread_rwlock_init(&q->shard[i], &a);
	(void)pthread_rwlockattr_destroy(&a);
	(void)pthread_mutex_init(&q->tables, NULL);
	(void)pthread_mutex_init(&q->space_lock, NULL);
	(void)pthread_mutex_init(&q->rmw, NULL);
	mtx_init(&q->flush_lock, LOCK_QCOW2_FLUSH);
	cond_init(&q->flushed);
	qcow2_held_init(q);
	qcow2_unpacked_init(q);
}

static void
destroy(struct qcow2 *q)
{
	for (unsigned i = 0; i < QCOW2_SHARDS; i++)
		(void)pthread_rwlock_destroy(&q->shard[i]);
	(void)pthread_mutex_destroy(&q->tables);
	(void)pthread_mutex_destroy(&q->space_lock);
	(void)pthread_mutex_destroy(&q->rmw);
	mtx_destroy(&q->flush_lock);
	(void)pthread_cond_destroy(&q->flushed);
	qcow2_held_destroy(q);
	qcow2_unpacked_destroy(q);
	qcow2_cache_destroy(q);
	qcow2_claims_destroy(q);
	qcow2_snapshots_free(q);
	free(q->l1);
	free(q->reftable);
	if (q->external)
		block_free(q->data);
	if (q->backing)
		block_free(q->backing);
	block_free(q->file);
	free(q);
}
DEFINE_CLEANUP(struct qcow2, destroy);

static void
set_block(struct qcow2 *q)
{
	struct block *b = &q->block;

	block_inherit(b, q->data);
	b->ops = &qcow2_ops;
	b->size = round_down(q->h.size, 512);
	b->cluster = q->g.cluster_size;
	b->rotational = q->file->rotational || q->data->rotational;
	b->coherent = q->file->coherent && q->data->coherent &&
		      (!q->backing || q->backing->coherent);
}

/* "Autoclear": what we do not keep up must not look as if we did. */
static int
clear_autoclear(struct qcow2 *q, bool keep_bitmaps)
{
	uint64_t keep =
		QCOW2_AUTO_RAW_DATA | (keep_bitmaps ? QCOW2_AUTO_BITMAPS : 0);
	uint8_t field[8];
	int r;

	if (!(q->h.autoclear & ~keep))
		return 0;
	q->h.autoclear &= keep;
	if (!(q->h.autoclear & QCOW2_AUTO_BITMAPS))
		q->h.has_bitmaps = false;
	be64_put(field, q->h.autoclear);
	r = qcow2_meta_write(q, field, sizeof field, QCOW2_AT_AUTOCLEAR);
	return r ? r : qcow2_barrier(q);
}

/* A file whose last cluster is not all there, or a data file that is shorter
 * than the disk, reads as zeroes behind its end; what is written there has to
 * be inside.
 */
static int
lengthen(struct block *file, uint64_t size)
{
	int r;

	if (file->size >= size || !file->ops->truncate)
		return 0;
	r = block_truncate(file, size);
	return r == ENOTSUP || r == EINVAL ? 0 : r; /* it cannot grow */
}

static bool
prepare_to_write(struct qcow2 *q, const struct qcow2_options *o, struct err *e)
{
	uint64_t tail = 0;
	int r = lengthen(q->file, q->file_end);

	if (!r && q->external)
		r = lengthen(q->data, q->block.size);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not make the image's file longer");
	r = load_reftable(q);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not read the refcount table");
	if (!qcow2_snapshots_load(q, e))
		return false;
	if (!claim_metadata(q, e))
		return false;
	r = qcow2_refcount_tail(q, &tail);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not read a refcount block");
	q->space.tail = tail;
	q->space.batch = MiB;
	r = clear_autoclear(q, o->keep_bitmaps);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not update qcow2 header");
	return true;
}

static uint64_t
cache_bytes(uint64_t asked)
{
	if (!asked)
		asked = QCOW2_CACHE_DEFAULT;
	return max_u64(min_u64(asked, QCOW2_CACHE_MAX), QCOW2_CACHE_MIN);
}

void
qcow2_set_cache(struct block *b, uint64_t bytes)
{
	qcow2_cache_resize(to_qcow2(b), cache_bytes(bytes));
}

static bool
load(struct qcow2 *q, const struct qcow2_options *o, struct err *e)
{
	int r;

	if (!read_header(q->file, &q->h, e) || !check_state(o, &q->h, e))
		return false;
	if (!o->read_only && q->h.incompat & QCOW2_DIRTY && !repair(q, e))
		return false;
	qcow2_geometry_init(&q->g, &q->h);
	q->v3 = q->h.version == 3;
	q->unit_bits = q->g.cluster_bits > 16 ? q->g.cluster_bits : 16;
	q->file_end = q->first_end = round_up(q->file->size, q->g.cluster_size);
	set_block(q);
	q->block.read_only = o->read_only;
	if (q->data->min_block > 1u << q->g.subcluster_bits)
		return err_set(e, ERR_GENERIC, 0,
			       "the file's request alignment of %" PRIu32
			       " bytes is larger than what the image allocates "
			       "at once",
			       q->data->min_block);
	r = load_l1(q);
	if (r)
		return err_set(e, ERR_GENERIC, r, "Could not read L1 table");
	if (!qcow2_cache_init(q, cache_bytes(o->cache_size)))
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open qcow2");
	return o->read_only || prepare_to_write(q, o, e);
}

bool
qcow2_open(const struct qcow2_options *o, struct block **out, struct err *e)
{
	AUTO(block_free) struct block *file = o->file;
	AUTO(block_free) struct block *backing = o->backing;
	AUTO(block_free) struct block *data = o->data;
	AUTO(destroy) struct qcow2 *q = calloc(1, sizeof *q);

	if (!q)
		return err_set(e, ERR_GENERIC, ENOMEM, "cannot open qcow2");
	init_locks(q);
	q->external = data;
	q->data = data ? steal(&data) : file;
	q->file = steal(&file);
	q->backing = steal(&backing);
	q->live = o->live;
	if (!load(q, o, e))
		return false;
	*out = &steal(&q)->block;
	return true;
}

bool
qcow2_is(const struct block *b)
{
	return b->ops == &qcow2_ops;
}

const struct qcow2_header *
qcow2_header_of(const struct block *b)
{
	return &container_of(b, const struct qcow2, block)->h;
}

/* --- as the plugin's second process sees it --------------------------------------------------- */

static int
reload(struct qcow2 *q)
{
	struct qcow2_header h;
	int r;

	/* a table may have moved behind what was the file's end */
	(void)block_look(q->file);
	if (!read_header(q->file, &h, NULL) || h.size != q->h.size ||
	    h.cluster_bits != q->h.cluster_bits)
		return EIO;
	qcow2_cache_forget_all(q);
	qcow2_unpacked_forget(q, 0, INT64_MAX);
	q->h = h;
	r = load_l1(q);
	return r;
}

int
qcow2_refresh(struct block *b)
{
	struct qcow2 *q = to_qcow2(b);
	int r;

	if (!q->live)
		return 0;
	qcow2_lock_all(q);
	r = reload(q);
	qcow2_unlock_all(q);
	return r;
}

/* --- closing ------------------------------------------------------------------------------------ */

/* Make everything durable, free what is free, give reservations back. */
static void
finish(struct qcow2 *q)
{
	int r = qcow2_barrier(q);

	while (!r && qcow2_held_any(q))
		r = qcow2_held_free(q);
	if (!r)
		r = qcow2_alloc_settle(q);
	if (!r)
		r = qcow2_barrier(q);
	if (r)
		log_error("qcow2: closing the image: %s", strerror(r));
}

static void
qcow2_free(struct block *b)
{
	struct qcow2 *q = to_qcow2(b);

	if (!q->block.read_only && !atomic_load(&q->failed) &&
	    atomic_load(&q->claims.table))
		finish(q);
	destroy(q);
}

static struct block *
qcow2_child(const struct block *b, unsigned i)
{
	const struct qcow2 *q = container_of(b, const struct qcow2, block);
	struct block *all[3] = { q->file, q->backing,
				 q->external ? q->data : NULL };
	unsigned n = 0;

	for (unsigned k = 0; k < ARRAY_SIZE(all); k++)
		if (all[k] && n++ == i)
			return all[k];
	return NULL;
}

static const struct block_ops qcow2_ops = {
	.name = "qcow2",
	.free = qcow2_free,
	.pread = qcow2_pread,
	.pwrite = qcow2_pwrite,
	.zero = qcow2_zero,
	.discard = qcow2_discard,
	.flush = qcow2_flush,
	.extent = qcow2_extent,
	.child = qcow2_child,
	.truncate = qcow2_truncate,
	.depth = qcow2_depth,
	.compress = qcow2_compress,
	.hold = qcow2_hold,
	.release = qcow2_release,
	.refresh = qcow2_refresh,
};

/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/qcow2/create.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"

#define PIECE (256 * KiB) /* of metadata or zeroes that are written at once */

/* Where everything lies; in clusters but for @size. */
struct layout {
	struct qcow2_header h;
	struct qcow2_geometry g;
	uint64_t reftable_at, reftable_n;
	uint64_t refblock_at, refblock_n;
	uint64_t l1_at, l1_n;
	uint64_t l2_at, l2_n; /* 0 tables unless preallocated */
	uint64_t data_at, data_n; /* guest clusters in the image file */
	uint64_t total;
	bool mapped; /* L2 tables map every guest cluster */
};

/* --- what can be ---------------------------------------------------------- */

/* The options with the defaults filled in. */
static struct qcow2_create_options
complete(const struct qcow2_create_options *given)
{
	struct qcow2_create_options o = *given;

	if (!o.version)
		o.version = 3;
	if (!o.cluster_size)
		o.cluster_size = 64 * KiB;
	if (!o.refcount_bits)
		o.refcount_bits = 16;
	/* the data can be read as a raw image without the metadata only while
	 * the metadata says nothing else
	 */
	if (o.data_file_raw && o.preallocation == QCOW2_PREALLOC_OFF)
		o.preallocation = QCOW2_PREALLOC_METADATA;
	return o;
}

static bool
check_numbers(const struct qcow2_create_options *o, struct err *e)
{
	if (o->version != 2 && o->version != 3)
		return err_set(e, ERR_GENERIC, 0, "Unknown qcow2 version %u",
			       o->version);
	if (!is_pow2(o->cluster_size) ||
	    o->cluster_size < UINT64_C(1) << QCOW2_CLUSTER_BITS_MIN ||
	    o->cluster_size > UINT64_C(1) << QCOW2_CLUSTER_BITS_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "Cluster size must be a power of two between "
			       "512 and 2048k");
	if (!is_pow2(o->refcount_bits) || o->refcount_bits > 64)
		return err_set(e, ERR_GENERIC, 0,
			       "Refcount width must be a power of two and may "
			       "not exceed 64 bits");
	if (o->size % 512)
		return err_set(e, ERR_GENERIC, 0,
			       "Image size must be a multiple of 512 bytes");
	if (o->extended_l2 &&
	    o->cluster_size < UINT64_C(1) << QCOW2_EXTENDED_CLUSTER_BITS)
		return err_set(e, ERR_GENERIC, 0,
			       "Extended L2 entries are only supported with "
			       "cluster sizes of at least 16384 bytes");
	return true;
}

/* What came with version 3. */
static bool
check_version(const struct qcow2_create_options *o, struct err *e)
{
	const char *what = NULL;

	if (o->version >= 3)
		return true;
	if (o->refcount_bits != 16)
		what = "Different refcount widths than 16 bits";
	else if (o->lazy_refcounts)
		what = "Lazy refcounts";
	else if (o->data_file)
		what = "External data files";
	else if (o->extended_l2)
		what = "Extended L2 entries";
	else if (o->compression != QCOW2_ZLIB)
		what = "Non-zlib compression type";
	if (!what)
		return true;
	return err_set(e, ERR_GENERIC, 0,
		       "%s require compatibility level 1.1 or above (use "
		       "version=v3 or greater)",
		       what);
}

static bool
check_name(const char *what, const char *name, size_t max, struct err *e)
{
	if (!name)
		return true;
	if (!*name)
		return err_set(e, ERR_GENERIC, 0, "The %s is empty", what);
	if (strlen(name) > max)
		return err_set(e, ERR_GENERIC, 0,
			       "The %s is longer than %zu bytes", what, max);
	return true;
}

static bool
check_files(const struct qcow2_create_options *o, struct err *e)
{
	if (o->backing_format && !o->backing_file)
		return err_set(e, ERR_GENERIC, 0,
			       "Backing format cannot be used without backing "
			       "file");
	if (o->data_file_raw && !o->data_file)
		return err_set(e, ERR_GENERIC, 0,
			       "data-file-raw requires data-file");
	if (o->data_file_raw && o->backing_file)
		return err_set(e, ERR_GENERIC, 0,
			       "Backing file and data-file-raw cannot be used "
			       "at the same time");
	if (o->backing_file && o->preallocation != QCOW2_PREALLOC_OFF &&
	    !o->extended_l2)
		return err_set(
			e, ERR_GENERIC, 0,
			"Backing file and preallocation can only be used "
			"at the same time if extended_l2 is enabled");
	return check_name("backing file name", o->backing_file, QCOW2_NAME_MAX,
			  e) &&
	       check_name("backing format", o->backing_format,
			  QCOW2_FORMAT_NAME_MAX, e) &&
	       check_name("data file name", o->data_file, QCOW2_NAME_MAX, e);
}

/* --- the layout ------------------------------------------------------------ */

static bool
too_large(struct err *e)
{
	return err_set(e, ERR_GENERIC, EFBIG,
		       "The image size is too large for file format 'qcow2' "
		       "(try using a larger cluster size)");
}

/* The refcount structure counts itself: grow it until it covers all. */
static bool
lay_refcounts(struct layout *l, uint64_t others, struct err *e)
{
	uint64_t per_block = UINT64_C(1) << l->g.refblock_bits;
	uint64_t blocks, table;

	l->reftable_n = 1;
	l->refblock_n = 1;
	for (;;) {
		l->total = 1 + l->reftable_n + l->refblock_n + others;
		blocks = div_up(l->total, per_block);
		table = div_up(blocks * 8, l->g.cluster_size);
		if (blocks <= l->refblock_n && table <= l->reftable_n)
			break;
		l->refblock_n = max_u64(blocks, l->refblock_n);
		l->reftable_n = max_u64(table, l->reftable_n);
	}
	if (l->reftable_n * l->g.cluster_size > QCOW2_REFTABLE_BYTES_MAX ||
	    l->total >> (QCOW2_OFFSET_BITS - l->g.cluster_bits))
		return too_large(e);
	return true;
}

static bool
lay_out(struct layout *l, const struct qcow2_create_options *o, struct err *e)
{
	uint64_t l1_entries = qcow2_l1_entries(&l->g, o->size);

	if (l1_entries > QCOW2_L1_BYTES_MAX / 8)
		return too_large(e);
	l->mapped = o->preallocation != QCOW2_PREALLOC_OFF;
	l->l1_n = div_up(l1_entries * 8, l->g.cluster_size);
	if (l->mapped) {
		l->l2_n = l1_entries;
		if (!o->data_file)
			l->data_n = div_up(o->size, l->g.cluster_size);
	}
	if (!lay_refcounts(l, l->l1_n + l->l2_n + l->data_n, e))
		return false;
	l->reftable_at = 1;
	l->refblock_at = l->reftable_at + l->reftable_n;
	l->l1_at = l->refblock_at + l->refblock_n;
	l->l2_at = l->l1_at + l->l1_n;
	l->data_at = l->l2_at + l->l2_n;
	l->h.l1_size = (uint32_t)l1_entries;
	l->h.l1_offset = l->l1_n ? l->l1_at << l->g.cluster_bits : 0;
	l->h.reftable_offset = l->reftable_at << l->g.cluster_bits;
	l->h.reftable_clusters = (uint32_t)l->reftable_n;
	return true;
}

static void
set_name(bool *has, char *to, size_t size, const char *from)
{
	*has = from != NULL;
	if (from)
		memcpy(to, from, strnlen(from, size - 1) + 1);
}

static void
fill_header(struct qcow2_header *h, const struct qcow2_create_options *o)
{
	h->version = o->version;
	h->cluster_bits = log2_of(o->cluster_size);
	h->size = o->size;
	h->refcount_order = log2_of(o->refcount_bits);
	h->compression = o->compression;
	if (o->data_file)
		h->incompat |= QCOW2_DATA_FILE;
	if (o->compression != QCOW2_ZLIB)
		h->incompat |= QCOW2_COMPRESSION;
	if (o->extended_l2)
		h->incompat |= QCOW2_EXTENDED_L2;
	if (o->lazy_refcounts)
		h->compat |= QCOW2_LAZY_REFCOUNTS;
	if (o->data_file_raw)
		h->autoclear |= QCOW2_AUTO_RAW_DATA;
	set_name(&h->has_backing, h->backing, sizeof h->backing,
		 o->backing_file);
	set_name(&h->has_backing_format, h->backing_format,
		 sizeof h->backing_format, o->backing_format);
	set_name(&h->has_data_file, h->data_file, sizeof h->data_file,
		 o->data_file);
}

/* The first cluster in @area; NULL for the question whether it fits. */
static bool
put_header(struct layout *l, void *area, struct err *e)
{
	AUTO(free) void *own = area ? NULL : malloc(l->g.cluster_size);

	if (!area && !own)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot create a qcow2 image");
	return qcow2_header_serialise(&l->h, area ? area : own,
				      l->g.cluster_size, NULL, e);
}

static bool
plan(struct layout *l, const struct qcow2_create_options *o, struct err *e)
{
	if (!check_numbers(o, e) || !check_version(o, e) || !check_files(o, e))
		return false;
	memset(l, 0, sizeof *l);
	fill_header(&l->h, o);
	qcow2_geometry_init(&l->g, &l->h);
	return lay_out(l, o, e) && put_header(l, NULL, e);
}

bool
qcow2_create_check(const struct qcow2_create_options *o, struct err *e)
{
	AUTO(free) struct layout *l = malloc(sizeof *l);
	struct qcow2_create_options all = complete(o);

	if (!l)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot create a qcow2 image");
	return plan(l, &all, e);
}

/* --- writing ---------------------------------------------------------------- */

/* Writes a table piece by piece: @fill puts the entries from @first on, @n of
 * them, into @buf, which is zeroed.
 */
struct table {
	uint64_t at; /* bytes */
	uint64_t entries;
	unsigned entry_size;
	void (*fill)(const struct layout *l, void *buf, uint64_t first,
		     uint64_t n);
};

static int
write_table(const struct layout *l, struct block *file, const struct table *t,
	    void *buf)
{
	uint64_t per_piece = PIECE / t->entry_size, first, n;
	int r = 0;

	for (first = 0; !r && first < t->entries; first += n) {
		n = min_u64(per_piece, t->entries - first);
		memset(buf, 0, PIECE);
		t->fill(l, buf, first, n);
		r = block_pwrite(file, buf, (size_t)(n * t->entry_size),
				 t->at + first * t->entry_size);
	}
	return r;
}

static void
fill_reftable(const struct layout *l, void *buf, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		be64_put((char *)buf + i * 8, (l->refblock_at + first + i)
						      << l->g.cluster_bits);
}

static void
fill_l1(const struct layout *l, void *buf, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; l->l2_n && i < n; i++)
		be64_put((char *)buf + i * 8,
			 (l->l2_at + first + i) << l->g.cluster_bits |
				 QCOW2_COPIED);
}

/* With extended entries no subcluster is allocated: the host cluster is, and
 * what is read there comes from the backing file or is zero.
 */
static void
fill_l2(const struct layout *l, void *buf, uint64_t first, uint64_t n)
{
	uint64_t base = l->h.incompat & QCOW2_DATA_FILE ? 0 : l->data_at;

	for (uint64_t i = 0; i < n; i++)
		be64_put((char *)buf + i * l->g.entry_size,
			 (base + first + i) << l->g.cluster_bits |
				 QCOW2_COPIED);
}

/* One refcount block after the other; the last one is full of ones only as
 * far as clusters are in use.
 */
static int
write_refblocks(const struct layout *l, struct block *file, void *block)
{
	uint64_t per_block = UINT64_C(1) << l->g.refblock_bits, i, k;
	uint64_t used = 0;
	int r = 0;

	for (i = 0; !r && i < l->refblock_n; i++) {
		uint64_t n = min_u64(per_block, l->total - i * per_block);

		if (n != used)
			memset(block, 0, l->g.cluster_size);
		for (k = 0; n != used && k < n; k++)
			qcow2_refcount_set(block, l->g.refcount_order, k, 1);
		used = n;
		r = block_pwrite(file, block, l->g.cluster_size,
				 (l->refblock_at + i) << l->g.cluster_bits);
	}
	return r;
}

static int
write_zeroes(struct block *b, uint64_t off, uint64_t len, void *buf)
{
	int r = 0;

	memset(buf, 0, PIECE);
	while (!r && len) {
		size_t n = (size_t)min_u64(len, PIECE);

		r = block_pwrite(b, buf, n, off);
		off += n;
		len -= n;
	}
	return r;
}

/* The guest's clusters at [off, off + len) of @b. */
static int
preallocate(struct block *b, uint64_t off, uint64_t len,
	    enum qcow2_preallocation how, void *buf)
{
	if (len && how == QCOW2_PREALLOC_FALLOC)
		return block_zero(b, off, len, 0);
	if (len && how == QCOW2_PREALLOC_FULL)
		return write_zeroes(b, off, len, buf);
	return 0;
}

static int
write_tables(const struct layout *l, struct block *file, void *buf)
{
	const struct table reftable = { l->h.reftable_offset, l->refblock_n, 8,
					fill_reftable };
	const struct table l1 = { l->h.l1_offset, l->h.l1_size, 8, fill_l1 };
	const struct table l2 = { l->l2_at << l->g.cluster_bits,
				  div_up(l->h.size, l->g.cluster_size),
				  l->g.entry_size, fill_l2 };
	int r = write_table(l, file, &reftable, buf);

	if (!r)
		r = write_table(l, file, &l1, buf);
	if (!r && l->mapped)
		r = write_table(l, file, &l2, buf);
	return r;
}

/* @file becomes as long as the image and reads as zeroes. */
static int
make_room(const struct layout *l, struct block *file)
{
	uint64_t len = l->total << l->g.cluster_bits;
	uint64_t old = min_u64(file->size, len);
	int r = 0;

	if (old)
		r = block_zero(file, 0, old, BLOCK_ZERO_MAY_UNMAP);
	if (!r && file->size < len)
		r = block_truncate(file, len);
	return r;
}

static int
make_data_room(const struct layout *l, struct block *data,
	       enum qcow2_preallocation how, void *buf)
{
	uint64_t old = data->size;
	int r = 0;

	if (old >= l->h.size)
		return 0;
	r = block_truncate(data, l->h.size);
	if (!r)
		r = preallocate(data, old, l->h.size - old, how, buf);
	return r ? r : block_flush(data);
}

static int
write_image(struct layout *l, struct block *file, struct block *data,
	    const struct qcow2_create_options *o, void *buf)
{
	uint64_t data_at = l->data_at << l->g.cluster_bits;
	int r = make_room(l, file);

	if (!r && data)
		r = make_data_room(l, data, o->preallocation, buf);
	if (!r)
		r = preallocate(file, data_at, l->data_n << l->g.cluster_bits,
				o->preallocation, buf);
	if (!r)
		r = write_tables(l, file, buf);
	if (!r)
		r = write_refblocks(l, file, buf);
	return r ? r : block_flush(file);
}

bool
qcow2_create(struct block *file, struct block *data,
	     const struct qcow2_create_options *given, struct err *e)
{
	struct qcow2_create_options o = complete(given);
	AUTO(free) struct layout *l = malloc(sizeof *l);
	/* also holds one cluster */
	AUTO(free) void *buf = malloc((size_t)1 << QCOW2_CLUSTER_BITS_MAX);
	int r;

	if (!l || !buf)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "cannot create a qcow2 image");
	if (!plan(l, &o, e))
		return false;
	r = write_image(l, file, data, &o, buf);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not write the qcow2 image's tables");
	if (!put_header(l, buf, e))
		return false;
	r = block_pwrite(file, buf, l->g.cluster_size, 0);
	if (!r)
		r = block_flush(file);
	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not write the qcow2 header");
	return true;
}

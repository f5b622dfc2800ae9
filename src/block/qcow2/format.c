/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The first cluster of an image: header, header extensions and names
 * ("Header", "Additional fields", "Header extensions" of the specification).
 */
#include "block/qcow2/format.h"

#include <inttypes.h>
#include <stdio.h>

#include "base/bits.h"

#define FEATURE_SIZE 48 /* of an entry of the feature name table */
#define FEATURE_NAME 46

#define TOO_LONG "The header does not fit into one cluster"

enum feature_kind { INCOMPATIBLE, COMPATIBLE, AUTOCLEAR };

/* What we write into the feature name table.  The names are the
 * specification's.
 */
static const struct {
	uint8_t kind, bit;
	const char *name;
} features[] = {
	{ INCOMPATIBLE, 0, "dirty bit" },
	{ INCOMPATIBLE, 1, "corrupt bit" },
	{ INCOMPATIBLE, 2, "external data file" },
	{ INCOMPATIBLE, 3, "compression type" },
	{ INCOMPATIBLE, 4, "extended L2 entries" },
	{ COMPATIBLE, 0, "lazy refcounts" },
	{ AUTOCLEAR, 0, "bitmaps" },
	{ AUTOCLEAR, 1, "raw external data" },
};

bool
qcow2_is_magic(const void *head)
{
	return be32_get(head) == QCOW2_MAGIC;
}

static bool
bad(struct err *e, const char *what)
{
	return err_set(e, ERR_GENERIC, 0, "%s", what);
}

bool
qcow2_header_area(const void *head, uint32_t *bytes, struct err *e)
{
	const uint8_t *p = head;
	uint32_t version = be32_get(p + 4), bits = be32_get(p + 20);

	if (!qcow2_is_magic(p))
		return bad(e, "Image is not in qcow2 format");
	if (version != 2 && version != 3)
		return err_set(e, ERR_GENERIC, 0,
			       "Unsupported qcow2 version %" PRIu32, version);
	if (bits < QCOW2_CLUSTER_BITS_MIN || bits > QCOW2_CLUSTER_BITS_MAX)
		return err_set(e, ERR_GENERIC, 0,
			       "Unsupported cluster size: 2^%" PRIu32, bits);
	*bytes = 1u << bits;
	return true;
}

/* --- parsing --------------------------------------------------------------- */

struct parser {
	struct qcow2_header *h;
	const uint8_t *area;
	size_t end; /* of the extension area */
	const uint8_t *names; /* the feature name table, or NULL */
	size_t names_len;
	struct err *e;
};

static bool
take_string(struct parser *p, char *to, size_t max, bool *has, size_t at,
	    size_t len)
{
	if (*has)
		return bad(p->e, "A header extension appears twice");
	if (len > max)
		return bad(p->e, "A string in a header extension is too long");
	if (memchr(p->area + at, '\0', len))
		return bad(p->e, "A string in a header extension has a zero "
				 "byte in it");
	memcpy(to, p->area + at, len);
	to[len] = '\0';
	*has = true;
	return true;
}

/* "Bitmaps extension" */
static bool
take_bitmaps(struct parser *p, size_t at, size_t len)
{
	struct qcow2_bitmaps_ext *b = &p->h->bitmaps;
	const uint8_t *d = p->area + at;

	if (p->h->has_bitmaps)
		return bad(p->e, "A header extension appears twice");
	if (len != 24)
		return bad(p->e, "Invalid bitmaps extension length");
	b->count = be32_get(d);
	b->directory_size = be64_get(d + 8);
	b->directory_offset = be64_get(d + 16);
	/* without its autoclear bit the content means nothing any more */
	if (!(p->h->autoclear & QCOW2_AUTO_BITMAPS))
		return true;
	if (be32_get(d + 4))
		return bad(p->e, "Reserved field of the bitmaps extension is "
				 "not zero");
	if (b->count == 0 || b->count > QCOW2_BITMAPS_MAX)
		return bad(p->e, "Invalid number of bitmaps");
	if (b->directory_size > QCOW2_BITMAP_DIRECTORY_MAX ||
	    b->directory_size < 24 * (uint64_t)b->count)
		return bad(p->e, "Invalid size of the bitmap directory");
	if (b->directory_offset % (1u << p->h->cluster_bits) ||
	    b->directory_offset == 0 || b->directory_offset > INT64_MAX)
		return bad(p->e, "Invalid offset of the bitmap directory");
	p->h->has_bitmaps = true;
	return true;
}

static bool
take_extension(struct parser *p, uint32_t type, size_t at, size_t len)
{
	struct qcow2_header *h = p->h;

	switch (type) {
	case QCOW2_EXT_BACKING_FORMAT:
		return take_string(p, h->backing_format, QCOW2_FORMAT_NAME_MAX,
				   &h->has_backing_format, at, len);
	case QCOW2_EXT_DATA_FILE:
		return take_string(p, h->data_file, QCOW2_NAME_MAX,
				   &h->has_data_file, at, len);
	case QCOW2_EXT_BITMAPS: return take_bitmaps(p, at, len);
	case QCOW2_EXT_ENCRYPTION:
		return bad(p->e, "Encrypted images are not supported");
	case QCOW2_EXT_FEATURES:
		p->names = p->area + at;
		p->names_len = len;
		return true;
	default: return true;
	}
}

static bool
take_extensions(struct parser *p)
{
	size_t at = p->h->length;

	while (p->end >= 8 && at <= p->end - 8) {
		uint32_t type = be32_get(p->area + at);
		uint32_t len = be32_get(p->area + at + 4);

		at += 8;
		if (type == QCOW2_EXT_END)
			return true;
		if (len > p->end - at)
			return bad(p->e, "Header extension too large");
		if (!take_extension(p, type, at, len))
			return false;
		at += round_up(len, 8);
	}
	return true;
}

/* Append the name of incompatible feature @bit to @list. */
static void
name_feature(const struct parser *p, unsigned bit, char *list, size_t size)
{
	size_t used = strlen(list);
	const char *comma = used ? ", " : "";

	for (size_t i = 0; i + FEATURE_SIZE <= p->names_len;
	     i += FEATURE_SIZE) {
		const uint8_t *f = p->names + i;

		if (f[0] != INCOMPATIBLE || f[1] != bit)
			continue;
		(void)snprintf(list + used, size - used, "%s%.*s", comma,
			       FEATURE_NAME, (const char *)f + 2);
		return;
	}
	(void)snprintf(list + used, size - used,
		       "%sUnknown incompatible feature: %u", comma, bit);
}

/* The names come from the image: nothing but printable characters of them
 * reaches a message.
 */
static bool
refuse_features(const struct parser *p)
{
	uint64_t unknown = p->h->incompat & ~QCOW2_INCOMPAT_KNOWN;
	char list[512] = "";

	if (!unknown)
		return true;
	for (unsigned bit = 0; bit < 64; bit++)
		if (unknown >> bit & 1 && strlen(list) < sizeof list - 64)
			name_feature(p, bit, list, sizeof list);
	for (char *c = list; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	return err_set(p->e, ERR_GENERIC, 0, "Unsupported qcow2 feature(s): %s",
		       list);
}

static bool
parse_v3(struct parser *p)
{
	struct qcow2_header *h = p->h;
	const uint8_t *a = p->area;
	uint32_t cluster_size = 1u << h->cluster_bits;

	h->incompat = be64_get(a + QCOW2_AT_INCOMPAT);
	h->compat = be64_get(a + QCOW2_AT_COMPAT);
	h->autoclear = be64_get(a + QCOW2_AT_AUTOCLEAR);
	h->refcount_order = be32_get(a + 96);
	h->length = be32_get(a + 100);
	if (h->length < QCOW2_HEADER_V3)
		return bad(p->e, "qcow2 header too short");
	if (h->length > cluster_size)
		return bad(p->e, "qcow2 header exceeds cluster size");
	if (h->length % 8)
		return bad(p->e, "qcow2 header length is not a multiple of 8");
	if (h->refcount_order > 6)
		return bad(p->e, "Reference count entry width too large; may "
				 "not exceed 64 bits");
	if (h->length > 104)
		h->compression = a[104];
	return true;
}

static bool
parse_backing(struct parser *p)
{
	struct qcow2_header *h = p->h;
	uint64_t offset = be64_get(p->area + QCOW2_AT_BACKING);
	uint32_t len = be32_get(p->area + QCOW2_AT_BACKING + 8);
	uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;

	p->end = (size_t)cluster_size;
	if (!offset)
		return true;
	if (offset > cluster_size || offset < h->length)
		return bad(p->e, "Invalid backing file offset");
	p->end = (size_t)offset;
	h->backing_offset = offset;
	if (len > QCOW2_NAME_MAX || len > cluster_size - offset)
		return bad(p->e, "Backing file name too long");
	if (memchr(p->area + offset, '\0', len))
		return bad(p->e, "Backing file name has a zero byte in it");
	memcpy(h->backing, p->area + offset, len);
	h->backing[len] = '\0';
	h->has_backing = len > 0;
	return true;
}

/* Is a table of @bytes at @offset a place where one can be? */
static bool
table_fits(const struct qcow2_header *h, uint64_t offset, uint64_t bytes)
{
	uint64_t cluster_size = UINT64_C(1) << h->cluster_bits;

	return offset % cluster_size == 0 && offset <= INT64_MAX - bytes;
}

static bool
check_tables(const struct parser *p, uint64_t file_size)
{
	const struct qcow2_header *h = p->h;
	uint64_t reftable = (uint64_t)h->reftable_clusters << h->cluster_bits;
	uint64_t l1 = (uint64_t)h->l1_size * 8;
	struct qcow2_geometry g;

	if (!h->reftable_clusters)
		return bad(p->e,
			   "Image does not contain a reference count table");
	if (reftable > QCOW2_REFTABLE_BYTES_MAX && h->reftable_clusters > 1)
		return bad(p->e, "Reference count table too large");
	if (!h->reftable_offset || !table_fits(h, h->reftable_offset, reftable))
		return bad(p->e, "Reference count table offset invalid");
	if (l1 > QCOW2_L1_BYTES_MAX)
		return bad(p->e, "Active L1 table too large");
	if (l1 && !h->l1_offset)
		return bad(p->e, "Active L1 table offset invalid");
	if (!table_fits(h, h->l1_offset, l1))
		return bad(p->e, "Active L1 table offset invalid");
	if (!range_fits(h->reftable_offset, reftable,
			round_up(file_size, 1u << h->cluster_bits)) ||
	    !range_fits(h->l1_offset, l1,
			round_up(file_size, 1u << h->cluster_bits)))
		return bad(p->e, "A table lies behind the end of the file");
	if (h->snapshots > QCOW2_SNAPSHOTS_MAX)
		return bad(p->e, "Snapshot table too large");
	if (h->snapshots &&
	    (!h->snapshots_offset ||
	     !table_fits(h, h->snapshots_offset, QCOW2_SNAPSHOT_TABLE_MAX)))
		return bad(p->e, "Snapshot table offset invalid");
	if (h->size > INT64_MAX - (1u << 30))
		return bad(p->e, "Image is too big");
	qcow2_geometry_init(&g, h);
	if (h->l1_size < qcow2_l1_entries(&g, h->size))
		return bad(p->e, "L1 table is too small");
	return true;
}

static bool
check_features(const struct parser *p)
{
	const struct qcow2_header *h = p->h;
	bool data_file = h->incompat & QCOW2_DATA_FILE;

	if (!!(h->incompat & QCOW2_COMPRESSION) != (h->compression != 0))
		return bad(p->e, "Compression type bit and compression type "
				 "do not agree");
	if (h->compression != QCOW2_ZLIB && h->compression != QCOW2_ZSTD)
		return err_set(p->e, ERR_GENERIC, 0,
			       "Unsupported compression type %d",
			       (int)h->compression);
	if (h->incompat & QCOW2_EXTENDED_L2 &&
	    h->cluster_bits < QCOW2_EXTENDED_CLUSTER_BITS)
		return bad(p->e, "Extended L2 entries need clusters of 16 KiB "
				 "at least");
	if (h->autoclear & QCOW2_AUTO_RAW_DATA && data_file && h->has_backing)
		return bad(p->e, "A raw external data file conflicts with a "
				 "backing file");
	if (data_file && h->snapshots)
		return bad(p->e, "An image with an external data file cannot "
				 "have snapshots");
	if (h->autoclear & QCOW2_AUTO_BITMAPS && !h->has_bitmaps)
		return bad(p->e, "The bitmaps extension is missing");
	return true;
}

bool
qcow2_header_parse(struct qcow2_header *h, const void *area, size_t len,
		   uint64_t file_size, struct err *e)
{
	const uint8_t *a = area;
	struct parser p = { .h = h, .area = a, .e = e };
	uint32_t need;

	memset(h, 0, sizeof *h);
	if (len < QCOW2_HEADER_V3)
		return bad(e, "Image is too short for a qcow2 header");
	if (!qcow2_header_area(a, &need, e))
		return false;
	if (len < need)
		return bad(e, "Image is too short for a qcow2 header");
	h->version = be32_get(a + 4);
	h->cluster_bits = be32_get(a + 20);
	h->size = be64_get(a + QCOW2_AT_SIZE);
	h->l1_size = be32_get(a + QCOW2_AT_L1_SIZE);
	h->l1_offset = be64_get(a + QCOW2_AT_L1_SIZE + 4);
	h->reftable_offset = be64_get(a + QCOW2_AT_REFTABLE);
	h->reftable_clusters = be32_get(a + QCOW2_AT_REFTABLE + 8);
	h->snapshots = be32_get(a + QCOW2_AT_SNAPSHOTS);
	h->snapshots_offset = be64_get(a + QCOW2_AT_SNAPSHOTS + 4);
	h->refcount_order = 4;
	h->length = QCOW2_HEADER_V2;
	if (h->version == 3 && !parse_v3(&p))
		return false;
	if (!parse_backing(&p) || !take_extensions(&p) || !refuse_features(&p))
		return false;
	if (be32_get(a + 32))
		return bad(e, "Encrypted images are not supported");
	return check_features(&p) && check_tables(&p, file_size);
}

/* --- writing --------------------------------------------------------------- */

struct writer {
	uint8_t *area;
	size_t len, at;
	bool full;
};

static uint8_t *
extension(struct writer *w, uint32_t type, size_t len)
{
	size_t padded = 8 + round_up(len, 8);
	uint8_t *p = w->area + w->at;

	if (w->full || padded > w->len - w->at) {
		w->full = true;
		return NULL;
	}
	w->at += padded;
	be32_put(p, type);
	be32_put(p + 4, (uint32_t)len);
	return p + 8;
}

static void
put_extension(struct writer *w, uint32_t type, const void *data, size_t len)
{
	uint8_t *p = extension(w, type, len);

	if (p)
		memcpy(p, data, len);
}

static bool
is_known(uint32_t type)
{
	return type == QCOW2_EXT_BACKING_FORMAT || type == QCOW2_EXT_FEATURES ||
	       type == QCOW2_EXT_BITMAPS || type == QCOW2_EXT_DATA_FILE;
}

/* @old, a cluster, was parsed when it was read: its lengths hold. */
static void
keep_unknown(struct writer *w, const uint8_t *old, size_t cluster_size)
{
	size_t at =
		be32_get(old + 4) == 3 ? be32_get(old + 100) : QCOW2_HEADER_V2;
	size_t end = be64_get(old + QCOW2_AT_BACKING);

	if (!end || end > cluster_size)
		end = cluster_size;
	while (end >= 8 && at <= end - 8) {
		uint32_t type = be32_get(old + at);
		size_t len = be32_get(old + at + 4);

		at += 8;
		if (type == QCOW2_EXT_END || len > end - at)
			return;
		if (!is_known(type))
			put_extension(w, type, old + at, len);
		at += round_up(len, 8);
	}
}

static void
put_bitmaps(struct writer *w, const struct qcow2_bitmaps_ext *b)
{
	uint8_t *p = extension(w, QCOW2_EXT_BITMAPS, 24);

	if (!p)
		return;
	be32_put(p, b->count);
	be32_put(p + 4, 0);
	be64_put(p + 8, b->directory_size);
	be64_put(p + 16, b->directory_offset);
}

/* The table is for people: it gives way to @need bytes that must follow. */
static void
put_features(struct writer *w, size_t need)
{
	size_t len = ARRAY_SIZE(features) * FEATURE_SIZE;
	uint8_t *p;

	if (w->full || w->len - w->at < 8 + len + need)
		return;
	p = extension(w, QCOW2_EXT_FEATURES, len);
	for (size_t i = 0; p && i < ARRAY_SIZE(features); i++) {
		p[0] = features[i].kind;
		p[1] = features[i].bit;
		(void)strncpy((char *)p + 2, features[i].name,
			      FEATURE_NAME - 1);
		p += FEATURE_SIZE;
	}
}

static void
put_fields(const struct qcow2_header *h, uint8_t *a)
{
	be32_put(a, QCOW2_MAGIC);
	be32_put(a + 4, h->version);
	be64_put(a + QCOW2_AT_BACKING, h->backing_offset);
	be32_put(a + QCOW2_AT_BACKING + 8,
		 h->has_backing ? (uint32_t)strlen(h->backing) : 0);
	be32_put(a + 20, h->cluster_bits);
	be64_put(a + QCOW2_AT_SIZE, h->size);
	be32_put(a + 32, 0); /* no encryption */
	be32_put(a + QCOW2_AT_L1_SIZE, h->l1_size);
	be64_put(a + QCOW2_AT_L1_SIZE + 4, h->l1_offset);
	be64_put(a + QCOW2_AT_REFTABLE, h->reftable_offset);
	be32_put(a + QCOW2_AT_REFTABLE + 8, h->reftable_clusters);
	be32_put(a + QCOW2_AT_SNAPSHOTS, h->snapshots);
	be64_put(a + QCOW2_AT_SNAPSHOTS + 4, h->snapshots_offset);
	if (h->version == 2)
		return;
	be64_put(a + QCOW2_AT_INCOMPAT, h->incompat);
	be64_put(a + QCOW2_AT_COMPAT, h->compat);
	be64_put(a + QCOW2_AT_AUTOCLEAR, h->autoclear);
	be32_put(a + 96, h->refcount_order);
	be32_put(a + 100, h->length);
	a[104] = (uint8_t)h->compression;
}

bool
qcow2_header_serialise(struct qcow2_header *h, void *area, size_t len,
		       const void *old, struct err *e)
{
	struct writer w = { .area = area, .len = len };
	uint8_t *a = area;
	const uint8_t *o = old;
	size_t name = h->has_backing ? strlen(h->backing) : 0;

	memset(a, 0, len);
	h->length = QCOW2_HEADER_V2;
	if (h->version == 3) {
		h->length = 112;
		if (o && be32_get(o + 4) == 3 && be32_get(o + 100) > 105) {
			uint32_t was = be32_get(o + 100);

			if (was > len)
				return bad(e, TOO_LONG);
			memcpy(a + 105, o + 105, was - 105);
			h->length = was > 112 ? was : 112;
		}
	}
	w.at = h->length;
	if (h->has_backing_format)
		put_extension(&w, QCOW2_EXT_BACKING_FORMAT, h->backing_format,
			      strlen(h->backing_format));
	if (h->has_data_file)
		put_extension(&w, QCOW2_EXT_DATA_FILE, h->data_file,
			      strlen(h->data_file));
	if (h->has_bitmaps)
		put_bitmaps(&w, &h->bitmaps);
	if (o)
		keep_unknown(&w, o, (size_t)1 << h->cluster_bits);
	if (h->version == 3)
		put_features(&w, 8 + name);
	(void)extension(&w, QCOW2_EXT_END, 0);
	h->backing_offset = name ? w.at : 0;
	if (w.full || name > len - w.at)
		return bad(e, TOO_LONG);
	if (name)
		memcpy(a + w.at, h->backing, name);
	put_fields(h, a);
	return true;
}

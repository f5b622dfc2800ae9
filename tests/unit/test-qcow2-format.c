/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The bytes of a qcow2 image: what is written is read again, and limits are
 * refused at their edges.
 */
#include <string.h>

#include "base/bits.h"
#include "block/qcow2/format.h"
#include "unit.h"

#define AREA      65536u
#define FILE_SIZE (UINT64_C(1) << 40)

/* An image of 1 GiB with clusters of 64 KiB. */
static void
good(struct qcow2_header *h)
{
	*h = (struct qcow2_header){ .version = 3,
				    .cluster_bits = 16,
				    .size = GiB,
				    .l1_size = 2,
				    .l1_offset = 3 * AREA,
				    .reftable_offset = AREA,
				    .reftable_clusters = 1,
				    .refcount_order = 4 };
}

static void
write_header(struct qcow2_header *h, uint8_t *area)
{
	struct err e = ERR_INIT;

	assert_ok(qcow2_header_serialise(h, area, AREA, NULL, &e), &e);
}

/* @bytes at @at, and how the header is refused then (NULL: it is not). */
static void
with(size_t at, uint64_t value, unsigned bytes, const char *text)
{
	static uint8_t area[AREA];
	struct qcow2_header h;
	struct err e = ERR_INIT;

	good(&h);
	write_header(&h, area);
	if (bytes == 4)
		be32_put(area + at, (uint32_t)value);
	else
		be64_put(area + at, value);
	if (text)
		assert_fails_with(
			qcow2_header_parse(&h, area, AREA, FILE_SIZE, &e), &e,
			text);
	else
		assert_ok(qcow2_header_parse(&h, area, AREA, FILE_SIZE, &e),
			  &e);
}

static void
what_is_written_is_read_again(void **s)
{
	static uint8_t area[AREA];
	static struct qcow2_header h, r;
	struct err e = ERR_INIT;

	(void)s;
	good(&h);
	h.has_backing = h.has_backing_format = true;
	(void)strcpy(h.backing, "base.raw");
	(void)strcpy(h.backing_format, "raw");
	h.incompat = QCOW2_COMPRESSION | QCOW2_EXTENDED_L2;
	h.compression = QCOW2_ZSTD;
	h.compat = QCOW2_LAZY_REFCOUNTS;
	h.autoclear = QCOW2_AUTO_BITMAPS;
	h.has_bitmaps = true;
	h.bitmaps = (struct qcow2_bitmaps_ext){ .count = 3,
						.directory_size = 100,
						.directory_offset = AREA };
	h.l1_size = 4;
	write_header(&h, area);
	assert_ok(qcow2_header_parse(&r, area, AREA, FILE_SIZE, &e), &e);
	assert_memory_equal(&h, &r, sizeof h);
}

static void
unknown_extensions_are_kept(void **s)
{
	static uint8_t old[AREA], area[AREA];
	struct qcow2_header h;
	struct err e = ERR_INIT;

	(void)s;
	good(&h);
	write_header(&h, old);
	be32_put(old + 112, 0x12345678);
	be32_put(old + 116, 5);
	memcpy(old + 120, "hello", 5);
	be64_put(old + 128, 0);
	assert_ok(qcow2_header_serialise(&h, area, AREA, old, &e), &e);
	assert_memory_equal(area + 112, old + 112, 13);
}

static void
limits_are_refused_at_their_edges(void **s)
{
	(void)s;
	with(0, 0, 4, "not in qcow2 format");
	with(4, 1, 4, "Unsupported qcow2 version 1");
	with(4, 4, 4, "Unsupported qcow2 version 4");
	with(20, 8, 4, "Unsupported cluster size: 2^8");
	with(20, 22, 4, "Unsupported cluster size: 2^22");
	with(32, 1, 4, "Encrypted images");
	with(32, 2, 4, "Encrypted images");
	with(36, QCOW2_L1_BYTES_MAX / 8, 4, NULL);
	with(36, QCOW2_L1_BYTES_MAX / 8 + 1, 4, "Active L1 table too large");
	with(36, 1, 4, "L1 table is too small");
	with(40, 3 * AREA + 512, 8, "Active L1 table offset invalid");
	with(40, UINT64_MAX - AREA + 1, 8, "Active L1 table offset invalid");
	with(48, 0, 8, "Reference count table offset invalid");
	with(48, 512, 8, "Reference count table offset invalid");
	with(48, FILE_SIZE, 8, "behind the end of the file");
	with(56, 0, 4, "does not contain a reference count table");
	with(56, QCOW2_REFTABLE_BYTES_MAX / AREA, 4, NULL);
	with(56, QCOW2_REFTABLE_BYTES_MAX / AREA + 1, 4,
	     "Reference count table too large");
	with(60, QCOW2_SNAPSHOTS_MAX + 1, 4, "Snapshot table too large");
	with(60, 1, 4, "Snapshot table offset invalid");
	with(72, UINT64_C(1) << 63, 8, "Unknown incompatible feature: 63");
	with(72, QCOW2_COMPRESSION, 8, "do not agree");
	with(96, 6, 4, NULL);
	with(96, 7, 4, "Reference count entry width");
	with(100, 96, 4, "header too short");
	with(100, AREA + 8, 4, "header exceeds cluster size");
	with(100, 108, 4, "not a multiple of 8");
	with(24, UINT64_MAX, 8, "Image is too big");
	/* the feature name table, which is the first extension */
	with(116, AREA, 4, "Header extension too large");
}

static void
backing_names_have_a_limit(void **s)
{
	static uint8_t area[AREA];
	static struct qcow2_header h;
	struct err e = ERR_INIT;

	(void)s;
	good(&h);
	h.has_backing = true;
	memset(h.backing, 'x', QCOW2_NAME_MAX);
	write_header(&h, area);
	assert_ok(qcow2_header_parse(&h, area, AREA, FILE_SIZE, &e), &e);
	assert_int_equal(strlen(h.backing), QCOW2_NAME_MAX);
	be32_put(area + 16, QCOW2_NAME_MAX + 1);
	assert_fails(qcow2_header_parse(&h, area, AREA, FILE_SIZE, &e), &e,
		     "Backing file name too long");
	be64_put(area + 8, AREA - 8);
	be32_put(area + 16, 9);
	assert_fails(qcow2_header_parse(&h, area, AREA, FILE_SIZE, &e), &e,
		     "Backing file name too long");
	be64_put(area + 8, 8); /* in the header */
	assert_fails(qcow2_header_parse(&h, area, AREA, FILE_SIZE, &e), &e,
		     "Invalid backing file offset");
}

static void
refcounts_of_all_widths(void **s)
{
	uint8_t block[512];

	(void)s;
	for (unsigned order = 0; order <= 6; order++) {
		unsigned n = 4096u >> order;
		uint64_t mask = order == 6 ? UINT64_MAX
					   : (UINT64_C(1) << (1 << order)) - 1;

		memset(block, 0xa5, sizeof block);
		for (unsigned i = 0; i < n; i++)
			qcow2_refcount_set(block, order, i,
					   i * UINT64_C(0x9e3779b97f4a7c15) &
						   mask);
		for (unsigned i = 0; i < n; i++)
			assert_true(qcow2_refcount_get(block, order, i) ==
				    (i * UINT64_C(0x9e3779b97f4a7c15) & mask));
	}
}

/* "bit 0 means the least significant bit" */
static void
narrow_refcounts_begin_with_the_lowest_bit(void **s)
{
	uint8_t block[1] = { 0 };

	(void)s;
	qcow2_refcount_set(block, 1, 1, 2);
	assert_int_equal(block[0], 0x08);
	qcow2_refcount_set(block, 0, 0, 1);
	assert_int_equal(block[0], 0x09);
}

static void
places_of_compressed_clusters(void **s)
{
	(void)s;
	for (unsigned bits = QCOW2_CLUSTER_BITS_MIN;
	     bits <= QCOW2_CLUSTER_BITS_MAX; bits++) {
		struct qcow2_geometry g = { .cluster_bits = bits,
					    .cluster_size = 1u << bits };
		uint64_t off = 12345, bytes = (1u << bits) - 1, o, n;
		uint64_t e = qcow2_compressed_entry(&g, off, bytes);

		assert_true(e & QCOW2_COMPRESSED);
		qcow2_compressed_place(&g, e, &o, &n);
		assert_true(o == off);
		assert_true(n >= bytes && n < bytes + 512);
		assert_true((o + n) % 512 == 0);
		/* there is no room for such an offset */
		assert_true(qcow2_compressed_entry(&g, UINT64_C(1) << 61, 1) ==
			    0);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_written_is_read_again),
		cmocka_unit_test(unknown_extensions_are_kept),
		cmocka_unit_test(limits_are_refused_at_their_edges),
		cmocka_unit_test(backing_names_have_a_limit),
		cmocka_unit_test(refcounts_of_all_widths),
		cmocka_unit_test(narrow_refcounts_begin_with_the_lowest_bit),
		cmocka_unit_test(places_of_compressed_clusters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

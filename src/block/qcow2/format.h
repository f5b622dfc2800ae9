/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2/format: what the bytes of a qcow2 image mean, and nothing else: no
 * I/O and no state.  The format is described in QEMU's docs/interop/qcow2
 * ("the specification"); a comment names its section.  All integers in an
 * image are big endian.
 *
 * Everything that is read here is untrusted.  What a parser accepted keeps
 * every limit below, so that sums and shifts of its values cannot overflow.
 * Pure functions, any thread.
 */
#ifndef BLOCK_QCOW2_FORMAT_H
#define BLOCK_QCOW2_FORMAT_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/err.h"

#define QCOW2_MAGIC UINT32_C(0x514649fb) /* "QFI\xfb" */

/* Limits; QEMU's where it has one, so that neither makes an image that the
 * other refuses.
 */
#define QCOW2_CLUSTER_BITS_MIN      9 /* 512 bytes */
#define QCOW2_CLUSTER_BITS_MAX      21 /* 2 MiB */
#define QCOW2_EXTENDED_CLUSTER_BITS 14 /* at least, with extended L2 */
#define QCOW2_L1_BYTES_MAX          (32u << 20)
#define QCOW2_REFTABLE_BYTES_MAX    (8u << 20)
#define QCOW2_SNAPSHOTS_MAX         65536
#define QCOW2_SNAPSHOT_EXTRA_MAX    1024 /* bytes of one entry */
#define QCOW2_SNAPSHOT_TABLE_MAX    (64u << 20)
#define QCOW2_BITMAPS_MAX           65535
#define QCOW2_BITMAP_DIRECTORY_MAX  (65535u * 1048)
#define QCOW2_NAME_MAX              1023 /* a backing or data file's name */
#define QCOW2_FORMAT_NAME_MAX       31
#define QCOW2_OFFSET_BITS           56 /* of a host offset in L1 and L2 */
#define QCOW2_SUBCLUSTERS           32

/* "Header": lengths and places. */
#define QCOW2_HEADER_V2    72
#define QCOW2_HEADER_V3    104
#define QCOW2_AT_BACKING   8
#define QCOW2_AT_SIZE      24
#define QCOW2_AT_L1_SIZE   36
#define QCOW2_AT_REFTABLE  48
#define QCOW2_AT_SNAPSHOTS 60
#define QCOW2_AT_INCOMPAT  72
#define QCOW2_AT_COMPAT    80
#define QCOW2_AT_AUTOCLEAR 88
/* What an opener reads: the header, its extensions and the names lie in the
 * first cluster.
 */
#define QCOW2_HEADER_AREA_MAX (1u << QCOW2_CLUSTER_BITS_MAX)

/* incompatible_features */
#define QCOW2_DIRTY          (UINT64_C(1) << 0)
#define QCOW2_CORRUPT        (UINT64_C(1) << 1)
#define QCOW2_DATA_FILE      (UINT64_C(1) << 2)
#define QCOW2_COMPRESSION    (UINT64_C(1) << 3)
#define QCOW2_EXTENDED_L2    (UINT64_C(1) << 4)
#define QCOW2_INCOMPAT_KNOWN UINT64_C(0x1f)
/* compatible_features */
#define QCOW2_LAZY_REFCOUNTS (UINT64_C(1) << 0)
/* autoclear_features */
#define QCOW2_AUTO_BITMAPS  (UINT64_C(1) << 0)
#define QCOW2_AUTO_RAW_DATA (UINT64_C(1) << 1)
#define QCOW2_AUTO_KNOWN    UINT64_C(3)

/* "Header extensions" */
#define QCOW2_EXT_END            UINT32_C(0)
#define QCOW2_EXT_BACKING_FORMAT UINT32_C(0xe2792aca)
#define QCOW2_EXT_FEATURES       UINT32_C(0x6803f857)
#define QCOW2_EXT_BITMAPS        UINT32_C(0x23852875)
#define QCOW2_EXT_ENCRYPTION     UINT32_C(0x0537be77)
#define QCOW2_EXT_DATA_FILE      UINT32_C(0x44415441)

enum qcow2_compression { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 };

/* "Cluster mapping": entries of L1 and L2 tables. */
#define QCOW2_COPIED            (UINT64_C(1) << 63) /* the refcount is exactly one */
#define QCOW2_COMPRESSED        (UINT64_C(1) << 62)
#define QCOW2_ZERO              UINT64_C(1) /* not in version 2, not when extended */
#define QCOW2_L1_OFFSET         UINT64_C(0x00fffffffffffe00)
#define QCOW2_L2_OFFSET         UINT64_C(0x00fffffffffffe00)
#define QCOW2_L1_RESERVED       UINT64_C(0x7f000000000001ff)
#define QCOW2_L2_RESERVED       UINT64_C(0x3f000000000001fe)
#define QCOW2_REFTABLE_OFFSET   UINT64_C(0xfffffffffffffe00)
#define QCOW2_REFTABLE_RESERVED UINT64_C(0x1ff)

/* "Bitmaps extension" */
struct qcow2_bitmaps_ext {
	uint32_t count;
	uint64_t directory_size, directory_offset; /* bytes */
};

/* A header whose fields keep the limits above.  Offsets and sizes in bytes.
 * The strings end with a 0 byte.
 */
struct qcow2_header {
	uint32_t version; /* 2 or 3 */
	uint32_t cluster_bits;
	uint64_t size;
	uint32_t l1_size; /* entries */
	uint64_t l1_offset;
	uint64_t reftable_offset;
	uint32_t reftable_clusters;
	uint32_t snapshots;
	uint64_t snapshots_offset;
	uint64_t incompat, compat, autoclear;
	uint32_t refcount_order; /* width: 1 << order bits */
	uint32_t length; /* of the header structure */
	enum qcow2_compression compression;
	bool has_backing, has_backing_format, has_data_file, has_bitmaps;
	char backing[QCOW2_NAME_MAX + 1];
	char backing_format[QCOW2_FORMAT_NAME_MAX + 1];
	char data_file[QCOW2_NAME_MAX + 1];
	struct qcow2_bitmaps_ext bitmaps;
	/* where the name stands in the first cluster; 0: nowhere */
	uint64_t backing_offset;
};

/* Does @head (at least 4 bytes) begin as a qcow2 image does? */
bool qcow2_is_magic(const void *head);

/* How much of the image qcow2_header_parse() needs: the first cluster.  False
 * when @head (at least QCOW2_HEADER_V2 bytes) is no header that we know.
 */
bool qcow2_header_area(const void *head, uint32_t *bytes, struct err *e)
	MUST_CHECK;

/* Parse the first cluster, @len bytes at @area; @file_size is the image
 * file's.  Unknown incompatible features and encryption are refused by name;
 * an image with the corrupt or the dirty bit is accepted: the caller decides.
 */
bool qcow2_header_parse(struct qcow2_header *h, const void *area, size_t len,
			uint64_t file_size, struct err *e) MUST_CHECK;

/* Write the first cluster: header, extensions, feature names (version 3) and
 * names.  @old (may be NULL) is the cluster as it was, of which unknown
 * extensions and additional header fields are kept.  The rest of @area is
 * filled with zeroes.  Sets h->length and h->backing_offset.  Fails when it
 * does not fit into @len, at most the cluster size.
 */
bool qcow2_header_serialise(struct qcow2_header *h, void *area, size_t len,
			    const void *old, struct err *e) MUST_CHECK;

/* The layout that follows from a header. */
struct qcow2_geometry {
	uint32_t cluster_bits;
	uint32_t cluster_size; /* bytes */
	uint32_t entry_size; /* of an L2 table: 8, or 16 when extended */
	uint32_t l2_bits; /* log2 of the entries of one L2 table */
	uint32_t refcount_order;
	uint32_t refblock_bits; /* log2 of the entries of a refcount block */
	uint64_t refcount_max;
	uint32_t subcluster_bits; /* log2 of a subcluster's size; the
				    * cluster's when there are none */
	bool extended;
};

void qcow2_geometry_init(struct qcow2_geometry *g,
			 const struct qcow2_header *h);

/* Entries of an L1 table for @size bytes of disk. */
uint64_t qcow2_l1_entries(const struct qcow2_geometry *g, uint64_t size);

/* Refcounts in a refcount block in memory ("Host cluster management"). */
uint64_t qcow2_refcount_get(const void *block, unsigned order, uint64_t index);
void qcow2_refcount_set(void *block, unsigned order, uint64_t index,
			uint64_t value);

/* "Compressed Clusters Descriptor": the bytes [*offset, *offset + *bytes) of
 * the file, up to the end of the last sector.
 */
void qcow2_compressed_place(const struct qcow2_geometry *g, uint64_t entry,
			    uint64_t *offset, uint64_t *bytes);
/* The entry for @bytes of compressed data at @offset; 0 when the descriptor
 * has no room for them.
 */
uint64_t qcow2_compressed_entry(const struct qcow2_geometry *g, uint64_t offset,
				uint64_t bytes);

/* "Snapshots": one entry of the snapshot table. */
struct qcow2_snapshot {
	uint64_t l1_offset;
	uint32_t l1_size; /* entries */
	uint32_t date_s, date_ns;
	uint64_t vm_clock_ns;
	uint64_t vm_state_size; /* bytes */
	uint64_t disk_size; /* bytes */
	uint64_t icount;
	bool has_icount;
	char *id, *name; /* owned */
	void *extra; /* owned: unknown extra data */
	uint32_t extra_size;
};

void qcow2_snapshot_clear(struct qcow2_snapshot *s);

/* Bytes of every entry; and how many there are, without padding, in the entry
 * that begins with these.
 */
#define QCOW2_SNAPSHOT_FIXED 40
#define QCOW2_SNAPSHOT_MAX \
	(QCOW2_SNAPSHOT_FIXED + QCOW2_SNAPSHOT_EXTRA_MAX + 2 * 65535)
uint64_t qcow2_snapshot_bytes(const void *fixed);

/* Parse one entry at @p with @len bytes left; *used is its padded length.
 * @disk_size is what an entry without one gets.
 */
bool qcow2_snapshot_parse(struct qcow2_snapshot *s,
			  const struct qcow2_geometry *g, const void *p,
			  size_t len, uint64_t disk_size, size_t *used,
			  struct err *e) MUST_CHECK;
/* The padded length of an entry, and its bytes (version 3's extra data are
 * always written).
 */
size_t qcow2_snapshot_length(const struct qcow2_snapshot *s);
void qcow2_snapshot_serialise(const struct qcow2_snapshot *s, void *p);

static inline uint16_t
be16_get(const void *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof v);
	return be16toh(v);
}

static inline uint32_t
be32_get(const void *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof v);
	return be32toh(v);
}

static inline uint64_t
be64_get(const void *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof v);
	return be64toh(v);
}

static inline void
be16_put(void *p, uint16_t v)
{
	v = htobe16(v);
	memcpy(p, &v, sizeof v);
}

static inline void
be32_put(void *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof v);
}

static inline void
be64_put(void *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof v);
}

#endif

/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/qcow2/amend.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bits.h"
#include "block/qcow2/header.h"
#include "block/qcow2/qcow2.h"

/* --- options by name ------------------------------------------------------------ */

static bool
take_backing_file(struct qcow2_amend_options *o, const char *value)
{
	o->set_backing = true;
	o->backing_file = *value ? value : NULL;
	return true;
}

static bool
take_backing_format(struct qcow2_amend_options *o, const char *value)
{
	o->set_backing = true;
	o->backing_format = *value ? value : NULL;
	return true;
}

/* Version 2 for an image that has it is no change; qcow2_amend() cannot tell,
 * so a downgrade has no word.
 */
static bool
take_version(struct qcow2_amend_options *o, const char *value)
{
	o->upgrade = true;
	return !strcmp(value, "1.1") || !strcmp(value, "v3");
}

static bool
take_lazy(struct qcow2_amend_options *o, const char *value)
{
	o->set_lazy = true;
	o->lazy_refcounts = !strcmp(value, "on");
	return o->lazy_refcounts || !strcmp(value, "off");
}

static const struct {
	const char *key;
	bool (*take)(struct qcow2_amend_options *o, const char *value);
} known[] = {
	{ "backing_file", take_backing_file },
	{ "backing_fmt", take_backing_format },
	{ "compat", take_version },
	{ "lazy_refcounts", take_lazy },
	/* NULL: a header cannot change it */
	{ "cluster_size", NULL },
	{ "compression_type", NULL },
	{ "data_file", NULL },
	{ "data_file_raw", NULL },
	{ "encryption", NULL },
	{ "encrypt.format", NULL },
	{ "extended_l2", NULL },
	{ "preallocation", NULL },
	{ "refcount_bits", NULL },
	{ "size", NULL },
};

bool
qcow2_amend_option(struct qcow2_amend_options *o, const char *key,
		   const char *value, struct err *e)
{
	for (size_t i = 0; i < ARRAY_SIZE(known); i++) {
		if (strcmp(known[i].key, key))
			continue;
		if (!known[i].take)
			return err_set(e, ERR_GENERIC, 0,
				       "Cannot change the option '%s'", key);
		if (known[i].take(o, value))
			return true;
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot change the option '%s' to '%s'", key,
			       value);
	}
	return err_set(e, ERR_GENERIC, 0, "Invalid parameter '%s'", key);
}

/* --- the header -------------------------------------------------------------------- */

static bool
set_string(const char *what, bool *has, char *to, size_t size,
	   const char *value, struct err *e)
{
	size_t len = value ? strlen(value) : 0;

	if (len >= size)
		return err_set(e, ERR_GENERIC, 0,
			       "The %s is longer than %zu bytes", what,
			       size - 1);
	*has = value != NULL;
	memset(to, 0, size);
	if (value)
		memcpy(to, value, len);
	return true;
}

static bool
set_backing(struct qcow2_header *h, const struct qcow2_amend_options *o,
	    struct err *e)
{
	if (o->backing_format && !o->backing_file)
		return err_set(e, ERR_GENERIC, 0,
			       "Backing format cannot be used without backing "
			       "file");
	if (o->backing_file && h->autoclear & QCOW2_AUTO_RAW_DATA)
		return err_set(e, ERR_GENERIC, 0,
			       "Cannot set a backing file for images with "
			       "data-file-raw");
	return set_string("backing file name", &h->has_backing, h->backing,
			  sizeof h->backing, o->backing_file, e) &&
	       set_string("backing format", &h->has_backing_format,
			  h->backing_format, sizeof h->backing_format,
			  o->backing_format, e);
}

static bool
change(struct qcow2_header *h, const struct qcow2_amend_options *o,
       struct err *e)
{
	if (h->incompat & (QCOW2_DIRTY | QCOW2_CORRUPT))
		return err_set(e, ERR_GENERIC, 0,
			       "the image is marked dirty or corrupt and must "
			       "be repaired before it is amended");
	if (o->upgrade)
		h->version = 3;
	if (o->set_lazy && o->lazy_refcounts && h->version < 3)
		return err_set(e, ERR_GENERIC, 0,
			       "Lazy refcounts only supported with "
			       "compatibility level 1.1 and above (use "
			       "compat=1.1 or greater)");
	if (o->set_lazy) {
		h->compat &= ~QCOW2_LAZY_REFCOUNTS;
		if (o->lazy_refcounts)
			h->compat |= QCOW2_LAZY_REFCOUNTS;
	}
	return !o->set_backing || set_backing(h, o, e);
}

static int
write_file(void *opaque, const void *buf, size_t len, uint64_t off)
{
	return block_pwrite(opaque, buf, len, off);
}

static int
flush_file(void *opaque)
{
	return block_flush(opaque);
}

/* The first cluster is read into @area. */
static bool
rewrite(struct block *file, struct qcow2_header *h, void *area, struct err *e)
{
	size_t size = (size_t)1 << h->cluster_bits;
	size_t there = (size_t)min_u64(size, file->size);
	struct qcow2_header_file f = {
		.write = write_file,
		.flush = flush_file,
		.opaque = file,
		.sector = (uint32_t)max_u64(512, file->min_block),
	};
	int r = block_pread(file, area, there, 0);

	if (r)
		return err_set(e, ERR_GENERIC, r,
			       "Could not read qcow2 header");
	r = qcow2_header_replace(&f, h, area);
	if (r == EMSGSIZE)
		return err_set(e, ERR_GENERIC, 0,
			       "The header does not fit into one cluster");
	return r == 0 ||
	       err_set(e, ERR_GENERIC, r, "Could not update qcow2 header");
}

bool
qcow2_amend(struct block *file, const struct qcow2_amend_options *o,
	    struct err *e)
{
	AUTO(free) struct qcow2_info *info = malloc(sizeof *info);
	AUTO(free) void *area = NULL;

	if (info && !qcow2_probe(file, info, e))
		return false;
	if (info)
		area = calloc(1, (size_t)1 << info->header.cluster_bits);
	if (!area)
		return err_set(e, ERR_GENERIC, ENOMEM,
			       "Could not update qcow2 header");
	return change(&info->header, o, e) &&
	       rewrite(file, &info->header, area, e);
}

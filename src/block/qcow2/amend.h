/* SPDX-License-Identifier: BSD-3-Clause
 *
 * qcow2/amend: change what the header alone says: the backing file's name and
 * format, version 2 to version 3, lazy refcounts.  Clusters are not touched;
 * the caller answers for a new backing file having the content of the old one.
 *
 * Durable on return; a death or a power cut keeps the old header or the new
 * one (header.h).
 *
 * The image must not be open anywhere else.  Blocks; any thread.
 */
#ifndef BLOCK_QCOW2_AMEND_H
#define BLOCK_QCOW2_AMEND_H

#include <stdbool.h>

#include "base/err.h"
#include "block/block.h"

struct qcow2_amend_options {
	bool set_backing; /* the next two are meant, else nothing changes */
	const char *backing_file; /* borrowed; NULL: none from now on */
	const char *backing_format; /* borrowed; or NULL */
	bool upgrade; /* to version 3 */
	bool set_lazy;
	bool lazy_refcounts;
};

/* Take one option as qemu-img amend -o knows it (backing_file, backing_fmt,
 * compat, lazy_refcounts).  Those that create knows and amend cannot change
 * are refused by name, and so is what nobody knows.  @value is borrowed.
 */
bool qcow2_amend_option(struct qcow2_amend_options *o, const char *key,
			const char *value, struct err *e) MUST_CHECK;

/* @file is borrowed.  Refused: a dirty or corrupt image (see check.h), names
 * that do not fit.
 */
bool qcow2_amend(struct block *file, const struct qcow2_amend_options *o,
		 struct err *e) MUST_CHECK;

#endif

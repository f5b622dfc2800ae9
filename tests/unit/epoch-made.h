/* SPDX-License-Identifier: BSD-3-Clause
 *
 * An empty epoch on tmpfs, for tests that are linked with fault.c.
 */
#ifndef UNIT_EPOCH_MADE_H
#define UNIT_EPOCH_MADE_H

#include "fault.h"
#include "tracking/epoch.h"
#include "unit.h"

static inline struct epoch *
epoch_make(uint64_t size, uint64_t granularity)
{
	struct err e = ERR_INIT;
	struct epoch *ep;
	int fd = tmpfs_file();

	assert_ok(epoch_format(fd, size, granularity, &e), &e);
	assert_ok(epoch_open(fd, &ep, &e), &e);
	return ep;
}

#endif

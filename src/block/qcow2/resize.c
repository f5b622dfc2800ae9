/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Resizing.
 */
#include <errno.h>

#include "block/qcow2/qcow2-priv.h"

int
qcow2_truncate(struct block *b, uint64_t size)
{
	return size == b->size ? 0 : ENOTSUP;
}

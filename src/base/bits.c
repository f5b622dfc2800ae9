/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/bits.h"

#include <string.h>

/* A block is zero when its first bytes are zero and it equals itself shifted
 * by that much: memcmp is the fastest scanner that a C library has.
 */
bool
buf_is_zero(const void *buf, size_t len)
{
	const unsigned char *p = buf;
	size_t head = len < 16 ? len : 16;

	for (size_t i = 0; i < head; i++)
		if (p[i])
			return false;
	return len <= head || memcmp(p, p + head, len - head) == 0;
}

size_t
buf_run(const void *buf, size_t len, size_t unit, bool *zero)
{
	const unsigned char *p = buf;
	size_t at = len < unit ? len : unit;

	*zero = buf_is_zero(p, at);
	while (at < len) {
		size_t n = len - at < unit ? len - at : unit;

		if (buf_is_zero(p + at, n) != *zero)
			break;
		at += n;
	}
	return at;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Arithmetic on byte ranges and powers of two, and the zero test.  Pure
 * functions, any thread.  Offsets and lengths are bytes.
 */
#ifndef BASE_BITS_H
#define BASE_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KiB (UINT64_C(1) << 10)
#define MiB (UINT64_C(1) << 20)
#define GiB (UINT64_C(1) << 30)
#define TiB (UINT64_C(1) << 40)

static inline bool
is_pow2(uint64_t v)
{
	return v && !(v & (v - 1));
}

/* log2 of a power of two. */
static inline unsigned
log2_of(uint64_t v)
{
	return (unsigned)__builtin_ctzll(v);
}

static inline uint64_t
round_down(uint64_t v, uint64_t unit)
{
	return v - v % unit;
}

/* The caller makes sure that v + unit does not wrap. */
static inline uint64_t
round_up(uint64_t v, uint64_t unit)
{
	return round_down(v + unit - 1, unit);
}

static inline uint64_t
div_up(uint64_t v, uint64_t unit)
{
	return v / unit + (v % unit != 0);
}

static inline uint64_t
min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t
max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Is [offset, offset + length) inside [0, size)?  No sum can wrap. */
static inline bool
range_fits(uint64_t offset, uint64_t length, uint64_t size)
{
	return offset <= size && length <= size - offset;
}

/* Are all @len bytes zero?  Fast for buffers that are not. */
bool buf_is_zero(const void *buf, size_t len);

/* The length of the run of @unit-sized blocks at @buf that are all zero, or
 * all not zero, and which of the two it is.  The last block may be short.
 */
size_t buf_run(const void *buf, size_t len, size_t unit, bool *zero);

#endif

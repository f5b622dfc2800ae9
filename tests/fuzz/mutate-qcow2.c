/* SPDX-License-Identifier: BSD-3-Clause
 *
 * How libFuzzer changes a qcow2 image: half of the time as it likes, else an
 * entry of a table, or a field of the header, becomes another one that means
 * something: a cluster of the file (mapped, zero, compressed, shared), none, or
 * a number at an edge.  Bytes at random seldom make an offset that is aligned.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/bits.h"
#include "block/qcow2/format.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
			       unsigned seed);

/* Where fields of 4 and of 8 bytes stand. */
static const uint8_t fields4[] = { 4, 16, 20, 32, 36, 56, 60, 96, 100, 104 };
static const uint8_t fields8[] = { 8, 24, 40, 48, 64, 72, 80, 88 };

static uint32_t
next_random(uint32_t *state)
{
	*state = *state * UINT32_C(1664525) + UINT32_C(1013904223);
	return *state >> 8;
}

/* The offset of some cluster in the file or just behind it. */
static uint64_t
a_cluster(const uint8_t *data, size_t size, uint32_t *rng)
{
	unsigned bits = be32_get(data + 20);

	if (bits < QCOW2_CLUSTER_BITS_MIN || bits > QCOW2_CLUSTER_BITS_MAX)
		bits = QCOW2_CLUSTER_BITS_MIN;
	return (uint64_t)(next_random(rng) % ((size >> bits) + 2)) << bits;
}

static uint64_t
an_entry(const uint8_t *data, size_t size, uint64_t was, uint32_t *rng)
{
	uint64_t at = a_cluster(data, size, rng);

	switch (next_random(rng) % 8) {
	case 0: return 0;
	case 1: return at | QCOW2_COPIED;
	case 2: return at | QCOW2_COPIED | QCOW2_ZERO;
	case 3: return at;
	case 4: return at | QCOW2_COMPRESSED | next_random(rng) % 512;
	case 5: return was ^ QCOW2_COPIED;
	case 6: return was ^ UINT64_C(1) << next_random(rng) % 64;
	default: return at + next_random(rng) % 4096;
	}
}

static uint32_t
a_number(uint32_t was, uint32_t *rng)
{
	switch (next_random(rng) % 4) {
	case 0: return was + next_random(rng) % 5 - 2;
	case 1: return UINT32_C(1) << next_random(rng) % 32;
	case 2: return next_random(rng) % 32;
	default: return was ^ UINT32_C(1) << next_random(rng) % 32;
	}
}

/* A word that is not zero, from a random place on; the last one if all are. */
static size_t
a_word(const uint8_t *data, size_t size, uint32_t *rng)
{
	size_t at = next_random(rng) % (size / 8) * 8;

	while (at + 16 <= size && !be64_get(data + at))
		at += 8;
	return at;
}

static void
change_one(uint8_t *data, size_t size, uint32_t *rng)
{
	size_t at;

	switch (next_random(rng) % 4) {
	case 0:
		at = fields4[next_random(rng) % ARRAY_SIZE(fields4)];
		be32_put(data + at, a_number(be32_get(data + at), rng));
		return;
	case 1: at = fields8[next_random(rng) % ARRAY_SIZE(fields8)]; break;
	default: at = a_word(data, size, rng); break;
	}
	be64_put(data + at, an_entry(data, size, be64_get(data + at), rng));
}

size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
			unsigned seed)
{
	uint32_t rng = seed;
	unsigned times;

	if (size < QCOW2_HEADER_V3 + 8 || next_random(&rng) % 2)
		return LLVMFuzzerMutate(data, size, max_size);
	for (times = 1 + next_random(&rng) % 3; times; times--)
		change_one(data, size, &rng);
	be32_put(data, QCOW2_MAGIC);
	return size;
}

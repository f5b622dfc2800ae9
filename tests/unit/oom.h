/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Memory that runs out on demand.  The test is linked with OOM_WRAP (see
 * meson.build), so that what our own code allocates comes through here; the
 * libraries that it uses allocate as ever.
 */
#ifndef UNIT_OOM_H
#define UNIT_OOM_H

#include <stdbool.h>
#include <stddef.h>

/* Allocation number @n from now on fails, once; 0: none does. */
void oom_fail_at(unsigned n);

/* Has the failure been served? */
bool oom_has_failed(void);

/* The largest single allocation since the last call. */
size_t oom_largest(void);

/* Run @test with the first allocation failing, then the second, ..., until it
 * runs through without a failure; @test gets @arg, returns whether it
 * succeeded, and must fail cleanly when memory ran out.  The number of runs.
 */
unsigned oom_every(bool (*test)(void *arg), void *arg);

#endif

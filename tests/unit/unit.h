/* SPDX-License-Identifier: BSD-3-Clause
 *
 * cmocka with what its header needs, wrapped once.  Include this instead of
 * cmocka.h.  Skips are cmocka's skip(), with a print_message() that says why.
 */
#ifndef UNIT_UNIT_H
#define UNIT_UNIT_H

/* cmocka.h is not self-contained: it must come last */
/* clang-format off */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
/* clang-format on */

#include <stdlib.h>
#include <string.h>

#include "base/err.h"

/* UNIT_ONLY=name in the environment runs that test alone. */
__attribute__((constructor)) static void
unit_only(void)
{
	const char *name = getenv("UNIT_ONLY");

	if (name)
		cmocka_set_test_filter(name);
}

/* Fail with the recorded message when a call that reports errors failed. */
#define assert_ok(call, e)                                   \
	do {                                                 \
		if (!(call))                                 \
			fail_msg("%s: %s", #call, (e)->msg); \
	} while (0)

/* The call failed and its message is exactly @text. */
#define assert_fails(call, e, text)                  \
	do {                                         \
		assert_false(call);                  \
		assert_true(err_is_set(e));          \
		assert_string_equal((e)->msg, text); \
		err_clear(e);                        \
	} while (0)

/* The call failed and its message contains @text. */
#define assert_fails_with(call, e, text)                                 \
	do {                                                             \
		assert_false(call);                                      \
		assert_true(err_is_set(e));                              \
		if (!strstr((e)->msg, text))                             \
			fail_msg("'%s' is not in '%s'", text, (e)->msg); \
		err_clear(e);                                            \
	} while (0)

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stand-in: what its commands share with its core.
 */
#ifndef TEST_STAND_IN_H
#define TEST_STAND_IN_H

struct daemon;

/* Call @end, from the loop, when the command test-release names @tag. */
void stand_in_hold(struct daemon *d, const char *tag,
		   void (*end)(struct daemon *d));

/* Free the log of changes and what is held, at the program's end. */
void stand_in_forget(void);

#endif

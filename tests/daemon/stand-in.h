/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stand-in: what its commands share with its core.
 */
#ifndef TEST_STAND_IN_H
#define TEST_STAND_IN_H

/* Free the log of changes and what is in progress, at the program's end. */
void stand_in_forget(void);

#endif

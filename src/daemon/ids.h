/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Names as QEMU checks them.  Pure functions.
 */
#ifndef DAEMON_IDS_H
#define DAEMON_IDS_H

#include <stdbool.h>

/* First an ASCII letter, then letters, digits, '-', '.' and '_'. */
bool id_is_wellformed(const char *id);

#endif

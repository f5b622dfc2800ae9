/* SPDX-License-Identifier: BSD-3-Clause
 *
 * blockdev-reopen: other options for nodes that are in use.  All nodes of a
 * command change together or not at all, and guests notice nothing.
 *
 * reopen-check.c compares options; reopen.c carries out.  Loop only.
 */
#ifndef DAEMON_REOPEN_H
#define DAEMON_REOPEN_H

#include "daemon/graph.h"

/* May @now become @then?  The names in messages are QEMU's: members of members
 * are joined by dots.
 */
bool reopen_check(const struct blockdev_options *now,
		  const struct blockdev_options *then, struct err *e)
	MUST_CHECK;

#endif

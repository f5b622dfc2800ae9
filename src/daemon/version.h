/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the greeting and query-version say: the QEMU release whose protocol
 * this is, and who we really are.
 */
#ifndef DAEMON_VERSION_H
#define DAEMON_VERSION_H

#define QMP_MAJOR   10
#define QMP_MINOR   0
#define QMP_MICRO   0
#define QMP_PACKAGE "stillpoint-" STILLPOINT_VERSION

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Addresses of NBD exports in file names, as clients of QEMU write them:
 *
 *   nbd://HOST[:PORT]/[EXPORT]             also nbd+tcp://
 *   nbd+unix:///[EXPORT]?socket=PATH
 *   nbd:HOST:PORT[:exportname=EXPORT]      the old form
 *   nbd:unix:PATH[:exportname=EXPORT]
 *
 * The first two are NBD's own (its doc/uri.md) and may have %XX in every part;
 * the others are QEMU's and are taken as they are.  A user before HOST is
 * ignored: there is no TLS to be had this way.
 */
#ifndef DAEMON_URI_H
#define DAEMON_URI_H

#include "schema/qmp-types.h"

/* Does @name begin with "nbd:" or "nbd+SOMETHING:"? */
bool uri_is_nbd(const char *name);

/* Any thread.  *out is owned by the caller.  Error: "No valid URL specified". */
bool uri_parse_nbd(const char *name, struct blockdev_options_nbd **out,
		   struct err *e) MUST_CHECK;

#endif

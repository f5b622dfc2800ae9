/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What guests do, as clients hear of it: query-blockstats, thresholds, and the
 * events of failed requests.  Loop only.
 */
#ifndef DAEMON_BLOCKSTATS_H
#define DAEMON_BLOCKSTATS_H

#include <stdbool.h>

struct daemon;
struct json;

/* The data plane tells something; false: it is not for us. */
bool blockstats_event(struct daemon *d, const char *name,
		      const struct json *data);

#endif

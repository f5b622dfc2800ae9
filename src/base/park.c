/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/park.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

park_fn *_Atomic park_hook;

/* Written once by park_from_environment, before threads start. */
static char kill_place[64];
static _Atomic long kill_countdown;

void
park_set(park_fn *fn)
{
	atomic_store(&park_hook, fn);
}

static void
kill_here(const char *place)
{
	if (strcmp(place, kill_place) == 0 &&
	    atomic_fetch_sub(&kill_countdown, 1) == 1)
		(void)raise(SIGKILL);
}

void
park_from_environment(void)
{
	const char *s = getenv("STILLPOINT_KILL_AT");
	size_t n;

	if (!s)
		return;
	n = strcspn(s, ":");
	if (n >= sizeof kill_place)
		return;
	memcpy(kill_place, s, n);
	kill_place[n] = '\0';
	atomic_store(&kill_countdown, s[n] ? strtol(s + n + 1, NULL, 10) : 1);
	park_set(kill_here);
}

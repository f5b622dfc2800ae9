/* SPDX-License-Identifier: BSD-3-Clause */
#include "base/park.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

park_fn *_Atomic park_hook;

/* A place and what is to happen there.  Written once by
 * park_from_environment, before threads start.
 */
struct order {
	char place[64]; /* "": none */
	char file[256]; /* "": use the countdown */
};

static struct order kill_order, park_order;
static _Atomic long kill_countdown;

void
park_set(park_fn *fn)
{
	atomic_store(&park_hook, fn);
}

static bool
is_time_to_die(void)
{
	if (kill_order.file[0])
		return unlink(kill_order.file) == 0;
	return atomic_fetch_sub(&kill_countdown, 1) == 1;
}

static void
wait_here(void)
{
	char parked[sizeof park_order.file + 8];
	struct timespec a_little = { .tv_nsec = 2000000 };
	int fd;

	if (access(park_order.file, F_OK) != 0)
		return;
	(void)snprintf(parked, sizeof parked, "%s.parked", park_order.file);
	fd = open(parked, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd >= 0)
		(void)close(fd);
	while (access(park_order.file, F_OK) == 0)
		(void)nanosleep(&a_little, NULL);
}

static void
obey(const char *place)
{
	if (strcmp(place, kill_order.place) == 0 && is_time_to_die())
		(void)raise(SIGKILL);
	if (strcmp(place, park_order.place) == 0)
		wait_here();
}

/* "place", "place:n" or "place:/file" */
static bool
read_order(const char *variable, struct order *o, long *n)
{
	const char *s = getenv(variable);
	size_t len;

	*n = 1;
	if (!s)
		return false;
	len = strcspn(s, ":");
	if (len >= sizeof o->place || strlen(s + len) >= sizeof o->file)
		return false;
	memcpy(o->place, s, len);
	o->place[len] = '\0';
	if (s[len] && s[len + 1] == '/')
		(void)strcpy(o->file, s + len + 1);
	else if (s[len])
		*n = strtol(s + len + 1, NULL, 10);
	return true;
}

void
park_from_environment(void)
{
	long n;
	bool any = read_order("STILLPOINT_KILL_AT", &kill_order, &n);

	atomic_store(&kill_countdown, n);
	any |= read_order("STILLPOINT_PARK_AT", &park_order, &n);
	if (any)
		park_set(obey);
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * nbdkit, from the outside: start it with the guests' sockets, notice its
 * death, start it again, stop it.  All functions are for the loop's thread.
 *
 * 1. The sockets are made before the first nbdkit and are kept open here, so
 *    a nbdkit that is started again serves the same addresses, and a guest
 *    that connects meanwhile waits instead of being refused.
 * 2. nbdkit runs in a session of its own and survives the daemon.
 * 3. Death is noticed through a pidfd, so it does not matter whether nbdkit
 *    is our child or was started by an earlier daemon.
 * 4. A nbdkit that dies is started again: at once, then after 0.1, 0.2, 0.5,
 *    1, 2 and 5 seconds; a life of SUPERVISOR_GOOD_LIFE seconds starts the
 *    row anew.  If it never was confirmed to work and dies
 *    SUPERVISOR_MAX_QUICK times in a row, or cannot be run at all, that is a
 *    failure and no more attempts are made.
 * 5. nbdkit cannot do without a socket, nor be given another one.  Without
 *    addresses for guests it idles: it has one socket, in the state directory,
 *    of which nobody is told.  Other addresses take another nbdkit.
 */
#ifndef DAEMON_SUPERVISOR_H
#define DAEMON_SUPERVISOR_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/loop.h"
#include "daemon/listen.h"

#define SUPERVISOR_GOOD_LIFE 10.0 /* seconds */
#define SUPERVISOR_MAX_QUICK 5 /* deaths */
/* Seconds from SIGTERM to SIGKILL.  Short: nbdkit may wait for guests that
 * say nothing, and what it has acknowledged is in the kernel already.
 */
#define SUPERVISOR_TERM_WAIT 1.0

struct supervisor;

struct supervisor_options {
	const char *program; /* nbdkit; looked up in PATH without a '/' */
	const char *plugin; /* the .so */
	const char *link; /* the plugin's parameter link=PATH */
	const char *const *args; /* more options of nbdkit, NULL at the end */
	const struct address *nbd; /* where guests connect */
	size_t n_nbd; /* 0: it idles (rule 5) */
	const char *idle; /* path of the socket for that */
	unsigned max_connections; /* of guests; 0: any number */
	unsigned threads; /* nbdkit --threads; 0: nbdkit's default */
	int niceness; /* what nbdkit is to run with */
}; /* all borrowed until supervisor_new returns */

/* All called on the loop, never from inside a supervisor_ function. */
struct supervisor_events {
	/* A nbdkit was started (its link socket may not be there yet). */
	void (*on_start)(void *opaque, pid_t pid);
	/* It ended.  @status is that of waitpid, or -1 when it was no child
	 * of ours.  @again: supervisor will start it again by itself.
	 */
	void (*on_exit)(void *opaque, pid_t pid, int status, bool again);
	/* Rule 4: given up.  on_exit came before when there was a process. */
	void (*on_failure)(void *opaque, const struct err *e);
};

/* @events is borrowed for the supervisor's life. */
struct supervisor *supervisor_new(struct loop *l,
				  const struct supervisor_options *o,
				  const struct supervisor_events *events,
				  void *opaque);

/* Make the guests' sockets.  Blocks (names are resolved): at the start of the
 * program.  Not needed after a successful supervisor_adopt.
 */
bool supervisor_listen(struct supervisor *s, struct err *e) MUST_CHECK;

/* Start nbdkit (after supervisor_listen, while none runs).  Whether it could
 * be run is told by the events.
 */
void supervisor_start(struct supervisor *s);

/* A nbdkit that runs already: @pid (as SO_PEERCRED of a connection to its link
 * tells, and that connection is still open) and its listening sockets, which
 * are consumed, also on failure.  No on_start follows.
 */
bool supervisor_adopt(struct supervisor *s, pid_t pid, const int *fds, size_t n,
		      struct err *e) MUST_CHECK;

/* Use @l (consumed after success; empty: idle) from now on instead of what
 * there is, which is closed: the present nbdkit is killed, and the next one
 * started at once.  For when it has no exports.  May block for a moment.
 */
bool supervisor_relisten(struct supervisor *s, struct listeners *l,
			 unsigned max_connections, struct err *e) MUST_CHECK;

/* After supervisor_adopt: an nbdkit that idles although there are addresses is
 * replaced (*replaced).  That is what a daemon leaves that died when it had
 * just been told an address.  Blocks as supervisor_listen does.
 */
bool supervisor_wake(struct supervisor *s, bool *replaced, struct err *e)
	MUST_CHECK;

/* The addresses that were given cannot be used: idle. */
void supervisor_forget_addresses(struct supervisor *s);

/* The link to the present nbdkit works: the plugin and its options are good. */
void supervisor_confirm(struct supervisor *s);

/* Start it again when it dies?  True at first. */
void supervisor_set_restart(struct supervisor *s, bool on);

/* SIGTERM now, SIGKILL after SUPERVISOR_TERM_WAIT; no restart.  on_exit says
 * when it is gone; if none runs it is called with pid 0 and status 0.
 */
void supervisor_stop(struct supervisor *s);

/* Ends the present nbdkit by SIGKILL at once, and it is started again: for a
 * nbdkit whose link does not answer.
 */
void supervisor_kill(struct supervisor *s);

/* The present nbdkit; 0: none. */
pid_t supervisor_pid(const struct supervisor *s);

/* The addresses that guests use, with real ports; none: it idles.  Borrowed. */
const struct listeners *supervisor_listeners(const struct supervisor *s);

/* A nbdkit that runs goes on.  The socket files are removed only when none
 * runs.  NULL is ok.
 */
void supervisor_free(struct supervisor *s);

#endif

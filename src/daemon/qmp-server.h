/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The QMP server: sockets, sessions, calls, events.  Loop only.
 *
 * Rules (each has a test of its name in tests/daemon/test_qmp_server.py):
 * 1. A session is served strictly first in, first out.  While one of its
 *    commands is executed or waits, its socket is not read.
 * 2. While a command that is asynchronous and no query is in progress, the
 *    non-query commands of all other sessions wait, first come first served;
 *    queries run at once.  So two commands that change things never overlap.
 * 3. A call outlives its session: when the client is gone, the command
 *    finishes and its response is dropped.
 * 4. One wake-up serves at most QMP_TURN_REQUESTS requests or QMP_READ_SIZE
 *    bytes of one session, and none after QMP_TURN_OUT bytes of answers; then
 *    the others have their turn.
 * 5. Memory is bounded, whatever clients send or do not read:
 *    - sessions: QMP_MAX_SESSIONS; one more gets an error line and is closed;
 *    - output: above QMP_OUT_SOFT the session's input is not read; above
 *      QMP_OUT_HARD, or when all sessions together exceed QMP_OUT_TOTAL (then
 *      the one with most), the session is closed;
 *    - input: a request is limited by frame_limits_qmp; unfinished requests
 *      of all sessions together by QMP_IN_TOTAL (the largest is closed);
 *    - requests in progress or waiting: QMP_HELD_TOTAL bytes of text; one
 *      that would exceed it is refused, unless it is the only one.
 *    A complete request becomes a tree, at worst some 30 times its text; one
 *    tree exists at a time, and those of held requests.
 * 6. Events go to the sessions that have finished negotiation.
 */
#ifndef DAEMON_QMP_SERVER_H
#define DAEMON_QMP_SERVER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "base/loop.h"
#include "daemon/listen.h"

#define QMP_MAX_SESSIONS  64
#define QMP_TURN_REQUESTS 16
#define QMP_TURN_OUT      ((size_t)64 << 10)
#define QMP_READ_SIZE     ((size_t)64 << 10)
#define QMP_OUT_SOFT      ((size_t)1 << 20)
#define QMP_OUT_HARD      ((size_t)64 << 20)
#define QMP_OUT_TOTAL     ((size_t)128 << 20)
#define QMP_IN_TOTAL      ((size_t)96 << 20)
#define QMP_HELD_TOTAL    ((size_t)8 << 20)

struct json;
struct json_out;
struct qmp_call;
struct qmp_events;
struct qmp_server;

/* @opaque is what qmp_call_opaque() gives (the struct daemon). */
struct qmp_server *qmp_server_new(struct loop *l, void *opaque);

/* All sessions must be gone (qmp_server_close) or the loop will not run any
 * more.  Calls that are still in progress are freed.
 */
void qmp_server_free(struct qmp_server *s);

/* Make the socket of @a; clients are accepted from qmp_server_open on.  Blocks
 * (names are resolved): at the start of the program.
 */
bool qmp_server_add(struct qmp_server *s, const struct address *a,
		    struct err *e) MUST_CHECK;
bool qmp_server_open(struct qmp_server *s, struct err *e) MUST_CHECK;

/* From now on all commands but queries are refused ("shutting down"), also
 * those that wait.
 */
void qmp_server_drain(struct qmp_server *s);

/* Listen no more; send what is queued (for at most QMP_CLOSE_SECONDS) and
 * close the sessions, then call done, on the loop, not from inside.
 */
#define QMP_CLOSE_SECONDS 2.0
void qmp_server_close(struct qmp_server *s, void (*done)(void *opaque));

/* @fn looks at every command that is no query before it runs (rule 2), and may
 * have it wait: true means that it calls go(call) once, from inside or later.
 * @args may be NULL.
 */
typedef bool qmp_before(void *opaque, const char *command,
			const struct json *args, void (*go)(void *call),
			void *call);
void qmp_server_set_before(struct qmp_server *s, qmp_before *fn);

/* Where generated event functions send to. */
struct qmp_events *qmp_server_events(struct qmp_server *s);

/* The daemon that a call was made to. */
void *qmp_call_opaque(const struct qmp_call *call);

/* The number of sessions, for tests and logs. */
unsigned qmp_server_sessions(const struct qmp_server *s);

/* qmp_call_begin, qmp_call_done and qmp_call_fail are declared by the
 * generated schema/qmp-commands.h and implemented in call.c.
 */

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * json/frame.h: finds the values in a stream of bytes from a QMP client and
 * answers faults as QEMU does: same texts, same recovery, same limits.
 *
 * A message ends where neither more braces nor more brackets have been opened
 * than closed, or where more of one kind have been closed than opened; the two
 * are counted apart.  Then, and only then, it is checked and built.  Until
 * then the framer keeps its text without white space and nothing else, so a
 * client can make it hold a few times limits.token_bytes at most.
 *
 * Time is proportional to the bytes, however they are cut into pieces.
 * Domain: any thread, one at a time for each framer.
 */
#ifndef JSON_FRAME_H
#define JSON_FRAME_H

#include "json/json.h"

/* Of one message.  What is within a limit passes, one more does not. */
struct frame_limits {
	size_t token_bytes; /* of all tokens together, white space left out */
	size_t tokens;
	unsigned depth; /* open braces plus open brackets, <= JSON_MAX_DEPTH */
};

extern const struct frame_limits frame_limits_qmp;

enum frame_result {
	FRAME_MORE, /* all bytes eaten, the message is not complete */
	FRAME_VALUE, /* *out is a value, owned by the caller */
	FRAME_ERROR, /* *e says why a message was dropped; go on feeding */
};

struct frame;

/* NULL: out of memory.  @l is copied. */
struct frame *frame_new(const struct frame_limits *l);
void frame_free(struct frame *f);

/* Eat bytes from *p until a value or an error is complete; *p and *n are
 * moved on behind what was eaten.  A number or keyword at the top level is
 * complete when the byte behind it is seen.
 */
enum frame_result frame_feed(struct frame *f, const char **p, size_t *n,
			     struct json **out, struct err *e);

/* Is a message, or a token of it, incomplete? */
bool frame_is_inside(const struct frame *f);

/* Drop what is incomplete, as after a reconnect. */
void frame_reset(struct frame *f);

DEFINE_CLEANUP(struct frame, frame_free);

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * json/envelope.h: what is around the arguments of a command, its result, an
 * error and an event.  Domain: any thread.
 */
#ifndef JSON_ENVELOPE_H
#define JSON_ENVELOPE_H

#include "json/json.h"
#include "json/out.h"

/* All borrowed from the tree. */
struct qmp_request {
	const char *command;
	const struct json *args; /* an object; NULL: none given */
	const struct json *id; /* NULL: none given */
};

/* Check a request as QEMU does without out-of-band execution.  On failure
 * out->id is set all the same when there is one, for the answer.
 */
bool qmp_request_parse(const struct json *j, struct qmp_request *out,
		       struct err *e) MUST_CHECK;

enum qmp_reply_kind {
	QMP_REPLY_RETURN,
	QMP_REPLY_ERROR,
	QMP_REPLY_EVENT,
};

/* All borrowed from the tree. */
struct qmp_reply {
	enum qmp_reply_kind kind;
	const struct json *id; /* NULL: none */
	const struct json *ret; /* of a return */
	enum err_class cls; /* of an error; unknown ones are generic */
	const char *desc; /* of an error */
	const char *event; /* of an event: its name */
	const struct json *data; /* of an event; NULL: none */
};

/* For clients: what a server sent. */
bool qmp_reply_parse(const struct json *j, struct qmp_reply *out, struct err *e)
	MUST_CHECK;

/* "GenericError" and so on; ERR_NONE counts as generic. */
const char *qmp_error_class_str(enum err_class cls);

/* The member "error" of a reply, inside an object that is open. */
void qmp_error_put(struct json_out *o, const struct err *e);

/* The members "timestamp" and "event" of an event, likewise. */
void qmp_event_put(struct json_out *o, const char *name);

#endif

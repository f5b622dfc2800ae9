/* SPDX-License-Identifier: BSD-3-Clause */
#include "json/envelope.h"

#include <string.h>
#include <time.h>

static const char *const class_names[] = {
	[ERR_NONE] = "GenericError",
	[ERR_GENERIC] = "GenericError",
	[ERR_COMMAND_NOT_FOUND] = "CommandNotFound",
	[ERR_DEVICE_NOT_ACTIVE] = "DeviceNotActive",
	[ERR_DEVICE_NOT_FOUND] = "DeviceNotFound",
};

const char *
qmp_error_class_str(enum err_class cls)
{
	return class_names[cls];
}

static enum err_class
class_find(const char *name)
{
	size_t i;

	for (i = ERR_GENERIC; i < ARRAY_SIZE(class_names); i++)
		if (strcmp(class_names[i], name) == 0)
			return (enum err_class)i;
	return ERR_GENERIC;
}

static bool
take_command(struct qmp_request *out, const struct json *value, struct err *e)
{
	size_t len;

	if (json_type(value) != JSON_STRING)
		return err_set(e, ERR_GENERIC, 0,
			       "QMP input member 'execute' must be a string");
	out->command = json_get_string(value, &len);
	/* no command's name has a NUL in it; this is how one is shown */
	return strlen(out->command) == len ||
	       err_set(e, ERR_COMMAND_NOT_FOUND, 0,
		       "The command %s\xC0\x80%s has not been found",
		       out->command, out->command + strlen(out->command) + 1);
}

static bool
request_member(struct qmp_request *out, const char *name, size_t len,
	       const struct json *value, struct err *e)
{
	if (strlen(name) != len)
		return err_set(e, ERR_GENERIC, 0,
			       "QMP input member '%s\xC0\x80%s' is unexpected",
			       name, name + strlen(name) + 1);
	if (strcmp(name, "execute") == 0) {
		return take_command(out, value, e);
	} else if (strcmp(name, "arguments") == 0) {
		if (json_type(value) != JSON_OBJECT)
			return err_set(e, ERR_GENERIC, 0,
				       "QMP input member 'arguments' must be "
				       "an object");
		out->args = value;
	} else if (strcmp(name, "id") != 0) {
		return err_set(e, ERR_GENERIC, 0,
			       "QMP input member '%s' is unexpected", name);
	}
	return true;
}

bool
qmp_request_parse(const struct json *j, struct qmp_request *out, struct err *e)
{
	const char *name;
	size_t i, len;

	memset(out, 0, sizeof *out);
	if (json_type(j) != JSON_OBJECT)
		return err_set(e, ERR_GENERIC, 0,
			       "QMP input must be a JSON object");
	out->id = json_lookup(j, "id");
	for (i = 0; i < json_count(j); i++) {
		name = json_name_at(j, i, &len);
		if (!request_member(out, name, len, json_at(j, i), e))
			return false;
	}
	if (!out->command)
		return err_set(e, ERR_GENERIC, 0,
			       "QMP input lacks member 'execute'");
	return true;
}

/* The string member @name of @j, or NULL. */
static const char *
string_member(const struct json *j, const char *name)
{
	const struct json *v = json_lookup(j, name);

	return v && json_type(v) == JSON_STRING ? json_get_string(v, NULL)
						: NULL;
}

bool
qmp_reply_parse(const struct json *j, struct qmp_reply *out, struct err *e)
{
	const struct json *error;
	const char *cls;

	memset(out, 0, sizeof *out);
	if (json_type(j) != JSON_OBJECT)
		return err_set(e, ERR_GENERIC, 0, "reply is no JSON object");
	out->id = json_lookup(j, "id");
	out->ret = json_lookup(j, "return");
	if (out->ret)
		return true;
	out->event = string_member(j, "event");
	out->data = json_lookup(j, "data");
	out->kind = QMP_REPLY_EVENT;
	if (out->event && (!out->data || json_type(out->data) == JSON_OBJECT))
		return true;
	error = json_lookup(j, "error");
	if (!error || json_type(error) != JSON_OBJECT)
		return err_set(e, ERR_GENERIC, 0,
			       "reply is neither a return, an error nor an "
			       "event");
	out->kind = QMP_REPLY_ERROR;
	cls = string_member(error, "class");
	out->desc = string_member(error, "desc");
	if (!cls || !out->desc)
		return err_set(e, ERR_GENERIC, 0,
			       "reply has an error without class or desc");
	out->cls = class_find(cls);
	return true;
}

void
qmp_error_put(struct json_out *o, const struct err *e)
{
	json_out_key(o, "error");
	json_out_object_begin(o);
	json_out_key(o, "class");
	json_out_string(o, qmp_error_class_str(e->cls));
	json_out_key(o, "desc");
	json_out_string(o, e->msg);
	json_out_object_end(o);
}

void
qmp_event_put(struct json_out *o, const char *name)
{
	struct timespec now = { .tv_sec = -1, .tv_nsec = -1000 };

	(void)clock_gettime(CLOCK_REALTIME, &now);
	json_out_key(o, "timestamp");
	json_out_object_begin(o);
	json_out_key(o, "seconds");
	json_out_int(o, now.tv_sec);
	json_out_key(o, "microseconds");
	json_out_int(o, now.tv_nsec / 1000);
	json_out_object_end(o);
	json_out_key(o, "event");
	json_out_string(o, name);
}

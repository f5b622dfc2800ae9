/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/objects.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/daemon.h"
#include "daemon/ids.h"
#include "daemon/pending.h"
#include "daemon/plane.h"
#include "daemon/qmp-server.h"
#include "daemon/registry.h"
#include "schema/qmp-commands.h"
#include "json/json.h"

/* --- limits ---------------------------------------------------------------------- */

/* QEMU's members of both spellings, one bucket to a line. */
#define LIMITS(X, o, x)                         \
	X(THROTTLE_OPS_TOTAL, o, x##iops_total) \
	X(THROTTLE_OPS_READ, o, x##iops_read)   \
	X(THROTTLE_OPS_WRITE, o, x##iops_write) \
	X(THROTTLE_BPS_TOTAL, o, x##bps_total)  \
	X(THROTTLE_BPS_READ, o, x##bps_read)    \
	X(THROTTLE_BPS_WRITE, o, x##bps_write)

static uint64_t
value(bool has, int64_t given, uint64_t otherwise)
{
	/* a negative number is larger than any that is allowed */
	return has ? (uint64_t)given : otherwise;
}

#define TAKE(bucket, o, name)                                               \
	to->of[bucket].avg =                                                \
		value((o)->has_##name, (o)->name, to->of[bucket].avg);      \
	to->of[bucket].max = value((o)->has_##name##_max, (o)->name##_max,  \
				   to->of[bucket].max);                     \
	to->of[bucket].length =                                             \
		value((o)->has_##name##_max_length, (o)->name##_max_length, \
		      to->of[bucket].length);

static void
no_limits(struct throttle_config *to)
{
	*to = (struct throttle_config){ 0 };
	for (int i = 0; i < THROTTLE_BUCKETS; i++)
		to->of[i].length = 1;
}

static void
take_limits(const struct throttle_limits *o, struct throttle_config *to)
{
	LIMITS(TAKE, o, )
	to->ops_size = value(o->has_iops_size, o->iops_size, to->ops_size);
}

static void
take_properties(const struct throttle_group_properties *o,
		struct throttle_config *to)
{
	LIMITS(TAKE, o, x_)
	to->ops_size = value(o->has_x_iops_size, o->x_iops_size, to->ops_size);
	if (o->limits)
		take_limits(o->limits, to);
}

#define GIVE(bucket, o, name)                            \
	(o)->has_##name = (o)->has_##name##_max = true;  \
	(o)->has_##name##_max_length = true;             \
	(o)->name = (int64_t)from->of[bucket].avg;       \
	(o)->name##_max = (int64_t)from->of[bucket].max; \
	(o)->name##_max_length = (int64_t)from->of[bucket].length;

static struct throttle_limits *
give_limits(const struct throttle_config *from)
{
	struct throttle_limits *o = xzalloc(sizeof *o);

	LIMITS(GIVE, o, )
	o->has_iops_size = true;
	o->iops_size = (int64_t)from->ops_size;
	return o;
}

static void
append(struct uint64_list *l, uint64_t v)
{
	l->v = xrealloc(l->v, l->n + 1, sizeof l->v[0]);
	l->v[l->n++] = v;
}

struct link_throttle_limits *
objects_describe_limits(const struct throttle_config *l)
{
	struct link_throttle_limits *to = xzalloc(sizeof *to);

	for (int i = 0; i < THROTTLE_BUCKETS; i++) {
		append(&to->avg, l->of[i].avg);
		append(&to->max, l->of[i].max);
		append(&to->length, l->of[i].length);
	}
	to->iops_size = l->ops_size;
	return to;
}

/* --- the list --------------------------------------------------------------------- */

static struct object *
find(struct graph *g, const char *id)
{
	struct object *o = g->objects;

	while (o && strcmp(o->id, id) != 0)
		o = o->next;
	return o;
}

static void
take_out(struct graph *g, struct object *o)
{
	struct object **p = &g->objects;

	while (*p != o)
		p = &(*p)->next;
	*p = o->next;
	free(o->id);
	free(o);
}

void
objects_free(struct graph *g)
{
	while (g->objects)
		take_out(g, g->objects);
}

bool
objects_add(struct graph *g, const struct object_options *from, struct err *e)
{
	struct throttle_config limits;
	struct object *o;

	if (!id_is_wellformed(from->id))
		return err_set(e, ERR_GENERIC, 0,
			       "Parameter 'id' expects an identifier");
	if (find(g, from->id))
		return err_set(e, ERR_GENERIC, 0,
			       "attempt to add duplicate property '%s' to "
			       "object (type 'container')",
			       from->id);
	if (!graph_check_objects(g, e))
		return false;
	no_limits(&limits);
	take_properties(from->u.throttle_group, &limits);
	if (!throttle_config_check(&limits, e))
		return false;
	o = xzalloc(sizeof *o);
	o->id = xstrdup(from->id);
	o->limits = limits;
	o->next = g->objects;
	g->objects = o;
	return true;
}

struct object_options *
objects_describe(const struct object *o)
{
	struct object_options *to = xzalloc(sizeof *to);

	to->qom_type = OBJECT_TYPE_THROTTLE_GROUP;
	to->id = xstrdup(o->id);
	to->u.throttle_group = xzalloc(sizeof *to->u.throttle_group);
	to->u.throttle_group->limits = give_limits(&o->limits);
	return to;
}

/* The group that @n is in, or NULL. */
static const char *
group_of(const struct node *n)
{
	return n->options->driver == BLOCKDEV_DRIVER_THROTTLE
		       ? n->options->u.throttle->throttle_group
		       : NULL;
}

bool
objects_fill_limits(struct graph *g, struct node *n, struct err *e)
{
	const char *id = group_of(n);
	const struct object *o = id ? find(g, id) : NULL;

	if (id && !o)
		return err_set(e, ERR_GENERIC, 0,
			       "Throttle group '%s' does not exist", id);
	if (o)
		n->limits = o->limits;
	return true;
}

static bool
in_use(const struct graph *g, const char *id)
{
	for (const struct node *n = g->nodes; n; n = n->next)
		if (group_of(n) && strcmp(group_of(n), id) == 0)
			return true;
	return false;
}

/* --- object-add and object-del -------------------------------------------------------- */

struct saving {
	struct daemon *d;
	struct qmp_call *call;
	void (*returned)(struct qmp_call *call);
	struct plane_request r;
};

static void
saved(void *opaque, const struct err *e)
{
	struct saving *s = opaque;

	/* it is so; what was not saved is that it is */
	pending_end(s->d);
	if (e)
		qmp_call_fail(s->call, e);
	else
		s->returned(s->call);
	free(s);
}

static struct saving *
saving_new(struct qmp_call *call, void (*returned)(struct qmp_call *call))
{
	struct saving *s = xzalloc(sizeof *s);

	s->d = qmp_call_opaque(call);
	s->call = call;
	s->returned = returned;
	pending_begin(s->d);
	return s;
}

void
qmp_object_add(struct qmp_call *call, struct object_options *arg)
{
	AUTO(object_options_free) struct object_options *o = arg;
	struct daemon *d = qmp_call_opaque(call);
	struct err e = ERR_INIT;

	if (objects_add(d->graph, o, &e))
		registry_save(d->registry, saved,
			      saving_new(call, qmp_object_add_return));
	else
		qmp_call_fail(call, &e);
}

void
qmp_object_del(struct qmp_call *call, struct qmp_object_del_args *arg)
{
	AUTO(qmp_object_del_args_free) struct qmp_object_del_args *own = arg;
	struct daemon *d = qmp_call_opaque(call);
	struct object *o = find(d->graph, own->id);
	struct err e = ERR_INIT;

	if (!o)
		(void)err_set(&e, ERR_GENERIC, 0, "object '%s' not found",
			      own->id);
	else if (in_use(d->graph, own->id))
		(void)err_set(&e, ERR_GENERIC, 0,
			      "object '%s' is in use, can not be deleted",
			      own->id);
	if (err_is_set(&e)) {
		qmp_call_fail(call, &e);
		return;
	}
	take_out(d->graph, o);
	registry_save(d->registry, saved,
		      saving_new(call, qmp_object_del_return));
}

/* --- qom-set and qom-get ---------------------------------------------------------------- */

static struct object *
resolve(struct graph *g, const char *path, struct err *e)
{
	static const char root[] = "/objects/";
	const char *id = path;
	struct object *o;

	if (strncmp(path, root, sizeof root - 1) == 0)
		id += sizeof root - 1;
	o = find(g, id);
	if (!o)
		(void)err_set(e, ERR_DEVICE_NOT_FOUND, 0,
			      "Device '%s' not found", path);
	return o;
}

static void
told(struct plane_request *r, const struct json *ret, struct link_msg *msg,
     const struct err *e)
{
	struct saving *s = container_of(r, struct saving, r);

	(void)ret;
	(void)msg;
	if (e) /* it learns of the limits when it opens its nodes again */
		log_warn("%s", e->msg);
	registry_save(s->d->registry, saved, s);
}

static void
apply(struct saving *s, const struct object *o)
{
	AUTO(link_throttle_limits_free)
	struct link_throttle_limits *limits =
		objects_describe_limits(&o->limits);
	struct link_throttle_set_args arg = { .group = o->id,
					      .limits = limits };
	struct json_out out;

	for (struct node *n = s->d->graph->nodes; n; n = n->next)
		if (group_of(n) && strcmp(group_of(n), o->id) == 0)
			n->limits = o->limits;
	throttle_group_set(o->id, &o->limits);
	s->r.done = told;
	plane_begin(&out);
	link_put_throttle_set(&out, &arg);
	plane_ask(s->d->plane, &s->r, &out, NULL, 0);
}

static bool
set(struct object *o, const struct qmp_qom_set_args *arg, struct err *e)
{
	AUTO(throttle_limits_free) struct throttle_limits *given = NULL;
	struct throttle_config limits = o->limits; /* what is not given stays */

	if (strncmp(arg->property, "x-", 2) == 0)
		return err_set(e, ERR_GENERIC, 0,
			       "Property cannot be set after initialization");
	if (strcmp(arg->property, "limits") != 0)
		return err_set(e, ERR_GENERIC, 0,
			       "Property 'throttle-group.%s' not found",
			       arg->property);
	if (!throttle_limits_decode(arg->value, "limits", &given, e))
		return false;
	take_limits(given, &limits);
	if (!throttle_config_check(&limits, e))
		return false;
	o->limits = limits;
	return true;
}

void
qmp_qom_set(struct qmp_call *call, struct qmp_qom_set_args *arg)
{
	AUTO(qmp_qom_set_args_free) struct qmp_qom_set_args *own = arg;
	struct daemon *d = qmp_call_opaque(call);
	struct err e = ERR_INIT;
	struct object *o = resolve(d->graph, own->path, &e);

	if (o && set(o, own, &e))
		apply(saving_new(call, qmp_qom_set_return), o);
	else
		qmp_call_fail(call, &e);
}

static struct json *
limits_as_json(const struct object *o, struct err *e)
{
	AUTO(throttle_limits_free)
	struct throttle_limits *limits = give_limits(&o->limits);
	AUTO(json_out_destroy) struct json_out out;
	struct json *j = NULL;

	json_out_init(&out, 64 << 10);
	throttle_limits_encode(&out, limits);
	if (!json_out_check(&out, e) || !json_parse(out.text, out.len, &j, e))
		return NULL;
	return j;
}

bool
qmp_qom_get(struct qmp_call *call, const struct qmp_qom_get_args *arg,
	    struct json **ret, struct err *e)
{
	struct daemon *d = qmp_call_opaque(call);
	const struct object *o = resolve(d->graph, arg->path, e);

	if (!o)
		return false;
	if (strcmp(arg->property, "type") == 0)
		return json_parse("\"throttle-group\"", 16, ret, e);
	if (strcmp(arg->property, "limits") != 0)
		return err_set(e, ERR_GENERIC, 0,
			       "Property 'throttle-group.%s' not found",
			       arg->property);
	*ret = limits_as_json(o, e);
	return *ret != NULL;
}

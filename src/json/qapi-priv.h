/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What qapi.c and qapi-decode.c share.
 */
#ifndef JSON_QAPI_PRIV_H
#define JSON_QAPI_PRIV_H

#include "json/qapi.h"

/* What is in the slot of a list. */
struct qapi_list {
	size_t n;
	void *v;
};

/* How an alternate's struct begins. */
struct qapi_alternate {
	enum json_type type;
};

static inline void *
qapi_at(const void *object, uint32_t offset)
{
	return (char *)object + offset;
}

static inline void *
qapi_element(const struct qapi_type *t, const struct qapi_list *l, size_t i)
{
	return (char *)l->v + i * t->element->slot;
}

/* Which branch of an alternate is for a value of this JSON type, or NULL. */
const struct qapi_member *qapi_branch(const struct qapi_type *t,
				      enum json_type type);

/* The type of the branch that is in force, or NULL. */
const struct qapi_type *qapi_variant(const struct qapi_type *t,
				     const void *object);

#endif

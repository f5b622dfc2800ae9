/* SPDX-License-Identifier: BSD-3-Clause
 *
 * json/qapi.h: what the generated code consists of.  The generator writes C
 * structs and, for each, a table that says where its members are; decoding,
 * encoding, copying and freeing are done here, once, over those tables.
 *
 * A value lives in a "slot".  What is in the slot of a
 *
 *   bool, number, enum     bool, double, the C enum
 *   (u)int8 .. (u)int64    that type
 *   str, any               char *, struct json *   (owned)
 *   struct, union,         a pointer to the C struct (owned)
 *   alternate
 *   list                   struct { size_t n; T *v; } (owned), T a slot
 *   null                   bool, always true
 *
 * Domain: any thread.  No function aborts when memory is gone.
 */
#ifndef JSON_QAPI_H
#define JSON_QAPI_H

#include "json/json.h"
#include "json/out.h"

enum qapi_kind {
	QAPI_BOOL,
	QAPI_INT,
	QAPI_UINT,
	QAPI_NUMBER,
	QAPI_STR,
	QAPI_NULL,
	QAPI_ANY,
	QAPI_ENUM,
	QAPI_STRUCT, /* unions too */
	QAPI_ALTERNATE,
	QAPI_LIST,
};

struct qapi_type;

#define QAPI_NO_HAS UINT32_MAX

/* A member of a struct, or a branch of an alternate (no has, offset of u). */
struct qapi_member {
	const char *name; /* on the wire */
	const struct qapi_type *type;
	uint32_t offset;
	uint32_t has; /* offset of the bool has_x, or QAPI_NO_HAS */
	bool optional;
};

/* The part of a union that depends on its discriminator. */
struct qapi_variants {
	uint32_t tag; /* offset of the discriminator, an enum */
	uint32_t offset; /* of the pointer to the branch */
	const struct qapi_type *const *branch; /* by tag; NULL: nothing more */
};

struct qapi_type {
	enum qapi_kind kind;
	const char *name; /* as in messages to a client */
	uint32_t slot; /* bytes of a slot */
	uint32_t size; /* bytes of the C struct, union or alternate */
	uint32_t n; /* values, members or branches */
	const char *const *values; /* of an enum */
	const struct qapi_member *members; /* of a struct or alternate */
	const struct qapi_variants *variants; /* of a union */
	const struct qapi_type *element; /* of a list */
};

/* Decode @j into *slot, which is overwritten; on failure nothing stays there.
 * @path names the value in messages; NULL: it is the whole message.
 */
bool qapi_decode(const struct qapi_type *t, const struct json *j,
		 const char *path, void *slot, struct err *e) MUST_CHECK;

/* The same for the arguments of a command, which may be left out. */
bool qapi_decode_args(const struct qapi_type *t, const struct json *args,
		      void *slot, struct err *e) MUST_CHECK;

/* A command without arguments. */
bool qapi_no_args(const struct json *args, struct err *e) MUST_CHECK;

void qapi_encode(const struct qapi_type *t, struct json_out *o,
		 const void *slot);

/* A deep copy; false: out of memory, and *to holds nothing. */
bool qapi_clone(const struct qapi_type *t, void *to, const void *from)
	MUST_CHECK;

/* Free what is in the slot and empty it. */
void qapi_clear(const struct qapi_type *t, void *slot);

/* Copy the bytes of @item behind the last element; @item is not looked into.
 * False: out of memory.
 */
bool qapi_list_append(const struct qapi_type *t, void *list, const void *item)
	MUST_CHECK;

/* An enum's value by name. */
bool qapi_enum_find(const struct qapi_type *t, const char *name, unsigned *out);

extern const struct qapi_type qapi_str_type, qapi_number_type, qapi_bool_type,
	qapi_null_type, qapi_any_type, qapi_int_type, qapi_int8_type,
	qapi_int16_type, qapi_int32_type, qapi_int64_type, qapi_uint8_type,
	qapi_uint16_type, qapi_uint32_type, qapi_uint64_type, qapi_size_type;

/* Lists of built-in types. */
struct str_list {
	size_t n;
	char **v; /* owned, and so are the strings */
};
extern const struct qapi_type str_list_type;

/* Append a copy of @s.  False: out of memory. */
bool str_list_append(struct str_list *l, const char *s) MUST_CHECK;
bool str_list_clone(struct str_list *to, const struct str_list *from)
	MUST_CHECK;
void str_list_clear(struct str_list *l);

/* Lists of numbers and truth values: struct NAME_list, and NAME_list_append()
 * (false: out of memory) and NAME_list_clear() for it.
 */
#define QAPI_LISTS(X)       \
	X(int, int64_t)     \
	X(int8, int8_t)     \
	X(int16, int16_t)   \
	X(int32, int32_t)   \
	X(int64, int64_t)   \
	X(uint8, uint8_t)   \
	X(uint16, uint16_t) \
	X(uint32, uint32_t) \
	X(uint64, uint64_t) \
	X(size, uint64_t)   \
	X(number, double)   \
	X(bool, bool)

#define QAPI_DECLARE_LIST(id, ctype)                                       \
	struct id##_list {                                                 \
		size_t n;                                                  \
		ctype *v; /* owned */                                      \
	};                                                                 \
	extern const struct qapi_type id##_list_type;                      \
	bool id##_list_append(struct id##_list *l, ctype item) MUST_CHECK; \
	void id##_list_clear(struct id##_list *l);

QAPI_LISTS(QAPI_DECLARE_LIST)

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Arguments of commands under arbitrary JSON; the first byte chooses the
 * type.  What decodes must clone, encode, decode and encode to the same text.
 */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "schema/link-types.h"
#include "schema/qmp-types.h"
#include "schema/registry-types.h"

#define OUT_MAX (64 * 1024 * 1024)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
check_round_trip(const struct qapi_type *t, void *slot)
{
	struct json_out once, twice;
	struct json *j = NULL;
	void *copy, *again;

	json_out_init(&once, OUT_MAX);
	json_out_init(&twice, OUT_MAX);
	if (!qapi_clone(t, &copy, &slot))
		assert(!"clone failed");
	qapi_encode(t, &once, &copy);
	if (!json_parse(once.text, once.len, &j, NULL) ||
	    !qapi_decode(t, j, NULL, &again, NULL))
		assert(!"what was encoded does not decode");
	qapi_encode(t, &twice, &again);
	assert(once.len == twice.len);
	assert(memcmp(once.text, twice.text, once.len) == 0);
	qapi_clear(t, &copy);
	qapi_clear(t, &again);
	json_free(j);
	json_out_destroy(&once);
	json_out_destroy(&twice);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct qapi_type *const types[] = {
		&blockdev_options_type,     &qmp_transaction_args_type,
		&block_export_options_type, &blockdev_backup_type,
		&registry_doc_type,         &schema_info_type,
		&block_device_info_type,    &link_image_type,
	};
	const struct qapi_type *t;
	struct err e = ERR_INIT;
	struct json *j = NULL;
	void *slot;

	if (size < 2)
		return 0;
	t = types[data[0] % ARRAY_SIZE(types)];
	if (!json_parse((const char *)data + 1, size - 1, &j, NULL))
		return 0;
	if (qapi_decode(t, j, NULL, &slot, &e)) {
		check_round_trip(t, slot);
		qapi_clear(t, &slot);
	} else {
		assert(err_is_set(&e) && !slot);
	}
	json_free(j);
	return 0;
}

/* SPDX-License-Identifier: BSD-3-Clause */
#include "daemon/ids.h"

#include <string.h>

static bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

bool
id_is_wellformed(const char *id)
{
	if (!is_letter(id[0]))
		return false;
	for (const char *p = id; *p; p++)
		if (!is_letter(*p) && !(*p >= '0' && *p <= '9') &&
		    !strchr("-._", *p))
			return false;
	return true;
}

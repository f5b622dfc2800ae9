/* SPDX-License-Identifier: BSD-3-Clause
 *
 * UTF-8 as QMP has it: strict, but NUL may come as C0 80.
 */
#include "json/json-priv.h"

bool
utf8_is_char(int32_t cp)
{
	if (cp < 0 || cp > 0x10FFFF)
		return false;
	if (cp >= 0xD800 && cp <= 0xDFFF)
		return false;
	return (cp < 0xFDD0 || cp > 0xFDEF) && (cp & 0xFFFE) != 0xFFFE;
}

int32_t
utf8_take(const unsigned char **p, const unsigned char *end)
{
	static const int32_t least[] = { 0, 0x80, 0x800, 0x10000 };
	int32_t cp = *(*p)++;
	int more, got;

	if (cp < 0x80)
		return cp;
	if (cp < 0xC0 || cp > 0xF4)
		return -1;
	more = cp < 0xE0 ? 1 : cp < 0xF0 ? 2 : 3;
	cp &= 0x3F >> more;
	for (got = 0; got < more && *p < end && (**p & 0xC0) == 0x80; got++)
		cp = cp << 6 | (*(*p)++ & 0x3F);
	if (got < more)
		return -1;
	if (cp < least[more])
		return more == 1 && cp == 0 ? 0 : -1;
	return utf8_is_char(cp) ? cp : -1;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * stay-loaded: preloaded into nbdkit by tests/sanitize, so that the plugin is
 * still there when the sanitizer looks for leaks and names functions.
 */
#include <dlfcn.h>

int
dlclose(void *handle)
{
	(void)handle;
	return 0;
}

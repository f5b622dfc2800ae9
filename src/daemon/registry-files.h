/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The registry's files in the state directory; for registry.c and
 * registry-read.c only.
 */
#ifndef DAEMON_REGISTRY_FILES_H
#define DAEMON_REGISTRY_FILES_H

#define REGISTRY_FILE     "registry.json"
#define REGISTRY_NEW      "registry.json.new"
#define REGISTRY_STAGED   "registry.json.staged" /* see registry-read.c */
#define REGISTRY_MAX_TEXT ((size_t)256 << 20)
#define REGISTRY_VERSION  1

#endif

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What tests of views have in common: an image in memory, a view of it with
 * its store, a copy-before-write, a reader, and guests' writes.
 */
#ifndef UNIT_SCENE_H
#define UNIT_SCENE_H

#include "fault.h"
#include "view/cbw.h"
#include "view/reader.h"

#define GRANULE 4096

struct scene {
	struct mem_image *image; /* owned */
	struct view *view; /* reference owned */
	struct epoch *mask; /* reference owned, or NULL */
	struct cbw *cbw; /* owned */
	int store; /* owned: the reader's copy */
	struct view_reader reader;
	unsigned broken_calls;
	int broken_os;
};

struct scene_options {
	uint64_t size;
	struct epoch *mask; /* consumed, or NULL */
	uint64_t unit; /* 0: 65536 */
	enum cbw_policy policy;
	unsigned timeout_ms;
	const char *store; /* a file to use as the store, or NULL: tmpfs */
};

void scene_init(struct scene *s, const struct scene_options *o);
void scene_destroy(struct scene *s);

/* As node.c does it, without gate and epoch.  Returns an errno value. */
int scene_write(struct scene *s, uint64_t off, uint64_t len, int byte);
int scene_zero(struct scene *s, uint64_t off, uint64_t len);

/* Fails the test when the view's content there is not mem_image_pattern(). */
void scene_check_pattern(struct scene *s, uint64_t off, uint64_t len);

enum view_state scene_state(const struct scene *s, uint64_t off);

#endif

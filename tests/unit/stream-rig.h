/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What every test of a stream needs: a source image (a sparse file), perhaps
 * a view and an epoch, a captive server, a target, and a loop.
 *
 * Content is a function of a seed and the offset, so that any part of any
 * file can be checked by itself.
 */
#ifndef UNIT_STREAM_RIG_H
#define UNIT_STREAM_RIG_H

#include "base/loop.h"
#include "captive.h"
#include "stream/stream.h"
#include "unit.h"

struct rig {
	struct captive server;
	struct loop loop;
	uint64_t size;
	int source; /* the source's file */
	struct view_reader reader;
	struct view *view;
	struct epoch *epoch;
	struct target_options to;
	struct target *target;
	struct stream_options o;
	struct stream *stream;
	unsigned done, paused; /* how often they were called */
	bool running, stop_asked;
	ev_timer tick;
};

struct rig *rig_new(void);
void rig_free(struct rig *r);

uint64_t rig_now_ms(void);

/* --- the source ------------------------------------------------------------------- */

void rig_source(struct rig *r, uint64_t size);
void rig_fill(struct rig *r, uint64_t off, uint64_t len, unsigned seed);
/* A disk of @size, all data. */
void rig_source_filled(struct rig *r, uint64_t size);
void rig_write_zeroes(struct rig *r, uint64_t off, uint64_t len);
void rig_view(struct rig *r);
/* The copy set is r->epoch. */
void rig_dirty(struct rig *r, uint64_t granularity);

/* --- the server --------------------------------------------------------------------- */

#define NBDKIT(r, ...) \
	captive_nbdkit(&(r)->server, (const char *const[]){ __VA_ARGS__, NULL })

void rig_open_target(struct rig *r);
void rig_close_target(struct rig *r);

/* --- the stream ----------------------------------------------------------------------- */

void rig_start(struct rig *r);
void rig_wait(struct rig *r); /* for done */
void rig_copy(struct rig *r); /* start, wait, and it went well */
void rig_run_ms(struct rig *r, unsigned ms);
void rig_run_until_offset(struct rig *r, uint64_t offset);
void rig_assert_ok(struct rig *r);

/* --- content ---------------------------------------------------------------------------- */

void rig_fill_file(int fd, uint64_t off, uint64_t len, unsigned seed);
/* [off, off + len) of @fd is what the seed says of [at, at + len). */
void rig_assert_file(int fd, uint64_t off, uint64_t len, unsigned seed,
		     uint64_t at);
/* The server's file has the source's content. */
void rig_assert_equal(struct rig *r, const char *name);

#endif

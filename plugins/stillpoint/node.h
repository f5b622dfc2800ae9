/* SPDX-License-Identifier: BSD-3-Clause
 *
 * plugins/stillpoint: the data plane.  It serves guests through nbdkit, and
 * does what stillpointd asks for over the link.  It may use base, json, block,
 * tracking, view and link.  Nothing in here aborts because of what a guest, a
 * full disk, a full memory or a dead daemon does.
 *
 * node.h: an image that guests write to.  A write passes through in this
 * order, and the order is the guarantee (each rule has a test of its name in
 * tests/unit/test-node.c):
 *
 * 1. Every change goes through the gate, and all of it happens inside.
 * 2. The bits are set in the open epoch before the image changes.
 * 3. Every attached view has saved what it needs before the image changes.
 * 4. Epoch and views change only while the gate is closed and empty.
 * 5. Flushes and reads do not pass the gate: they change nothing.
 * 6. A request that is throttled waits before it enters the gate.
 * 7. While a view is attached, the image holds the space that is given up
 *    (block_hold), also when the view was there before this process, and for
 *    good when the image is closed under it: who reads the view goes on.
 * 8. A request beyond the end fails: a connection may be older than a change
 *    of the size.
 * 9. A view that was given up is taken off, however long that takes, when no
 *    write knows of it any more.  Guests never wait longer than NODE_LEAVE_MS
 *    for that.
 */
#ifndef PLUGIN_NODE_H
#define PLUGIN_NODE_H

#include "block/block.h"
#include "tracking/epoch.h"
#include "tracking/gate.h"
#include "view/cbw.h"

struct link_call;
struct node;
struct server;

/* A view while it is attached.  Made by the link's thread before the cut. */
struct attached {
	struct attached *next;
	uint64_t id;
	struct server *server; /* borrowed: whom to wake */
	struct cbw *cbw; /* owned */
	_Atomic int broken; /* errno value; told to stillpointd when set */
	bool told;
	bool leaving; /* rule 9 */
	uint64_t tried; /* to take it off, nanoseconds */
};

void attached_free(struct attached *a);
DEFINE_CLEANUP(struct attached, attached_free);

struct node {
	struct node *next; /* in the table; link thread */
	char *name; /* owned */
	struct block *image; /* owned */
	bool throttled; /* requests wait for their turn outside of the gate */
	bool alone; /* it has tables: nobody else has it open meanwhile */
	struct gate gate;
	/* Changed only while the gate is closed (rule 4). */
	struct epoch *epoch; /* reference owned, or NULL: nothing to record */
	uint64_t epoch_id;
	struct attached *views; /* owned */
	unsigned exports; /* how many refer to it; link thread */
	unsigned flushing; /* threads that flush it for us; link thread */
	struct link_call *closing; /* owned: that waits for them, or NULL */
};

/* @image is consumed on success. */
struct node *node_new(const char *name, struct block *image);

/* No guest uses it any more.  Closes the image; may block. */
void node_free(struct node *n);
DEFINE_CLEANUP(struct node, node_free);

/* Rule 7; link thread, with the gate closed or before there are guests.
 * @views is consumed; they come behind those that are there.
 */
void node_attach(struct node *n, struct attached *views);
/* Take @a off, which is one of them: the caller owns it. */
void node_detach(struct node *n, struct attached *a);

/* Rule 9; link thread. */
#define NODE_LEAVE_MS       50
#define NODE_LEAVE_EVERY_MS 500
void node_give_up(struct node *n, struct attached *a);
/* Try again to take off what was given up; in how many milliseconds that
 * should be done again, -1: never.
 */
int node_leave(struct node *n);

/* --- guest threads; each returns 0 or an errno value ----------------------- */

int node_pread(struct node *n, void *buf, size_t len, uint64_t off);
int node_pwrite(struct node *n, const void *buf, size_t len, uint64_t off,
		bool fua);
int node_zero(struct node *n, uint64_t off, uint64_t len, unsigned flags,
	      bool fua);
int node_discard(struct node *n, uint64_t off, uint64_t len, bool fua);
int node_flush(struct node *n);

#endif

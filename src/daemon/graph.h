/* SPDX-License-Identifier: BSD-3-Clause
 *
 * graph: nodes, the bitmaps on them and the exports in front of them.  Loop
 * only.
 *
 * A node is open for writing in one process at a time, its home: the data
 * plane while an export refers to it, else the daemon.  The daemon keeps the
 * descriptor that carries the image lock in both cases, so that the lock
 * outlives either process.
 *
 * Rules:
 * 1. An enabled bitmap's set has the node's open epoch in it.
 * 2. A node has an open epoch exactly while it has an enabled bitmap.
 * 3. Epochs in a set that are not the open one never change any more.
 * 4. A node lives while the monitor owns it (blockdev-add), or another node
 *    has it as a child.  Both count once.
 * 5. Nodes form no cycle: a child is there before its parent.
 * 6. A node that can be written has one user: one parent or its exports.
 */
#ifndef DAEMON_GRAPH_H
#define DAEMON_GRAPH_H

#include "block/throttle.h"
#include "daemon/children.h"
#include "daemon/epochs.h"
#include "link/link.h"
#include "schema/link-types.h"
#include "schema/qmp-types.h"

struct daemon;
struct filter;
struct graph;
struct job;
struct qcow2_header;
struct stored;
struct target;
struct view_file;

/* A chain is described in one message, with a descriptor for each file
 * (LINK_MAX_FDS, less what an epoch and views need).  An overlay is two nodes,
 * itself and its file: chains of 64 of them.
 */
#define NODE_MAX_LAYERS 128

/* What clients may make; one more is refused.  All of it stands in the
 * registry, and each epoch is a mapping, of which a process has some 65000.
 */
#define GRAPH_MAX_NODES   16384
#define GRAPH_MAX_EXPORTS 16384
#define GRAPH_MAX_BITMAPS 16384 /* on all nodes together */
#define GRAPH_MAX_OBJECTS 4096

struct bitmap {
	struct bitmap *next; /* on the node, newest first */
	struct node *node; /* borrowed */
	uint64_t born; /* when it came, among bitmaps and successors */
	uint64_t successor; /* busy: when its successor came; 0: not busy */
	char *name; /* owned */
	uint64_t granularity;
	bool persistent;
	bool enabled;
	bool in_image; /* and not in the registry (stored.h) */
	bool saved; /* its epochs are in the state directory, too (saved.h) */
	struct job *job; /* busy: borrowed; NULL: not */
	/* busy: what the job took; borrowed from it */
	const struct epoch_set *taken;
	bool removing; /* a transaction is about to remove it */
	char *inconsistent; /* owned reason, or NULL */
	struct epoch_set set;
};

struct node {
	struct node *next; /* newest first */
	uint64_t born; /* when it came, among nodes and filters; 0: not yet */
	char *name; /* owned */
	struct blockdev_options *options; /* owned: as they were given */
	uint64_t size;
	uint32_t cluster; /* unit of allocation, bytes; 0: none */
	bool read_only;
	bool read_only_below; /* and only because of what is below it */
	bool monitor_owned; /* made by blockdev-add, not inside another node */
	int fd; /* owned: the file, with the image lock; -1: it is none */
	struct throttle_config limits; /* a throttle node's group's */
	struct target *target; /* owned; an nbd node's connection */
	struct node *child[CHILD_ROLES]; /* each a reference, or NULL */
	/* While it is being added: whose child it becomes; borrowed. */
	const struct node *above;
	/* A qcow2 node: what the image's header said; owned, or NULL. */
	struct qcow2_header *qcow2;
	/* Bitmaps that were read and are not on the node yet; owned, or NULL. */
	struct stored *stored;
	/* The bitmaps of its image, or of that below it, are ours (stored.h). */
	bool keeps_bitmaps;
	unsigned layers; /* how many nodes a description of it names */
	unsigned parents; /* how many nodes have it as a child */
	struct epoch_file *epoch; /* open epoch: a reference, or NULL */
	struct bitmap *bitmaps; /* owned, newest first */
	uint64_t bitmap_births; /* of bitmaps and successors */
	struct view_file *views; /* borrowed: points in time of it that jobs
				   * read */
	unsigned exports;
	struct job *target_of; /* the job that writes to it; borrowed */
	uint64_t write_threshold; /* 0: none */
	/* resize.c: the size that is coming, and what records with it;
	 * borrowed.  0 and NULL: none.
	 */
	uint64_t next_size;
	struct epoch_file *next_epoch;
	bool resized; /* recovery: its epochs may be of another size */
	bool in_plane; /* the data plane has it open */
	bool restart; /* recovery: the data plane must open it anew */
	bool released; /* let go in order (at the daemon's end) */
};

struct export
{
	struct export *next; /* newest first */
	struct block_export_options *options; /* owned */
	struct node *node; /* borrowed */
	const char *name; /* borrowed from options */
	bool shutting_down;
	bool in_plane;
};

/* A throttle group; see objects.h. */
struct object {
	struct object *next; /* newest first */
	char *id; /* owned */
	struct throttle_config limits;
};

struct graph {
	struct daemon *d; /* borrowed */
	struct node *nodes;
	struct export *exports;
	struct object *objects;
	struct filter *filters; /* owned by their jobs; newest first */
	uint64_t births; /* of nodes and filters */
	_Atomic uint64_t next_id; /* for epochs, views, cuts; any thread */
	_Atomic unsigned next_anonymous; /* for names of nodes without one;
					  * any thread */
};

struct graph *graph_new(struct daemon *d);
void graph_free(struct graph *g);

/* Is there room for one more, @coming of them being on their way?  "There are
 * N nodes already, and no more are allowed".
 */
bool graph_check_nodes(const struct graph *g, size_t coming, struct err *e)
	MUST_CHECK;
bool graph_check_exports(const struct graph *g, struct err *e) MUST_CHECK;
bool graph_check_bitmaps(const struct graph *g, struct err *e) MUST_CHECK;
bool graph_check_objects(const struct graph *g, struct err *e) MUST_CHECK;

uint64_t graph_take_id(struct graph *g);
/* @id is taken. */
void graph_see_id(struct graph *g, uint64_t id);

/* A name for a node without one; no client can give it.  The caller's. */
char *graph_take_name(struct graph *g);

/* --- nodes -------------------------------------------------------------------- */

struct node *graph_node(struct graph *g, const char *name);

/* @name is a device (the id of a writable export) or a node. */
struct node *graph_device_or_node(struct graph *g, const char *name);

/* The device in front of @n, or NULL. */
struct export *graph_device(struct graph *g, const struct node *n);

bool graph_name_check(struct graph *g, const char *node_name, struct err *e)
	MUST_CHECK;

/* Consumes @n; its children have one parent more. */
void graph_add_node(struct graph *g, struct node *n);
/* Nothing has it as a child.  Children that nothing else holds go too. */
void graph_remove_node(struct graph *g, struct node *n);
/* The same in two steps: nobody finds it any more, and it goes. */
void graph_hide_node(struct graph *g, struct node *n);
void graph_drop_node(struct graph *g, struct node *n);

/* A node that is not in the graph (yet). */
void node_free(struct node *n);
DEFINE_CLEANUP(struct node, node_free);

/* Some parent of @n, and as what; NULL: it has none. */
struct node *graph_parent(struct graph *g, const struct node *n,
			  enum child_role *role);

/* Is @n @top, or below it? */
bool node_stands_on(const struct node *top, const struct node *n);

/* The child whose size and content are the node's; NULL: it has its own. */
const struct node *node_filtered(const struct node *n);

/* "Block node is read-only", or @text when it was asked for. */
bool node_check_writable(const struct node *n, const char *text, struct err *e)
	MUST_CHECK;

/* @n passes requests on, and what is below it may have changed. */
void node_look_below(struct node *n);

/* What the node's data is kept in: its own file, or its child's. */
int node_fd(const struct node *n); /* borrowed; -1: no file */
const char *node_filename(const struct node *n); /* borrowed; maybe "" */

bool graph_has_view(const struct node *n, uint64_t id);

/* "Node 'X' is busy: ..." when a job or an operation has it. */
bool node_check_idle(const struct node *n, struct err *e) MUST_CHECK;

/* The same when the data plane refused to close it after its last export: it
 * is opened nowhere else then.
 */
bool node_check_closed(const struct node *n, struct err *e) MUST_CHECK;

/* Who wants to do something with a node; QEMU's words. */
struct permission {
	const char *what; /* "write", "resize" */
	const char *who; /* "an unnamed block device", "node", ... */
	const char *name; /* of who, or NULL: it has none */
	const char *as; /* "root", or the role of a child */
};

/* Nothing is in the way, or it is part of another node: "Permission conflict
 * on node ...", or "Node 'X' is busy: ..." for a backing image.
 */
bool node_check_permission(struct graph *g, const struct node *n,
			   const struct permission *wanted, struct err *e)
	MUST_CHECK;

/* --- bitmaps ------------------------------------------------------------------- */

struct bitmap *node_bitmap(const struct node *n, const char *name);

/* The checks that QEMU makes before it uses a bitmap, in its order.  Readonly
 * are the persistent bitmaps of a read-only node: they belong to its image.
 */
enum bitmap_check {
	BITMAP_BUSY = 1,
	BITMAP_READONLY = 2,
	BITMAP_INCONSISTENT = 4,
	BITMAP_ALL = 7,
};
bool bitmap_check(const struct bitmap *b, unsigned what, struct err *e)
	MUST_CHECK;

/* A new bitmap on @n, disabled and empty. */
struct bitmap *bitmap_new(struct node *n, const char *name,
			  uint64_t granularity, bool persistent);
/* Takes it off its node. */
void bitmap_free(struct bitmap *b);
/* @j is about to use it: it is busy, and what is written from the cut on belongs
 * to its successor.  @taken is borrowed from @j.
 */
void bitmap_lend(struct bitmap *b, struct job *j,
		 const struct epoch_set *taken);
/* @j is done with it.  @successor: what was written since takes its place, in
 * the list as well; else it is part of the bitmap.
 */
void bitmap_return(struct bitmap *b, bool successor);
/* It says so from now on, and holds nothing. */
void bitmap_set_inconsistent(struct bitmap *b, const char *why);

/* How many bytes are dirty.  Of a busy bitmap: what its job took; what was
 * written since its cut is the successor's (QEMU shows that as a bitmap
 * without a name).
 */
uint64_t bitmap_count(const struct bitmap *b);
uint64_t bitmap_successor_count(const struct bitmap *b);

/* The program ends, or @n is lost: the files of its epochs stay when it goes. */
void node_keep_epochs(struct node *n);

/* Does @n have a bitmap that records? */
bool node_records(const struct node *n);

/* The granularity for the node's next epoch. */
uint64_t node_granularity(const struct node *n);

/* --- exports ------------------------------------------------------------------- */

struct export *graph_export(struct graph *g, const char *id);
void graph_add_export(struct graph *g, struct export *x);
void graph_remove_export(struct graph *g, struct export *x);

#endif

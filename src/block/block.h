/* SPDX-License-Identifier: BSD-3-Clause
 *
 * block: image drivers behind one interface.  An opened image is a struct
 * block; drivers are file (regular files and host block devices), raw (a
 * window on another image), null-co and nbd (an image on an NBD server).
 * Both programs link this folder.  It may use base only; libnbd is used in
 * nbd.c alone.
 *
 * All functions that work on an opened image may be called by any number of
 * threads at once ("any") and return 0 or a positive errno value.  Offsets
 * and lengths are bytes; a caller keeps requests inside [0, size).  Nothing
 * here aborts when memory is gone.
 */
#ifndef BLOCK_BLOCK_H
#define BLOCK_BLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/mem.h"
#include "block/event.h"

struct block;

/* What block_extent() says of a run, in the words of NBD's base:allocation. */
enum block_extent_flags {
	BLOCK_DATA = 0,
	BLOCK_HOLE = 1, /* not allocated */
	BLOCK_ZERO = 2, /* reads as zeroes */
};

enum block_zero_flags {
	BLOCK_ZERO_MAY_UNMAP = 1, /* a hole is welcome */
	BLOCK_ZERO_FAST = 2, /* ENOTSUP rather than as slow as writing */
};

struct block_ops {
	const char *name; /* QEMU's driver name */
	void (*free)(struct block *b);
	int (*pread)(struct block *b, void *buf, size_t len, uint64_t off);
	int (*pwrite)(struct block *b, const void *buf, size_t len,
		      uint64_t off);
	int (*zero)(struct block *b, uint64_t off, uint64_t len,
		    unsigned flags);
	int (*discard)(struct block *b, uint64_t off, uint64_t len);
	int (*flush)(struct block *b);
	/* Describe the run at @off: @n <= @len bytes of it, and its flags. */
	int (*extent)(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
		      unsigned *flags);
	/* Optional: read ahead. */
	int (*cache)(struct block *b, uint64_t off, uint64_t len);
	/* Optional: the descriptor that carries the image lock, borrowed, and
	 * the image's name; of this layer alone.
	 */
	int (*fd)(const struct block *b);
	const char *(*filename)(const struct block *b);
	/* Optional: the images that this one stands on, in the order of
	 * enum child_role (daemon/children.h); NULL behind the last.  Borrowed.
	 */
	struct block *(*child)(const struct block *b, unsigned i);
	/* Optional (ENOTSUP): make the disk @size bytes long, a multiple of
	 * 512, and set b->size.  What is new reads as zeroes.  Nobody else is
	 * inside.
	 */
	int (*truncate)(struct block *b, uint64_t size);
	/* Optional: in how many layers from here the run at @off is looked
	 * for until it is found: 1 is this one, 0 nowhere (it reads as
	 * zeroes).  Without it everything is in this layer, as QEMU has it
	 * for raw images.
	 */
	int (*depth)(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
		     unsigned *depth);
	/* Optional (ENOTSUP): write compressed.  @off is a multiple of
	 * b->cluster, and so is @len unless the disk ends there.
	 */
	int (*compress)(struct block *b, const void *buf, size_t len,
			uint64_t off);
	/* Optional: from hold to release host space that is given up is
	 * neither used again nor punched out, so that a reader with older
	 * tables finds what they say (DESIGN, section 5).  They nest.  hold is
	 * called where no write is in flight.
	 */
	void (*hold)(struct block *b);
	void (*release)(struct block *b);
	/* Optional: wait for a request's turn (throttle.h). */
	void (*admit)(struct block *b, bool write, uint64_t len);
	/* Optional: forget what was read of the image's tables; another
	 * process writes to it.
	 */
	int (*refresh)(struct block *b);
	/* Optional: set b->size anew; another process makes the image longer.
	 */
	void (*look)(struct block *b);
	/* Optional: the driver above is about to do this. */
	void (*event)(struct block *b, enum block_event event);
};

/* Where guests have written to, for statistics and a threshold; see
 * block_set_threshold.  Zeroes in the beginning.
 */
struct block_high {
	_Atomic uint64_t notice; /* writes that end above it are news */
	_Atomic uint64_t highest; /* the highest end of a write */
	_Atomic uint64_t threshold; /* 0: none */
	_Atomic uint64_t crossed, by; /* a threshold and by how much; 0 none */
	void (*fn)(void *opaque); /* whom to tell */
	void *opaque;
};

/* What is wrong with the image itself; see block_damaged.  Zeroes in the
 * beginning.
 */
struct block_damage {
	_Atomic(const char *)
		what; /* borrowed, lives for ever; NULL: nothing */
	uint64_t at;
	bool fatal;
};

/* Drivers embed this as their first member; others read its fields only. */
struct block {
	const struct block_ops *ops;
	char *node; /* owned by block_free: the node's name, or NULL */
	struct block_high high;
	struct block_damage damage;
	uint64_t size; /* bytes, a multiple of 512 */
	uint32_t min_block; /* request alignment: 1 or a power of two */
	uint32_t pref_block; /* preferred request size */
	uint32_t cluster; /* unit of allocation; 0: none */
	bool read_only;
	bool rotational;
	bool discard_unmap; /* "discard": "unmap"; else discards are dropped */
	bool detect_zeroes; /* "detect-zeroes": "on" or "unmap" */
	bool detect_unmap; /* "detect-zeroes": "unmap" */
	bool no_flush; /* "cache": {"no-flush": true} */
	bool coherent; /* another open of this image sees what was
			       * acknowledged here (false: after a flush,
			       * see transaction.h rule 6) */
};

/* The size of an image that another thread may be making longer: a format
 * grows its file while others read it.
 */
static inline uint64_t
block_size_now(const struct block *b)
{
	return __atomic_load_n(&b->size, __ATOMIC_ACQUIRE);
}

static inline void
block_size_set(struct block *b, uint64_t size)
{
	__atomic_store_n(&b->size, size, __ATOMIC_RELEASE);
}

/* Frees the driver's object and closes what it owns. */
void block_free(struct block *b);
DEFINE_CLEANUP(struct block, block_free);

int block_pread(struct block *b, void *buf, size_t len, uint64_t off);
/* Applies detect-zeroes. */
int block_pwrite(struct block *b, const void *buf, size_t len, uint64_t off);
int block_zero(struct block *b, uint64_t off, uint64_t len, unsigned flags);
/* Succeeds without an effect unless discard_unmap. */
int block_discard(struct block *b, uint64_t off, uint64_t len);
int block_flush(struct block *b);
int block_extent(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
		 unsigned *flags);
int block_cache(struct block *b, uint64_t off, uint64_t len);
int block_truncate(struct block *b, uint64_t size);
int block_depth(struct block *b, uint64_t off, uint64_t len, uint64_t *n,
		unsigned *depth);
int block_compress(struct block *b, const void *buf, size_t len, uint64_t off);
/* A format driver is about to do this to @b: one indirect call, and none when
 * @b does not want to know.
 */
void block_event(struct block *b, enum block_event event);
/* Reach every layer below as well. */
void block_hold(struct block *b);
void block_release(struct block *b);
/* A second open of an image that is written elsewhere, after a cut and before
 * anything is read for it: tables are read again, in every layer.
 */
int block_refresh(struct block *b);
/* The size as it is now, of an image that another process may make longer. */
uint64_t block_look(struct block *b);

/* --- what an image is made of ---------------------------------------------- */

/* NULL behind the last; borrowed. */
struct block *block_child(const struct block *b, unsigned i);

/* The descriptor that carries this layer's image lock, or -1; borrowed. */
int block_fd(const struct block *b);
/* The name of this layer's image, or NULL; borrowed. */
const char *block_filename(const struct block *b);

/* The layer with this node name in @b, or NULL. */
struct block *block_find(struct block *b, const char *node);

/* For a driver whose image is @file's, or a part of it: everything but
 * operations, names and options.
 */
void block_inherit(struct block *b, const struct block *file);

/* A write that ends above @threshold bytes is noticed once: high.crossed and
 * high.by are set, the threshold is gone, and @fn is called in the thread that
 * writes.  0: none.  One thread at a time.
 */
void block_set_threshold(struct block *b, uint64_t threshold,
			 void (*fn)(void *opaque), void *opaque);
/* Is there one to tell about?  It is taken. */
bool block_take_crossed(struct block *b, uint64_t *threshold, uint64_t *by);

/* A driver found its metadata damaged: @what (a literal) at offset @at of the
 * file.  @fatal: no more writes.  Once for each open image.  Whoever set the
 * threshold is woken.
 */
void block_damaged(struct block *b, const char *what, uint64_t at, bool fatal);
/* Is there damage to tell about?  It is taken. */
bool block_take_damage(struct block *b, const char **what, uint64_t *at,
		       bool *fatal);

/* --- file: regular files and host block devices ------------------------- */

struct block_file_options {
	int fd; /* consumed, also on failure */
	bool read_only;
	bool direct; /* the descriptor has O_DIRECT */
	const char *name; /* for messages; borrowed for the call */
};

/* Sizes that are not a multiple of 512 are rounded up; what lies beyond the
 * end of the file reads as zeroes.
 */
bool block_file_open(const struct block_file_options *o, struct block **out,
		     struct err *e) MUST_CHECK;

/* Nobody is inside.  @fd, of the same file, is consumed. */
void block_file_set_fd(struct block *b, int fd, bool direct);

/* --- raw: a window [offset, offset + size) on @file ---------------------- */

/* @file is consumed, also on failure.  @has_size false: to the end. */
bool block_raw_open(struct block *file, uint64_t offset, bool has_size,
		    uint64_t size, struct block **out, struct err *e)
	MUST_CHECK;

/* Another window on the same image; nobody is inside for the second one. */
bool block_raw_window_fits(const struct block *b, uint64_t offset,
			   bool has_size, uint64_t size, struct err *e)
	MUST_CHECK;
void block_raw_set_window(struct block *b, uint64_t offset, bool has_size,
			  uint64_t size);

/* --- null-co -------------------------------------------------------------- */

bool block_null_open(uint64_t size, uint64_t latency_ns, struct block **out,
		     struct err *e) MUST_CHECK;

/* --- nbd: an image on an NBD server ---------------------------------------- */

struct block_nbd_options {
	const char *unix_path; /* or NULL: host and port */
	const char *host, *port;
	const char *export_name; /* "" is the default export */
	/* What block_extent() says instead of what is allocated: bits of this
	 * metadata context of the server's, or NULL.  1 becomes BLOCK_HOLE.
	 */
	const char *context;
	bool tls;
	const char *tls_certificates; /* directory, or NULL */
	const char *tls_psk_file; /* or NULL */
	const char *tls_username; /* or NULL */
	const char *tls_hostname; /* name to verify, or NULL: the host */
	bool read_only;
	unsigned reconnect_delay_s; /* 0: requests fail at once when the
				     * server is gone */
	unsigned open_timeout_s; /* 0: one try */
	unsigned connections; /* at most; 1..16.  Used when the server
				     * says multi-conn */
};

/* Connects (blocks; call it from a worker thread).  Messages begin with
 * "Failed to connect to 'host:port': ".
 */
bool block_nbd_open(const struct block_nbd_options *o, struct block **out,
		    struct err *e) MUST_CHECK;

/* Nobody is inside. */
void block_nbd_set_reconnect_delay(struct block *b, unsigned seconds);

#endif

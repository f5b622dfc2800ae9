/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Bytes of the children: reads of any alignment, writes of metadata,
 * barriers, and what happens when one of them fails.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/park.h"
#include "block/qcow2/qcow2-priv.h"

/* --- reading ----------------------------------------------------------------- */

/* The child wants aligned requests and this is none. */
static int
read_unaligned(struct block *child, uint8_t *to, size_t len, uint64_t off)
{
	uint64_t unit = child->min_block;
	uint64_t start = round_down(off, unit);
	uint64_t end =
		min_u64(round_up(off + len, unit), block_size_now(child));
	AUTO(free) uint8_t *bounce = malloc((size_t)(end - start));
	int r;

	if (!bounce)
		return ENOMEM;
	r = block_pread(child, bounce, (size_t)(end - start), start);
	if (!r)
		memcpy(to, bounce + (off - start), len);
	return r;
}

int
qcow2_child_read(struct block *child, void *buf, size_t len, uint64_t off)
{
	size_t inside = len;
	uint64_t unit = child->min_block, size = block_size_now(child);

	/* whoever writes to what we only read may have made it longer */
	if ((off >= size || len > size - off) && child->read_only)
		size = block_look(child);
	if (off >= size)
		inside = 0;
	else if (len > size - off)
		inside = (size_t)(size - off);
	if (inside < len)
		memset((char *)buf + inside, 0, len - inside);
	if (!inside)
		return 0;
	if ((off | inside) & (unit - 1))
		return read_unaligned(child, buf, inside, off);
	return block_pread(child, buf, inside, off);
}

/* --- failure ------------------------------------------------------------------- */

void
qcow2_fail(struct qcow2 *q, int os, const char *what)
{
	if (!atomic_exchange(&q->failed, true))
		log_error("qcow2: %s failed: %s; no more writes until the "
			  "image is opened again",
			  what, strerror(os));
}

int
qcow2_corrupt(struct qcow2 *q, const char *what, uint64_t at)
{
	if (atomic_exchange(&q->corrupt, true))
		return EIO;
	log_error("qcow2: image is corrupt: %s at offset %#" PRIx64, what, at);
	if (!q->block.read_only) {
		atomic_store(&q->failed, true);
		(void)qcow2_set_incompat(q, QCOW2_CORRUPT, 0);
	}
	block_damaged(&q->block, what, at, !q->block.read_only);
	return EIO;
}

/* Nothing was written, and nothing is lost: the guest may try again. */
static bool
is_harmless(int os)
{
	return os == ENOSPC || os == EDQUOT || os == ENOMEM;
}

/* --- writing metadata ------------------------------------------------------------ */

static int
write_unaligned(struct qcow2 *q, const void *buf, size_t len, uint64_t off)
{
	uint64_t unit = q->file->min_block;
	uint64_t start = round_down(off, unit), end = round_up(off + len, unit);
	AUTO(free) uint8_t *bounce = malloc((size_t)(end - start));
	int r;

	if (!bounce)
		return ENOMEM;
	(void)pthread_mutex_lock(&q->rmw);
	r = qcow2_child_read(q->file, bounce, (size_t)(end - start), start);
	if (!r) {
		memcpy(bounce + (off - start), buf, len);
		r = block_pwrite(q->file, bounce, (size_t)(end - start), start);
	}
	(void)pthread_mutex_unlock(&q->rmw);
	return r;
}

int
qcow2_meta_write(struct qcow2 *q, const void *buf, size_t len, uint64_t off)
{
	uint64_t unit = q->file->min_block;
	int r;

	if ((off | len) & (unit - 1))
		r = write_unaligned(q, buf, len, off);
	else
		r = block_pwrite(q->file, buf, len, off);
	if (r && !is_harmless(r))
		qcow2_fail(q, r, "a write of metadata");
	return r;
}

int
qcow2_extend(struct qcow2 *q, uint64_t end)
{
	int r;

	if (end > INT64_MAX)
		return EFBIG;
	if (end <= block_size_now(q->file)) { /* it is there, or a device */
		if (end > atomic_load(&q->file_end))
			atomic_store(&q->file_end, end);
		return 0;
	}
	if (!q->file->ops->truncate)
		return ENOSPC;
	r = block_truncate(q->file, end);
	if (!r)
		atomic_store(&q->file_end, end);
	else if (r == ENOTSUP || r == EINVAL)
		r = ENOSPC;
	return r;
}

int
qcow2_set_incompat(struct qcow2 *q, uint64_t set, uint64_t clear)
{
	uint8_t field[8];

	if (!q->v3)
		return 0;
	q->h.incompat = (q->h.incompat | set) & ~clear;
	be64_put(field, q->h.incompat);
	return qcow2_meta_write(q, field, sizeof field, QCOW2_AT_INCOMPAT);
}

/* --- barriers ----------------------------------------------------------------------- */

/* Both files, data first; their order does not matter. */
static int
flush_files(struct qcow2 *q)
{
	int r;

	qcow2_held_seal(q);
	PARK("qcow2.flush");
	r = q->external ? block_flush(q->data) : 0;
	if (!r)
		r = block_flush(q->file);
	if (r)
		qcow2_fail(q, r, "a flush");
	else
		qcow2_held_sealed(q);
	return r;
}

/* A flush that began after we came will do; who finds none running does it
 * for everybody who waits.
 */
int
qcow2_barrier(struct qcow2 *q)
{
	uint64_t need;
	int r;

	mtx_lock(&q->flush_lock);
	need = q->flush_started + 1;
	while (q->flush_done < need) {
		uint64_t mine;

		if (q->flushing) {
			mtx_wait(&q->flush_lock, &q->flushed);
			continue;
		}
		q->flushing = true;
		mine = ++q->flush_started;
		mtx_unlock(&q->flush_lock);
		r = flush_files(q);
		mtx_lock(&q->flush_lock);
		q->flushing = false;
		q->flush_done = mine;
		(void)pthread_cond_broadcast(&q->flushed);
		if (r)
			break;
	}
	mtx_unlock(&q->flush_lock);
	/* a flush that failed, here or for another thread, is for good */
	return atomic_load(&q->failed) ? EIO : 0;
}

/* SPDX-License-Identifier: BSD-3-Clause
 *
 * Image locking compatible with QEMU's (docs/system/images "Image locking"
 * describes it; the byte numbers are an interface between QEMU processes):
 * open-file-description locks on single bytes.  Byte 100 + p is locked shared
 * by who uses permission p, byte 200 + p by who does not share it.
 *
 * A lock belongs to the open file description, so a descriptor that is passed
 * to the other process carries it: the lock lives until the last copy is
 * closed, and the death of one process does not let anybody in.
 */
#ifndef BLOCK_LOCK_H
#define BLOCK_LOCK_H

#include "base/err.h"

/* Any thread; does not block.  For a writer: we write and resize, and let
 * nobody else do so.  For a reader: nobody may write.  The message is
 * QEMU's: Failed to get "write" lock.
 */
bool image_lock(int fd, bool writer, struct err *e) MUST_CHECK;

/* For another descriptor of the same file, whose locks @held has, for a writer
 * or a reader: @held gets what it lacks, as image_lock() would, and @fd gets
 * all of it.
 */
bool image_lock_again(int held, int fd, bool writer, struct err *e) MUST_CHECK;

/* Give the locks up while the descriptor stays open. */
void image_unlock(int fd);

#endif

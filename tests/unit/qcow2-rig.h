/* SPDX-License-Identifier: BSD-3-Clause
 *
 * What the tests of the qcow2 driver share: images made and checked by
 * qemu-img, and a checker of our own for the many that are too many for it.
 */
#ifndef UNIT_QCOW2_RIG_H
#define UNIT_QCOW2_RIG_H

#include <stdint.h>

#include "block/block.h"
#include "block/qcow2/qcow2.h"
#include "crash-disk.h"

/* A directory on tmpfs for this test program; removed at its end. */
const char *rig_dir(void);

/* Run a command line in that directory; fails the test unless it exits with
 * 0.
 */
void rig_run(const char *fmt, ...) PRINTF(1, 2);
/* The same; its exit status. */
int rig_status(const char *fmt, ...) PRINTF(1, 2);

/* Open a file in that directory. */
struct block *rig_file(const char *name, bool read_only);
/* And a qcow2 image that is nothing but that file and @backing (or NULL). */
struct block *rig_open(const char *name, struct block *backing);
struct block *rig_open_live(const char *name, struct block *backing);

/* Look at the image's metadata without the driver: every cluster that is
 * referred to has a refcount that is high enough, entries are inside the file,
 * and bit 63 is where it belongs (unless the dirty bit is set).  Fails the test with @what otherwise.
 * Returns the number of leaked clusters.
 */
unsigned rig_check(const struct crash_disk *d, const char *what);

#endif

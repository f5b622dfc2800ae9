# SPDX-License-Identifier: BSD-3-Clause
"""The mutations of the qcow2 driver's rules (qcow2-priv.h)."""

FOLDER = 'src/block/qcow2/'
CRASH = 'qcow2-crash'
STEPS = 'qcow2-steps'
SPACE = 'qcow2-space'

MUTATIONS = [
    ('qcow2-priv.h rule 1', FOLDER + 'alloc.c',
     [('\tif (!r)\n\t\tr = qcow2_barrier(q);\n\tif (r)\n\t\ts->runs = 0',
       '\tif (r)\n\t\ts->runs = 0')],
     CRASH, 'power_cuts_plain'),
    ('qcow2-priv.h rule 2, refcount blocks', FOLDER + 'refcount.c',
     [('\tif (!r && g->blocks)\n\t\tr = qcow2_barrier(q);\n', '')],
     CRASH, 'power_cuts_with_small_clusters'),
    ('qcow2-priv.h rule 2, a copied L2 table', FOLDER + 'map.c',
     [('\treturn r ? r : qcow2_barrier(q);\n}\n\nstatic int\nclear_table',
       '\treturn r;\n}\n\nstatic int\nclear_table')],
     CRASH, 'power_cuts_with_a_snapshot'),
    ('qcow2-priv.h rule 2, order of names', FOLDER + 'refcount.c',
     [('for (uint64_t i = last + 1; i > first && !r; i--) {',
       'for (uint64_t i = first + 1; i <= last + 1 && !r; i++) {')],
     CRASH, 'power_cuts_with_small_clusters'),
    ('qcow2-priv.h rule 3', FOLDER + 'write.c',
     [('\tr = write_data(q, f, buf);\n\tif (r) {',
       '\tmake_entries(q, f, x);\n'
       '\t(void)qcow2_map_set(q, f->cluster, f->n, x);\n'
       '\tr = write_data(q, f, buf);\n\tif (r) {')],
     STEPS, 'a_mapping_is_published_after_its_data'),
    ('qcow2-priv.h rule 4', FOLDER + 'write.c',
     [('\tif (!r && f->barrier)\n\t\tr = qcow2_barrier(q);\n', '')],
     CRASH, 'power_cuts_on_an_overlay'),
    ('qcow2-priv.h rule 5, while somebody holds', FOLDER + 'held.c',
     [('n = h->holds ? 0 : (uint32_t)', 'n = (uint32_t)')],
     STEPS, 'space_that_is_given_up_is_held'),
    ('qcow2-priv.h rule 5, at some time', FOLDER + 'held.c',
     [('n = h->holds ? 0 : (uint32_t)', 'n = 1 ? 0 : (uint32_t)')],
     STEPS, 'space_that_nobody_holds_is_used_again'),
    ('qcow2-priv.h rule 5, a bounded part', FOLDER + 'held.c',
     [('done < FREE_RUNS && ', '')],
     SPACE, 'a_flush_frees_a_bounded_part'),
    ('qcow2-priv.h rule 6', FOLDER + 'cache.c',
     [('int r = qcow2_meta_write(q, buf, len, off);', 'int r = 0;')],
     CRASH, 'power_cuts_plain'),
    ('qcow2-priv.h rule 7', FOLDER + 'map.c',
     [('\treturn qcow2_table_write(q, raw, (size_t)(p - raw), off);',
       '\tr = qcow2_table_write(q, raw, 8, off);\n'
       '\tif (r || p == raw + 8)\n\t\treturn r;\n'
       '\treturn qcow2_table_write(q, raw + 8, (size_t)(p - raw) - 8,\n'
       '\t\t\t\t off + 8);')],
     STEPS, 'an_entry_is_written_with_one_call'),
    ('qcow2-priv.h rule 8', FOLDER + 'write.c',
     [('if (qcow2_is_claimed(q, host, len))', 'if (!len)')],
     STEPS, 'data_do_not_land_on_metadata'),
    ('qcow2-priv.h rule 9, metadata', FOLDER + 'io.c',
     [('if (r && !is_harmless(r))', 'if (r == ENOENT)')],
     STEPS, 'after_a_failed_metadata_write_nothing_is_written'),
    ('qcow2-priv.h rule 9, barriers', FOLDER + 'io.c',
     [('\t\tqcow2_fail(q, r, "a flush");', '\t\t;')],
     STEPS, 'after_a_failed_flush_nothing_is_written'),
    ('qcow2-priv.h rule 9, a full disk', FOLDER + 'io.c',
     [('return os == ENOSPC ||', 'return')],
     STEPS, 'a_full_disk_is_no_failure'),
    ('qcow2-priv.h rule 8, refcount blocks', FOLDER + 'refcount.c',
     [('\tint r = claim_new(q, at, 1);\n\n\tif (r)\n\t\treturn r;\n'
       '\tr = count_region(q, g, i, at);\n\tif (r)\n'
       '\t\tqcow2_unclaim(q, at, 1);\n\treturn r;',
       '\tint r = count_region(q, g, i, at);\n\n'
       '\treturn r ? r : claim_new(q, at, 1);')],
     SPACE, 'refcount_blocks_do_not_land_on_metadata'),
    ('qcow2-priv.h rule 9, memory and file', FOLDER + 'refcount.c',
     [("\t\tif (r)\n\t\t\tbreak; /* the file does not name it, nor may we */\n",
       '')],
     SPACE, 'a_full_disk_leaves_memory_and_file_agreed'),
    ('qcow2-priv.h rule 9, no new space', FOLDER + 'refcount.c',
     [('\t\tq->space.tail = g.first;', '\t\t;')],
     SPACE, 'a_full_disk_does_not_make_the_file_longer'),
    ('qcow2-priv.h rule 11, the image file', FOLDER + 'open.c',
     [('\tint r = lengthen(q->file, q->file_end);', '\tint r = 0;')],
     SPACE, 'a_last_cluster_that_is_partly_there_can_be_written'),
    ('qcow2-priv.h rule 11, a data file', FOLDER + 'open.c',
     [('\tif (!r && q->external)\n\t\tr = lengthen', '\tif (r)\n\t\tr = lengthen')],
     SPACE, 'a_data_file_that_is_shorter_than_the_disk_grows'),
    ('qcow2-priv.h rule 11, a reader', FOLDER + 'open.c',
     [('\t(void)block_look(q->file);\n', '')],
     SPACE, 'a_reader_finds_tables_that_moved'),
    ('qcow2-priv.h rule 10', FOLDER + 'map.c',
     [('\tif (host & (q->g.cluster_size - 1))\n\t\treturn false;\n', '')],
     STEPS, 'an_entry_without_sense_is_not_followed'),
    ('header.h rule 1', FOLDER + 'header.c',
     [('if (make_between(c, h))', 'if (!c->size)')],
     'qcow2-header', 'a_backing_file_is_the_old_or_the_new_one'),
    ('header.h rule 1, the name first', FOLDER + 'header.c',
     [('\tint r = put(c, c->between, c->name_at, c->name_end);\n\n'
       '\tif (!r)\n\t\tr = put(c, c->between, 0, sector);',
       '\tint r = put(c, c->between, 0, sector);\n\n\tif (!r)\n'
       '\t\tr = put(c, c->between, c->name_at, c->name_end);')],
     'qcow2-header', 'a_backing_file_is_the_old_or_the_new_one'),
    ('header.h rule 1, small clusters', FOLDER + 'header.c',
     [('if (!fits_one_sector(c, h)) {', 'if (c->size) {')],
     'qcow2-header', 'a_header_that_gets_an_extension_is_whole_at_any_moment'),
]

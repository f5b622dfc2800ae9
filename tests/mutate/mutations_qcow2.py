# SPDX-License-Identifier: BSD-3-Clause
"""The mutations of the qcow2 code that works on whole images: check and stored
bitmaps.  Like those of mutations.py; their tests are the programs qcow2/NAME.
"""

CHECK = 'src/block/qcow2/check.c'
COMPARE = 'src/block/qcow2/check-compare.c'
REBUILD = 'src/block/qcow2/check-rebuild.c'
BITMAPS = 'src/block/qcow2/bitmaps.c'
STORE = 'src/block/qcow2/bitmap-store.c'

CHECK_TEST = 'qcow2/check'
BITMAPS_TEST = 'qcow2/bitmaps'

MUTATIONS = [
    # --- check.h -----------------------------------------------------------------
    ('qcow2/check.h rule 1', CHECK,
     [('if (!c->o->fix || res->check_errors)', 'if (res->check_errors)'),
      (': qcow2_passes(c, qcow2_repair_refcounts, NULL);',
       ': qcow2_rebuild(c);')],
     CHECK_TEST, 'test_rule_1_a_check_alone_does_not_write'),
    ('qcow2/check.h rule 2', COMPARE,
     [('qcow2_found(c, &c->res->leaks,',
       'qcow2_found(c, &c->res->corruptions,')],
     CHECK_TEST, 'test_rule_2_a_leak_is_no_corruption'),
    ('qcow2/check.h rule 3', CHECK,
     [('if (!c->o->fix || res->check_errors)', 'if (!c->o->fix)')],
     CHECK_TEST, 'test_rule_3_no_repair_where_something_cannot_be_read'),
    ('qcow2/check.h rule 4', CHECK,
     [('return res->leaks && !res->corruptions;', 'return res->leaks;')],
     CHECK_TEST, 'test_rule_4_leaks_are_left_where_there_is_corruption'),
    ('qcow2/check.h rule 5, a new structure', CHECK,
     [('int r = c->rebuild ? qcow2_rebuild(c)',
       'int r = false ? qcow2_rebuild(c)')],
     CHECK_TEST, 'test_a_damaged_refcount_structure_is_rebuilt[overlap]'),
    ('qcow2/check.h rule 5, behind all clusters in use', REBUILD,
     [('\tb->tail = c->end;', '\tb->tail = 8;')],
     CHECK_TEST,
     'test_rule_5_a_death_in_a_rebuild_leaves_the_image_as_it_was'),
    ('qcow2/check.h rule 5, flags', CHECK,
     [('\tr = qcow2_check_flags(c, true);', '\tr = 0;')],
     CHECK_TEST, 'test_rule_5_refcounts_and_flags_become_right'),
    ('qcow2/check.h rule 6', CHECK,
     [('c->res->corruptions || c->res->check_errors)',
       'c->res->check_errors)')],
     CHECK_TEST, 'test_rule_6_marks_stay_while_something_is_wrong'),
    ('qcow2/check.h rule 6, the marks go', CHECK,
     [('c->h.incompat &= ~(QCOW2_DIRTY | QCOW2_CORRUPT);',
       'c->h.incompat &= ~QCOW2_DIRTY;')],
     CHECK_TEST, 'test_rule_6_the_marks_go_when_all_is_right'),

    # --- bitmaps.h ----------------------------------------------------------------
    ('qcow2/bitmaps.h rule 1', BITMAPS,
     [('\tif (s->entry.flags & QCOW2_BITMAP_IN_USE)\n\t\treturn 0;',
       '\tif (s)\n\t\treturn 0;')],
     BITMAPS_TEST,
     'test_rule_1_bitmaps_are_in_use_before_the_first_write'),
    ('qcow2/bitmaps.h rule 2', BITMAPS,
     [('if (b->flags & QCOW2_BITMAP_IN_USE || bytes',
       'if (bytes')],
     BITMAPS_TEST, 'test_rule_2_what_was_in_use_is_inconsistent'),
    ('qcow2/bitmaps.h rule 3, one write', STORE,
     [('if (!at || !place->count ||', 'if (true || !place->count ||')],
     BITMAPS_TEST,
     'test_rule_3_a_death_before_the_switch_leaves_the_old_directory[header]'),
    ('qcow2/bitmaps.h rule 3, the switch', STORE,
     [('\t\tr = publish(q, &now->place);', '\t\tr = 0;')],
     BITMAPS_TEST,
     'test_rule_3_a_death_after_the_switch_leaves_the_new_directory'),
    ('qcow2/bitmaps.h rule 4, the flag goes first', STORE,
     [('at / SECTOR != (at + EXT_BYTES - 1) / SECTOR', 'false')],
     BITMAPS_TEST, 'test_rule_4_without_one_write_the_flag_goes_first'),
    ('qcow2/bitmaps.h rule 4, the flag comes back', STORE,
     [('return r || !place->count ? r : set_flag(q, true);', 'return r;')],
     BITMAPS_TEST, 'test_rule_4_the_flag_comes_back'),
    ('qcow2/bitmaps.h rule 5', STORE,
     [('\tgive_up_old(q, old);\n\tr = qcow2_barrier(q);',
       '\tr = qcow2_barrier(q);')],
     BITMAPS_TEST, 'test_rule_5_the_old_clusters_are_free_in_the_end'),
]

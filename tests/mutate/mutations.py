# SPDX-License-Identifier: BSD-3-Clause
"""The mutations: for each numbered rule at least one way to delete it, and
the test that must fail then.

Each is (rule, file, [(old, new), ...], test program, test).  @old occurs
exactly once in the file.
"""

EPOCH = 'src/tracking/epoch.c'
GATE = 'src/tracking/gate.c'
VIEW = 'src/view/view.c'
CBW = 'src/view/cbw.c'
READER = 'src/view/reader.c'
NODE = 'plugins/stillpoint/node.c'
CUT = 'plugins/stillpoint/cut.c'
TABLE = 'plugins/stillpoint/table.c'
LOOP = 'src/base/loop.c'
WORK = 'src/base/work.c'
MTX = 'src/base/mtx.c'
FILE = 'src/block/file.c'
LOCK = 'src/block/lock.c'
CHANGE = 'plugins/stillpoint/change.c'
STATS = 'plugins/stillpoint/stats.c'
BLKDEBUG = 'src/block/blkdebug.c'
THROTTLE = 'src/block/throttle.c'
BUCKETS = 'src/block/buckets.c'
WIRE = 'src/link/wire.c'
ACCOUNT = 'src/stream/account.c'
TROUBLE = 'src/stream/trouble.c'
LANE_IO = 'src/stream/lane-io.c'

MUTATIONS = [
    # --- checkpoint.h ---------------------------------------------------------
    ('checkpoint.h rule 1', 'src/tracking/checkpoint.c',
     [('if (bits[g / 64] >> g % 64 & 1)', 'if (bits[0] || true)')],
     'checkpoint', 'rule_1_random_bits_come_back'),
    ('checkpoint.h rule 2', 'src/tracking/checkpoint.c',
     [('return r.chunk == p->sum || damaged(e);', 'return true;')],
     'checkpoint', 'rule_2_a_file_with_another_byte_is_refused'),

    # --- epoch.h -------------------------------------------------------------
    ('epoch.h rule 1', EPOCH,
     [('end = ((off + len - 1) >> ep->shift) + 1;',
       'end = ((off + len - 1) >> ep->shift);')],
     'epoch',
     'rule_1_every_granule_that_a_write_touches_is_dirty_when_set_returns'),
    ('epoch.h rule 2', EPOCH,
     [('want = allocate_page(ep, chunk) ? BITS : ALL;',
       '(void)allocate_page(ep, chunk);\n\t\twant = BITS;')],
     'epoch',
     'rule_2_a_chunk_whose_bits_cannot_be_allocated_is_all_changed'),
    ('epoch.h rule 2, on a full tmpfs', EPOCH,
     [('want = allocate_page(ep, chunk) ? BITS : ALL;',
       '(void)allocate_page(ep, chunk);\n\t\twant = BITS;')],
     'epoch', 'rule_2_a_full_tmpfs_costs_precision_and_raises_no_sigbus'),
    ('epoch.h rule 3', EPOCH,
     [('if (unlikely(s == EMPTY))', 'if (s != BITS)'),
      ('if (now == EMPTY) {', 'if (now != BITS) {'),
      ('uint8_t expected = EMPTY;',
       'uint8_t expected = chunk_state(ep, chunk);')],
     'epoch', 'rule_3_what_is_all_changed_never_becomes_bits_again'),
    ('epoch.h rule 3, both processes', EPOCH,
     [('if (unlikely(s == EMPTY))', 'if (s != ALL)'),
      ('now = chunk_state(ep, chunk);\n\tif (now == EMPTY) {',
       'now = EMPTY;\n\tif (now == EMPTY) {'),
      ('uint8_t expected = EMPTY;',
       'uint8_t expected = chunk_state(ep, chunk);')],
     'epoch', 'rule_3_the_other_process_may_have_moved_the_summary_first'),
    ('epoch.h rule 4', EPOCH,
     [('atomic_fetch_or(&ep->bits[word], mask);',
       'atomic_store(&ep->bits[word], mask);')],
     'epoch', 'rule_4_bits_are_only_ever_set'),
    ('epoch.h rule 4, many threads', EPOCH,
     [('PARK("epoch.set");\n\t\t\tatomic_fetch_or(&ep->bits[word], mask);',
       'uint64_t was = atomic_load(&ep->bits[word]);\n'
       '\t\t\tPARK("epoch.set");\n'
       '\t\t\tatomic_store(&ep->bits[word], was | mask);')],
     'epoch', 'rule_4_a_bit_does_not_undo_its_neighbours'),
    ('a signal costs no precision', EPOCH,
     [('while (r < 0 && errno == EINTR);', 'while (0);')],
     'epoch', 'an_allocation_that_a_signal_interrupts_is_tried_again'),
    ('a unit is dirty as a whole', EPOCH,
     [('*start = max_u64(from, round_down(s, d->unit));',
       '*start = max_u64(from, s);')],
     'epoch', 'epochs_and_their_unions_are_what_the_model_says'),

    # --- gate.h ---------------------------------------------------------------
    ('gate.h rule 1', GATE,
     [('\t\tatomic_fetch_add(counter(g, ticket), 1);',
       '\t\tmtx_lock(&g->lock);\n\t\tmtx_unlock(&g->lock);\n'
       '\t\tatomic_fetch_add(counter(g, ticket), 1);')],
     'gate', 'rule_1_an_open_gate_takes_no_lock'),
    ('gate.h rule 2, none gets in', GATE,
     [('if (likely(!atomic_load(&g->closed)))', 'if (true)')],
     'gate', 'rule_2_a_closed_gate_keeps_writes_out_until_it_is_opened'),
    ('gate.h rule 2, who steps back is not inside', GATE,
     [('\t\tstep_back(g, ticket);\n', '')],
     'gate', 'rule_2_a_write_that_stepped_back_does_not_count_as_inside'),
    ('gate.h rule 2, none is inside', GATE,
     [('if (atomic_load(&g->shard[i].inside[side]))\n\t\t\treturn false;',
       '(void)side;')],
     'gate', 'rule_2_a_close_waits_for_the_write_inside'),
    ('gate.h rule 2, all shards', GATE,
     [('i < GATE_SHARDS; i++)\n\t\tif (atomic_load',
       'i < 4; i++)\n\t\tif (atomic_load')],
     'gate', 'rule_2_every_shard_is_looked_at'),
    ('gate.h rule 2, both sides', GATE,
     [('side_is_empty(g, 0) && side_is_empty(g, 1)', 'side_is_empty(g, 0)')],
     'gate', 'rule_2_writes_of_either_side_are_waited_for'),
    ('gate.h rule 4, those who come are on the other side', GATE,
     [('\tatomic_fetch_xor(&g->side, 1);\n', '\t(void)g;\n')],
     'gate', 'rule_4_writes_of_before_the_turn_are_told_from_later_ones'),
    ('gate.h rule 4, those of before are waited for', GATE,
     [('side_is_empty(g, !atomic_load(&g->side))', 'true || g')],
     'gate', 'rule_4_writes_of_before_the_turn_are_told_from_later_ones'),
    ('cut.h rule 1', CUT,
     [('\tif (!let_old_writes_end(c, end, &stuck))\n'
       '\t\treturn stuck_set(e, stuck, ms);\n',
       '\t(void)let_old_writes_end;\n')],
     'cut', 'rule_1_a_write_that_hangs_holds_up_no_other'),
    ('cut.h rule 1, when it is tried again', CUT,
     [('\tif (!wait_turned(c, end, stuck))\n\t\treturn false;\n'
       '\tfor', '\tfor')],
     'cut', 'rule_1_neither_when_the_cut_is_tried_again'),
    ('gate.h rule 2, the closer is woken', GATE,
     [('if (unlikely(atomic_load(&g->closed))) {', 'if (false) {')],
     'gate', 'rule_2_the_last_write_to_leave_wakes_the_closer'),
    ('gate.h rule 3', CUT,
     [('\t\tgate_close(&p->node->gate);\n',
       '\t\tgate_close(&p->node->gate);\n'
       '\t\t(void)gate_wait_empty(&p->node->gate, 60000);\n')],
     'cut', 'all_gates_are_closed_before_any_write_is_waited_for'),
    ('the time to wait is not renewed', GATE,
     [('(unsigned)(end - now));\n\t\tnow = now_ms();',
       '(unsigned)(end - now)) ?\n\t\t\t(void)0 : (void)(now = now_ms());'),
      ('(void)mtx_wait_ms(&g->lock,', 'mtx_wait_ms(&g->lock,')],
     'gate', 'the_time_to_wait_is_not_renewed_by_writes_that_leave'),

    # --- view.h ---------------------------------------------------------------
    ('view.h rule 1, publish after the copy', CBW,
     [('\tr = copy_range(c, g * granule,',
       '\tpublish(c, g, end, VIEW_SAVED);\n'
       '\tr = copy_range(c, g * granule,'),
      ('static bool wait_until_locked(',
       'static void publish(struct cbw *c, uint64_t g, uint64_t end,\n'
       'enum view_state state);\nstatic bool wait_until_locked(')],
     'view', 'rule_1_the_image_stays_until_the_copy_is_published'),
    ('view.h rule 1, the last granule', CBW,
     [('return save_granules(c, at / granule, div_up(end, granule),',
       'return save_granules(c, at / granule, end / granule,')],
     'view', 'rule_1_the_short_granule_at_the_end_of_the_disk_is_saved'),
    ('view.h rule 1, whole granules', CBW,
     [('min_u64(round_up(off + len, granule), c->dirty.size)',
       'min_u64(round_down(off + len, granule), c->dirty.size)')],
     'view', 'rule_1_a_write_in_the_middle_saves_the_whole_of_its_granules'),
    ('view.h rule 1, nothing is saved', CBW,
     [('case VIEW_NEEDED: r = save_run(c, &g, end, deadline); break;',
       'case VIEW_NEEDED: g++; break;')],
     'view', 'rule_1_the_image_changes_under_saved_granules_only'),
    ('view.h rule 1, what is not part of the view', CBW,
     [('if (c->dirty.n == 0)', 'if (true)')],
     'view',
     'rule_1_what_is_not_part_of_the_view_is_overwritten_without_a_copy'),
    ('view.h rule 2, the others wait', CBW,
     [('case VIEW_SAVING: r = wait_saved(c, g, deadline); break;',
       'case VIEW_SAVING: g++; break;')],
     'view', 'rule_2_one_thread_copies_and_the_other_waits_for_it'),
    ('view.h rule 2, a compare', VIEW,
     [('if ((old >> shift & 3) != (uint64_t)from)\n\t\t\treturn false;\n',
       '')],
     'view', 'rule_2_a_claim_succeeds_once'),
    ('view.h rule 2, and a swap', VIEW,
     [('} while (!atomic_compare_exchange_weak(&v->states[g / PER_WORD], &old,\n'
       '\t\t\t\t\t       new));',
       '} while (atomic_store(&v->states[g / PER_WORD], new), 0);')],
     'view-states', 'rule_2_a_move_does_not_undo_its_neighbours'),
    ('view.h rule 3, the state after the image', READER,
     [('int os = block_pread(r->image, buf, len, off);',
       'bool early = false;\n'
       '\tsize_t en = r->view ? view_run(r->view, off, len, &early) : 0;\n'
       '\tint os = block_pread(r->image, buf, len, off);'),
      ('if (saved)\n\t\t\tos = store_read', 'if (en ? early : saved)\n'
       '\t\t\tos = store_read')],
     'view', 'rule_3_the_state_is_looked_at_after_the_image'),
    ('view.h rule 3, SAVED sends it to the store', READER,
     [('if (saved)\n\t\t\tos = store_read', 'if (false)\n\t\t\tos = store_read')],
     'view', 'rule_3_what_is_partly_saved_is_read_from_both'),
    ('view.h rule 3, SAVING is valid', VIEW,
     [('*saved = view_get(v, first) == VIEW_SAVED;',
       '*saved = view_get(v, first) == VIEW_SAVED ||\n'
       '\t\t view_get(v, first) == VIEW_SAVING;')],
     'view', 'rule_3_saving_is_read_from_the_image_and_nobody_waits'),
    ('view.h rule 3, for extents', READER,
     [('*zero = !saved;', '*zero = true;')],
     'view', 'rule_3_an_extent_is_believed_only_where_nothing_was_saved'),
    ('view.h rule 4', CUT,
     [('if (!gate_wait_empty(&p->node->gate, (unsigned)left + 1))\n'
       '\t\t\treturn false;', '(void)left;')],
     'cut', 'rule_4_epoch_and_views_change_only_when_no_write_is_in_flight'),
    ('view.h rule 5, only the consumer', READER,
     [('\t\tlen -= n;\n\t}\n\treturn view_broken(r->view);',
       '\t\tlen -= n;\n\t}\n'
       '\tview_reader_done(r, off - (size_t)(p - (char *)buf),'
       ' (size_t)(p - (char *)buf));\n'
       '\treturn view_broken(r->view);')],
     'view', 'rule_5_reading_makes_nothing_done_only_the_flush_does'),
    ('view.h rule 5, whole granules', READER,
     [('view_done(r->view, div_up(off, granule), end, punch, (void *)r);',
       'view_done(r->view, off / granule, end, punch, (void *)r);')],
     'view', 'rule_5_granules_that_are_partly_done_stay_as_they_are'),
    ('view.h rule 5, not while it is saved', VIEW,
     [('if (view_move(v, g, VIEW_NEEDED, VIEW_DONE, &os) || os)',
       'if (view_move(v, g, VIEW_NEEDED, VIEW_DONE, &os) ||\n'
       '\t    view_move(v, g, VIEW_SAVING, VIEW_DONE, &os) || os)')],
     'view', 'rule_5_what_is_being_saved_is_not_made_done'),
    ('view.h rule 6, it says so', CBW,
     [('view_break(c->view, os); /* rule 6: before the image changes */',
       '(void)os;'),
      ('publish(c, g, end, VIEW_NEEDED);', 'publish(c, g, end, VIEW_DONE);')],
     'view', 'rule_6_a_view_says_that_it_is_broken_before_the_image_changes'),
    ('view.h rule 6, the first wins', VIEW,
     [('(void)atomic_compare_exchange_strong(&v->header->broken, &expected,\n'
       '\t\t\t\t\t     os ? os : EIO);',
       '(void)expected;\n\tatomic_store(&v->header->broken, os ? os : EIO);')],
     'view', 'rule_6_the_first_reason_stays'),
    ('view.h rule 6, a reader looks', READER,
     [('\t\tlen -= n;\n\t}\n\treturn view_broken(r->view);',
       '\t\tlen -= n;\n\t}\n\treturn 0;')],
     'view', 'rule_6_a_reader_notices_a_break_during_its_read'),
    ('view.h rule 6, after the read', READER,
     [('int os = block_pread(r->image, buf, len, off);',
       'int was = r->view ? view_broken(r->view) : 0;\n'
       '\tint os = block_pread(r->image, buf, len, off);'),
      ('\t\tlen -= n;\n\t}\n\treturn view_broken(r->view);',
       '\t\tlen -= n;\n\t}\n\treturn was;')],
     'view', 'rule_6_a_reader_notices_a_break_during_its_read'),
    ('view.h rule 6, for extents', READER,
     [('*zero = !saved;\n\treturn view_broken(r->view);',
       '*zero = !saved;\n\treturn 0;')],
     'view', 'rule_6_an_extent_notices_a_break_during_its_look'),
    ('on-cbw-error', CBW,
     [('if (c->policy == CBW_BREAK_GUEST_WRITE)', 'if (false)')],
     'cbw',
     'break_guest_write_a_full_store_fails_the_write_and_not_the_view'),
    ('on-cbw-error, the other way', CBW,
     [('if (c->policy == CBW_BREAK_GUEST_WRITE)', 'if (true)')],
     'cbw', 'break_snapshot_a_full_store_breaks_the_view_and_not_the_write'),
    ('cbw-timeout', CBW,
     [('deadline = now_ms() + c->timeout_ms;', '(void)0;')],
     'cbw', 'break_snapshot_a_save_that_takes_too_long_breaks_the_view'),
    ('cbw-timeout, while another saves', CBW,
     [('\t\tif (!wait_until_locked(c, deadline))\n\t\t\tr = ETIMEDOUT;',
       '\t\t(void)wait_until_locked(c, 0);')],
     'cbw', 'a_write_does_not_wait_longer_for_the_save_of_another'),
    ('cbw-timeout, the copy ends', CBW,
     [('\t\tif (r)\n\t\t\tpublish(c, p->g, p->end, VIEW_NEEDED);\n'
       '\t\telse\n\t\t\tpublish_saved(c, p->g, p->end);\n', '')],
     'cbw', 'break_guest_write_a_save_that_takes_too_long_fails_the_write'),
    ('cbw-timeout, the end waits', CBW,
     [('\twhile (c->helpers)\n\t\tmtx_wait(&c->lock, &c->saved);\n', '')],
     'cbw', 'the_end_waits_for_copies_that_no_write_waits_for'),

    # --- node.h ---------------------------------------------------------------
    ('node.h rule 1, writes', NODE,
     [('\tticket = gate_enter(&n->gate);\n'
       '\tr = before_change(n, off, len);\n'
       '\tif (!r)\n\t\tr = block_pwrite',
       '\tticket = 0;\n\tr = before_change(n, off, len);\n'
       '\tif (!r)\n\t\tr = block_pwrite')],
     'node', 'rule_1_every_change_waits_at_a_closed_gate'),
    ('node.h rule 1, zeroes', NODE,
     [('\tticket = gate_enter(&n->gate);\n'
       '\tr = before_change(n, off, len);\n'
       '\tif (!r)\n\t\tr = block_zero',
       '\tticket = 0;\n\tr = before_change(n, off, len);\n'
       '\tif (!r)\n\t\tr = block_zero')],
     'node', 'rule_1_every_change_waits_at_a_closed_gate'),
    ('node.h rule 1, discards', NODE,
     [('\tticket = gate_enter(&n->gate);\n'
       '\tr = before_change(n, off, len);\n'
       '\tif (!r)\n\t\tr = block_discard',
       '\tticket = 0;\n\tr = before_change(n, off, len);\n'
       '\tif (!r)\n\t\tr = block_discard')],
     'node', 'rule_1_every_change_waits_at_a_closed_gate'),
    ('node.h rule 1, all of it inside', NODE,
     [('\tif (!r)\n\t\tr = block_pwrite(n->image, buf, len, off);\n'
       '\tPARK("node.written");\n\tgate_leave(&n->gate, ticket);\n',
       '\tgate_leave(&n->gate, ticket);\n'
       '\tif (!r)\n\t\tr = block_pwrite(n->image, buf, len, off);\n'
       '\tPARK("node.written");\n')],
     'node', 'rule_1_the_image_changes_inside_the_gate'),
    ('node.h rule 9, however long it takes', 'plugins/stillpoint/node.c',
     [('\t\t\tagain = NODE_LEAVE_EVERY_MS;', '\t\t\ta->leaving = false;')],
     'integration/rules',
     'test_node_rule_9_a_view_is_let_go_when_the_last_write_has_ended'),
    ('node.h rule 9, guests do not wait', 'plugins/stillpoint/node.h',
     [('#define NODE_LEAVE_MS       50', '#define NODE_LEAVE_MS       5000')],
     'integration/rules',
     'test_node_rule_9_a_view_is_let_go_when_the_last_write_has_ended'),
    ('node.h rule 7, closed under a view', 'plugins/stillpoint/node.c',
     [('\t\tn->views = a->next;\n\t\tattached_free(a);',
       '\t\tnode_detach(n, a);\n\t\tattached_free(a);')],
     'node', 'rule_7_an_image_that_is_closed_under_a_view_holds_on'),
    ('node.h rule 7', NODE,
     [('\t\tblock_hold(n->image);', '\t\t(void)a;')],
     'node', 'rule_7_the_image_holds_space_while_a_view_is_attached'),
    ('node.h rule 7, and not longer', NODE,
     [('\tblock_release(n->image);\n', '')],
     'node', 'rule_7_the_image_holds_space_while_a_view_is_attached'),
    ('node.h rule 2', NODE,
     [('epoch_set(n->epoch, off, len);', '(void)0;')],
     'node', 'rule_2_the_bits_are_set_before_the_image_changes'),
    ('node.h rule 2, before', NODE,
     [('epoch_set(n->epoch, off, len);', '(void)0;'),
      ('PARK("node.written");',
       'if (n->epoch && !r)\n\t\tepoch_set(n->epoch, off, len);\n'
       '\tPARK("node.written");')],
     'node', 'rule_2_a_write_that_fails_is_tracked_too'),
    ('node.h rule 3, every view', NODE,
     [('if (unlikely(r))\n\t\t\treturn r;', 'return r;')],
     'node', 'rule_3_every_view_has_saved_before_the_image_changes'),
    ('node.h rule 3, or no write', NODE,
     [('if (unlikely(r))\n\t\t\treturn r;', '(void)r;')],
     'node', 'rule_3_a_write_that_cannot_be_saved_and_must_be_is_not_made'),
    ('node.h rule 4, closed', CUT,
     [('\t\tgate_close(&p->node->gate);\n', '')],
     'cut', 'rule_4_a_write_that_comes_during_the_cut_belongs_behind_it'),
    ('node.h rule 4, empty', CUT,
     [('if (!gate_wait_empty(&p->node->gate, (unsigned)left + 1))\n'
       '\t\t\treturn false;', '(void)left;')],
     'cut', 'rule_4_epoch_and_views_change_only_when_no_write_is_in_flight'),
    ('node.h rule 4, until all is applied', CUT,
     [('\tPARK("cut.applied");\n', ''),
      ('\t\tgate_open(&p->node->gate);\n',
       '\t\tgate_open(&p->node->gate);\n\t\tPARK("cut.applied");\n')],
     'cut', 'rule_4_gates_are_still_closed_when_all_parts_are_applied'),
    ('node.h rule 6', NODE,
     [('\tadmit(n, true, len);\n\tticket = gate_enter(&n->gate);\n'
       '\tr = before_change(n, off, len);\n\tif (!r)\n\t\tr = block_pwrite',
       '\tticket = gate_enter(&n->gate);\n\tadmit(n, true, len);\n'
       '\tr = before_change(n, off, len);\n\tif (!r)\n\t\tr = block_pwrite')],
     'node', 'rule_6_a_request_that_is_throttled_waits_outside_the_gate'),
    ('node.h rule 6, zeroes', NODE,
     [('\tadmit(n, true, len);\n\tticket = gate_enter(&n->gate);\n'
       '\tr = before_change(n, off, len);\n\tif (!r)\n\t\tr = block_zero',
       '\tticket = gate_enter(&n->gate);\n\tadmit(n, true, len);\n'
       '\tr = before_change(n, off, len);\n\tif (!r)\n\t\tr = block_zero')],
     'node', 'rule_6_a_request_that_is_throttled_waits_outside_the_gate'),
    ('node.h rule 6, discards', NODE,
     [('\tadmit(n, true, len);\n\tticket = gate_enter(&n->gate);\n'
       '\tr = before_change(n, off, len);\n\tif (!r)\n\t\tr = block_discard',
       '\tticket = gate_enter(&n->gate);\n\tadmit(n, true, len);\n'
       '\tr = before_change(n, off, len);\n\tif (!r)\n\t\tr = block_discard')],
     'node', 'rule_6_a_request_that_is_throttled_waits_outside_the_gate'),

    ('node.h rule 8', NODE,
     [('return likely(range_fits(off, len, n->image->size));',
       'return off + len >= off || n;')],
     'integration/resize',
     'test_old_connection_cannot_reach_behind_the_new_end'),

    # --- change.h, stats.h --------------------------------------------------------
    ('change.h rule 1', CHANGE,
     [('\tok = wait_empty(t, n, deadline(ms), e);\n', '\tok = true;\n'),
      ('static bool\nwait_empty', '__attribute__((unused)) static bool\nwait_empty')],
     'change', 'rule_1_a_change_waits_for_the_requests_of_guests'),
    ('change.h rule 2', CHANGE,
     [('\tif (!check_all(t, l, images, msg, e))\n\t\treturn false;\n',
       '\tfor (size_t i = 0; i < l->n && table_node(t, l->v[i]->node); i++)\n'
       '\t\tlink_image_apply(l->v[i]->image, msg,\n'
       '\t\t\t\t table_node(t, l->v[i]->node)->image);\n'
       '\tif (!check_all(t, l, images, msg, e))\n\t\treturn false;\n')],
     'change', 'rule_2_all_nodes_change_or_none'),
    ('change.h rule 3', CHANGE,
     [('\tif (n->views) /* rule 3 */', '\tif (false)')],
     'change', 'rule_3_a_node_with_a_view_keeps_its_size'),
    ('change.h rule 4, views', CHANGE,
     [('\tif (n->views || n->flushing)\n', '\tif (false)\n')],
     'change', 'rule_4_a_node_gets_images_of_its_kind'),
    ('change.h rule 4, its size', CHANGE,
     [('\tif (b->size != n->image->size)\n', '\tif (false)\n')],
     'change', 'rule_4_a_node_gets_images_of_its_kind'),
    ('change.h rule 4, tables', CHANGE,
     [('\tif (*wants && (has_tables(n->image) || '
       'link_image_has_tables(i->image)))\n',
       '\tif (false && has_tables(n->image))\n')],
     'change', 'rule_4_a_node_gets_images_of_its_kind'),
    ('stats.h rule 1', STATS,
     [('\tadd(&s->shard[i].of[kind].ops, 1);\n',
       '\tadd(&s->shard[ticket].of[kind].ops, 2);\n')],
     'integration/blockstats', 'test_every_request_is_counted_once'),
    ('stats.h rule 2', STATS,
     [('\t\treturn atomic_exchange(&s->failure,',
       '\t\treturn !atomic_load(&s->failure) &&\n'
       '\t\t       atomic_exchange(&s->failure,')],
     'integration/blockstats',
     'test_failures_are_told_once_a_second_the_latest_last'),

    # --- blkdebug.h -------------------------------------------------------------
    ('blkdebug.h rule 1', BLKDEBUG,
     [('\t\td->rules[i].awake =\n', '\t\td->rules[i].awake |=\n')],
     'blkdebug', 'an_event_wakes_its_rules_and_puts_others_to_sleep'),
    ('blkdebug.h rule 2', BLKDEBUG,
     [('\thappen_locked(d, BLOCK_EVENT_NONE); /* rule 2 */\n', '')],
     'blkdebug', 'a_rule_for_none_is_awake_at_every_request'),
    ('blkdebug.h rule 3, once', BLKDEBUG,
     [('d->rules[i].gone = os && d->rules[i].r.once;', '')],
     'blkdebug', 'a_rule_for_a_sector_and_once_fails_one_request'),
    ('blkdebug.h rule 3, fits', BLKDEBUG,
     [('return r->r.sector < 0 || (len && at >= off && at < off + len);',
       'return at >= 0;')],
     'blkdebug', 'a_rule_for_a_sector_and_once_fails_one_request'),
    ('blkdebug.h rule 4', BLKDEBUG,
     [('\t\t\tnext = d->rules[i].r.new_state;\n\td->state = next;',
       '\t\t\td->state = next = d->rules[i].r.new_state;\n'
       '\td->state = next;')],
     'blkdebug', 'a_new_state_takes_effect_after_its_event'),

    # --- throttle.h -------------------------------------------------------------
    ('throttle.h rule 1', THROTTLE,
     [('\tbuckets_pour(&g->buckets, write, len);\n', '')],
     'throttle', 'requests_are_no_faster_than_the_limit'),
    ('throttle.h rule 1, of a group', THROTTLE,
     [('for (g = table.groups; g && strcmp(g->name, name) != 0;)\n'
       '\t\tg = g->next;\n\tif (!g && (g',
       'g = NULL;\n\tif (!g && (g')],
     'throttle', 'images_of_a_group_share_its_limit'),
    ('throttle.h rule 1, over a minute', BUCKETS,
     [('\tv->burst += units;\n', '')],
     'buckets', 'bursts_hold_over_a_second_and_over_a_minute'),
    ('throttle.h rule 1, after a pause', BUCKETS,
     [('return left > 0 ? left : 0;', 'return left;')],
     'buckets', 'idle_time_is_not_saved_up'),
    ('throttle.h rule 2', BUCKETS,
     [('\tb->limits = *l;\n', '')],
     'throttle', 'requests_are_no_faster_than_the_limit'),
    ('throttle.h rule 3', THROTTLE,
     [('\tif (t->queue[write] != w)\n\t\treturn -1;\n', '\t(void)w;\n'),
      ('return g->turn[write] == t ? buckets_wait(&g->buckets, now_ns(), write)',
       'return g ? buckets_wait(&g->buckets, now_ns(), write)')],
     'throttle', 'images_of_a_group_take_turns'),
    ('throttle.h rule 4', THROTTLE,
     [('return block_pwrite(admitted(b, true, len), buf, len, off);',
       'return block_pwrite(to_throttle(b)->file, buf, len, off);')],
     'throttle', 'requests_are_no_faster_than_the_limit'),
    ('a cut is all or nothing', CUT,
     [('\tif (ok)\n', '\tif (true)\n')],
     'cut', 'a_write_that_does_not_end_stops_the_cut_and_nothing_is_changed'),
    ('node.h rule 5, reads', NODE,
     [('\treturn block_pread(n->image, buf, len, off);',
       '\tunsigned ticket = gate_enter(&n->gate);\n'
       '\tint r = block_pread(n->image, buf, len, off);\n\n'
       '\tgate_leave(&n->gate, ticket);\n\treturn r;')],
     'node', 'rule_5_reads_and_flushes_pass_a_closed_gate'),
    ('node.h rule 5, flushes', NODE,
     [('{\n\treturn block_flush(n->image);\n}',
       '{\n\tgate_leave(&n->gate, gate_enter(&n->gate));\n'
       '\treturn block_flush(n->image);\n}')],
     'node', 'rule_5_reads_and_flushes_pass_a_closed_gate'),
    ('an export goes behind its closed gate', TABLE,
     [('empty = gate_wait_empty(&x->users, ms);', 'empty = true;')],
     'table', 'an_export_stays_while_a_request_does_not_end'),

    # --- loop.h, work.h, mtx.h ------------------------------------------------
    ('loop.h rule 1, later', LOOP,
     [('\tt->queued = true;\n\tlist_append(&l->ready, t);\n',
       '\tt->fn(t);\n\tif (0)\n\t\tlist_append(&l->ready, t);\n')],
     'loop', 'rule_1_a_deferred_task_runs_later_and_not_inside_its_caller'),
    ('loop.h rule 1, no others', LOOP,
     [('t->fn(t); /* may free @t */',
       't->fn(t);\n\t\tlist_move(&l->running, &l->ready);')],
     'loop', 'rule_1_a_task_that_defers_itself_does_not_starve_the_loop'),
    ('loop.h rule 2', LOOP,
     [('ev_async_send(l->ev, &l->wake);', '(void)0;')],
     'loop', 'rule_2_a_post_wakes_a_loop_that_sleeps'),
    ('loop.h rule 3', LOOP,
     [('if (t->queued &&\n', 'if (false && t->queued &&\n')],
     'loop', 'rule_3_a_cancelled_task_does_not_run_and_can_be_queued_again'),
    ('work does not wait behind work', WORK,
     [('if (++p->queued > p->idle && p->started < p->max)',
       'p->queued++;\n\tif (p->idle == 0 && p->started < p->max)')],
     'loop', 'work_does_not_wait_behind_a_slow_item_while_threads_are_left'),
    ('mtx.h, top to bottom', MTX,
     [('assert((held >> m->cls) == 0);', '(void)0;')],
     'base', 'locks_are_taken_from_top_to_bottom_only'),

    # --- block ------------------------------------------------------------------
    ('an unaligned write is alone', FILE,
     [('\tmodify_begin(f);\n\tr = try_zero(f, off, len, flags);\n'
       '\tmodify_end(f);\n', '\tr = try_zero(f, off, len, flags);\n')],
     'file', 'direct_an_unaligned_write_undoes_no_change_next_door'),
    ('an image keeps its size', FILE,
     [('ftruncate(f->fd, (off_t)block_size_now(&f->block)) < 0)',
       'false)')],
     'file', 'direct_an_image_does_not_grow_when_its_end_is_written'),
    ('a fast zero is fast', FILE,
     [('if (flags & BLOCK_ZERO_FAST)', 'if (false)')],
     'file', 'a_fast_zero_that_would_be_slow_is_refused_and_changes_nothing'),
    ('a writer excludes writers', LOCK,
     [('if (used & BIT(p) && held_by_other(fd, NOT_SHARED_BASE + p))',
       'if (false)'),
      ('if (not_shared & BIT(p) && held_by_other(fd, USED_BASE + p))',
       'if (false)')],
     'lock', 'a_second_writer_is_refused'),
    ('QEMU sees our locks', LOCK,
     [('#define USED_BASE       100', '#define USED_BASE       110')],
     'lock', 'qemu_is_refused_an_image_that_we_write'),

    # --- link.h -----------------------------------------------------------------
    ('another version is refused', WIRE,
     [('if (h->version != LINK_VERSION)', 'if (false)')],
     'wire', 'garbage_another_version_and_too_much_are_refused'),
    ('garbage is refused', WIRE,
     [('if (h->magic != LINK_MAGIC)', 'if (false)')],
     'wire', 'garbage_another_version_and_too_much_are_refused'),
    ('too much is refused', WIRE,
     [('if (h->length > LINK_MAX_TEXT || h->fds > LINK_MAX_FDS)',
       'if (false)')],
     'wire', 'garbage_another_version_and_too_much_are_refused'),
    ('descriptors that were lost are missed', WIRE,
     [('if (in->msg.nfds != in->header.fds) {', 'if (false) {')],
     'wire', 'a_message_that_lost_its_descriptors_is_refused'),

    # --- stream.h, targets that are images and streams that follow ------------
    ('stream.h rule 1, an image', 'src/stream/lane-block.c',
     [('lane_answered(l, op, block_flush(image(l)));',
       'lane_answered(l, op, 0);')],
     'stream-block', 'rule_1_nothing_is_done_when_the_flush_fails'),
    ('stream.h rule 1, before the flush', 'src/stream/lane-io.c',
     [('			ranges_add(&l->acked, done.off, done.len, done.flags);',
       '			ranges_add(&l->acked, done.off, done.len, done.flags),'
       ' view_reader_done(s->o.reader, done.off, done.len);')],
     'stream-block',
     'rule_1_a_range_is_done_only_after_the_image_was_flushed'),
    ('stream.h rule 5, an image', 'src/stream/stream.c',
     [('s->plan.align = max_u64(max_u64(MIN_ALIGN, o->target->info.min_block),'
       '\n\t\t\t\ttarget_cluster(o->target));', 's->plan.align = MIN_ALIGN;')],
     'stream-block', 'rule_5_requests_respect_the_image_s_blocks'),
    ('stream.h rule 6, durable', ACCOUNT,
     [('	s->last_round = s->draining;\n', '	s->last_round = s->draining;\n'
       '	if (s->draining) {\n		s->plan.complete = true;\n'
       '		stream_kick_locked(s, true);\n		return TAKE_NOTHING;\n'
       '	}\n')],
     'stream-follow',
     'rule_6_a_drain_begins_from_the_start_of_the_disk'),
    ('stream.h rule 6, twice', 'src/stream/plan.c',
     [('if (t->word[n / 64] & bit)', 'if (0)')],
     'stream-follow', 'rule_6_no_cluster_is_sent_twice'),
    ('stream.h rule 10', 'src/stream/lane-io.c',
     [('	done.flags |= RUN_COUNTED;\n', '	done.flags |= RUN_COUNTED;\n'
       '	if (p->error == 0 && s->o.discard)\n'
       '		(void)block_discard(s->o.discard, done.off, done.len);\n')],
     'stream-block', 'rule_10_the_source_is_discarded_only_after_a_flush'),

    # --- stream.h, errors -------------------------------------------------------------
    ('stream.h rule 8, what failed is sent again', LANE_IO,
     [('\t\tstream_give_back(s, &p->run);', '\t\tstream_durable(s, p->run.len);'
       '\n\t\tstream_acked(s, &p->run, 0, 0);')],
     'stream-trouble', 'rule_8_what_failed_is_sent_again'),
    ('stream.h rule 8, what a flush covered', LANE_IO,
     [('\t\t(void)stream_error(s, STREAM_TARGET, &e);\n'
       '\t\tstream_give_back_ranges(s, &l->flushing);',
       '\t\t(void)stream_error(s, STREAM_TARGET, &e);\n'
       '\t\tranges_clear(&l->flushing);\n\t\tstream_durable(s, bytes);')],
     'stream-trouble', 'rule_8_what_a_failed_flush_covered_is_sent_again'),
    ('stream.h rule 8, nothing counts twice', LANE_IO,
     [('done.flags |= RUN_COUNTED;', '(void)0;')],
     'stream-trouble', 'rule_8_what_a_failed_flush_covered_is_sent_again'),
    ('stream.h rule 8, asked once', TROUBLE,
     [('if (s->trouble == TROUBLE_NONE && !s->stop) {',
       'if (s->trouble != TROUBLE_ASKING && !s->stop) {')],
     'stream-trouble', 'rule_8_the_owner_is_asked_once'),
    ('stream.h rule 9, no work', ACCOUNT,
     [('if (s->stop || s->pausing || s->trouble)', 'if (s->stop)')],
     'stream-trouble', 'rule_9_a_stream_that_rests_hands_out_nothing'),
    ('stream.h rule 9, no end', ACCOUNT,
     [('if (!s->pausing && !s->trouble && s->plan.complete &&',
       'if (s->plan.complete &&')],
     'stream-trouble', 'rule_9_a_paused_stream_does_not_end'),
]

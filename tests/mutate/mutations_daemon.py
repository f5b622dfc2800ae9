# SPDX-License-Identifier: BSD-3-Clause
"""The mutations of what stillpointd does: src/daemon and src/stream.

Like those of mutations.py.  Rules that hold between processes are tested by
the whole system (the programs integration/NAME).
"""

ACTIONS = 'src/daemon/bitmap-actions.c'
CALL = 'src/daemon/call.c'
CHAIN = 'src/daemon/chain.c'
CUT = 'plugins/stillpoint/cut.c'
GRAPH = 'src/daemon/graph.c'
GUESTS = 'src/daemon/guest-server.c'
EPOCHS = 'src/daemon/epochs.c'
MERGE = 'src/daemon/merge.c'
NODES = 'src/daemon/nodes.c'
PATHS = 'src/daemon/paths.c'
QMP = 'src/daemon/qmp-server.c'
RECOVER_EPOCHS = 'src/daemon/recover-epochs.c'
RECOVER_LOAD = 'src/daemon/recover-load.c'
RECOVER_LOST = 'src/daemon/recover-lost.c'
RECOVER_PLANE = 'src/daemon/recover-plane.c'
REGISTRY = 'src/daemon/registry.c'
REGISTRY_READ = 'src/daemon/registry-read.c'
SESSION = 'src/daemon/session.c'
STORED = 'src/daemon/stored.c'
SPAWN = 'src/daemon/spawn.c'
SUPERVISOR = 'src/daemon/supervisor.c'
TRANSACTION = 'src/daemon/transaction.c'
TRANSACTION_CUT = 'src/daemon/transaction-cut.c'
TRANSACTION_PARTS = 'src/daemon/transaction-parts.c'
TRANSACTION_PUBLISH = 'src/daemon/transaction-publish.c'
UNDO = 'src/daemon/undo.c'
LANE = 'src/stream/lane.c'
LANE_IO = 'src/stream/lane-io.c'
STREAM = 'src/stream/stream.c'

CRASH = 'integration/crash_points'
DRIVE = 'integration/drive_backup'
QCOW2_BITMAPS = 'integration/qcow2_bitmaps'
QCOW2_VIEWS = 'integration/qcow2_views'
QCOW2_CHAIN = 'integration/qcow2_chain'
LOST = 'integration/lost'
RULES = 'integration/rules'
SAVED = 'integration/saved'
BITMAPS = 'integration/bitmaps'
TRANSACTIONS = 'integration/transactions'
SERVER = 'daemon/qmp_server'
GUEST_SERVER = 'integration/nbd_server'

MUTATIONS = [
    # --- gate.h, in the whole system ---------------------------------------------
    ('gate.h rule 2, none is inside, in the whole system', CUT,
     [('if (!gate_wait_empty(&p->node->gate, (unsigned)left + 1))\n'
       '\t\t\treturn false;', '(void)left;'),
      ('while (!gate_has_turned(&p->node->gate)) {', 'while (false) {')],
     RULES, 'test_gate_rule_2_a_cut_waits_for_writes_in_flight[node.saved]'),

    # --- graph.h ----------------------------------------------------------------
    ('graph.h rule 1, add', ACTIONS,
     [('\tif (b->enabled)\n\t\tepoch_set_add(&b->set, c->epoch);\n'
       '\treturn true;\n}\n\n/* --- remove', '\treturn true;\n}\n\n/* --- remove')],
     BITMAPS, 'test_write_across_a_border_dirties_both_granules'),
    ('graph.h rule 1, clear', ACTIONS,
     [('\tepoch_set_clear(&b->set);\n\tif (b->enabled)\n'
       '\t\tepoch_set_add(&b->set, c->epoch);\n',
       '\tepoch_set_clear(&b->set);\n')],
     BITMAPS, 'test_clear_empties_and_goes_on'),
    ('graph.h rule 1, enable', ACTIONS,
     [('\tif (on)\n\t\tepoch_set_add(&b->set, c->epoch);\n\telse\n',
       '\tif (!on)\n')],
     BITMAPS, 'test_disabled_bitmap_records_nothing_until_enabled'),
    ('graph.h rule 1, bitmaps that a cut does not name', TRANSACTION_PARTS,
     [('\t\ttransaction_save_bitmap(t, b);\n'
       '\t\tepoch_set_add(&b->set, c->epoch);\n',
       '\t\ttransaction_save_bitmap(t, b);\n')],
     RULES, 'test_graph_rule_1_bitmaps_that_a_cut_does_not_name_go_on'),
    ('graph.h rule 1, disable', ACTIONS,
     [('\telse\n\t\tepoch_set_remove(&b->set, c->epoch);\n', '')],
     RULES, 'test_graph_rule_1_disabled_bitmap_stops_at_the_cut'),
    ('graph.h rule 2, the last bitmap goes', TRANSACTION_CUT,
     [('arg.stop = c->node->epoch != NULL;', 'arg.stop = false;')],
     RULES, 'test_graph_rule_2_nothing_is_recorded_without_a_bitmap'),
    ('graph.h rule 2, the first bitmap comes', TRANSACTION_CUT,
     [('\tif (node_records(c->node)) {\n\t\tepoch.fd = n;',
       '\tif (c->node->epoch) {\n\t\tepoch.fd = n;')],
     RULES, 'test_graph_rule_2_nothing_is_recorded_without_a_bitmap'),
    ('graph.h rule 3', CUT,
     [('\t\tn->epoch = p->epoch;\n\t\tn->epoch_id = p->epoch_id;\n'
       '\t\tp->epoch = old;', '\t\t(void)old;')],
     RULES, 'test_graph_rule_3_closed_epochs_do_not_change'),
    ('graph.h rule 4, the monitor', GRAPH,
     [('--child[i]->parents == 0 &&\n\t\t    !child[i]->monitor_owned)',
       '--child[i]->parents == 0)')],
     RULES, 'test_graph_rule_4_children_live_while_somebody_has_them'),
    ('graph.h rule 4, a parent', NODES,
     [('if (n->parents || n->views)', 'if (n->views)')],
     'integration/nodes', 'test_node_below_another_cannot_be_deleted'),
    ('graph.h rule 4, nobody', GRAPH,
     [('\t\tif (child[i] && --child[i]->parents == 0 &&',
       '\t\tif (false && child[i] && --child[i]->parents == 0 &&')],
     RULES, 'test_graph_rule_4_children_live_while_somebody_has_them'),
    ('graph.h rule 5', NODES,
     [('\tstruct node *n = graph_node(a->d->graph, name);\n',
       '\tstruct node *n = graph_node(a->d->graph, name);\n\n'
       '\tfor (size_t i = 0; !n && i < a->n; i++)\n'
       '\t\tif (strcmp(a->v[i]->name, name) == 0)\n'
       '\t\t\tn = a->v[i];\n'),
      ('\tif (!plan_children(a, n, depth, e) ||\n',
       '\ta->v = xrealloc(a->v, a->n + 1, sizeof a->v[0]);\n'
       '\ta->v[a->n++] = n;\n'
       '\tif (!plan_children(a, n, depth, e) ||\n'),
      ('\t    (o->node_name && !name_check(a, name, e)))\n'
       '\t\treturn NULL;\n'
       '\ta->v = xrealloc(a->v, a->n + 1, sizeof a->v[0]);\n'
       '\ta->v[a->n++] = n;\n', '\t    false)\n\t\treturn NULL;\n')],
     RULES, 'test_graph_rule_5_a_node_cannot_stand_on_itself'),
    ('graph.h rule 6', NODES,
     [('\treturn node_check_permission(g, n, &wanted, e);\n',
       '\t(void)wanted;\n\treturn true;\n')],
     'integration/nodes', 'test_writable_node_has_one_parent'),

    # --- guest-server.h -----------------------------------------------------------
    ('guest-server.h rule 1, once', GUESTS,
     [('\tif (plane_is_serving(s->d->plane))\n', '\tif (false)\n')],
     GUEST_SERVER,
     'test_guest_server_rule_1_started_server_is_not_started_again'),
    ('guest-server.h rule 1, not without', GUESTS,
     [('\tif (plane_is_serving(d->plane))\n\t\treturn true;\n',
       '\tif (true)\n\t\treturn true;\n')],
     GUEST_SERVER, 'test_guest_server_rule_1_a_qemu_script_starts_the_server'
     '_first'),
    ('guest-server.h rule 2', GUESTS,
     [('\tif (d->graph->exports) {\n', '\tif (false) {\n')],
     GUEST_SERVER, 'test_stop_ends_all_exports_and_closes_the_address'),
    ('guest-server.h rule 3, the address', GUESTS,
     [('\tif (d->cfg.n_nbd == 0 && doc && doc->server)\n', '\tif (false)\n')],
     GUEST_SERVER,
     'test_guest_server_rule_3_address_and_exports_survive_a_kill[both]'),
    ('guest-server.h rule 3, the port', GUESTS,
     [('\tkeep_port(s->o, &s->l);\n', '\t(void)keep_port;\n')],
     GUEST_SERVER,
     'test_guest_server_rule_3_the_port_that_was_chosen_is_kept'),
    ('guest-server.h rule 3, before the answer', GUESTS,
     [('\tregistry_save(d->registry, on_start_saved, s);\n',
       '\ton_start_saved(s, NULL);\n')],
     RULES, 'test_guest_server_rule_3_it_is_saved_before_the_answer'),
    ('guest-server.h rule 3, a predecessor that died', SUPERVISOR,
     [('\tif (s->n_nbd == 0 || s->listeners.n > 0)\n\t\treturn true;\n',
       '\tif (s)\n\t\treturn true;\n')],
     GUEST_SERVER,
     'test_guest_server_rule_3_daemon_dies_while_it_starts_the_server'
     '[guests.saved]'),

    # --- lost.h -----------------------------------------------------------------
    ('lost.h rule 1', RECOVER_LOST, [('\t\tnode_keep_epochs(n);\n', '')],
     LOST, 'test_lost_rule_1_it_is_kept_when_the_registry_cannot_be_written'),
    ('lost.h rule 2', RECOVER_LOST,
     [('\tchildren_references(l->v[i]->options, want, t);\n', '')],
     LOST, 'test_lost_rule_2_what_it_stands_on_comes_with_it'),
    ('lost.h rule 2, exports', RECOVER_LOST,
     [('if (strcmp(x->v[i]->id, text) == 0)', 'if (false)')],
     LOST, 'test_lost_rule_2_the_name_of_an_export_is_a_name'),
    ('lost.h rule 3, it is not tried', 'src/daemon/core.c',
     [('strcmp(name, "blockdev-add") != 0 &&', 'name &&')],
     LOST, 'test_lost_rule_3_adding_it_tries_nothing'),
    ('lost.h rule 3, options', 'src/daemon/recover-options.c',
     [('return graph_node(r->d->graph, name) || lost_has_node(r->d->lost, name);',
       'return graph_node(r->d->graph, name);')],
     LOST, 'test_lost_rule_3_options_leave_it_lost'),
    ('lost.h rule 3, for good', NODES,
     [('\tlost_forget_found(a->add.d->lost, a->add.d->graph);\n', '')],
     LOST, 'test_lost_rule_3_a_new_node_takes_the_place_for_good'),

    # --- merge.h ----------------------------------------------------------------
    ('merge.h rule 1', MERGE,
     [('return users && f->refs == users + others && f->map;',
       '(void)others;\n\treturn users && f->map;')],
     CRASH, 'test_merge_rule_1_epochs_that_a_job_took_are_left_alone'),
    ('merge.h rule 2', MERGE,
     [('\t    count(parts, m->n, m->whole)) /* rule 2 */',
       '\t    count(&m->whole->map, 1, m->whole))')],
     RULES, 'test_merge_rule_2_union_that_says_more_is_dropped'),
    ('merge.h rule 3', EPOCHS,
     [('\tif (f->map && !f->keep)\n\t\tbury(f);\n\telse if (!f->keep)\n',
       '\tif (!f->keep)\n')],
     CRASH,
     'test_merge_rule_3_crash_in_the_middle_leaves_every_bit'
     '[nbdkit lives-merge.replaced]'),
    ('merge.h rule 4', MERGE,
     [('!err_is_set(&m->e) && unchanged(m);', '!err_is_set(&m->e);'),
      ('static bool\nunchanged(', '__attribute__((unused)) static bool\n'
       'unchanged(')],
     RULES, 'test_merge_rule_4_sets_that_changed_meanwhile_are_left_alone'),

    # --- recover.h --------------------------------------------------------------
    ('recover.h rule 1, what the data plane has open', RECOVER_EPOCHS,
     [('\t\t\trecord_in(n, f); /* rule 1 */\n', '')],
     CRASH, 'test_recover_rule_1_epoch_that_nbdkit_has_open_counts'),
    ('recover.h rule 1, what was staged', REGISTRY_READ,
     [('\t\tcount_staged(d, *out, staged);', '\t\t(void)count_staged;')],
     CRASH,
     'test_recover_rule_1_epoch_of_an_unfinished_transaction_counts'
     '[transaction.cut]'),
    ('recover.h rule 2', RECOVER_EPOCHS,
     [('\tepoch_set(f->map, 0, n->size);\n', '')],
     RULES, 'test_recover_rule_2_what_was_not_recorded_counts_as_changed'),
    ('recover.h rule 2, it is recorded from now on', RECOVER_EPOCHS,
     [('\tn->restart = true;\n', '')],
     RULES, 'test_recover_rule_2_what_was_not_recorded_counts_as_changed'),
    ('recover.h rule 2, its guests find it again', RECOVER_PLANE,
     [('x->in_plane = recover_has_export(r, x->name);',
       'x->in_plane = recover_find_info(r, x->node->name) != NULL;')],
     RULES, 'test_recover_rule_2_what_was_not_recorded_counts_as_changed'),
    ('recover.h rule 3, another boot', RECOVER_EPOCHS,
     [('\tif (!r->rebooted)\n', '\tif (true)\n')],
     CRASH, 'test_recover_rule_3_another_boot_makes_bitmaps_inconsistent'),
    ('recover.h rule 3, epochs that are gone', RECOVER_EPOCHS,
     [('\t\t\tbitmap_set_inconsistent(b, lost);\n\t\t\treturn;\n',
       '\t\t\terr_clear(&e);\n\t\t\tcontinue;\n')],
     RULES, 'test_recover_rule_3_bitmap_whose_epoch_is_gone_says_so'),
    ('recover.h rule 3, another image', NODES,
     [('if (a->then)\n', 'if (false)\n')],
     'integration/death',
     'test_image_changed_behind_our_back_makes_the_bitmap_inconsistent'),
    ('recover.h rule 4', RECOVER_EPOCHS,
     [('registry_save(r->d->registry, on_saved, r); /* rule 4 */',
       'on_saved(r, NULL);')],
     RULES, 'test_recover_rule_4_new_epochs_are_saved_before_guests_write'),
    ('recover.h rule 5, the job', RECOVER_LOAD,
     [('\t\tjob_add_lost(r->d, j->id, j->type);\n', '')],
     'integration/death',
     'test_running_job_is_failed_after_a_restart_and_its_bitmap_whole'),
    ('recover.h rule 5, the bitmap', REGISTRY,
     [('r->epochs.n = b->set.n;', 'r->epochs.n = b->taken ? 0 : b->set.n;'),
      ('for (size_t i = 0; i < b->set.n; i++)',
       'for (size_t i = 0; i < r->epochs.n; i++)')],
     'integration/death',
     'test_running_job_is_failed_after_a_restart_and_its_bitmap_whole'),

    # --- saved.h ----------------------------------------------------------------
    ('saved.h rule 1', 'src/daemon/core.c',
     [('if (d->cfg.keep_nbdkit)', 'if (false)')],
     SAVED, 'test_saved_rule_1_nothing_is_saved_while_nbdkit_goes_on'),
    ('saved.h rule 2', 'src/daemon/saved.c',
     [('if (fsync(node_fd(s->node)) < 0) { /* rule 2 */', 'if (false) {')],
     'saved', 'rule_2_the_image_is_synced_before_anything_is_saved'),
    ('saved.h rule 3', 'src/daemon/saved.c',
     [('\t\tif (!write_file(dir, s->set.v[i], &s->e))\n\t\t\treturn;\n',
       '\t\t(void)!write_file(dir, s->set.v[i], NULL);\n'),
      ('dir = open_folder(s->d, &s->e);', 'dir = open_folder(s->d, NULL);')],
     SAVED, 'test_saved_rule_3_what_cannot_be_written_is_not_saved'),
    ('saved.h rule 4', RECOVER_EPOCHS,
     [('registry_save(r->d->registry, on_saved, r); /* rule 4 */',
       'on_saved(r, NULL);')],
     SAVED, 'test_saved_rule_4_it_counts_once[saved]'),
    ('saved.h rule 5', 'src/daemon/identity.c',
     [('(then->has_ctime_ns && now.ctime_ns != then->ctime_ns)', 'false')],
     SAVED, 'test_saved_rule_5_an_image_that_somebody_changed'
     '[written, times put back]'),
    ('saved.h rule 6', 'src/daemon/saved.c',
     [('if (!epoch_file_make(f, e) || !checkpoint_load(fd, f->map, e))\n'
       '\t\treturn false;',
       'if (!epoch_file_make(f, e))\n\t\treturn false;\n'
       '\t(void)!checkpoint_load(fd, f->map, NULL);')],
     SAVED, 'test_saved_rule_6_a_file_that_is_missing_or_damaged'
     '[cut]'),

    # --- registry.h -------------------------------------------------------------
    ('registry.h rule 1', REGISTRY,
     [('if (r->kind != STAGE && !err_is_set(&e))', 'if (true)')],
     CRASH, 'test_registry_rule_1_files_that_it_names_are_there'),
    ('registry.h rule 2', REGISTRY,
     [('return r->held ? op->kind != SAVE : true;',
       '(void)r;\n\t(void)op;\n\treturn true;')],
     CRASH,
     'test_registry_rule_2_nobody_saves_a_transaction_that_may_still_fail'),

    # --- transaction.h ----------------------------------------------------------
    ('transaction.h rule 1, a failure undoes', UNDO,
     [('if (entry->abort)\n\t\t\tentry->abort(entry);',
       'if (entry->commit)\n\t\t\tentry->commit(entry);')],
     TRANSACTIONS, 'test_undone_bitmaps_go_on_recording_as_before'),
    ('transaction.h rule 1, in reverse', UNDO,
     [('void\nundo_abort(struct undo *u)\n{\n\tstruct undo_entry *entry;\n',
       'void\nundo_abort(struct undo *u)\n{\n\tstruct undo_entry *entry;\n'
       '\tstruct undo_entry *old = NULL;\n\n'
       '\twhile ((entry = pop(u))) {\n\t\tentry->next = old;\n'
       '\t\told = entry;\n\t}\n\tu->newest = old;\n')],
     RULES, 'test_transaction_rule_1_failures_are_undone_in_reverse'),
    ('transaction.h rule 1, the first failure ends it', TRANSACTION,
     [('\t\tif (!prepare(t, t->actions.v[i])) {\n'
       '\t\t\ttransaction_fail(t);\n'
       '\t\t\treturn;\n\t\t}\n',
       '\t\t(void)!prepare(t, t->actions.v[i]);\n'
       '\terr_clear(&t->e);\n')],
     TRANSACTIONS, 'test_first_failing_action_gives_the_error'),
    ('transaction.h rule 6', TRANSACTION_PUBLISH,
     [('int r = block_refresh(v->v->image);', 'int r = 0;')],
     QCOW2_VIEWS,
     'test_rule_6_a_reader_sees_what_came_between_its_opening_and_the_cut'),
    ('transaction.h rule 6, a flush', TRANSACTION_PUBLISH,
     [('!v->v->image->coherent && v->v->node->in_plane', 'false')],
     'integration/incoherent',
     'test_a_backup_has_what_was_acknowledged_before_it'),
    ('transaction.h rule 6, a file that has grown', 'src/block/qcow2/io.c',
     [('size = block_look(child);', '(void)block_look;')],
     QCOW2_VIEWS,
     'test_space_is_held_while_a_reader_may_look_there'
     '[transaction.published]'),
    ('transaction.h rule 2, files', TRANSACTION,
     [('\tif (err_is_set(&t->e)) {\n\t\ttransaction_fail(t);\n'
       '\t\treturn;\n\t}\n'
       '\tPARK("transaction.made");',
       '\terr_clear(&t->e);\n\tPARK("transaction.made");')],
     RULES, 'test_transaction_rule_2_without_files_nothing_happens'),
    ('transaction.h rule 2, the registry', TRANSACTION,
     [('\tif (e) {\n\t\t(void)err_move(&t->e, e);\n'
       '\t\ttransaction_fail(t);\n'
       '\t\treturn;\n\t}\n\tPARK("transaction.staged");',
       '\t(void)e;\n\tPARK("transaction.staged");')],
     CRASH, 'test_registry_rule_1_files_that_it_names_are_there'),
    ('transaction.h rule 3, who is not there', TRANSACTION_CUT,
     [('if (!c->node->in_plane || !plane_is_up(t->d->plane))', 'if (false)')],
     CRASH,
     'test_transaction_rule_3_node_that_is_on_its_way_back_is_not_cut'),
    ('transaction.h rule 3, all or nothing', TRANSACTION_CUT,
     [('\tif (err_is_set(&t->e))\n\t\task_abort(t);\n\telse\n\t\task_commit(t);',
       '\terr_clear(&t->e);\n\t(void)ask_abort;\n\task_commit(t);')],
     RULES, 'test_transaction_rule_3_a_part_that_fails_stops_the_cut'),
    ('transaction.h rule 4, publish', TRANSACTION_PUBLISH,
     [('registry_publish(t->d->registry, published, t);',
       'published(t, NULL);')],
     'integration/death',
     'test_nodes_devices_and_bitmaps_are_back_after_a_restart'),
    ('transaction.h rule 4, in reverse', UNDO,
     [('void\nundo_commit(struct undo *u)\n{\n\tstruct undo_entry *entry;\n',
       'void\nundo_commit(struct undo *u)\n{\n\tstruct undo_entry *entry;\n'
       '\tstruct undo_entry *old = NULL;\n\n'
       '\twhile ((entry = pop(u))) {\n\t\tentry->next = old;\n'
       '\t\told = entry;\n\t}\n\tu->newest = old;\n')],
     'integration/events', 'test_jobs_of_a_transaction_start_in_reverse_order'),
    ('transaction.h rule 5', TRANSACTION_CUT,
     [('\tassume_cut(t);\n', '\t(void)assume_cut;\n')],
     CRASH, 'test_transaction_rule_5_unanswered_cut_counts_for_every_bitmap'),

    # --- drive-target.h ---------------------------------------------------------
    ('drive-target.h rule 1', 'src/daemon/drive-backup.c',
     [('\tok = backup_plan_check(',
       '\t{\n\t\tstruct err x = ERR_INIT;\n\n'
       '\t\t(void)!drive_target_open(p.drive, &x);\n\t}\n'
       '\tok = backup_plan_check(')],
     DRIVE, 'test_refused_command_cuts_no_file'),
    ('drive-target.h rule 2', 'src/daemon/drive-target.c',
     [('\tif (!lock(t, fd, e))\n',
       '\tif (!t->existing)\n\t\t(void)!cut(t, fd, false, e);\n'
       '\tif (!lock(t, fd, e))\n')],
     DRIVE, 'test_image_in_use_by_another_process_is_not_cut'),
    ('drive-target.h rule 3, taken back', 'src/daemon/drive-target.c',
     [('made_file_remove(&t->made);', 'made_file_keep(&t->made);')],
     DRIVE, 'test_rolled_back_transaction_removes_what_it_made'),
    ('drive-target.h rule 3, kept', 'src/daemon/drive-target.c',
     [('\tmade_file_keep(&t->made);\n', '')],
     DRIVE, 'test_file_can_be_used_when_the_job_is_over'),

    # --- paths.h ----------------------------------------------------------------
    ('paths.h rule 1', PATHS,
     [('RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS', 'RESOLVE_NO_MAGICLINKS')],
     'paths', 'rule_1_links_and_dots_that_lead_out_are_refused'),
    ('paths.h rule 1, whole names', PATHS,
     [('!= len || memcmp(a, b, len) != 0)', '< len || memcmp(a, b, len) != 0)')],
     'paths', 'rule_1_a_name_that_only_begins_alike_is_outside'),
    ('paths.h rule 2', PATHS,
     [('RESOLVE_BENEATH |', 'RESOLVE_IN_ROOT |')],
     'paths', 'rule_2_absolute_links_count_as_leaving'),
    ('paths.h rule 3', PATHS,
     [('if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))', 'if (false)')],
     'paths', 'rule_3_directories_and_devices_are_refused'),
    ('paths.h rule 4', PATHS,
     [('\t*os = EXDEV;\n',
       '\t*os = EXDEV;\n\tif (p->n == 0)\n'
       '\t\treturn open(name, O_PATH | O_CLOEXEC);\n')],
     'paths', 'rule_4_without_a_directory_nothing_opens'),
    ('paths.h rule 5, made inside', PATHS,
     [('dir = find(p, name[0] ? name : "/", &os);',
       'dir = open(name, O_PATH | O_CLOEXEC); os = errno;'),
      ('if (first.os != ENOENT || !filename[0])', 'if (0)')],
     'paths', 'rule_5_nothing_is_made_outside'),
    ('paths.h rule 5, taken back', PATHS,
     [('st.st_dev == made->device && st.st_ino == made->inode)', 'true)')],
     'paths', 'rule_5_what_was_made_is_taken_back_and_nothing_else'),

    # --- qmp-server.h -----------------------------------------------------------
    ('qmp-server.h rule 1', SESSION,
     [('return !s->dead && !s->call && !s->server->closing &&',
       'return !s->dead && !s->server->closing &&')],
     SERVER, 'test_rule_1_fast_requests_wait_behind_a_slow_one'),
    ('qmp-server.h rule 2, changes wait', SESSION,
     [('if (c->info && !c->info->is_query)', 'if (false)')],
     SERVER, 'test_rule_2_changes_of_other_sessions_wait_their_turn'),
    ('qmp-server.h rule 2, queries do not', SESSION,
     [('if (c->info && !c->info->is_query)', 'if (c->info)')],
     SERVER, 'test_rule_2_queries_run_at_once'),
    ('qmp-server.h rule 3', CALL,
     [('\tif (c->session)\n\t\tsession_send(c->session, c->out.text',
       '\tif (true)\n\t\tsession_send(c->session, c->out.text')],
     SERVER, 'test_rule_3_a_session_may_end_while_its_command_runs'),
    ('qmp-server.h rule 4', SESSION,
     [('unsigned share = QMP_TURN_REQUESTS;', 'unsigned share = 1000000;')],
     SERVER, 'test_rule_4_one_wake_up_serves_sixteen_requests'),
    ('qmp-server.h rule 5, sessions', QMP,
     [('if (s->n_sessions >= QMP_MAX_SESSIONS) {', 'if (false) {')],
     SERVER, 'test_rule_5_there_are_sixty_four_sessions_and_not_one_more'),
    ('qmp-server.h rule 5, a slow reader', SESSION,
     [('!s->server->closing &&\n\t       s->out.size <= QMP_OUT_SOFT;',
       '!s->server->closing;')],
     SERVER, 'test_rule_5_requests_of_a_slow_reader_are_not_read'),
    ('qmp-server.h rule 5, all output', QMP,
     [('if (s->out_total > QMP_OUT_TOTAL) {', 'if (false) {')],
     SERVER, 'test_rule_5_all_output_together_is_bounded'),
    ('qmp-server.h rule 5, all input', QMP,
     [('} else if (s->in_total > QMP_IN_TOTAL) {', '} else if (false) {')],
     SERVER, 'test_rule_5_all_unfinished_input_together_is_bounded'),
    ('qmp-server.h rule 5, what waits', QMP,
     [('if (s->held_total && s->held_total + c->bytes > QMP_HELD_TOTAL)',
       'if (false)')],
     SERVER, 'test_rule_5_large_requests_that_wait_are_limited'),
    ('qmp-server.h rule 6', QMP,
     [('\t\tif (!x->negotiated)\n\t\t\tcontinue;\n', '')],
     SERVER, 'test_rule_6_events_go_to_all_who_negotiated_and_nobody_else'),

    # --- supervisor.h -----------------------------------------------------------
    ('supervisor.h rule 1', SUPERVISOR,
     [('&s->nbd[i], 0, e)) {', '&s->nbd[i], LISTEN_BIND_ONLY, e)) {')],
     'supervisor', 'rule_1_a_guest_waits_while_none_runs'),
    ('supervisor.h rule 2, a session', SPAWN,
     [('\t(void)setsid();\n', '')],
     'supervisor', 'rule_2_it_has_a_session_of_its_own'),
    ('supervisor.h rule 2, it survives', SUPERVISOR,
     [('\tif (runs)\n\t\tforget_process(s);\n',
       '\tsupervisor_kill(s);\n\tif (runs)\n\t\tforget_process(s);\n'
       '\tlisteners_close(&s->listeners, true);\n')],
     'supervisor', 'rule_2_it_survives_its_supervisor'),
    ('supervisor.h rule 3', SUPERVISOR,
     [('\tev_io_start(s->loop->ev, &s->gone);\n',
       '\tif (child)\n\t\tev_io_start(s->loop->ev, &s->gone);\n')],
     'supervisor', 'rule_3_the_death_of_an_adopted_one_is_noticed'),
    ('supervisor.h rule 4, again', SUPERVISOR,
     [('\tschedule_restart(s);\n\treturn true;', '\treturn true;'),
      ('static void\nschedule_restart(',
       '__attribute__((unused)) static void\nschedule_restart(')],
     'supervisor', 'rule_4_it_is_started_again_on_the_same_sockets'),
    ('supervisor.h rule 4, five times', SUPERVISOR,
     [('s->deaths >= SUPERVISOR_MAX_QUICK', 's->deaths >= 2')],
     'supervisor', 'rule_4_one_that_never_works_is_given_up'),
    ('supervisor.h rule 4, one that worked', SUPERVISOR,
     [('else if (!s->confirmed && s->deaths', 'else if (s->deaths')],
     'supervisor', 'rule_4_one_that_once_worked_is_never_given_up'),
    ('supervisor.h rule 5, another one', SUPERVISOR,
     [('\ts->replacing = s->run.pid != 0;\n\tsupervisor_kill(s);\n',
       '\ts->replacing = s->run.pid != 0;\n')],
     'supervisor', 'rule_5_other_addresses_take_another_nbdkit'),
    ('supervisor.h rule 5, it idles', SUPERVISOR,
     [('return s->listeners.n ? &s->listeners : &s->idling;',
       'return &s->listeners;')],
     'supervisor', 'rule_5_other_addresses_take_another_nbdkit'),

    # --- stored.h --------------------------------------------------------------
    ('stored.h rule 1', STORED,
     [('(!n->keeps_bitmaps || qcow2_bitmaps_take(b, l, e))', 'true')],
     QCOW2_BITMAPS, 'test_rule_1_the_image_says_that_they_are_in_use'),
    ('stored.h rule 2', RECOVER_LOAD,
     [('from->has_took_bitmaps && from->took_bitmaps;', 'false;')],
     QCOW2_BITMAPS, 'test_rule_2_the_registry_goes_first'),
    ('stored.h rule 3, deleted', NODES,
     [('del->store = store_plan(del->node);', 'del->store = NULL;')],
     QCOW2_BITMAPS, 'test_rule_3_deleting_the_node_stores_them'),
    ('stored.h rule 3, the end', 'src/daemon/core.c',
     [('struct store *store = store_plan(n);',
       'struct store *store = NULL;')],
     QCOW2_BITMAPS, 'test_rule_3_the_end_of_both_programs_stores_them'),
    ('stored.h rule 4', STORED,
     [('(!n->keeps_bitmaps || qcow2_bitmaps_take(b, l, e))',
       'qcow2_bitmaps_take(b, l, e)')],
     QCOW2_BITMAPS, 'test_rule_4_read_only_images_keep_them'),

    ('stored.h rule 1, after a death', NODES,
     [('\tif (!elsewhere)\n'
       '\t\treturn stored_take_again(top, e);\n',
       '\t(void)elsewhere;\n')],
     QCOW2_BITMAPS,
     'test_rule_1_after_a_death_between_storing_and_forgetting'),
    ('stored.h rule 5', STORED,
     [('while (n && !n->qcow2) {', 'while (false) {')],
     QCOW2_BITMAPS, 'test_rule_5_over_deaths_and_the_end'),
    ('stored.h rule 5, one of two stores', STORED,
     [(' || (n->parents && !n->monitor_owned))', ')')],
     QCOW2_BITMAPS, 'test_rule_5_over_deaths_and_the_end'),
    ('stored.h rule 5, reopened', 'src/daemon/reopen-bitmaps.c',
     [('if (c->read_only != c->node->read_only &&\n'
       '\t    stored_is_inside(', 'if (false &&\n\t    stored_is_inside(')],
     QCOW2_BITMAPS, 'test_rule_5_what_is_below_a_filter_is_not_reopened'),
    ('stored.h rule 6', NODES,
     [('if (!stored_lose(top, a->v[i], elsewhere, e))', 'if (false)')],
     QCOW2_BITMAPS, 'test_rule_6_part_of_an_image'),
    ('stored.h rule 6, backing', STORED,
     [('!can_have(n) || is_backing(n))', '!can_have(n))')],
     QCOW2_BITMAPS, 'test_rule_6_backing_images_keep_theirs'),
    ('an image that is being closed is not opened elsewhere',
     'plugins/stillpoint/handle-report.c',
     [('server_after_images(call, greet);', 'greet(call);')],
     'integration/qcow2_death',
     'test_image_that_is_being_closed_is_not_opened_again'),
    ('stored.h rule 1, reopened', 'src/daemon/reopen-bitmaps.c',
     [('c->store = store_plan_take(c->node);', 'c->store = NULL;')],
     QCOW2_BITMAPS, 'test_rule_1_and_3_over_a_reopen'),
    ('stored.h rule 3, reopened', 'src/daemon/reopen-bitmaps.c',
     [('if (moves_bitmaps(c) && c->read_only)\n'
       '\t\t\tc->store = store_plan(c->node);',
       'if (false)\n\t\t\tc->store = NULL;')],
     QCOW2_BITMAPS, 'test_rule_1_and_3_over_a_reopen'),
    ('whole granules are copied', 'src/daemon/backup-create.c',
     [('return max_u64(p->cluster, p->bitmap->granularity);',
       'return p->cluster;')],
     'integration/bitmaps',
     'test_whole_granules_are_copied_whatever_other_bitmaps_know[4194304]'),

    # --- chain.h ---------------------------------------------------------------
    ('chain.h rule 1, a protocol', CHAIN,
     [("if (name[strcspn(name, \":/\")] == ':') {", 'if (false) {')],
     QCOW2_CHAIN, 'test_headers_name_only_files[ssh:x]'),
    ('chain.h rule 1, the directory', CHAIN,
     [("if (name[0] == '/' || node_fd(n) < 0 || !slash)", 'if (true)')],
     QCOW2_CHAIN, 'test_backing_file_is_opened_for_the_header'),
    ('chain.h rule 2', CHAIN,
     [('if (!h->has_backing_format) {', 'if (false) {'),
      ('if (strcmp(format, "raw") == 0) {',
       'if (!*format || strcmp(format, "raw") == 0) {')],
     QCOW2_CHAIN, 'test_formats_are_never_probed'),
    ('chain.h rule 3, loops', CHAIN,
     [('if (other >= 0 && fstat', 'if (false && fstat')],
     QCOW2_CHAIN, 'test_no_image_is_below_itself'),
    ('chain.h rule 3, an end', 'src/daemon/graph.h',
     [('#define NODE_MAX_LAYERS 128', '#define NODE_MAX_LAYERS 200')],
     QCOW2_CHAIN, 'test_chains_end_at_64_images'),
    ('chain.h rule 4', NODES,
     [('(role == CHILD_BACKING || parent->read_only)', 'parent->read_only')],
     QCOW2_CHAIN, 'test_two_overlays_share_a_backing_file'),

    # --- stream.h ---------------------------------------------------------------
    ('stream.h rule 1, a flush', LANE_IO,
     [('\t\tif (info_of(l)->can_flush)\n',
       '\t\tview_reader_done(s->o.reader, done.off, done.len);\n'
       '\t\tif (info_of(l)->can_flush)\n')],
     'stream', 'a_range_is_done_only_after_a_flush'),
    ('stream.h rule 1, before that flush', LANE_IO,
     [('\tuint64_t bytes = l->flushing.bytes;\n',
       '\tuint64_t bytes;\n\n\twhile (ranges_take(&l->acked, UINT64_MAX, &r))\n'
       '\t\tranges_add(&l->flushing, r.off, r.len, r.flags);\n'
       '\tbytes = l->flushing.bytes;\n')],
     'stream', 'a_flush_covers_only_what_came_before_it'),
    ('stream.h rule 2, what was not flushed', LANE_IO,
     [('\tstream_give_back_ranges(l->s, &l->acked);\n',
       '\tstream_durable(l->s, l->acked.bytes);\n'
       '\tfor (struct run r; ranges_take(&l->acked, UINT64_MAX, &r);)\n'
       '\t\t;\n')],
     'stream-failure', 'what_was_not_flushed_is_sent_again'),
    ('stream.h rule 2, no byte counts twice', LANE_IO,
     [('\tdone.flags |= RUN_COUNTED;\n', '')],
     'stream-failure', 'what_was_not_flushed_is_sent_again'),
    ('stream.h rule 3, a hung server', LANE,
     [('#define DRAIN_NS (100 * MS_NS)', '#define DRAIN_NS (3000 * MS_NS)')],
     'stream-failure', 'cancel_does_not_wait_for_a_hung_server'),
    ('stream.h rule 3, who waits', STREAM,
     [('\tatomic_store(&s->stop, why);\n\tstream_kick_locked(s, false);\n',
       '\tatomic_store(&s->stop, why);\n')],
     'stream-failure', 'cancel_does_not_wait_for_a_connection'),
    ('stream.h rule 4, holes', LANE_IO,
     [('\tif (info_of(l)->can_zero) {\n\t\tp->zeroed',
       '\tif (false) {\n\t\tp->zeroed')],
     'stream', 'copy_is_equal_and_zeroes_do_not_travel'),
    ('stream.h rule 4, written zeroes', LANE_IO,
     [('if (zero && (n >= PLAN_MIN_ZERO || n == len) &&',
       'if (false &&')],
     'stream', 'copy_is_equal_and_zeroes_do_not_travel'),
    ('stream.h rule 5, the tail', LANE_IO,
     [('return end == l->s->limit && to <= l->s->room ? to - end : 0;',
       '(void)to;\n\treturn 0;')],
     'stream', 'a_tail_is_padded_where_the_target_has_room'),
    ('stream.h rule 5, the rest', LANE_IO,
     [('\t\t\t\t     l->s->plan.align, &zero);', '\t\t\t\t     512, &zero);'),
      ('if (zero && (n >= PLAN_MIN_ZERO || n == len) &&', 'if (zero &&')],
     'stream', 'requests_respect_block_sizes'),
    ('stream.h rule 7', 'src/stream/lanes.c',
     [('\tif (s->running == 0)\n\t\tloop_post(s->o.loop, &s->finished_task);\n'
       '\tmtx_unlock(&s->lock);\n',
       '\tlast = s->running == 0;\n\tmtx_unlock(&s->lock);\n'
       '\tif (last)\n\t\ts->o.done(s, s->o.opaque);\n')],
     'stream', 'rule_7_done_runs_once_and_on_the_loop'),

    # --- what is not numbered ---------------------------------------------------
    ('without an authority nobody is trusted', 'src/block/remote.c',
     [('\tif (!r->o.tls_certificates)\n\t\treturn true;\n',
       '\tif (true)\n\t\treturn true;\n')],
     'integration/tls', 'test_without_an_authority_nobody_is_trusted'),
    ('a read-only device is no disk', 'src/daemon/images.c',
     [('ioctl(fd, BLKROGET, &read_only) == 0 && read_only)', 'false)')],
     'integration/host_devices',
     'test_device_that_cannot_be_written_is_refused_as_a_disk'),
    ('what the plugin keeps for each thread has its place', 'meson.build',
     [("'-ftls-model=initial-exec'", "'-ftls-model=global-dynamic'")],
     'integration/memory',
     'test_the_plugin_asks_for_no_memory_for_its_threads'),
]

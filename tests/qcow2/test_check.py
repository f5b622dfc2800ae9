# SPDX-License-Identifier: BSD-3-Clause
"""Our check beside qemu-img's: on good, leaked, dirty and damaged images."""
import os
import random
import subprocess

import pytest

from images import (COUNTS, FIGURES, KIB, MIB, TIB, TOOL, assert_clean, compare,
                    count, create_options, figures, our_check, our_create,
                    qemu_check, qemu_create, qemu_io, qemu_use,
                    random_variant, run, seed)
from metadata import Image

SIZE = 8 * MIB


def random_commands(rng, n=12):
    """qemu-io commands that allocate, rewrite, zero and discard."""
    for _ in range(n):
        at = rng.randrange(SIZE // 512) * 512
        length = min(rng.choice([512, 4096, 70 * KIB, 512 * KIB]), SIZE - at)
        kind = rng.choice(["write", "write", "write -z", "write -z -u",
                           "discard"])
        if kind == "write":
            kind += " -P %d" % rng.randrange(1, 256)
        yield "%s %d %d" % (kind, at, length)


def compressed_commands(rng, v, n=5):
    """In a session of their own: QEMU 7.2 damages an image when compressed
    clusters are written and discarded in one session.
    """
    c = v["cluster_size"]
    for at in rng.sample(range(SIZE // c), min(n, SIZE // c)):
        yield "write -c -P %d %d %d" % (rng.randrange(1, 256), at * c, c)


def snapshot(path, v, name):
    if v["data_file"] is None:
        run("qemu-img", "snapshot", "-c", name, path)


def add_bitmap(path, v, rng, name):
    if v["compat"] != "0.10":
        run("qemu-img", "bitmap", "--add", "-g",
            1 << rng.randrange(9, 20), path, name)


def used_image(folder, rng, v, name="i.qcow2"):
    """An image that QEMU has used for a while."""
    path = os.path.join(folder, name)
    with open(os.path.join(folder, "backing.raw"), "wb") as f:
        f.write(rng.randbytes(MIB))
        f.truncate(5 * MIB)
    qemu_create(path, SIZE, create_options(v, folder, name))
    if not v["data_file"]:
        qemu_use(path, *compressed_commands(rng, v))
    for i in range(2):
        qemu_use(path, *random_commands(rng))
        # narrow counts have no room for many users
        if v["refcount_bits"] >= 16:
            snapshot(path, v, "s%d" % i)
        add_bitmap(path, v, rng, "b%d" % i)
    qemu_use(path, *random_commands(rng))
    return path


def each(default, folder):
    """(generator of random numbers, variant), count() times, each with an
    empty folder.
    """
    rng = random.Random(seed())
    for _ in range(count(default)):
        v = random_variant(rng)
        print(v)
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        yield rng, v


def test_good_images_have_the_same_figures(folder):
    for rng, v in each(6, folder):
        path = used_image(folder, rng, v)
        assert_clean(path)
        assert figures(our_check(path, memory=65536)) == \
            figures(our_check(path))


def kill_while_writing(path, rng, v, options=None):
    """QEMU dies before it has written everything."""
    commands = list(random_commands(rng)) + ["sigraise 9"]
    args = [x for c in commands for x in ("-c", c)]
    subprocess.run(["qemu-io", "-f", "qcow2", *(options or []), *args, path],
                   capture_output=True, check=False)


def test_leaked_and_dirty_images_are_found_and_repaired(folder):
    for rng, v in each(6, folder):
        path = used_image(folder, rng, v)
        kill_while_writing(path, rng, v)
        theirs = qemu_check(path)
        assert figures(our_check(path), COUNTS) == figures(theirs, COUNTS)
        other = os.path.join(folder, "theirs.qcow2")
        run("cp", path, other)
        res = our_check(path, fix="all")
        assert res["leaks-fixed"] == theirs.get("leaks", 0)
        assert res["corruptions-fixed"] == theirs.get("corruptions", 0)
        assert_clean(path)
        qemu_check(other, repair="all")
        compare(path, other)
        qemu_use(path, *random_commands(rng))
        assert_clean(path)


def leak(path, rng):
    """Raise the refcounts of clusters that nobody uses."""
    image = Image(path)
    _, at = next(image.refblocks())
    block = bytearray(image.read(at, image.cluster))
    end = min(os.path.getsize(path) // image.cluster,
              image.cluster * 8 >> image.order)
    n = 0
    for i in rng.sample(range(end), min(end, 3)):
        byte, bit = divmod(i << image.order, 8)
        width = 1 << image.order
        if width >= 8:
            old = int.from_bytes(block[byte:byte + width // 8], "big")
            if old == 0:
                block[byte:byte + width // 8] = (1).to_bytes(width // 8, "big")
                n += 1
        elif not block[byte] >> bit & ((1 << width) - 1):
            block[byte] |= 1 << bit
            n += 1
    image.write(at, bytes(block))
    return n


def test_leaks_are_repaired_alone(folder):
    for rng, v in each(4, folder):
        path = used_image(folder, rng, v)
        with open(path, "ab") as f: # room for leaks
            f.truncate(os.path.getsize(path) + 20 * v["cluster_size"])
        leak(path, rng)
        theirs, ours = qemu_check(path), our_check(path)
        assert figures(ours, COUNTS) == figures(theirs, COUNTS)
        res = our_check(path, fix="leaks")
        assert (res["leaks"], res["leaks-fixed"]) == (0, theirs.get("leaks", 0))
        assert_clean(path)


def damage(image, rng):
    """Change 8 bytes of metadata; says what."""
    what, at = image.places(rng)
    value, = image.entries(at, 1)
    how = rng.choice(["bit", "zero", "random", "low", "end", "ones"])
    if how == "bit":
        new = value ^ 1 << rng.randrange(64)
    elif how == "low":
        new = rng.randrange(64) << image.cluster_bits | 1 << 63
    elif how == "end":
        new = os.path.getsize(image.path) & ~511
    else:
        new = {"zero": 0, "random": rng.getrandbits(64), "ones": 2**64 - 1}[how]
    image.put(at, new)
    return "%s at %#x: %#x -> %#x" % (what, at, value, new)


def is_bad(res):
    return res is None or any(res.get(n, 0) for n in COUNTS)


def test_damaged_images_are_found_out(folder):
    """What qemu-img calls bad is bad for us.  The other way round we see more:
    clusters with two purposes, entries that point to a wrong place of a data
    file, bits that are reserved.
    """
    for rng, v in each(15, folder):
        path = used_image(folder, rng, v)
        what = damage(Image(path), rng)
        print(what)
        theirs, ours = qemu_check(path), our_check(path)
        print(theirs, ours)
        if what.startswith("header"):
            continue # who refuses which header is not the check's matter
        assert is_bad(ours) or not is_bad(theirs)
        if theirs and ours and not theirs.get("corruptions", 0) and \
                not ours["corruptions"]:
            assert ours["leaks"] == theirs.get("leaks", 0)


def test_repair_of_damaged_images_ends_clean_or_says_not(folder):
    for rng, v in each(15, folder):
        path = used_image(folder, rng, v)
        what = damage(Image(path), rng)
        print(what)
        res = our_check(path, fix="all")
        print(res)
        if res is None:
            continue
        again = our_check(path)
        assert figures(again, COUNTS) == figures(res, COUNTS)
        if not is_bad(res) and not what.startswith("header"):
            assert_clean(path)


def test_check_alone_does_not_write(folder):
    for rng, v in each(3, folder):
        path = used_image(folder, rng, v)
        damage(Image(path), rng)
        with open(path, "rb") as f:
            before = f.read()
        our_check(path)
        with open(path, "rb") as f:
            assert f.read() == before


# --- the rules of check.h ---------------------------------------------------------

def content(path):
    with open(path, "rb") as f:
        return f.read()


def leaky_image(folder):
    """With two leaked clusters."""
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE)
    qemu_io(path, "write 0 1M")
    with open(path, "ab") as f:
        f.truncate(64 * 65536)
    _, block = next(Image(path).refblocks())
    Image(path).write(block + 2 * 60, b"\0\1\0\1")
    return path


def break_entry(path):
    """One entry that points behind the end of the file; it had a cluster."""
    image = Image(path)
    at, _ = next(image.l2_entries())
    image.put(at, 1 << 50 | 1 << 63)


def test_rule_1_a_check_alone_does_not_write(folder):
    path = leaky_image(folder)
    before = content(path)
    assert our_check(path)["leaks"] == 2
    assert content(path) == before


def test_rule_2_a_leak_is_no_corruption(folder):
    res = our_check(leaky_image(folder))
    assert (res["leaks"], res["corruptions"]) == (2, 0)


def test_rule_3_no_repair_where_something_cannot_be_read(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE)
    qemu_io(path, "write 0 1M")
    run("qemu-img", "snapshot", "-c", "s", path)
    qemu_io(path, "write 0 1M")
    image = Image(path)
    image.write(image.snapshots_offset + 36, b"\xff\xff\xff\xff")
    before = content(path)
    assert our_check(path, fix="all")["check-errors"] == 1
    assert content(path) == before


def test_rule_4_leaks_are_left_where_there_is_corruption(folder):
    path = leaky_image(folder)
    break_entry(path)
    before = content(path)
    res = our_check(path, fix="leaks")
    # the third is the cluster that the broken entry had
    assert (res["leaks"], res["leaks-fixed"]) == (3, 0)
    assert res["corruptions"]
    assert content(path) == before


def test_rule_5_a_death_in_a_rebuild_leaves_the_image_as_it_was(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE, {"cluster_size": 4096})
    qemu_io(path, "write -P 5 0 6M")
    image = Image(path)
    image.put(next(image.refblocks())[0], 0)
    before, found = content(path), our_check(path)
    run(TOOL, "check", path, "fix=all", ok=(-9,),
        env=dict(os.environ, STILLPOINT_KILL_AT="qcow2.rebuilt"))
    assert content(path)[:len(before)] == before
    assert our_check(path)["corruptions"] == found["corruptions"]
    our_check(path, fix="all")
    assert_clean(path)
    qemu_io(path, "read -P 5 0 6M")


def test_rule_5_refcounts_and_flags_become_right(folder):
    path = leaky_image(folder)
    run("qemu-img", "snapshot", "-c", "s", path)
    image = Image(path)
    at, value = next(image.l2_entries())
    image.put(at, value | 1 << 63) # shared, and marked as if it were not
    assert our_check(path)["corruptions"] == 1
    our_check(path, fix="errors")
    assert image.entries(at, 1) == [value]
    assert figures(our_check(path), COUNTS) == {
        "corruptions": 0, "leaks": 2, "check-errors": 0}


def test_rule_6_marks_stay_while_something_is_wrong(folder):
    path = leaky_image(folder)
    break_entry(path)
    Image(path).put(72, 3)
    assert our_check(path, fix="all")["corruptions"]
    assert Image(path).incompat == 3


@pytest.mark.parametrize("reason", ["block", "table", "overlap"])
def test_a_damaged_refcount_structure_is_rebuilt(folder, reason):
    path, good = (os.path.join(folder, n) for n in ("i.qcow2", "good.qcow2"))
    our_create(path, SIZE, {"cluster_size": 4096})
    qemu_io(path, "write -P 5 0 6M")
    run("qemu-img", "snapshot", "-c", "s", path)
    qemu_io(path, "write -P 6 1M 1M")
    run("cp", path, good)
    image = Image(path)
    blocks = list(image.refblocks())
    if reason == "block": # it is not there
        image.put(blocks[0][0], 0)
    elif reason == "table": # behind the end of the file
        image.put(blocks[-1][0], 1 << 50)
    else: # it is a guest's cluster
        _, entry = next(image.l2_entries())
        image.put(blocks[0][0], entry & 0x00fffffffffffe00)
    assert our_check(path)["corruptions"]
    res = our_check(path, fix="all", memory=65536)
    assert figures(res, COUNTS) == dict.fromkeys(COUNTS, 0)
    assert_clean(path)
    compare(path, good)
    run("qemu-img", "snapshot", "-a", "s", path)
    qemu_io(path, "read -P 5 0 6M")


def test_rule_6_the_marks_go_when_all_is_right(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE)
    image = Image(path)
    image.put(72, 2)
    res = our_check(path, fix="leaks")
    assert res["corruptions"] == 0 and Image(path).incompat == 2
    our_check(path, fix="errors")
    assert Image(path).incompat == 0
    assert_clean(path)


def test_a_sparse_image_of_16_tib(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, 16 * TIB)
    qemu_io(path, *["write %dG 64k" % g for g in range(0, 16000, 997)])
    assert_clean(path)
    assert figures(our_check(path, memory=65536), FIGURES) == \
        figures(our_check(path), FIGURES)

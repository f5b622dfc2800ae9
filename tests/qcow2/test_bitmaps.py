# SPDX-License-Identifier: BSD-3-Clause
"""Stored bitmaps: made by QEMU and used by us, and the other way round.

QEMU's side is seen through qemu-img info (names and flags) and qemu-nbd with
nbdinfo --map (the bits).
"""
import json
import os
import random
import subprocess

import pytest

from images import (BUILD, KIB, MIB, Failed, assert_clean, count, our_check,
                    our_create, qemu_check, qemu_create, qemu_info, qemu_io,
                    run, seed)
from metadata import Image

TOOL = os.path.join(BUILD, "tests", "tools", "qcow2-bitmaps")
SIZE = 20 * MIB + 512


def ours(path, *commands, read_only=False, kill_at=None):
    """Run our tool; what "list" says, by name."""
    env = dict(os.environ)
    if kill_at:
        env["STILLPOINT_KILL_AT"] = kill_at
    out = run(TOOL, *["-r"] * read_only, path, *commands, env=env,
              ok=(-9,) if kill_at else (0,))
    return {b["name"]: b for b in json.loads(out)} if out else {}


def our_list(path):
    return ours(path, "list", read_only=True)


def qemu_flags(path):
    """{name: (granularity, flags)} or {}"""
    data = qemu_info(path)["format-specific"]["data"]
    return {b["name"]: (b["granularity"], set(b["flags"]))
            for b in data.get("bitmaps", [])}


def qemu_ranges(path, name):
    """[[offset, length]] as qemu-nbd serves them."""
    out = run("nbdinfo", "--json", "--map=qemu:dirty-bitmap:" + name, "--",
              "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, path, "]")
    merged = []
    for e in json.loads(out):
        if not e["type"] & 1:
            continue
        if merged and sum(merged[-1]) == e["offset"]:
            merged[-1][1] += e["length"]
        else:
            merged.append([e["offset"], e["length"]])
    return merged


def add(path, name, granularity, disabled=False):
    run("qemu-img", "bitmap", "--add", "-g", granularity,
        *["--disable"] * disabled, path, name)


@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 * MIB])
def test_what_qemu_stored_is_what_we_load(folder, cluster):
    path = os.path.join(folder, "i.qcow2")
    qemu_create(path, SIZE, {"cluster_size": cluster})
    add(path, "fine", 512)
    add(path, "usual", 65536)
    add(path, "coarse", 1 << 31)
    add(path, "off", 4096, disabled=True)
    qemu_io(path, "write 1M 3M", "write 7M 512", "write 20M 512")
    add(path, "late", 1024)
    with open(path, "rb") as f:
        before = f.read()
    found = our_list(path)
    with open(path, "rb") as f:
        assert f.read() == before
    assert sorted(found) == ["coarse", "fine", "late", "off", "usual"]
    for name, b in found.items():
        assert b["dirty"] == qemu_ranges(path, name), name
        assert b["enabled"] == (name != "off")
        assert not b["inconsistent"]
    assert found["fine"]["dirty"] == [[MIB, 3 * MIB], [7 * MIB, 512],
                                      [20 * MIB, 512]]


@pytest.mark.parametrize("cluster", [512, 4096, 65536, 2 * MIB])
def test_what_we_stored_is_what_qemu_loads(folder, cluster):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE, {"cluster_size": cluster})
    ours(path, "take", "add fine 512 on", "add off 65536 off",
         "add coarse 2147483648 on", "write 1048576 3145728 1",
         "write 7340032 512 2", "write 20971520 512 3", "dirty off 0 65537",
         "store")
    assert qemu_flags(path) == {"fine": (512, {"auto"}),
                                "off": (65536, set()),
                                "coarse": (1 << 31, {"auto"})}
    assert qemu_ranges(path, "fine") == [[MIB, 3 * MIB], [7 * MIB, 512],
                                         [20 * MIB, 512]]
    assert qemu_ranges(path, "off") == [[0, 128 * KIB]]
    assert qemu_ranges(path, "coarse") == [[0, SIZE]]
    assert_clean(path)


def test_bitmaps_go_back_and_forth(folder):
    """Random sessions in turn, with a model of each bitmap."""
    rng = random.Random(seed())
    for _ in range(count(3)):
        path = os.path.join(folder, "i.qcow2")
        create = rng.choice([our_create, qemu_create])
        create(path, SIZE, {"cluster_size": rng.choice([512, 4096, 65536])})
        model = {} # name: [granularity, enabled, set of granules]
        for _ in range(6):
            rng.choice([our_session, qemu_session])(path, rng, model)
            verify(path, model)


def some_writes(rng):
    for _ in range(rng.randrange(5)):
        at = rng.randrange(SIZE // 512) * 512
        yield at, min(rng.choice([512, 64 * KIB, MIB]), SIZE - at)


def note(model, at, length):
    for granularity, enabled, dirty in model.values():
        if enabled:
            dirty |= set(range(at // granularity,
                               -(-(at + length) // granularity)))


def our_session(path, rng, model):
    commands = ["take"]
    if len(model) < 5:
        name = "o%d" % rng.getrandbits(20)
        model[name] = [1 << rng.randrange(9, 20), rng.random() < 0.7, set()]
        commands.append("add %s %d %s" % (name, model[name][0],
                                          "on" if model[name][1] else "off"))
    elif rng.random() < 0.5:
        name = rng.choice(sorted(model))
        del model[name]
        commands.append("remove " + name)
    for at, length in some_writes(rng):
        commands.append("write %d %d 7" % (at, length))
        note(model, at, length)
    ours(path, *commands, "store")


def qemu_session(path, rng, model):
    if len(model) < 5:
        name = "q%d" % rng.getrandbits(20)
        model[name] = [1 << rng.randrange(9, 20), rng.random() < 0.7, set()]
        add(path, name, model[name][0], not model[name][1])
    elif rng.random() < 0.5:
        name = rng.choice(sorted(model))
        del model[name]
        run("qemu-img", "bitmap", "--remove", path, name)
    writes = list(some_writes(rng))
    qemu_io(path, *["write %d %d" % w for w in writes])
    for w in writes:
        note(model, *w)


def verify(path, model):
    assert_clean(path)
    found, flags = our_list(path), qemu_flags(path)
    assert sorted(found) == sorted(flags) == sorted(model)
    for name, (granularity, enabled, dirty) in model.items():
        assert flags[name] == (granularity, {"auto"} if enabled else set())
        b = found[name]
        assert (b["granularity"], b["enabled"], b["inconsistent"]) == (
            granularity, enabled, False)
        granules = set()
        for at, length in b["dirty"]:
            granules |= set(range(at // granularity,
                                  -(-(at + length) // granularity)))
        assert granules == dirty
        assert qemu_ranges(path, name) == b["dirty"]


# --- rules 1 to 5, at the bad moment ---------------------------------------------

def two_bitmaps(folder, create=our_create):
    path = os.path.join(folder, "i.qcow2")
    create(path, SIZE)
    add(path, "one", 65536)
    add(path, "two", 512, disabled=True)
    qemu_io(path, "write 0 1M")
    return path


def died(path, kill_at, *commands):
    ours(path, "take", "write 5242880 65536 1", *commands, "store",
         kill_at=kill_at)
    for res in qemu_check(path), our_check(path):
        assert res["check-errors"] == 0 and res.get("corruptions", 0) == 0


def test_rule_1_bitmaps_are_in_use_before_the_first_write(folder):
    path = two_bitmaps(folder)
    died(path, "qcow2.bitmaps.take")
    assert qemu_flags(path) == {"one": (65536, {"auto", "in-use"}),
                                "two": (512, {"in-use"})}


def test_rule_2_what_was_in_use_is_inconsistent(folder):
    path = two_bitmaps(folder)
    died(path, "qcow2.bitmaps.take")
    for b in our_list(path).values():
        assert b["inconsistent"] and b["dirty"] == []
    # it stays so until somebody removes it
    ours(path, "take", "add new 65536 on", "store")
    assert qemu_flags(path)["one"] == (65536, {"auto", "in-use"})
    ours(path, "take", "remove one", "remove two", "store")
    assert sorted(our_list(path)) == ["new"]
    assert qemu_flags(path) == {"new": (65536, {"auto"})}
    assert_clean(path)


@pytest.mark.parametrize("place", ["written", "header"])
def test_rule_3_a_death_before_the_switch_leaves_the_old_directory(folder,
                                                                   place):
    path = two_bitmaps(folder)
    died(path, "qcow2.bitmaps." + place, "remove two", "add new 512 on")
    assert qemu_flags(path) == {"one": (65536, {"auto", "in-use"}),
                                "two": (512, {"in-use"})}
    assert all(b["inconsistent"] for b in our_list(path).values())


def test_rule_3_a_death_after_the_switch_leaves_the_new_directory(folder):
    path = two_bitmaps(folder)
    died(path, "qcow2.bitmaps.published", "remove two", "add new 512 on")
    assert qemu_flags(path) == {"one": (65536, {"auto"}),
                                "new": (512, {"auto"})}
    assert our_list(path)["one"]["dirty"] == [[0, MIB], [5 * MIB, 65536]]
    assert our_check(path)["leaks"] # rule 5: the old one's clusters


def far_extension(folder):
    """An image whose bitmaps extension lies across two sectors."""
    data = os.path.join(folder, "d" * 230, "d" * (491 - 230 - len(folder)))
    os.mkdir(os.path.dirname(data))
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE, {"data_file": data})
    add(path, "one", 65536)
    at = Image(path).read(0, 65536).index(b"\x23\x85\x28\x75") + 8
    assert at // 512 != (at + 23) // 512
    return path


def test_rule_4_without_one_write_the_flag_goes_first(folder):
    path = far_extension(folder)
    died(path, "qcow2.bitmaps.header")
    assert qemu_flags(path) == {} and our_list(path) == {}
    assert Image(path).autoclear & 1 == 0


def test_rule_4_the_flag_comes_back(folder):
    path = far_extension(folder)
    ours(path, "take", "write 0 65536 1", "store")
    assert our_list(path)["one"]["dirty"] == [[0, 65536]]
    assert qemu_ranges(path, "one") == [[0, 65536]]
    assert_clean(path)


def test_rule_5_the_old_clusters_are_free_in_the_end(folder):
    path = two_bitmaps(folder)
    for _ in range(3):
        ours(path, "take", "write 0 65536 1", "store")
        assert_clean(path)
    ours(path, "take", "remove one", "remove two", "store")
    assert qemu_flags(path) == {}
    assert_clean(path)


# --- limits -------------------------------------------------------------------------

def test_a_name_of_1023_bytes_and_no_longer(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE)
    name = "n" * 1023
    ours(path, "take", "add %s 65536 on" % name, "store")
    assert list(qemu_flags(path)) == [name]
    with pytest.raises(Failed, match="Name length exceeds maximum"):
        ours(path, "take", "add %sx 65536 on" % name, "store")


@pytest.mark.parametrize("granularity, text", [
    (256, "Granularity is under minimum"),
    (1 << 32, "Granularity exceeds maximum"),
    (1000, "Granularity must be power of 2"),
])
def test_granularities_that_cannot_be_stored(folder, granularity, text):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE)
    with pytest.raises(Failed, match=text):
        ours(path, "take", "add b %d on" % granularity, "store")
    assert_clean(path)


def test_version_2_has_no_bitmaps(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE, {"compat": "0.10"})
    with pytest.raises(Failed, match="Cannot store dirty bitmaps in qcow2 v2"):
        ours(path, "take", "add b 65536 on", "store")


def test_too_many_bits(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, (2 << 40) + 4096)
    with pytest.raises(Failed, match="Too much space will be occupied"):
        ours(path, "take", "add b 512 on", "store")
    ours(path, "take", "add b 65536 on", "dirty b 1099511627776 1", "store")
    assert our_list(path)["b"]["dirty"] == [[1 << 40, 65536]]


def test_65535_bitmaps_and_no_more(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, 65536, {"cluster_size": 512})
    names = ["add %x 65536 off" % i for i in range(65535)]
    ours(path, "take", *names, "store")
    assert len(our_list(path)) == 65535
    with pytest.raises(Failed, match="Maximum number of persistent bitmaps"):
        ours(path, "take", "add last 65536 off", "store")


def directory(path):
    """(offset, bytes) of the bitmap directory"""
    image = Image(path)
    head = image.read(0, image.cluster)
    at = head.index(b"\x23\x85\x28\x75") + 8
    size, offset = (int.from_bytes(head[at + n:at + n + 8], "big")
                    for n in (8, 16))
    return offset, image.read(offset, size)


@pytest.mark.parametrize("at, data, text", [
    (8, b"\xff\xff\xff\xff", "the size of its table"),
    (0, b"\x00\x00\x00\x00\x00\x00\x02\x00", "the offset of its table"),
    (12, b"\x00\x00\x00\x80", "unknown flags"),
    (16, b"\x02", "an unknown type"),
    (17, b"\x08", "its granularity"),
    (17, b"\x20", "its granularity"),
    (18, b"\x00\x00", "the length of its name"),
    (18, b"\x04\x00", "cut off|the length of its name"),
    (20, b"\xff\xff\xff\xf0", "cut off"),
    (24, b"\x00", "has a 0 byte"),
    (24, b"two", "two stored bitmaps have the name 'two'"),
])
def test_a_directory_that_makes_no_sense_is_refused(folder, at, data, text):
    path = two_bitmaps(folder)
    offset, _ = directory(path)
    Image(path).write(offset + at, data)
    with pytest.raises(Failed, match=text):
        our_list(path)


def test_random_damage_does_no_harm(folder):
    rng = random.Random(seed())
    path = two_bitmaps(folder)
    with open(path, "rb") as f:
        good = f.read()
    offset, content = directory(path)
    for _ in range(count(60)):
        with open(path, "wb") as f:
            f.write(good)
        Image(path).write(offset + rng.randrange(len(content)),
                          rng.randbytes(rng.choice([1, 4, 8])))
        run(TOOL, path, "list", "take", "store", ok=(0, 1))


def test_an_incremental_of_qemu_after_our_session_is_right(folder):
    """QEMU's full backup, our writes with its bitmap, QEMU's incremental:
    together they are the disk.
    """
    path, inc = (os.path.join(folder, n) for n in ("i.qcow2", "inc.raw"))
    full = os.path.join(folder, "full.raw")
    qemu_create(path, SIZE)
    qemu_io(path, "write -P 1 0 8M")
    add(path, "b", 65536)
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, full)
    ours(path, "take", "write 1048576 65536 9", "write 19922944 4096 8",
         "store")
    qemu_io(path, "write -P 7 3M 1k")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, inc)
    with open(full, "r+b") as f, open(inc, "rb") as g:
        for at, length in qemu_ranges(path, "b"):
            f.seek(at)
            g.seek(at)
            f.write(g.read(length))
    with open(full, "rb") as f, open(inc, "rb") as g:
        assert f.read() == g.read()

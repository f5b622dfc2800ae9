# SPDX-License-Identifier: BSD-3-Clause
"""Changed headers, as qemu-img reads them."""
import os
import random
import struct

import pytest

from images import (MIB, TOOL, Failed, assert_clean, compare, our_create,
                    qemu_create, qemu_info, qemu_io, run)
from metadata import Image

SIZE = 4 * MIB


def amend(path, **options):
    run(TOOL, "amend", path, *["%s=%s" % kv for kv in options.items()])


def raw_file(folder, name, seed=1):
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(random.Random(seed).randbytes(SIZE))
    return path


@pytest.mark.parametrize("create", [our_create, qemu_create])
@pytest.mark.parametrize("options", [
    {}, {"compat": "0.10"}, {"cluster_size": 512}, {"extended_l2": "on"},
    {"compression_type": "zstd"}])
def test_a_backing_file_is_set_changed_and_removed(folder, create, options):
    path = os.path.join(folder, "i.qcow2")
    a, b = raw_file(folder, "a.raw", 1), raw_file(folder, "b.raw", 2)
    create(path, SIZE, options)
    amend(path, backing_file=a, backing_fmt="raw")
    compare(path, a, b_format="raw")
    qemu_io(path, "write -P 9 0 1M")
    amend(path, backing_file=b, backing_fmt="raw")
    info = qemu_info(path)
    assert (info["backing-filename"], info["backing-filename-format"]) == \
        (b, "raw")
    qemu_io(path, "read -P 9 0 1M")
    amend(path, backing_file="")
    assert "backing-filename" not in qemu_info(path)
    qemu_io(path, "read -P 9 0 1M", "read -P 0 1M 3M")
    assert_clean(path)


@pytest.mark.parametrize("create", [our_create, qemu_create])
def test_version_2_becomes_version_3(folder, create):
    path = os.path.join(folder, "i.qcow2")
    base = raw_file(folder, "base.raw")
    create(path, SIZE, {"compat": "0.10", "backing_file": base,
                        "backing_fmt": "raw"})
    qemu_io(path, "write -P 3 64k 1M")
    amend(path, compat="1.1", lazy_refcounts="on")
    data = qemu_info(path)["format-specific"]["data"]
    assert (data["compat"], data["lazy-refcounts"]) == ("1.1", True)
    assert qemu_info(path)["backing-filename"] == base
    qemu_io(path, "read -P 3 64k 1M", "write -z 64k 64k", "read -P 0 64k 64k")
    assert_clean(path)
    amend(path, lazy_refcounts="off")
    assert not qemu_info(path)["format-specific"]["data"]["lazy-refcounts"]
    assert_clean(path)


def test_bitmaps_and_unknown_extensions_stay(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE)
    run("qemu-img", "bitmap", "--add", path, "b")
    image = Image(path)
    head = image.read(0, 65536)
    length, = struct.unpack(">I", head[100:104])
    mine = struct.pack(">II", 0x12345678, 8) + b"precious"
    image.write(length, mine + head[length:length + 1024])
    amend(path, backing_file="elsewhere", backing_fmt="raw")
    assert b"precious" in Image(path).read(0, 4096)
    info = qemu_info(path)
    assert info["backing-filename"] == "elsewhere"
    assert [b["name"] for b in info["format-specific"]["data"]["bitmaps"]] == \
        ["b"]


def test_an_image_with_bitmaps_and_data_file_keeps_its_features(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE, {"data_file": os.path.join(folder, "d"),
                            "data_file_raw": "on"})
    amend(path, lazy_refcounts="on")
    data = qemu_info(path)["format-specific"]["data"]
    assert data["data-file-raw"] and data["lazy-refcounts"]
    with pytest.raises(Failed, match="Cannot set a backing file"):
        amend(path, backing_file="b")


@pytest.mark.parametrize("options, text", [
    ({"cluster_size": 4096}, "Cannot change the option 'cluster_size'"),
    ({"refcount_bits": 8}, "Cannot change the option 'refcount_bits'"),
    ({"size": 1}, "Cannot change the option 'size'"),
    ({"encryption": "on"}, "Cannot change the option 'encryption'"),
    ({"compat": "0.10"}, "Cannot change the option 'compat' to '0.10'"),
    ({"lazy_refcounts": "yes"}, "Cannot change the option 'lazy_refcounts' to"),
    ({"colour": "red"}, "Invalid parameter 'colour'"),
    ({"backing_fmt": "raw"}, "Backing format cannot be used without"),
    ({"backing_file": "b" * 1024}, "longer than 1023 bytes"),
    ({"backing_file": "b", "backing_fmt": "f" * 32}, "longer than 31 bytes"),
])
def test_what_amend_cannot_do(folder, options, text):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE)
    before = Image(path).read(0, 65536)
    with pytest.raises(Failed, match=text):
        amend(path, **options)
    assert Image(path).read(0, 65536) == before


def test_lazy_refcounts_need_version_3(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE, {"compat": "0.10"})
    with pytest.raises(Failed, match="Lazy refcounts only supported with"):
        amend(path, lazy_refcounts="on")


def test_a_name_that_does_not_fit_into_the_first_cluster(folder):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE, {"cluster_size": 512})
    with pytest.raises(Failed, match="does not fit"):
        amend(path, backing_file="b" * 500)
    amend(path, backing_file="b" * 384)
    assert qemu_info(path)["backing-filename"] == "b" * 384


@pytest.mark.parametrize("bit", [1, 2])
def test_a_marked_image_is_repaired_first(folder, bit):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, SIZE)
    Image(path).put(72, bit)
    with pytest.raises(Failed, match="must be repaired before"):
        amend(path, lazy_refcounts="on")

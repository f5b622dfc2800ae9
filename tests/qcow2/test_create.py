# SPDX-License-Identifier: BSD-3-Clause
"""Images that we make, as qemu-img sees them."""
import os
import random

import pytest

from images import (AXES, GIB, KIB, MIB, TIB, Failed, all_variants,
                    assert_clean, compare, count, create_options, our_check,
                    our_create, qemu_create, qemu_info, qemu_io, random_variant,
                    seed)

VARIANT_SIZE = 5 * MIB + 512


def make_backing(folder, rng):
    with open(os.path.join(folder, "backing.raw"), "wb") as f:
        f.write(rng.randbytes(2 * MIB))
        f.truncate(3 * MIB)


def described(path):
    """What qemu-img info says, but for names and space."""
    info = qemu_info(path)
    for k in ("filename", "actual-size", "full-backing-filename", "children"):
        info.pop(k, None)
    info.get("format-specific", {}).get("data", {}).pop("data-file", None)
    return info


def check_variant(folder, v):
    ours, theirs = (os.path.join(folder, n + ".qcow2") for n in ("us", "they"))
    our_create(ours, VARIANT_SIZE, create_options(v, folder, "us"))
    qemu_create(theirs, VARIANT_SIZE, create_options(v, folder, "they"))
    assert_clean(ours)
    assert described(ours) == described(theirs), v
    compare(ours, theirs)
    assert os.path.getsize(ours) <= os.path.getsize(theirs) + \
        2 * v["cluster_size"] * (v["preallocation"] == "off") + \
        16 * v["cluster_size"], v
    qemu_io(ours, "write -P 7 1M 70k", "read -P 7 1M 70k", "write -z 2M 1M")
    assert_clean(ours)


def test_variants_are_what_qemu_img_makes(folder):
    rng = random.Random(seed())
    make_backing(folder, rng)
    for _ in range(count(60)):
        v = random_variant(rng)
        print(v)
        for name in os.listdir(folder):
            if name != "backing.raw":
                os.unlink(os.path.join(folder, name))
        check_variant(folder, v)


def test_each_value_of_each_option(folder):
    """At least once, whatever the random ones were."""
    make_backing(folder, random.Random(1))
    seen = set()
    for v in all_variants():
        new = {(k, v[k]) for k in AXES} - seen
        if not new:
            continue
        seen |= new
        for name in os.listdir(folder):
            if name != "backing.raw":
                os.unlink(os.path.join(folder, name))
        check_variant(folder, v)
    assert len(seen) == sum(len(x) for x in AXES.values())


@pytest.mark.parametrize("size, options", [
    (0, {}),
    (512, {}),
    (0, {"preallocation": "metadata"}),
    (64 * TIB, {}),
    (16 * TIB, {"cluster_size": 2 * MIB, "refcount_bits": 64}),
    (2 * GIB, {"cluster_size": 512, "refcount_bits": 64}),
    (40 * GIB, {"cluster_size": 65536, "preallocation": "metadata"}),
    (3 * GIB, {"cluster_size": 4096, "refcount_bits": 1,
               "preallocation": "metadata"}),
    (128 * GIB, {"cluster_size": 512}),
])
def test_sizes(folder, size, options):
    path = os.path.join(folder, "i.qcow2")
    our_create(path, size, options)
    assert qemu_info(path)["virtual-size"] == size
    assert_clean(path)


def test_an_existing_file_is_overwritten(folder):
    path = os.path.join(folder, "i.qcow2")
    with open(path, "wb") as f:
        f.write(b"\xff" * (3 * MIB))
    our_create(path, MIB, {"preallocation": "metadata"})
    qemu_io(path, "read -P 0 0 1M")
    assert our_check(path)["corruptions"] == 0


def test_a_raw_data_file_keeps_its_content(folder):
    path, data = (os.path.join(folder, n) for n in ("i.qcow2", "d.raw"))
    with open(data, "wb") as f:
        f.write(b"\x55" * MIB)
    our_create(path, 2 * MIB, {"data_file": data, "data_file_raw": "on"})
    qemu_io(path, "read -P 0x55 0 1M", "read -P 0 1M 1M")
    assert os.path.getsize(data) == 2 * MIB


@pytest.mark.parametrize("size, options, text", [
    (1000, {}, "Image size must be a multiple of 512 bytes"),
    (MIB, {"cluster_size": 256}, "Cluster size must be a power of two between "
                                 "512 and 2048k"),
    (MIB, {"cluster_size": 4 * MIB}, "Cluster size must be a power of two"),
    (MIB, {"cluster_size": 5000}, "Cluster size must be a power of two"),
    (MIB, {"refcount_bits": 3}, "Refcount width must be a power of two"),
    (MIB, {"refcount_bits": 128}, "Refcount width must be a power of two"),
    (MIB, {"compat": "0.10", "refcount_bits": 8},
     "Different refcount widths than 16 bits require"),
    (MIB, {"compat": "0.10", "lazy_refcounts": "on"}, "Lazy refcounts require"),
    (MIB, {"compat": "0.10", "extended_l2": "on"},
     "Extended L2 entries require"),
    (MIB, {"compat": "0.10", "compression_type": "zstd"},
     "Non-zlib compression type"),
    (MIB, {"compat": "0.10", "data_file": "d"}, "External data files require"),
    (MIB, {"extended_l2": "on", "cluster_size": 8192},
     "Extended L2 entries are only supported with cluster sizes of at least"),
    (MIB, {"backing_fmt": "raw"}, "Backing format cannot be used without"),
    (MIB, {"data_file_raw": "on"}, "data-file-raw requires data-file"),
    (MIB, {"data_file_raw": "on", "data_file": "d", "backing_file": "b"},
     "Backing file and data-file-raw cannot be used at the same time"),
    (MIB, {"preallocation": "full", "backing_file": "b"},
     "Backing file and preallocation can only be used"),
    (MIB, {"backing_file": "b" * 1024}, "longer than 1023 bytes"),
    (MIB, {"backing_file": "b" * 600, "cluster_size": 512}, "does not fit"),
    (128 * GIB + 512, {"cluster_size": 512}, "The image size is too large"),
    (1 << 62, {"cluster_size": 2 * MIB}, "The image size is too large"),
])
def test_what_cannot_be_is_refused_before_a_file_is_made(folder, size, options,
                                                         text):
    path = os.path.join(folder, "i.qcow2")
    with pytest.raises(Failed, match=text):
        our_create(path, size, options)
    assert not os.path.exists(path)


def test_the_longest_names(folder):
    path = os.path.join(folder, "i.qcow2")
    name = "json:" + "x" * (1023 - 5)
    our_create(path, MIB, {"backing_file": name, "cluster_size": 64 * KIB})
    with open(path, "rb") as f:
        assert name.encode() in f.read(64 * KIB)

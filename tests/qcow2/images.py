# SPDX-License-Identifier: BSD-3-Clause
"""What the qcow2 tests share: the tools, and the variants of the format.

qemu-img and qemu-io are the other implementation.  Random tests take their
seed from QCOW2_SEED and print it; QCOW2_COUNT is how many sequences are run.
"""
import itertools
import json
import os
import random
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(HERE))
BUILD = os.environ.get("STILLPOINT_BUILD", os.path.join(REPO, "build"))
TOOL = os.path.join(BUILD, "tests", "tools", "qcow2-image")
BLOCK_IO = os.path.join(BUILD, "tests", "tools", "block-io")

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


class Failed(Exception):
    """A tool ended with an error; the text is what it said."""


def run(*args, ok=(0,), **kwargs):
    r = subprocess.run([str(a) for a in args], capture_output=True, text=True,
                       check=False, errors="replace", **kwargs)
    if r.returncode not in ok:
        raise Failed("%s: exit %d: %s" % (" ".join(map(str, args)),
                                          r.returncode, r.stderr + r.stdout))
    return r.stdout


def options_text(options):
    return ",".join("%s=%s" % (k, v) for k, v in options.items())


def qemu_create(path, size, options=None):
    extra = ["-o", options_text(options)] if options else []
    run("qemu-img", "create", "-q", "-f", "qcow2", *extra, path, size)


def our_create(path, size, options=None):
    run(TOOL, "create", path, "size=%d" % size,
        *["%s=%s" % kv for kv in (options or {}).items()])


def qemu_info(path):
    return json.loads(run("qemu-img", "info", "-U", "--output=json", path))


def qemu_check(path, repair=None):
    """The counts; None when qemu-img cannot even open the image."""
    extra = ["-r", repair] if repair else []
    r = subprocess.run(["qemu-img", "check", "-f", "qcow2", "--output=json",
                        *extra, str(path)], capture_output=True, text=True,
                       check=False, errors="replace")
    if r.returncode == 1 and "{" not in r.stdout:
        return None
    if r.returncode < 0:
        raise Failed("qemu-img check died: %d" % r.returncode)
    return json.loads(r.stdout[r.stdout.index("{"):])


def our_check(path, **options):
    """The counts; None when the image is refused."""
    r = subprocess.run([TOOL, "check", str(path),
                        *["%s=%s" % kv for kv in options.items()]],
                       capture_output=True, text=True, check=False,
                       errors="replace")
    if r.returncode == 1:
        return None
    if r.returncode:
        raise Failed("check died: %d: %s" % (r.returncode, r.stderr))
    return json.loads(r.stdout)


COUNTS = ("corruptions", "leaks", "check-errors")
FIGURES = COUNTS + ("total-clusters", "allocated-clusters",
                    "fragmented-clusters", "compressed-clusters",
                    "image-end-offset")


def figures(result, names=FIGURES):
    return {n: result.get(n, 0) for n in names}


def assert_clean(path):
    """Neither implementation finds anything, and they count alike."""
    theirs, ours = qemu_check(path), our_check(path)
    assert theirs is not None and ours is not None, path
    assert figures(theirs, COUNTS) == dict.fromkeys(COUNTS, 0), theirs
    assert figures(ours) == figures(theirs)


def qemu_use(path, *commands, options=None):
    """Commands some of which QEMU may refuse (it does not write a compressed
    cluster where one is mapped already).
    """
    args = [x for c in commands for x in ("-c", c)]
    return run("qemu-io", "-f", "qcow2", *(options or []), *args, path,
               ok=(0, 1))


def qemu_io(path, *commands, options=None):
    out = qemu_use(path, *commands, options=options)
    if "failed" in out or "error" in out:
        raise Failed(out)
    return out


def compare(a, b, a_format="qcow2", b_format="qcow2"):
    run("qemu-img", "compare", "-f", a_format, "-F", b_format, a, b)


def seed():
    n = int(os.environ.get("QCOW2_SEED", random.SystemRandom().getrandbits(32)))
    print("QCOW2_SEED=%d" % n)
    return n


def count(default):
    return int(os.environ.get("QCOW2_COUNT", default))


# --- the variants ------------------------------------------------------------

AXES = {
    "compat": ["0.10", "1.1"],
    "cluster_size": [512, 1024, 4096, 16384, 65536, 2 * MIB],
    "refcount_bits": [1, 2, 4, 8, 16, 32, 64],
    "extended_l2": ["off", "on"],
    "compression_type": ["zlib", "zstd"],
    "lazy_refcounts": ["off", "on"],
    "preallocation": ["off", "metadata", "falloc", "full"],
    "data_file": [None, "data", "raw"],
    "backing": [False, True],
}


def is_possible(v):
    """What the format allows together (and qemu-img accepts)."""
    if v["compat"] == "0.10" and (
            v["refcount_bits"] != 16 or v["extended_l2"] == "on" or
            v["compression_type"] != "zlib" or v["lazy_refcounts"] == "on" or
            v["data_file"]):
        return False
    if v["extended_l2"] == "on" and v["cluster_size"] < 16384:
        return False
    if v["data_file"] and v["compression_type"] != "zlib":
        return False
    if v["backing"]:
        if v["data_file"] == "raw":
            return False
        return v["preallocation"] == "off" or v["extended_l2"] == "on"
    return True


def all_variants():
    for values in itertools.product(*AXES.values()):
        v = dict(zip(AXES, values))
        if is_possible(v):
            yield v


def random_variant(rng):
    while True:
        v = {k: rng.choice(values) for k, values in AXES.items()}
        if is_possible(v):
            return v


def create_options(v, folder, name):
    """The -o options of a variant; makes its backing file, 5/8 as long as
    what is asked for by the caller's size.
    """
    o = {k: v[k] for k in ("compat", "cluster_size", "preallocation")}
    if v["compat"] != "0.10":
        o.update({k: v[k] for k in ("refcount_bits", "extended_l2",
                                    "compression_type", "lazy_refcounts")})
    if v["data_file"]:
        o["data_file"] = os.path.join(folder, name + ".data")
        o["data_file_raw"] = "on" if v["data_file"] == "raw" else "off"
    if v["backing"]:
        o["backing_file"] = os.path.join(folder, "backing.raw")
        o["backing_fmt"] = "raw"
    return o

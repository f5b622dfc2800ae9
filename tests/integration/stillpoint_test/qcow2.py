# SPDX-License-Identifier: BSD-3-Clause
"""qcow2 images, made and judged by QEMU's own tools."""
import json
import os
import subprocess


def run(*argv):
    r = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    assert r.returncode == 0, "%s: %s%s" % (argv, r.stdout, r.stderr)
    return r.stdout


def create(path, size=None, backing=None, fmt="qcow2", **options):
    argv = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if backing:
        argv += ["-b", str(backing), "-F", fmt]
    for name, value in options.items():
        argv += ["-o", "%s=%s" % (name.replace("_", "-") if "_" in name and
                                  name not in UNDERSCORES else name, value)]
    run(*argv, path, *([size] if size is not None else []))
    return str(path)


UNDERSCORES = ("cluster_size", "lazy_refcounts", "refcount_bits",
               "data_file", "data_file_raw", "extended_l2",
               "compression_type")


def io(path, *commands, fmt="qcow2"):
    """qemu-io on an image that nobody has open."""
    argv = ["qemu-io", "-f", fmt]
    for c in commands:
        argv += ["-c", c]
    out = run(*argv, path)
    assert "failed" not in out, out
    return out


def info(path):
    return json.loads(run("qemu-img", "info", "--output=json", "-U", path))


def check(path, leaks=False):
    """qemu-img check: clean, or with leaks at most."""
    r = subprocess.run(["qemu-img", "check", "--output=json",
                        "-f", "qcow2", str(path)],
                       capture_output=True, text=True)
    assert r.returncode in ((0, 3) if leaks else (0,)), (
        r.returncode, r.stdout, r.stderr)
    return json.loads(r.stdout)


def compare(a, b, fmt_a="qcow2", fmt_b="qcow2"):
    run("qemu-img", "compare", "-q", "-f", fmt_a, "-F", fmt_b, a, b)


def raw_copy(path, out, fmt="qcow2"):
    """The disk as it is now, as a raw file (the image may be in use)."""
    run("qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", path, out)
    return str(out)


def blockdev(path, name="disk0", **more):
    d = {"driver": "qcow2", "node-name": name,
         "file": {"driver": "file", "filename": str(path)}}
    d.update({k.replace("_", "-"): v for k, v in more.items()})
    return d


def node(q, name, flat=True):
    for n in q.cmd("query-named-block-nodes", flat=flat):
        if n["node-name"] == name:
            return n
    raise AssertionError("no node " + name)

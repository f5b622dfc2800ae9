# SPDX-License-Identifier: BSD-3-Clause
"""A booted guest: a Debian kernel with busybox, whose disk is an export.

The kernel and busybox come from Debian's packages, fetched with apt-get
into the build directory and unpacked there; nothing is installed.
"""
import functools
import glob
import os
import re
import shutil
import subprocess
import tempfile

from . import procs
from .daemon import REPO, build_dir

HERE = os.path.join(REPO, "tests", "integration", "guest-kernel")
# In the order in which they can be loaded; ext4 is built in.
MODULES = ["virtio_ring", "virtio", "virtio_pci_legacy_dev",
           "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"]


class Unavailable(Exception):
    """There is no way to boot a guest here; says why."""


def _run(*argv, **kw):
    return subprocess.run([str(a) for a in argv], check=True,
                          capture_output=True, **kw).stdout


def _fetch(directory):
    """Kernel and busybox from the archive, unpacked into directory."""
    depends = _run("apt-cache", "depends", "linux-image-cloud-amd64",
                   text=True)
    kernel = re.search(r"Depends: (linux-image-\S+)", depends)
    if not kernel:
        raise Unavailable("no package of a cloud kernel is known")
    _run("apt-get", "-q", "download", kernel.group(1), "busybox-static",
         cwd=directory)
    for package in glob.glob(os.path.join(directory, "*.deb")):
        _run("dpkg-deb", "-x", package, directory)
        os.unlink(package)


def _initramfs(directory):
    """What the kernel unpacks into memory: busybox, modules, our init."""
    root = os.path.join(directory, "initramfs")
    os.makedirs(os.path.join(root, "bin"))
    os.makedirs(os.path.join(root, "modules"))
    shutil.copy(os.path.join(directory, "bin", "busybox"),
                os.path.join(root, "bin"))
    shutil.copy(os.path.join(HERE, "initramfs-init"),
                os.path.join(root, "init"))
    os.chmod(os.path.join(root, "init"), 0o755)
    for name in MODULES:
        found = glob.glob(os.path.join(directory, "lib", "modules", "*",
                                       "kernel", "**", name + ".ko"),
                          recursive=True)
        shutil.copy(found[0], os.path.join(root, "modules"))
    with open(os.path.join(root, "modules", "order"), "w") as f:
        f.write("".join(m + ".ko\n" for m in MODULES))
    names = sorted(os.path.relpath(os.path.join(d, n), root)
                   for d, dirs, files in os.walk(root) for n in dirs + files)
    archive = _run(os.path.join(directory, "bin", "busybox"), "cpio", "-o",
                   "-H", "newc", cwd=root,
                   input="".join(n + "\n" for n in names).encode())
    with open(os.path.join(directory, "initrd"), "wb") as f:
        f.write(archive)


def kernel():
    """A directory with vmlinuz, initrd and bin/busybox; made once."""
    if not shutil.which("qemu-system-x86_64"):
        raise Unavailable("there is no qemu-system-x86_64")
    final = os.path.join(build_dir(), "guest-kernel")
    if os.path.exists(os.path.join(final, "initrd")):
        return final
    work = final + ".%d" % os.getpid()
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(work)
    try:
        _fetch(work)
        _initramfs(work)
        os.rename(glob.glob(os.path.join(work, "boot", "vmlinuz-*"))[0],
                  os.path.join(work, "vmlinuz"))
        os.rename(work, final)
    except (OSError, subprocess.CalledProcessError) as e:
        if os.path.exists(os.path.join(final, "initrd")):
            return final                # somebody was faster
        raise Unavailable("cannot get a kernel: %s %s" % (
            e, getattr(e, "stderr", ""))) from e
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _machine(accelerator, console, *more):
    boot = kernel()
    cpu = "host" if accelerator == "kvm" else "max"
    return ["qemu-system-x86_64", "-machine", "pc", "-accel", accelerator,
            "-cpu", cpu, "-m", "192", "-nodefaults", "-display", "none",
            "-no-reboot", "-serial", "file:" + console,
            "-kernel", os.path.join(boot, "vmlinuz"),
            "-initrd", os.path.join(boot, "initrd"),
            "-append", "console=ttyS0 panic=-1 quiet", *more]


@functools.lru_cache(None)
def accelerator():
    """kvm where a guest says something under it within 10 s, else tcg."""
    if not os.access("/dev/kvm", os.W_OK):
        return "tcg"
    with tempfile.TemporaryDirectory() as directory:
        console = os.path.join(directory, "console")
        child = procs.Child(_machine("kvm", console), stderr_path=os.path.join(
            directory, "log"))
        try:
            procs.wait_until(
                lambda: not child.alive() or os.path.exists(console) and
                os.path.getsize(console), "a guest speaks", 10, 0.05)
            works = os.path.exists(console) and os.path.getsize(console)
        except AssertionError:
            works = False
        if child.alive():
            child.kill()
        return "kvm" if works else "tcg"


def make_disk(path, size, directory):
    """A raw disk with ext4 from which a guest can boot."""
    root = os.path.join(directory, "guest-root")
    for name in ("bin", "sbin", "dev", "proc", "data"):
        os.makedirs(os.path.join(root, name))
    shutil.copy(os.path.join(kernel(), "bin", "busybox"),
                os.path.join(root, "bin"))
    shutil.copy(os.path.join(HERE, "guest-init"),
                os.path.join(root, "sbin", "init"))
    os.chmod(os.path.join(root, "sbin", "init"), 0o755)
    with open(path, "wb") as f:
        f.truncate(size)
    _run("mkfs.ext4", "-q", "-F", "-d", root, path)
    return path


class Guest:
    """A running machine.  What it said on its console is in lines()."""

    def __init__(self, directory, socket, export):
        self.console = os.path.join(directory, "console.log")
        self.child = procs.Child(_machine(
            accelerator(), self.console,
            "-blockdev", "nbd,node-name=disk,server.type=unix,server.path=%s,"
            "export=%s,reconnect-delay=30,discard=unmap" % (socket, export),
            "-device", "virtio-blk-pci,drive=disk,write-cache=on"),
            mark=procs.new_mark(),
            stderr_path=os.path.join(directory, "guest.log"))

    def lines(self):
        if not os.path.exists(self.console):
            return []
        with open(self.console, errors="replace") as f:
            return f.read().split("\n")[:-1]        # whole lines only

    def durable(self):
        """{number: digest} of files that must be there."""
        files = {}
        for line in self.lines():
            word = line.split()
            if word[:1] == ["SYNCED"] and len(word) == 3:
                files[int(word[1])] = word[2]
            elif word[:1] == ["REMOVED"]:
                files.pop(int(word[1]), None)
            elif word[:1] == ["FAILED"]:
                raise AssertionError("the guest failed: %r" % self.lines())
        return files

    def removed(self):
        return {int(line.split()[1]) for line in self.lines()
                if line.startswith("REMOVED ")}

    def wait_synced(self, number, timeout=90):
        procs.wait_until(
            lambda: not self.child.alive() or max(
                self.durable(), default=0) >= number,
            "the guest has written file %d" % number, timeout, 0.05)
        assert self.child.alive(), self.child.stderr() + "\n".join(
            self.lines()[-20:])

    def cleanup(self):
        if self.child.alive():
            self.child.kill()


def check_file_system(path, directory, digests):
    """A raw image of the guest's disk, as it was at one instant: its journal
    replays, its file system is clean, and the files have their digests."""
    subprocess.run(["e2fsck", "-E", "journal_only", "-fy", path],
                   capture_output=True)
    clean = subprocess.run(["e2fsck", "-fn", path], capture_output=True,
                           text=True)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    out = os.path.join(directory, "files")
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    _run("debugfs", "-R", "rdump /data %s" % out, path)
    for number, digest in sorted(digests.items()):
        name = os.path.join(out, "data", "f%d" % number)
        assert os.path.exists(name), "f%d is not there" % number
        have = _run("sha256sum", name, text=True).split()[0]
        assert have == digest, "f%d has another content" % number

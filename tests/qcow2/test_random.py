# SPDX-License-Identifier: BSD-3-Clause
"""Sequences of all operations over all variants, by us and by QEMU in turn.

After each session of one implementation the image must be clean for
qemu-img check and for ours, and both must read what the model says.
QCOW2_COUNT is the number of sequences, QCOW2_SEED starts them (sequence n has
seed + n, so that a failing one can be run alone with QCOW2_COUNT=1).
"""
import os
import random
import subprocess

from images import (BLOCK_IO, KIB, MIB, Failed, assert_clean, count,
                    create_options, our_check, our_create, qemu_check,
                    qemu_create, qemu_use, random_variant, run, seed)
from model import BACKING, SECTOR, Model

BACKING_BYTES = 2 * MIB + 512


class Sequence:
    def __init__(self, folder, number):
        self.rng = random.Random(number)
        self.folder = folder
        self.v = random_variant(self.rng)
        self.log = ["seed %d" % number, str(self.v)]
        self.path = os.path.join(folder, "i.qcow2")
        self.snapshots = {}
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        size = self.a_size()
        backing = self.rng.randbytes(BACKING_BYTES)
        with open(os.path.join(folder, "backing.raw"), "wb") as f:
            f.write(backing)
        create = self.rng.choice([our_create, qemu_create])
        self.log.append("%s %d" % (create.__name__, size))
        create(self.path, size, create_options(self.v, folder, "i"))
        self.model = Model(size, backing if self.v["backing"] else None)

    def a_size(self):
        return self.rng.randrange(1, 6 * MIB // SECTOR) * SECTOR

    def a_range(self):
        size = self.model.size
        if self.rng.random() < 0.3:
            unit = self.v["cluster_size"]
        else:
            unit = SECTOR
        at = self.rng.randrange(size // SECTOR) * SECTOR // unit * unit
        length = self.rng.choice([SECTOR, 4 * KIB, 64 * KIB, 300 * KIB, MIB,
                                  self.v["cluster_size"]])
        return at, min(length, size - at)

    def a_byte(self):
        return self.rng.randrange(1, 256)

    # --- what discards and zeroes leave ---------------------------------------

    def discarded(self, at, length):
        # version 2 has no zero clusters: the backing file shows again
        values = [0]
        if self.v["backing"] and self.v["compat"] == "0.10":
            values.append(BACKING)
        self.model.may_put(at, length, *values)

    # --- sessions ---------------------------------------------------------------

    def our_command(self):
        kind = self.rng.choice(["write"] * 4 + ["zero", "zero-unmap", "discard",
                                                "compress", "flush", "read"])
        at, length = self.a_range()
        if kind == "write":
            p = self.a_byte()
            self.model.put(at, length, p)
            return "write %d %d %d" % (at, length, p)
        if kind in ("zero", "zero-unmap"):
            self.model.put(at, length, 0)
            return "zero %d %d%s" % (at, length, " unmap" * ("-" in kind))
        if kind == "discard":
            self.discarded(at, length)
            return "discard %d %d" % (at, length)
        if kind == "compress" and not self.v["data_file"]:
            c = self.v["cluster_size"]
            at = at // c * c
            length = min(self.rng.choice([1, 3]) * c, self.model.size - at)
            p = self.a_byte()
            self.model.put(at, length, p)
            return "compress %d %d %d" % (at, length, p)
        if kind == "read":
            return "read %d %d" % (at, length)
        return "flush"

    def our_session(self):
        commands = [self.our_command() for _ in range(self.rng.randrange(14))]
        if not self.snapshots and self.rng.random() < 0.3:
            size = self.a_size()
            self.model.resize(size)
            commands.append("truncate %d" % size)
        dies = self.rng.random() < 0.3
        if dies:
            commands.append("die")
        cache = self.rng.choice([64 * KIB, 32 * MIB])
        self.log.append("block-io -C %d: %s" % (cache, "; ".join(commands)))
        r = subprocess.run([BLOCK_IO, "-u", "-C", str(cache),
                            "qcow2:" + self.path, *commands],
                           capture_output=True, text=True, check=False)
        if r.returncode != (-9 if dies else 0) or "error" in r.stdout:
            raise Failed("exit %d: %s%s" % (r.returncode, r.stdout, r.stderr))
        if dies:
            self.after_death()

    def after_death(self):
        """It costs leaks at most."""
        for res in qemu_check(self.path), our_check(self.path):
            assert res["check-errors"] == 0
            assert res.get("corruptions", 0) == 0
        if self.rng.random() < 0.5:
            our_check(self.path, fix="all")
        else:
            qemu_check(self.path, repair="all")

    def qemu_command(self):
        kind = self.rng.choice(["write"] * 4 + ["write -z", "write -z -u",
                                                "discard"])
        at, length = self.a_range()
        if kind == "write":
            p = self.a_byte()
            self.model.put(at, length, p)
            return "write -P %d %d %d" % (p, at, length)
        if kind == "discard":
            self.discarded(at, length)
        else:
            self.model.put(at, length, 0)
        return "%s %d %d" % (kind, at, length)

    def qemu_compress(self):
        """A session of its own; refused where something is mapped."""
        c = self.v["cluster_size"]
        at = self.a_range()[0] // c * c
        length = min(c, self.model.size - at)
        p = self.a_byte()
        self.model.may_put(at, length, p)
        return "write -c -P %d %d %d" % (p, at, length)

    def qemu_session(self):
        n = self.rng.randrange(14)
        if not self.v["data_file"] and self.rng.random() < 0.2:
            commands = [self.qemu_compress() for _ in range(n)]
        else:
            commands = [self.qemu_command() for _ in range(n)]
        self.log.append("qemu-io: " + "; ".join(commands))
        qemu_use(self.path, *commands, options=["-d", "unmap"])
        if self.v["lazy_refcounts"] == "on" and self.rng.random() < 0.3:
            self.qemu_death()

    def qemu_death(self):
        """QEMU dies and leaves a dirty image, which the next of us to write
        to it repairs.
        """
        at, length = self.a_range()
        p = self.a_byte()
        self.model.put(at, length, p)
        commands = ["write -P %d %d %d" % (p, at, length), "sigraise 9"]
        self.log.append("qemu-io: " + "; ".join(commands))
        run("qemu-io", "-f", "qcow2", "-c", commands[0], "-c", commands[1],
            self.path, ok=(-9,))
        run(BLOCK_IO, "qcow2:" + self.path, "flush")

    def qemu_img(self):
        """Snapshots and resizing."""
        kind = self.rng.choice(["create", "apply", "delete", "resize"])
        may_snapshot = (not self.v["data_file"] and
                        self.v["refcount_bits"] >= 16)
        if kind == "create" and may_snapshot and len(self.snapshots) < 3:
            name = "s%d" % self.rng.getrandbits(30)
            self.log.append("snapshot " + name)
            run("qemu-img", "snapshot", "-c", name, self.path)
            self.snapshots[name] = self.model.copy()
        elif kind == "apply" and self.snapshots:
            name = self.rng.choice(sorted(self.snapshots))
            self.log.append("apply " + name)
            run("qemu-img", "snapshot", "-a", name, self.path)
            self.model = self.snapshots[name].copy()
        elif kind == "delete" and self.snapshots:
            name = self.rng.choice(sorted(self.snapshots))
            self.log.append("delete " + name)
            run("qemu-img", "snapshot", "-d", name, self.path)
            del self.snapshots[name]
        elif kind == "resize" and not self.snapshots:
            size = self.a_size()
            # QEMU 7.2 does not clear the rest of the last cluster, so what
            # a disk lost when it became shorter is there again
            if size > self.model.size % self.v["cluster_size"] > 0:
                size = min(size, self.model.size)
            self.log.append("resize %d" % size)
            run("qemu-img", "resize", "-q", "-f", "qcow2", "--shrink",
                self.path, size)
            self.model.resize(size)

    # --- what must hold after each -----------------------------------------------

    def dump(self, name):
        with open(name, "rb") as f:
            return f.read()

    def is_readable_alone(self, data):
        """What data_file_raw promises; the file may be longer or shorter."""
        alone = self.dump(os.path.join(self.folder, "i.data"))
        assert alone[:len(data)].ljust(len(data), b"\0") == data

    def verify(self):
        ours, theirs = (os.path.join(self.folder, n) for n in ("us", "they"))
        assert_clean(self.path)
        run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.path,
            theirs)
        run(BLOCK_IO, "-r", "qcow2:" + self.path, "dump " + ours)
        data = self.dump(theirs)
        assert self.dump(ours) == data
        if self.v["data_file"] == "raw":
            self.is_readable_alone(data)
        self.model.learn(data)

    def run(self):
        try:
            for _ in range(self.rng.randrange(2, 7)):
                self.rng.choice([self.our_session, self.our_session,
                                 self.qemu_session, self.qemu_img])()
                self.verify()
        except BaseException:
            print("\n".join(self.log))
            raise


# One in so many is on a file system of a disk, which can do what tmpfs cannot.
DISK_EVERY = 8


def test_sequences(folder, fast_folder):
    first = seed()
    for n in range(first, first + count(15)):
        Sequence(fast_folder if n % DISK_EVERY else folder, n).run()

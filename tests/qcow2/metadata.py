# SPDX-License-Identifier: BSD-3-Clause
"""Where the tables of an image are, so that tests can damage them."""
import struct


class Image:
    """A qcow2 image's tables, read anew from the file."""

    def __init__(self, path):
        self.path = path
        with open(path, "rb") as f:
            h = f.read(112)
        (self.version, _, _, self.cluster_bits, self.size, _, self.l1_size,
         self.l1_offset, self.reftable, self.reftable_clusters,
         self.snapshots, self.snapshots_offset) = struct.unpack(
             ">IQIIQIIQQIIQ", h[4:72])
        self.incompat, self.compat, self.autoclear, self.order = \
            struct.unpack(">QQQI", h[72:100]) if self.version > 2 \
            else (0, 0, 0, 4)
        self.cluster = 1 << self.cluster_bits
        self.entry = 16 if self.incompat & 16 else 8

    def read(self, at, n):
        with open(self.path, "rb") as f:
            f.seek(at)
            return f.read(n).ljust(n, b"\0")

    def write(self, at, data):
        with open(self.path, "r+b") as f:
            f.seek(at)
            f.write(data)

    def entries(self, at, n):
        return list(struct.unpack(">%dQ" % n, self.read(at, 8 * n)))

    def put(self, at, value):
        self.write(at, struct.pack(">Q", value))

    def l2_tables(self):
        """(place of the L1 entry, place of the L2 table)"""
        for i, e in enumerate(self.entries(self.l1_offset, self.l1_size)):
            at = e & 0x00fffffffffffe00
            if at:
                yield self.l1_offset + 8 * i, at

    def l2_entries(self):
        """(place, value) of those in use"""
        for _, at in self.l2_tables():
            for i in range(0, self.cluster, self.entry):
                value, = self.entries(at + i, 1)
                if value:
                    yield at + i, value

    def refblocks(self):
        """(place of the table's entry, place of the block)"""
        n = self.reftable_clusters * self.cluster // 8
        for i, e in enumerate(self.entries(self.reftable, n)):
            if e:
                yield self.reftable + 8 * i, e

    def places(self, rng):
        """A place in the metadata: (what, offset of 8 bytes)."""
        tables = list(self.l2_tables())
        blocks = list(self.refblocks())
        kinds = ["reftable", "refblock", "header"]
        if tables:
            kinds += ["l1", "l2", "l2", "l2"]
        what = rng.choice(kinds)
        if what == "reftable":
            return what, rng.choice(blocks)[0]
        if what == "refblock":
            at = rng.choice(blocks)[1]
            # the counts of what is in use stand at the front
            return what, at + 8 * rng.randrange(min(self.cluster // 8, 16))
        if what == "header":
            return what, 8 * rng.randrange(3, 14)
        if what == "l1":
            return what, rng.choice(tables)[0]
        used = list(self.l2_entries())
        return what, rng.choice(used)[0] if used else tables[0][1]

# SPDX-License-Identifier: BSD-3-Clause
"""What a disk holds, sector by sector, and what it may hold.

A sector's content is a byte that fills it, or BACKING: the backing file's.
After an operation that leaves room (a discard, a write that may be refused)
there are several possibilities; what is read then tells which one it was.
"""
import itertools

SECTOR = 512
BACKING = -1


class Model:
    def __init__(self, size, backing=None):
        self.backing = backing # bytes, or None
        self.sectors = []
        self.resize(size)
        if backing is not None:
            n = min(len(backing), size) // SECTOR
            self.sectors[:n] = [frozenset([BACKING])] * n

    @property
    def size(self):
        return len(self.sectors) * SECTOR

    def resize(self, size):
        n = size // SECTOR
        del self.sectors[n:]
        self.sectors += [frozenset([0])] * (n - len(self.sectors))

    def put(self, at, length, value):
        n = length // SECTOR
        at //= SECTOR
        self.sectors[at:at + n] = [frozenset([value])] * n

    def may_put(self, at, length, *values):
        for i in range(at // SECTOR, (at + length) // SECTOR):
            self.sectors[i] |= frozenset(values)

    def copy(self):
        other = Model(0)
        other.backing = self.backing
        other.sectors = list(self.sectors)
        return other

    def bytes_of(self, i, value):
        if value != BACKING:
            return bytes([value]) * SECTOR
        return self.backing[i * SECTOR:(i + 1) * SECTOR].ljust(SECTOR, b"\0")

    def learn(self, data):
        """@data is what the disk holds: it must be possible, and from now on
        it is known.
        """
        assert len(data) == self.size
        at = 0
        for values, run in itertools.groupby(list(self.sectors)):
            n = sum(1 for _ in run)
            if len(values) > 1 or not self.all_are(data, at, n, *values):
                self.learn_each(data, at, n, values)
            at += n

    def all_are(self, data, i, n, value):
        at, end = i * SECTOR, (i + n) * SECTOR
        if value != BACKING:
            return data.count(value, at, end) == end - at
        return data[at:end] == self.backing[at:end].ljust(end - at, b"\0")

    def learn_each(self, data, at, n, values):
        for i in range(at, at + n):
            got = data[i * SECTOR:(i + 1) * SECTOR]
            found = [v for v in values if self.bytes_of(i, v) == got]
            assert found, "sector %d (byte %d) is %r..., expected %s" % (
                i, i * SECTOR, got[:4], sorted(values))
            self.sectors[i] = frozenset([max(found)])

# SPDX-License-Identifier: BSD-3-Clause
"""Images whose metadata make no sense while they are used: clients hear of it,
once, and nothing more is written."""
import os
import sys

import pytest

from stillpoint_test import daemon, guest, qcow2
from stillpoint_test.qmp import backup

sys.path.append(os.path.join(daemon.REPO, "tests", "qcow2"))
from metadata import Image  # noqa: E402

nbd = pytest.importorskip("nbd")
M = 1 << 20
SIZE = 16 * M
OFFSET = 0x00fffffffffffe00
EVENT = "BLOCK_IMAGE_CORRUPTED"
pytestmark = [pytest.mark.needs("stillpoint"),
              pytest.mark.rows("event.BLOCK_IMAGE_CORRUPTED")]


@pytest.fixture
def damaged(dir):
    """damaged(name, where): an image whose first cluster of data is said to be
    at where(image)."""
    def make(name, where):
        p = qcow2.create(os.path.join(dir, name), SIZE)
        qcow2.io(p, "write -P 1 0 64k")
        image = Image(p)
        at, value = next(image.l2_entries())
        place = where(image)
        image.put(at, value & ~OFFSET | place)
        return p, at, place
    return make


def on_the_refcounts(image):
    return next(image.refblocks())[1]


def between_clusters(image):
    return 0x10200


def told(q):
    return [e["data"] for e in q.drain_events() if e["event"] == EVENT]


def test_a_guests_write_that_would_hit_metadata(q, server, damaged, connect):
    p, _, place = damaged("disk", on_the_refcounts)
    q.cmd("blockdev-add", qcow2.blockdev(p))
    q.cmd("block-export-add", type="nbd", id="exp", node_name="disk0",
          name="disk0", writable=True)
    h = connect(server.uri("disk0"))
    for _ in range(2):
        with pytest.raises(nbd.Error) as e:
            h.pwrite(b"x" * 512, 0)
        assert e.value.errnum == 5
    data = q.wait_event(EVENT)["data"]
    assert data.pop("msg")
    assert data == {"device": "exp", "node-name": "disk0", "offset": place,
                    "fatal": True}
    assert len(told(q)) == 1
    assert qcow2.node(q, "disk0")["image"]["format-specific"]["data"][
        "corrupt"]
    assert qcow2.info(p)["format-specific"]["data"]["corrupt"]
    q.cmd("block-export-del", id="exp", mode="hard")
    q.cmd("blockdev-del", node_name="disk0")
    assert q.error("blockdev-add", qcow2.blockdev(p)).desc.endswith(
        "Image is corrupt; cannot be opened read/write")
    q.cmd("blockdev-add", qcow2.blockdev(p, read_only=True))


def test_what_a_backup_cannot_read(q, damaged, disks, dir):
    p, at, _ = damaged("disk", between_clusters)
    q.cmd("blockdev-add", qcow2.blockdev(p))
    guest.make_image(os.path.join(dir, "t"), SIZE)
    q.cmd("blockdev-add", driver="file", node_name="t",
          filename=os.path.join(dir, "t"))
    q.cmd("blockdev-backup", backup("disk0", "t", "j"))
    assert q.wait_job("j")["data"]["error"] == "Input/output error"
    events = told(q)
    assert len(events) == 1 and events[0].pop("msg")
    assert events[0] == {"device": "", "node-name": "disk0",
                         "offset": events[0]["offset"], "fatal": False}
    assert not qcow2.node(q, "disk0")["image"]["format-specific"]["data"][
        "corrupt"]


def test_a_target_that_cannot_be_written(q, damaged, disks):
    disks.add(size=SIZE)
    p, _, place = damaged("t", on_the_refcounts)
    q.cmd("blockdev-add", qcow2.blockdev(p, name="t"))
    q.cmd("blockdev-backup", backup("disk0", "t", "j"))
    assert q.wait_job("j")["data"]["error"] == "Input/output error"
    events = told(q)
    assert len(events) == 1 and events[0].pop("msg")
    assert events[0] == {"device": "", "node-name": "t", "offset": place,
                         "fatal": True}

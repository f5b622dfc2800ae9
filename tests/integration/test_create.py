# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-create: the job, its files, and what it does not touch."""
import os

import pytest

from stillpoint_test import guest

MIB = 1 << 20


def create(q, path, size=MIB, **more):
    q.cmd("blockdev-create", {"job-id": "c", "options": dict(
        {"driver": "file", "filename": path, "size": size}, **more)})
    q.wait_event("JOB_STATUS_CHANGE", {"id": "c", "status": "concluded"})
    (job,) = q.cmd("query-jobs")
    return job


@pytest.mark.rows("jobs.create-choreography")
def test_job_has_qemus_choreography(q, dir):
    path = os.path.join(dir, "new.img")
    job = create(q, path)
    assert [e["data"]["status"] for e in q.events
            if e["event"] == "JOB_STATUS_CHANGE"] == [
                "created", "running", "waiting", "pending", "concluded"]
    assert not [e for e in q.events if e["event"].startswith("BLOCK_JOB")]
    assert job == {"id": "c", "type": "create", "status": "concluded",
                   "current-progress": 1, "total-progress": 1}
    assert q.cmd("query-block-jobs") == []
    e = q.error("block-job-dismiss", id="c")
    assert (e.cls, e.desc) == ("DeviceNotActive", "Block job 'c' not found")
    q.cmd("job-dismiss", id="c")
    assert q.cmd("query-jobs") == []
    assert os.path.getsize(path) == MIB


@pytest.mark.rows("nodes.create-file")
@pytest.mark.parametrize("how", ["off", "falloc", "full"])
def test_space_is_allocated_as_asked_for(q, dir, how):
    path = os.path.join(dir, "new.img")
    assert "error" not in create(q, path, preallocation=how)
    st = os.stat(path)
    assert st.st_size == MIB
    assert (st.st_blocks * 512 >= MIB) == (how != "off")


def test_new_image_can_be_used(q, dir):
    path = os.path.join(dir, "new.img")
    create(q, path)
    q.cmd("blockdev-add", driver="file", node_name="n", filename=path)
    assert q.cmd("query-named-block-nodes")[0]["image"][
        "virtual-size"] == MIB


def test_image_that_is_there_is_emptied(q, dir):
    path = guest.make_image(os.path.join(dir, "a.img"), 2 * MIB,
                            [(0, 2 * MIB)])
    assert "error" not in create(q, path)
    with open(path, "rb") as f:
        assert f.read() == bytes(MIB)


@pytest.mark.rows("nodes.create-existing")
def test_image_in_use_is_left_alone(q, disks):
    path = disks.node("disk0")
    with open(path, "rb") as f:
        before = f.read()
    job = create(q, path)
    assert "Failed to get" in job["error"] and "lock" in job["error"]
    with open(path, "rb") as f:
        assert f.read() == before


@pytest.mark.needs("stillpoint")
def test_file_outside_the_allowed_directories(q, tmp_path):
    path = str(tmp_path / "new.img")
    job = create(q, path)
    assert "outside the allowed directories" in job["error"]
    assert not os.path.exists(path)


@pytest.mark.needs("stillpoint")
def test_file_that_cannot_have_its_size_is_removed(q, dir):
    path = os.path.join(dir, "new.img")
    job = create(q, path, size=1 << 50, preallocation="falloc")
    assert job["error"].startswith("Could not resize file")
    assert not os.path.exists(path)


@pytest.mark.rows("error.63")
@pytest.mark.parametrize("driver", ["raw", "nbd", "null-co"])
def test_other_drivers_make_no_images(q, driver):
    e = q.error("blockdev-create", {"job-id": "c",
                                    "options": {"driver": driver}})
    assert e.desc == "Driver does not support blockdev-create"
    assert q.cmd("query-jobs") == []


@pytest.mark.needs("stillpoint")
def test_bad_arguments_start_no_job(q, dir):
    path = os.path.join(dir, "new.img")
    o = {"driver": "file", "filename": path, "size": MIB}
    assert q.error("blockdev-create", {"job-id": "1", "options": o}).desc == \
        "Invalid job ID '1'"
    assert q.error("blockdev-create", {"job-id": "c", "options": dict(
        o, preallocation="metadata")}).desc == \
        "Unsupported preallocation mode 'metadata'"
    assert q.error("blockdev-create", {"job-id": "c", "options": dict(
        o, size=1 << 63)}).desc == "Image size is too large"
    assert q.cmd("query-jobs") == [] and not os.path.exists(path)


@pytest.mark.needs("stillpoint")
def test_jobs_that_nobody_dismisses_are_limited(q, dir):
    path = os.path.join(dir, "again.raw")
    for i in range(4096):
        q.cmd("blockdev-create", {"job-id": "j%d" % i, "options": {
            "driver": "file", "filename": path, "size": 512}})
        q.wait_event("JOB_STATUS_CHANGE",
                     {"id": "j%d" % i, "status": "concluded"})
        del q.events[:]
    more = {"job-id": "more", "options": {
        "driver": "file", "filename": path, "size": 512}}
    assert "4096 jobs" in q.error("blockdev-create", more).desc
    q.cmd("job-dismiss", id="j7")
    q.cmd("blockdev-create", more)

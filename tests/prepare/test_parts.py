"""Workers that make parts: what a crash costs, how far ahead they may run, and what a part holds."""

import json
import os
import signal
import threading
import time

import pytest

from essl_fast.common.errors import InputError
from essl_fast.data import media, shards
from essl_fast.prepare import parts
from essl_fast.prepare import workers as workers_file
from essl_fast.prepare.tasks import Task, lost_part
from essl_fast.prepare.workers import CRASHED, Worker, make_in_order
from tests.tools.media import make_video
from tests.tools.prepare import hashes, left_out, run, workers_that


@pytest.mark.parametrize("workers", [1, 2])
def test_a_decoder_that_crashes_costs_its_video(world, tmp_path, monkeypatch, workers):
    workers_that(monkeypatch, "workers.make_part = lambda task, to: task.video == 'b' and die(11) or real(task, to)")
    manifest = run(world, tmp_path / "out", workers=workers)
    (entry,) = [left for left in left_out(tmp_path / "out") if left["reason"] == CRASHED]
    assert (entry["video"], entry["key"]) == ("b", None)
    assert entry["detail"] == "b.mp4: its worker was ended by signal 11 (5 pairs)"
    assert len({key.decode().rsplit("_", 1)[0] for key in manifest.keys}) == 5


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_costs_nothing(world, reference, tmp_path, monkeypatch, by):
    flag = tmp_path / "killed"
    workers_that(
        monkeypatch,
        "def make(task, to):\n if task.video == 'b' and not os.path.exists("
        f"{str(flag)!r}): open({str(flag)!r}, 'w'); die({int(by)})\n return real(task, to)\n"
        "workers.make_part = make",
    )
    run(world, tmp_path / "out", workers=2)
    assert flag.exists() and hashes(tmp_path / "out") == hashes(reference)


def test_a_worker_that_is_killed_again_ends_the_run(world, tmp_path, monkeypatch):
    workers_that(monkeypatch, "workers.make_part = lambda task, to: die(9)")
    with pytest.raises(InputError, match=r"by signal 9 \(out of memory\?\) while reading .*mp4: use fewer --workers"):
        run(world, tmp_path / "out", workers=2)


def test_a_worker_that_died_before_its_task_is_replaced(world, reference, tmp_path, monkeypatch):
    real, dead = Worker.start, []

    def start(worker):
        real(worker)
        if not dead:
            dead.append(worker.process.pid)
            worker.process.kill()
            worker.process.wait()

    monkeypatch.setattr(Worker, "start", start)
    run(world, tmp_path / "out")
    assert dead and hashes(tmp_path / "out") == hashes(reference)


@pytest.mark.parametrize(("error", "own"), [("ValueError", False), ("TypeError", True), ("AttributeError", True)])
def test_an_error_nobody_expected_costs_its_video(world, tmp_path, monkeypatch, error, own):
    """And a fault of the program's own, or of a library with another interface, is not said to be the file's."""
    workers_that(
        monkeypatch,
        "from essl_fast.data.media import decode_frames as frames\ndef odd(path, *more):\n"
        f" if path.name == 'b.mp4': raise {error}('odd')\n return frames(path, *more)\n"
        "media.decode_frames = odd",
    )
    run(world, tmp_path / "out")
    reason = media.OWN_FAULT if own else media.UNREADABLE
    entries = [(left["video"], left["detail"]) for left in left_out(tmp_path / "out") if left["reason"] == reason]
    after = " (<string>, line 9); run python -m essl_fast.doctor, and report it" if own else ""
    assert entries == [("b", f"b.mp4: {error}: odd{after} (4 pairs)")]


def test_a_video_that_vanishes_is_left_out(world, tmp_path, monkeypatch):
    real = media.find_video
    monkeypatch.setattr(
        media, "find_video", lambda folder, video: real(folder, video).with_stem(video.strip("b") or "x")
    )
    run(world, tmp_path / "out")
    (entry,) = [left for left in left_out(tmp_path / "out") if left["reason"] == media.UNREADABLE]
    assert entry["video"] == "b" and entry["detail"].startswith("x.mp4: No such file or directory")


def tasks(world, count: int, pairs: int = 1) -> list[tuple[str, Task]]:
    path, asked = world / "videos/a.mp4", tuple((f"{n}", 16 + n, 1.6 + n / 10) for n in range(pairs))
    return [(f"v{n}", Task(f"v{n}", str(path), asked)) for n in range(count)]


class _Instant:
    """A worker that has the part at once; the first video waits for `go`."""

    def __init__(self, folder):
        self.folder = folder

    def make(self, task):
        assert task.video != "v0" or self.go.wait(300)
        self.made.append(task.video)
        return task.lost("odd", "nothing")

    def stop(self):
        self.go.set()

    def close(self):
        pass


@pytest.mark.parametrize("workers, pairs, ahead, expected", [(1, 1, 0, 2), (2, 1, 0, 3), (2, 1, 5, 5), (2, 3, 10, 3)])
def test_a_slow_video_holds_the_others_back(world, tmp_path, monkeypatch, workers, pairs, ahead, expected):
    """What is made before the first video is done: `workers` videos beyond it, or `ahead` pairs if these are more."""
    _Instant.go, _Instant.made = threading.Event(), []
    monkeypatch.setattr(workers_file, "Worker", _Instant)
    handed = []
    asked = ((video, task) for video, task in tasks(world, 20, pairs) if not handed.append(video))
    coming = make_in_order(asked, tmp_path, workers, ahead)

    def go():
        end = time.monotonic() + 200
        while len(handed) <= expected and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)  # for more, which would be too many
        _Instant.go.set()

    threading.Thread(target=go).start()
    assert next(coming)[0] == "v0"
    # one more is taken from the iterator to see that it is too much
    assert handed == [f"v{n}" for n in range(expected + 1)] and len(_Instant.made) <= expected
    assert [video for video, _ in coming] == [f"v{n}" for n in range(1, 20)]
    assert sorted(_Instant.made) == sorted(f"v{n}" for n in range(20))


def test_parts_come_in_order_and_an_index_may_stand_for_a_task(world, tmp_path):
    asked = tasks(world, 5, pairs=3)
    asked[2] = "v2", lost_part(3, media.MISSING, "v2 is not there")
    found = dict(make_in_order(asked, tmp_path, 2))
    assert list(found) == ["v0", "v1", "v2", "v3", "v4"]
    assert found["v2"]["left_out"] == [["", media.MISSING, "v2 is not there (3 pairs)"]]
    assert [len(found[video]["members"]) for video in found] == [3, 3, 0, 3, 3]
    before = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    assert dict(make_in_order(asked, tmp_path, 2)) == found  # parts that are there are taken
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == before and len(before) == 8
    parts.drop_part("v0", tmp_path)
    parts.drop_part("v2", tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_leaving_early_ends_the_workers(world, tmp_path):
    coming = make_in_order(tasks(world, 50), tmp_path, 2)
    next(coming)
    coming.close()
    made = len(list(tmp_path.glob("*.json")))
    time.sleep(0.3)
    assert made < 50 and len(list(tmp_path.glob("*.json"))) == made


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path, world, monkeypatch):
    path = make_video(tmp_path / "videos/v.mp4")
    real = Worker.make

    def make(worker, task):
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # touched at once, it might have the same time again
        return real(worker, task)

    monkeypatch.setattr(Worker, "make", make)
    asked = [("v", Task("v", str(path), (("v_000016", 16, 1.6),)))]
    with pytest.raises(InputError, match=r"the part of v in .* is gone or .*v.mp4 has changed: run again"):
        list(make_in_order(asked, tmp_path / "parts", 1))


def test_a_part_holds_what_its_index_says(world, tmp_path):
    (_, task), folder = tasks(world, 1, pairs=2)[0], tmp_path / "parts"
    parts.make_part(task, folder)
    index = parts.finished_part(task, folder, task.fingerprint())
    data = (folder / "v0.part").read_bytes()
    assert index["bytes"] == len(data) and not index["left_out"] and not index["pictures"]
    for key, (offset, frame, sound, *place, crc) in index["members"].items():
        picture, pcm = data[offset : offset + frame], data[offset + frame : offset + frame + sound]
        assert key in ("0", "1") and place == [shards.JPEG, 0, 0] and picture[:2] == b"\xff\xd8"
        assert len(pcm) == shards.PCM_BYTES and crc == shards.pair_crc(picture, pcm)
    other = Task(task.video, task.path, task.requests, clips=True)
    assert parts.finished_part(task, folder, other.fingerprint()) is None
    for wrong in ({"boot": "another"}, {"bytes": len(data) + 1}):
        (folder / "v0.json").write_text(json.dumps(index | wrong))
        assert parts.finished_part(task, folder, task.fingerprint()) is None

"""What is written is on the disk before it takes its place: the order of fsync and rename, file by file."""

import os
from pathlib import Path

import pytest

from essl_fast import checkpoints
from essl_fast.common.files import atomic_file
from essl_fast.data.shards import ShardWriter
from essl_fast.data.shards.tars import PCM_BYTES
from essl_fast.prepare.dividing import Record
from essl_fast.prepare.slices import Slice
from essl_fast.prepare.tasks import stem_of


@pytest.fixture
def calls(monkeypatch):
    """The calls that reach the disk, in order: (fsync, replace or link; the name of the file)."""
    made = []

    def watch(name, real):
        def call(first, *rest, **more):
            path = os.readlink(f"/proc/self/fd/{first}") if name == "fsync" else rest[0]
            made.append((name, Path(path).name))
            return real(first, *rest, **more)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "link"):
        watch(name, getattr(os, name))
    return made


def test_a_checkpoint(tmp_path, calls):
    checkpoints.save(tmp_path / "last.pt", {"epoch": 0}, keep=2)
    calls.clear()
    checkpoints.save(tmp_path / "last.pt", {"epoch": 1}, keep=2)
    assert calls == [
        ("fsync", ".last.pt.partial"),
        ("link", ".last.pt.link"),  # last.pt is there at every moment
        ("replace", "last-1.pt"),
        ("replace", "last.pt"),
        ("fsync", tmp_path.name),
    ]


def test_an_atomic_file(tmp_path, calls):
    with atomic_file(tmp_path / "a") as file:
        file.write(b"1")
    assert calls == [("fsync", ".a.partial"), ("replace", "a"), ("fsync", tmp_path.name)]


def test_a_shard(tmp_path, calls):
    with ShardWriter(tmp_path, "train") as writer:
        writer.add("a", b"\xff\xd8jpeg", bytes(PCM_BYTES), {}, 0)
    assert calls == [
        ("fsync", ".train-00000.tar.partial"),
        ("fsync", ".train-00000.idx.partial"),
        ("replace", "train-00000.idx"),
        ("fsync", tmp_path.name),
        ("replace", "train-00000.tar"),  # last: a shard that has its name has its index
        ("fsync", tmp_path.name),
    ]


def test_a_part_of_several_machines(tmp_path, calls):
    """Its record comes last; what it does not name goes before."""
    named = [f"{stem_of('a')}.{kind}" for kind in ("json", "part")]
    for name in (*named, "of_before.part", "of_before.json", "settings.json", "lock"):
        (tmp_path / name).write_bytes(b"1")
    Record(Slice(1, 2), {}, {"a": ["", 1, 1, 0]}, {}).write(tmp_path)
    assert sorted(calls[:2]) == [("fsync", name) for name in named]
    assert calls[2:] == [
        ("fsync", tmp_path.name),
        ("fsync", ".record.json.partial"),
        ("replace", "record.json"),
        ("fsync", tmp_path.name),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {*named, "settings.json", "record.json", "lock"}

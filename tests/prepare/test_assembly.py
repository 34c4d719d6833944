"""Shards made as they fill: killed anywhere, the same command ends with the same bytes and makes nothing twice."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from essl_fast.common.errors import InputError
from essl_fast.common.files import sealed, unsealed
from essl_fast.data import media
from essl_fast.data.shards import Manifest, ShardWriter, iterate
from essl_fast.prepare import finishing, prepare, workers
from tests import ROOT
from tests.tools.media import make_video, row, write_annotations
from tests.tools.prepare import arguments, hashes, left_out, run

KILLER = """
import importlib, os, signal, sys, time
from pathlib import Path
from essl_fast.prepare import workers
module, name, calls, in_worker = sys.argv[1], sys.argv[2], int(sys.argv[3]), "WORKER" in os.environ
module = importlib.import_module(module)
holder = getattr(module, name.split(".")[0]) if "." in name else module
real = getattr(holder, name.split(".")[-1])
def dying(*args, **kwargs):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getppid() if in_worker else os.getpid(), signal.SIGKILL)
        time.sleep(900)  # a worker must not outlive its parent
    return real(*args, **kwargs)
if name in ("make_part", "to_pcm16") and not in_worker:
    os.environ["WORKER"] = "yes"
    workers.WORKER = "-c", KILLER, *sys.argv[1:4]
else:
    setattr(holder, name.split(".")[-1], dying)
if in_worker:
    workers.serve(Path(sys.argv[4]), int(sys.argv[5]))
else:
    from essl_fast.prepare.__main__ import main
    sys.exit(main(sys.argv[4:]))
"""
# What the first interpreter runs: it hands the text on to its workers, where the death may have to happen.
KILLER = f"KILLER = {KILLER!r}\nexec(KILLER)\n"


def noted(out: Path) -> dict[str, tuple]:
    """The shards of the journal, each with values that show whether its file was written again."""
    files = [json.loads(path.read_bytes())["shard"]["file"] for path in (out / ".parts/shards").glob("*-*.json")]
    return {name: ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) for name in files}


@contextlib.contextmanager
def interrupted(monkeypatch, holder, name: str, calls: int = 0):
    """Let call number `calls`, from 0, of `holder.name` be a Ctrl-C."""
    with monkeypatch.context() as patch:
        real, left = getattr(holder, name), [calls]

        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        patch.setattr(holder, name, call)
        with pytest.raises(KeyboardInterrupt):
            yield


def remade(monkeypatch) -> list[str]:
    """The videos that are read from now on."""
    made, real = [], workers.Worker.make
    monkeypatch.setattr(workers.Worker, "make", lambda worker, task: made.append(task.video) or real(worker, task))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, name, calls, pairs",
    [
        ("essl_fast.prepare.workers", "make_part", 2, 0),  # between two videos
        ("essl_fast.data.media.audio", "to_pcm16", 6, 0),  # inside a video
        ("essl_fast.data.shards.tars", "ShardWriter.add", 8, 5),  # in the second shard
        ("essl_fast.data.shards.tars", "atomic_file", 1, 5),  # the second shard's index
        ("essl_fast.data.shards.tars", "sync_folder", 2, 10),  # the third shard is there, and not in the journal
        ("essl_fast.prepare.journal", "drop_part", 1, 10),  # in the journal, but its parts not yet removed
        ("essl_fast.data.shards.tars", "ShardWriter.add", 14, 12),  # in the middle of val, the last of train not full
        ("essl_fast.prepare.finishing", "write_manifest", 0, 21),  # all shards there, nothing else
        ("essl_fast.data.shards.writing", "atomic_file", 4, 21),  # in the middle of the columns
        ("essl_fast.prepare.run", "shutil.rmtree", 0, 21),  # all there, but the parts not yet removed
    ],
)
def test_killed_and_continued_ends_with_the_same_bytes(world, reference, tmp_path, module, name, calls, pairs):
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLER, module, name, str(calls), *arguments(world, out, "--workers", "1")]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)  # its workers end, too
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert hashes(out) != hashes(reference)
    before, waiting = noted(out), len(list((out / ".parts").glob("*.part")))
    assert (
        sum(
            Manifest.load(reference).header["splits"][n.split("-")[0]]["shards"][int(n[-9:-4])]["pairs"] for n in before
        )
        == pairs
    )
    command = [sys.executable, "-m", "essl_fast.prepare", *arguments(world, out, "--workers", "2")]
    again = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    if name != "shutil.rmtree" and pairs + waiting:
        assert f"continuing: {pairs} pairs are in {len(before)} shards, {waiting} more videos are read" in told
    assert before == {n: ((out / n).stat().st_ino, (out / n).stat().st_mtime_ns) for n in before}  # never touched
    assert hashes(out) == hashes(reference)


def test_finished_videos_are_not_read_again(world, reference, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with interrupted(monkeypatch, ShardWriter, "add", 8):
        run(world, out)
    assert len(noted(out)) == 1
    for part in (out / ".parts").glob("*.part"):
        part.with_suffix(".json").unlink()  # as if they were not ready
    made = remade(monkeypatch)
    run(world, out)
    assert len(made) == 5 and hashes(out) == hashes(reference)  # the first is in the journal as a whole


def test_parts_wait_on_disk_no_longer_than_needed(world, tmp_path, monkeypatch):
    """6 videos with 4 pairs each (3 in val and test): the parts of at most 2 wait, beside those of the open shard."""
    most, real = [], ShardWriter.add

    def add(writer, *args):
        most.append(len(list((tmp_path / "out/.parts").glob("*.part"))))
        return real(writer, *args)

    monkeypatch.setattr(ShardWriter, "add", add)
    monkeypatch.setattr(workers.make_in_order, "__defaults__", (8,))
    run(world, tmp_path / "out", pairs_per_shard=4)
    assert 1 <= max(most) <= 3 and most[-1] <= 2


def test_parts_do_not_survive_a_restart_of_the_machine(world, reference, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with interrupted(monkeypatch, ShardWriter, "add", 8):
        run(world, out)
    kept = noted(out)
    for index in (out / ".parts").glob("*.json"):
        index.write_bytes(sealed(unsealed(index.read_bytes()) | {"boot": "another"}))
    for part in (out / ".parts").glob("*.part"):
        part.write_bytes(bytes(part.stat().st_size))  # what a power cut may leave of it
    made = remade(monkeypatch)
    run(world, out)
    assert (
        len(made) == 5
        and kept.items() <= {n: ((out / n).stat().st_ino, (out / n).stat().st_mtime_ns) for n in kept}.items()
    )
    assert hashes(out) == hashes(reference)


def change(world: Path, video: str) -> None:
    """The same file, touched: nobody can know that it is the same."""
    path = world / "videos" / f"{video}.mp4"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))


def test_a_video_that_changes_takes_its_shards_with_it(world, reference, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with interrupted(monkeypatch, finishing, "write_manifest"):
        run(world, out)
    before = noted(out)
    order = list(dict.fromkeys(pair["json"]["video"] for n in range(3) for pair in iterate(out / f"train-0000{n}.tar")))
    change(world, order[2])  # its pairs are in the shards 1 and 2
    made = remade(monkeypatch)
    run(world, out, progress=True)
    told = capsys.readouterr().err
    assert f"the file of {order[2]} was changed: train-00001.tar and the shards after it are made again" in told
    assert len(made) == 5 and order[0] not in made  # the second's last pairs are in shard 1, too
    assert before["train-00000.tar"][0] == (out / "train-00000.tar").stat().st_ino
    assert hashes(out) == hashes(reference)


def test_a_missing_video_that_comes_back_is_in_its_place(world, reference, tmp_path, monkeypatch):
    copy, out = tmp_path / "world", tmp_path / "out"
    shutil.copytree(world, copy, copy_function=os.link)
    lost = copy / "videos/c.mp4"
    lost.rename(copy / "c.mp4")
    with interrupted(monkeypatch, finishing, "write_manifest"):
        run(copy, out)
    assert 0 < len(noted(out)) < 6
    (copy / "c.mp4").rename(lost)
    run(copy, out)
    assert hashes(out) == hashes(reference)


def test_a_shard_that_is_lost_is_made_again(world, reference, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with interrupted(monkeypatch, finishing, "write_manifest"):
        run(world, out)
    (out / "train-00002.tar").unlink()
    (out / ".parts/shards/val-00000.json").write_text("{")
    run(world, out, progress=True)
    assert "train-00002.tar is gone or damaged: it and the shards after it are made again" in capsys.readouterr().err
    assert hashes(out) == hashes(reference)


def test_a_run_that_ended_before_its_preview_draws_it_when_it_is_called_again(world, reference, tmp_path):
    out = shutil.copytree(reference, tmp_path / "out")
    (out / "preview.png").unlink()
    (out / ".parts").mkdir()  # which goes last
    run(world, out)
    assert hashes(out) == hashes(reference)


def test_shards_of_other_settings_do_not_stay(world, tmp_path, monkeypatch, capsys):
    with interrupted(monkeypatch, finishing, "write_manifest"):
        run(world, tmp_path / "out", pairs_per_shard=2)
    assert (tmp_path / "out/train-00005.tar").exists()
    run(world, tmp_path / "out", pairs_per_shard=1000, progress=True)
    said = re.search(r"prepare: (\d+) shards of an interrupted run (.*) are made anew", capsys.readouterr().err)
    assert said and int(said[1]) >= 6 and said[2] == "(pairs_per_shard was 2, is 1000)"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "left_out.jsonl", "preview.png", "pairs"} | {
        f"{split}-00000.{kind}" for split in ("train", "val", "test") for kind in ("tar", "idx")
    }


@pytest.mark.slow
def test_parts_of_other_frames_are_made_again(world, tmp_path, monkeypatch):
    with interrupted(monkeypatch, ShardWriter, "add"):
        run(world, tmp_path / "out", frame="middle", workers=6)
    assert list((tmp_path / "out/.parts").glob("*.part"))
    made = remade(monkeypatch)
    notes = write_annotations(tmp_path / "notes", {"a": [row(20, 1.9)], "b": [row(16, 1.5)]}, {"c": [row(21, 2.0)]})
    prepare(world / "videos", notes, tmp_path / "out", workers=1, progress=False, validation=0)
    assert sorted(made) == ["a", "b", "c"]


def test_the_last_shard_of_a_split_knows_the_videos_behind_it(tmp_path, monkeypatch):
    """A video at the end of train that comes back fills the shard that was closed without it."""
    for name in "abt":
        make_video(tmp_path / f"videos/{name}.mp4")
    rows = [row(20, 2.0), row(22, 2.2)]
    write_annotations(tmp_path / "notes", {"a": rows, "b": rows}, {"t": rows})
    (tmp_path / "videos/b.mp4").rename(tmp_path / "b.mp4")
    with interrupted(monkeypatch, finishing, "write_manifest"):
        run(tmp_path, tmp_path / "out", validation=0)
    (tmp_path / "b.mp4").rename(tmp_path / "videos/b.mp4")
    manifest = run(tmp_path, tmp_path / "out", validation=0)
    assert [shard["pairs"] for shard in manifest.header["splits"]["train"]["shards"]] == [4]
    assert hashes(run(tmp_path, tmp_path / "whole", validation=0).root) == hashes(tmp_path / "out")


def test_a_video_that_gives_other_pairs_than_before_is_an_error(world, tmp_path, monkeypatch):
    """For example, because the decoder was replaced meanwhile."""
    out = tmp_path / "out"
    with interrupted(monkeypatch, ShardWriter, "add", 7):
        run(world, out)
    entry = out / ".parts/shards/train-00000.json"
    told = unsealed(entry.read_bytes())
    told["pairs"][-1] += 1
    entry.write_bytes(sealed(told))
    with pytest.raises(InputError, match="does not give the pairs that it gave before: delete .*out and run again"):
        run(world, out)


def test_no_part_can_hold_the_others_up_for_ever(tmp_path, monkeypatch):
    """There are more missing videos, between others, than parts may wait."""
    names = [f"v{n:02d}" for n in range(30)]
    for name in (names[0], names[-1], "t"):
        make_video(tmp_path / f"videos/{name}.mp4")
    write_annotations(tmp_path / "notes", {name: [row(20, 2.0)] for name in names}, {"t": [row(20, 2.0)]})
    monkeypatch.setattr(workers.make_in_order, "__defaults__", (1,))
    assert len(run(tmp_path, tmp_path / "out", validation=0)) == 3
    assert {entry["reason"] for entry in left_out(tmp_path / "out")} == {media.MISSING}


def test_columns_say_what_the_pairs_say(reference):
    manifest = Manifest.load(reference)
    pairs = [pair for split in ("train", "val", "test") for tar, _ in manifest.shards(split) for pair in iterate(tar)]
    assert manifest.crc.tolist() == [zlib.crc32(pair["jpg"] + pair["s16"]) for pair in pairs]
    assert not manifest.visual.any() and manifest.header["jpeg_instead"] == {}
    for column, name in ((manifest.time, "time"), (manifest.labelled, "labelled")):
        assert column.tolist() == [pair["json"][name] for pair in pairs]

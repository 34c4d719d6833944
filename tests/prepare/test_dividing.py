"""A data set that several machines prepare, each a part: joined, it has the bytes that one machine makes."""

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from essl_fast.common.errors import InputError, Notice
from essl_fast.data import shards
from essl_fast.data.datasets import chaotic_world
from essl_fast.data.shards import ShardWriter
from essl_fast.prepare import __main__ as door
from essl_fast.prepare import dividing, parts, prepare, prepare_dataset, prepare_part, print_part, tasks, workers
from essl_fast.prepare.plan import Plan
from essl_fast.prepare.slices import Slice, parse_slice
from tests import ROOT
from tests.prepare.test_assembly import interrupted, remade
from tests.tools.media import make_video, row, write_annotations
from tests.tools.prepare import arguments, hashes

SETTINGS = {"visual": "jpeg", "pairs_per_shard": 5, "workers": 1, "progress": False}


def dataset(world: Path, **settings):
    return chaotic_world(world / "videos", world / "notes", **{"validation": 0.25, **settings})


def part(world: Path, out: Path, number: int, count: int = 2, **settings):
    return prepare_part(dataset(world), out, number, count, **{**SETTINGS, **settings})


def join(world: Path, out: Path, **settings):
    return prepare_dataset(dataset(world), out, join=True, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def halves(world, tmp_path_factory):
    """A folder with both parts of two. Tests work on copies."""
    out = tmp_path_factory.mktemp("halves") / "out"
    for number in (2, 1):
        part(world, out, number)
    return out


@pytest.fixture
def copied(halves, tmp_path):
    return Path(shutil.copytree(halves, tmp_path / "out"))


@pytest.mark.slow
def test_joined_parts_are_what_one_machine_makes(world, reference, copied, monkeypatch):
    read = remade(monkeypatch)
    manifest = join(world, copied)
    assert not read and hashes(copied) == hashes(reference)
    assert len(join(world, copied)) == len(manifest), "a finished folder is opened"
    assert part(world, copied, 1) is None and not (copied / ".parts").exists()


def test_more_parts_than_videos_missing_files_and_clips(tmp_path, capsys):
    for name in ("a", "z"):
        make_video(tmp_path / "videos" / f"{name}.mp4")
    rows = [row(16, 1.5), row(21, 2.0), row(39, 3.8)]
    write_annotations(tmp_path / "notes", {"a": rows, "gone": rows}, {"z": rows})
    asked = {"visual": "clip", "validation": 0.0, "workers": 1, "progress": False}
    prepare(tmp_path / "videos", tmp_path / "notes", tmp_path / "one", **asked)
    for number in (4, 1, 3, 2):
        asked_part = dataset(tmp_path, validation=0.0), tmp_path / "out", number, 4
        made = prepare_part(*asked_part, **SETTINGS | {"visual": "clip"})
        print_part(str(made.part), made.videos, made.lost)
    said = capsys.readouterr().out
    assert said.count(" pairs of 1 video; ") == 2 and said.count(" 0 pairs of 0 videos; ") == 2
    assert said.count("video file missing: 1 time; first: gone{.mp4") == 1
    join_all = dataset(tmp_path, validation=0.0)
    with pytest.raises(InputError, match=r"part 1/4 was made differently \(pairs_per_shard was 5, is 1024\)"):
        prepare_dataset(join_all, tmp_path / "out", visual="clip", progress=False, join=True)
    prepare(tmp_path / "videos", tmp_path / "notes", tmp_path / "five", **asked, pairs_per_shard=5)
    prepare_dataset(join_all, tmp_path / "out", **SETTINGS | {"visual": "clip"}, join=True)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "five") != hashes(tmp_path / "one")


def test_parts_have_about_as_many_pairs_each(world):
    plan = Plan(dataset(world), {"visual": "jpeg", "decoders": None})
    for count in (1, 2, 3, 6, 9):
        found = dividing.shares(plan, count)
        assert sorted(set(found)) == list(range(min(count, len(plan)))), "each video is in one part"
        pairs = [sum(len(plan.videos[at].span) for at, one in enumerate(found) if one == n) for n in range(count)]
        assert max(pairs) - min(pairs) <= 5, "which is what a video has"


def test_a_large_video_has_a_part_for_itself():
    class Planned(SimpleNamespace):
        def __len__(self):
            return len(self.videos)

    pairs = (1, 2, 9, 1, 2, 3)
    plan = Planned(videos=[SimpleNamespace(span=range(number)) for number in pairs])
    assert dividing.shares(plan, 2) == [1, 1, 0, 1, 1, 1]


def test_a_part_is_continued(world, copied, monkeypatch):
    read = remade(monkeypatch)
    record = part(world, copied, 1)
    assert not read and len(record.videos) == 3
    folder = copied / ".parts" / "1-of-2"
    first, second, third = record.videos
    (folder / f"{first}.part").unlink()
    data = bytearray((folder / f"{second}.part").read_bytes())
    data[1000] ^= 1
    (folder / f"{second}.part").write_bytes(data)
    assert part(world, copied, 1) == record and read == [first, second]
    video = world / "videos" / f"{third}.mp4"
    stat = video.stat()
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert part(world, copied, 1) != record and read[2:] == [third]
    os.utime(video, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (folder / dividing.RECORD).unlink()
    (folder / ".left.part.partial").touch()  # of a worker
    assert part(world, copied, 1) == record and read[3:] == [third], "parts of a run that was killed are taken over"
    assert not list(folder.glob(".*.partial"))


def test_what_had_too_little_memory_is_made_again(tmp_path, monkeypatch):
    """Otherwise the part would keep the loss for ever, since the file stays as it is."""
    make_video(tmp_path / "videos" / "a.mp4")
    write_annotations(tmp_path / "notes", {"a": [row(16, 1.5)]}, {"z": [row(16, 1.5)]})
    place = dataset(tmp_path, validation=0.0), tmp_path / "out", 1, 1

    def ask(worker, task):
        return True, workers._answer(task, worker.folder), 0

    def short(*_):
        raise MemoryError

    monkeypatch.setattr(workers.Worker, "_ask", ask)
    with monkeypatch.context() as patch:
        patch.setattr(parts, "decode", short)
        assert sorted(prepare_part(*place, **SETTINGS).lost) == ["a", "z"]
    assert list(prepare_part(*place, **SETTINGS).videos) == ["a"]


def test_a_part_that_lost_nothing_is_continued(tmp_path, monkeypatch):
    make_video(tmp_path / "videos" / "a.mp4")
    write_annotations(tmp_path / "notes", {"a": [row(16, 1.5)]}, {"z": [row(16, 1.5)]})
    read = remade(monkeypatch)
    records = [prepare_part(dataset(tmp_path, validation=0.0), tmp_path / "out", 1, 1, **SETTINGS) for _ in range(2)]
    assert records[0] == records[1] and list(records[0].videos) == ["a"] and read == ["a"]


def test_a_join_is_continued(world, reference, copied, monkeypatch):
    with interrupted(monkeypatch, ShardWriter, "add", 13):
        join(world, copied)
    left = {path.stem for path in (copied / ".parts").glob("*/*.part")}
    assert 0 < len(left) < 5, "what is in shards is not kept twice"
    join(world, copied)
    assert hashes(copied) == hashes(reference)


def wrong(name: str, parts: Path) -> None:
    """Spoil a folder of the two parts."""
    one, two = parts / "1-of-2", parts / "2-of-2"
    match name:
        case "missing":
            shutil.rmtree(two)
        case "none":
            shutil.rmtree(one)
            shutil.rmtree(two)
        case "unfinished":
            (two / dividing.RECORD).unlink()
        case "damaged record":
            (two / dividing.RECORD).write_bytes((two / dividing.RECORD).read_bytes().replace(b"pair", b"pear"))
        case "twice":
            shutil.rmtree(two)
            shutil.copytree(one, two)
        case "of another count":
            shutil.copytree(one, parts / "1-of-3")
        case "damaged":
            path = max(two.glob("*.part"), key=lambda path: path.stat().st_size)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        case "gone":
            next(two.glob("*.part")).unlink()


WRONG = {
    "missing": "--join: part 2/2 is missing in .*parts: make it with --part, or copy it there",
    "none": "holds no part: make them first, with --part 1/N to N/N",
    "unfinished": "2-of-2 is not finished: run the same command with --part 2/2 in place of --join",
    "damaged record": "2-of-2 is damaged: run the same command with --part 2/2 in place of --join",
    "twice": "part 1/2 is there twice, also as .*2-of-2: delete that folder, and make part 2/2",
    "of another count": "holds parts of 2 and 3: delete the folders of all but one number",
    "damaged": r"the data of .* in .*2-of-2 is gone or damaged: make part 2/2 again \(or copy it again\), then join",
    "gone": "in .*2-of-2 is gone or damaged: make part 2/2 again",
}


@pytest.mark.parametrize("name", WRONG)
def test_parts_that_do_not_fit_together(world, copied, name):
    wrong(name, copied / ".parts")
    with pytest.raises(InputError, match=WRONG[name]) as error:
        join(world, copied)
    assert "\n" not in str(error.value) and not (copied / "manifest.json").exists()


def test_parts_of_other_settings_or_annotations(world, copied, tmp_path):
    with pytest.raises(InputError, match=r"part 1/2 was made differently \(visual was jpeg, is clip\)"):
        join(world, copied, visual="clip")
    notes = Path(shutil.copytree(world / "notes", tmp_path / "notes"))
    table = notes / "annotation" / "group" / "a.csv"
    table.write_text(table.read_text().replace("siren", "horn"))
    other = chaotic_world(world / "videos", notes, validation=0.25)
    with pytest.raises(InputError, match=r"part 1/2 was made differently \(the annotations were others\)"):
        prepare_dataset(other, copied, join=True, **SETTINGS)
    with pytest.raises(InputError, match=r"1-of-2 holds part 1/2 made differently \(the annotations were others\)"):
        prepare_part(other, copied, 1, 2, **SETTINGS)
    record = json.loads((copied / ".parts/2-of-2/settings.json").read_bytes())
    assert record["visual"] == "jpeg" and record["format"] == f"{shards.VERSION}.{tasks.VERSION}"


def test_a_part_of_other_settings_than_those_beside_it_is_refused_before_it_is_made(world, tmp_path, monkeypatch):
    out, read = tmp_path / "out", remade(monkeypatch)
    part(world, out, 1)
    made = len(read)
    with pytest.raises(
        InputError,
        match=r"1-of-2 holds part 1/2 made differently \(pairs_per_shard was 5, is 7\), so they cannot be joined: "
        r"give part 2/2 the options of that part, or delete .*1-of-2 and make part 1/2 again",
    ):
        prepare_part(dataset(world), out, 2, 2, **SETTINGS | {"pairs_per_shard": 7})
    assert len(read) == made and not list((out / ".parts" / "2-of-2").glob("*.json"))
    (out / ".parts" / "1-of-2" / "settings.json").write_text("[")  # cut short: who joins will see
    prepare_part(dataset(world), out, 2, 2, **SETTINGS | {"pairs_per_shard": 7})
    assert len(read) > made


def test_a_join_tells_which_videos_are_others_now(world, copied, tmp_path):
    """They are joined as their parts have them, since no video is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        join(world, Path(shutil.copytree(copied, tmp_path / "unchanged")))
    other = Path(shutil.copytree(world, tmp_path / "world"))
    os.utime(other / "videos" / "b.mp4", (1, 1))
    with pytest.warns(
        Notice, match=r"1 video \(b of part ./2\) changed or came after the parts were made, .* delete the folder"
    ):
        join(other, copied)
    assert hashes(copied) == hashes(tmp_path / "unchanged")


def test_what_else_is_refused(world, copied):
    with pytest.raises(InputError, match=r"holds parts of several machines \(1/2, 2/2\): add --join"):
        prepare_dataset(dataset(world), copied, **SETTINGS)
    with pytest.raises(InputError, match="holds parts of 2, not of 5: give --part N/2, or delete them"):
        part(world, copied, 1, 5)
    with pytest.raises(InputError, match="part 3/2: give a number from 1 to the count"):
        part(world, copied, 3)
    with open(copied / ".parts" / "2-of-2" / "lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another prepare is at work on part 2/2 of "):
            part(world, copied, 2)
        assert part(world, copied, 1), "parts do not wait for each other"
    with open(copied / ".parts" / "lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # as a part that is being made
        with pytest.raises(InputError, match="another prepare is at work on "):
            join(world, copied)


def test_a_check_joins_nothing(world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        door.main(arguments(world, tmp_path / "out", "--join", "--check"))
    assert "--join for parts that were: give one of them" in capsys.readouterr().err


def test_which_part_of_a_slurm_array(monkeypatch):
    def array(at, first, last, count):
        for name, value in (("ID", at), ("MIN", first), ("MAX", last), ("COUNT", count)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        return parse_slice("slurm")

    assert array(3, 1, 8, 8) == Slice(3, 8)
    assert array(0, 0, 7, 8) == Slice(1, 8) and array(7, 0, 7, 8) == Slice(8, 8)
    for some in ((3, 3, 3, 1), (5, 1, 7, 4)):  # tasks that are run again; every second one
        with pytest.raises(argparse.ArgumentTypeError, match=r"give \$SLURM_ARRAY_TASK_ID/N"):
            array(*some)
    with pytest.raises(argparse.ArgumentTypeError, match="_ID is 9, in an array of 8 tasks from 1 to 8"):
        array(9, 1, 8, 8)
    with pytest.raises(argparse.ArgumentTypeError, match="SLURM_ARRAY_TASK_MIN is 'one', and must be a number"):
        array(1, "one", 8, 8)
    monkeypatch.delenv("SLURM_ARRAY_TASK_MIN")
    with pytest.raises(argparse.ArgumentTypeError, match="SLURM_ARRAY_TASK_MIN is not set, and must be a number"):
        parse_slice("slurm")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    with pytest.raises(argparse.ArgumentTypeError, match="no job of a Slurm array"):
        parse_slice("slurm")
    assert parse_slice("2/8") == (2, 8)


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "2", "2/", "/8", "a/b", "1/-8", "2/8/9", "1/100001", "٣/4", f"1/{'9' * 5000}"]
)
def test_what_is_no_part(text, capsys):
    with pytest.raises(SystemExit):
        door.main(["--videos", "v", "--annotations", "a", "--out", "o", "--part", text])
    assert "is not a part such as 2/8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part, says", [("1/1", "now run this command with"), ("3/4", "when all 4 parts are there, run this command with")]
)
def test_what_comes_after_a_part(part, says, capsys):
    print_part(part, {}, {})
    assert f"\n{says} --join in place of --part\n" in capsys.readouterr().out


def test_the_command(world, reference, tmp_path, capsys):
    """Two processes at the same time, one by its place in a Slurm array, then the join."""
    out = tmp_path / "out"
    array = {"ID": "1", "MIN": "1", "MAX": "2", "COUNT": "2"}
    environment = os.environ | {f"SLURM_ARRAY_TASK_{name}": value for name, value in array.items()}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-m", "essl_fast.prepare", *arguments(world, out, "--workers", "1", "--part", one)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for one in ("slurm", "2/2")
    ]
    told = [job.communicate(timeout=300)[0].splitlines() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert told[0][0].startswith("part 1/2: ") and told[1][0].startswith("part 2/2: ")
    assert told[0][1] == "when all 2 parts are there, run this command with --join in place of --part"
    assert door.main(arguments(world, out, "--join")) == 0
    assert hashes(out) == hashes(reference)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        door.main(arguments(world, out, "--join", "--part", "1/2"))
    assert "--part does not go with --join" in capsys.readouterr().err

"""The prepare command, end to end on real files: what it writes, how it continues, and what it says of bad input."""

import errno
import fcntl
import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.shards import Manifest, iterate
from essl_fast.prepare import folder, prepare, reporter
from essl_fast.prepare import run as runs
from essl_fast.prepare.__main__ import PROG, main
from tests import ROOT
from tests.tools.media import clicks, make_video, number_of, row, truncate, write_annotations
from tests.tools.prepare import arguments, hashes, left_out, run, workers_that


def test_what_is_written(world, reference):
    manifest = Manifest.load(reference)
    manifest.verify()
    splits = manifest.header["splits"]
    assert {name: (entry["pairs"], entry["videos"]) for name, entry in splits.items()} == {
        "train": (12, 3),
        "val": (3, 1),
        "test": (6, 2),
    }
    assert [shard["pairs"] for shard in splits["train"]["shards"]] == [5, 5, 2]
    assert manifest.classes == ("crash", "siren") and manifest.boxes.shape == (21, 1, 4)
    assert manifest.header["settings"]["frame"] == "start"
    assert manifest.header["settings"]["annotation_size"] == [320, 180]
    assert str(world) not in (reference / "manifest.json").read_text() + (reference / "left_out.jsonl").read_text()
    assert not (reference / ".parts").exists()

    pairs = [pair for split in ("train", "val", "test") for tar, _ in manifest.shards(split) for pair in iterate(tar)]
    assert [pair["row"] for pair in pairs] == list(range(21))
    assert len({pair["key"] for pair in pairs}) == 21
    for row_number, pair in enumerate(pairs):
        told = pair["json"]
        assert pair["key"] == told["key"] == manifest.key(row_number) == f"{told['video']}_{told['fid']:06d}"
        assert told["split"] == ("train", "val", "test")[manifest.split[row_number]]
        assert told["time"] == manifest.time[row_number] and told["labelled"] == manifest.labelled[row_number]
        assert told["class"] == manifest.classes[manifest.class_id[row_number]] == told["classes"][0]
        assert told["labelled"] == (told["fid"] != 18) and told["fid"] in (16, 18, 21, 24)
        boxes = [box for box in manifest.boxes[row_number].tolist() if box[2] > box[0]]
        assert boxes == told["boxes"] == ([[22, 22, 112, 112]] if told["labelled"] else [])
        image = Image.open(io.BytesIO(pair["jpg"]))
        assert image.size == (160, 90) and image.layer[0][1:3] == image.layer[1][1:3] == (1, 1)  # 4:4:4
        assert number_of(np.asarray(image.convert("RGB"))) == told["fid"]
        sound = np.frombuffer(pair["s16"], "<i2")
        assert len(sound) == 48_000
        click = np.argmax(np.abs(sound.astype(int)) > 8000) / 16_000
        assert click == pytest.approx(2.0 - (told["time"] - 1.5), abs=0.005)  # the window is centred on the frame
    for split in ("train", "val", "test"):
        order = [(pair["json"]["video"], pair["json"]["fid"]) for pair in pairs if pair["json"]["split"] == split]
        assert order == sorted(order)


def test_what_is_left_out_is_listed(reference):
    left = left_out(reference)
    counts = {"sound window leaves the audio track": 6, "no box": 3}
    assert Manifest.load(reference).header["left_out"] == counts
    assert len(left) == 9 and {entry["reason"] for entry in left} == set(counts)
    late = [entry for entry in left if entry["key"] == "a_000040"]
    assert late[0]["video"] == "a" and "a.mp4: 3 s around 3.9 s end at 5.4 s, the track has 4." in late[0]["detail"]
    (held_out,) = {pair["json"]["video"] for pair in iterate(reference / "val-00000.tar")}
    no_box = {entry["key"] for entry in left if entry["reason"] == "no box"}  # such a pair can train, and not be scored
    assert no_box == {f"{video}_000018" for video in ("e.1", "ü f", held_out)}


def test_the_number_of_workers_changes_no_byte(world, reference, tmp_path):
    run(world, tmp_path / "out", workers=2)
    assert hashes(tmp_path / "out") == hashes(reference)


def test_the_seed_changes_validation(world, tmp_path):
    held_out = set()
    for seed in (0, 2):
        manifest = run(world, tmp_path / str(seed), seed=seed)
        assert manifest.header["splits"]["val"]["videos"] == 1 and len(manifest) == 21
        held_out.add(manifest.key(manifest.rows("val")[0]))
    assert len(held_out) > 1
    manifest = run(world, tmp_path / "none", validation=0)
    assert manifest.header["splits"]["val"]["pairs"] == 0 and manifest.header["splits"]["train"]["pairs"] == 16


def test_a_finished_folder_is_left_alone(world, reference, tmp_path, monkeypatch, capsys):
    before = hashes(reference)
    monkeypatch.setattr(runs, "assemble", lambda *_: pytest.fail("it worked again"))
    assert main(arguments(world, reference)) == 0
    captured = capsys.readouterr()
    assert captured.err.endswith(f"{reference} is complete: nothing to do\n") and "train" in captured.out
    with pytest.raises(InputError, match=r"prepared differently \(seed was 0, is 7\): choose another --out or de"):
        run(world, reference, seed=7)
    with pytest.raises(InputError, match=r"\(frame was start, is middle\)"):
        run(world, reference, frame="middle")
    with pytest.raises(InputError, match=r"\(visual was jpeg, is clip\)"):
        run(world, reference, visual="clip")
    other = write_annotations(tmp_path / "notes", {"a": [row(16, 1.5)]}, {"c": [row(16, 1.5)]})
    with pytest.raises(InputError, match=r"\(the annotations were others\)"):
        prepare(world / "videos", other, reference, validation=0.25, pairs_per_shard=5, visual="jpeg")
    assert hashes(reference) == before


def test_other_annotations_are_noticed_where_the_machine_chose(world, tmp_path):
    out = tmp_path / "auto"  # what the GPU decodes is among its settings, too
    run(world, out, visual="auto")
    other = write_annotations(tmp_path / "notes", {"a": [row(16, 1.5)]}, {"c": [row(16, 1.5)]})
    with pytest.raises(InputError, match=r"\(the annotations were others\)"):
        prepare(world / "videos", other, out, validation=0.25, pairs_per_shard=5, visual="auto")


def test_a_damaged_folder_is_prepared_again(world, reference, tmp_path, capsys):
    out = tmp_path / "out"
    run(world, out)
    (out / "train-00001.tar").unlink()
    run(world, out, progress=True)
    assert f"{out} is damaged: preparing it again" in capsys.readouterr().err
    assert hashes(out) == hashes(reference)


@pytest.mark.parametrize("step", ["open", "flock"])
def test_one_that_ends_just_now_takes_its_folder_with_it(tmp_path, monkeypatch, step):
    """Then the lock of the file that is gone would keep no third one away."""
    place, real, done = tmp_path / ".parts", {"open": open, "flock": fcntl.flock}, []

    def ends(*words):
        if not done:
            done.append(shutil.rmtree(place))
        return real[step](*words)

    monkeypatch.setattr(*{"open": (folder, "open"), "flock": (fcntl, "flock")}[step], ends, raising=False)
    with folder.own_folder(tmp_path, reporter(False)):
        assert done
        with open(place / "lock") as third, pytest.raises(BlockingIOError):
            real["flock"](third, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_two_at_once(world, tmp_path):
    parts_folder = tmp_path / "out/.parts"
    parts_folder.mkdir(parents=True)
    with open(parts_folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another prepare is at work on .*out: wait for it, or choose another"):
            run(world, tmp_path / "out")
    run(world, tmp_path / "out")


def test_a_folder_with_other_files_is_refused(world, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="holds files that prepare did not make: choose an empty or a new folder"):
        run(world, tmp_path)
    with pytest.raises(InputError, match="precious.txt is a file: --out must name a folder"):
        run(world, tmp_path / "precious.txt")
    (tmp_path / "manifest.json").write_text("[1]")
    with pytest.raises(InputError, match="manifest.json is not a manifest of prepare"):
        run(world, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"precious.txt", "manifest.json"}


def damaged_world(root):
    """One good and several bad videos in training, a good one in the test; (videos, annotations)."""
    videos = root / "videos"
    make_video(videos / "good.mp4")
    make_video(videos / "test.mp4")
    make_video(videos / "silent.mp4", sound=None)
    (videos / "garbage.mp4").write_bytes(bytes(range(256)) * 40)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 90, 160, 3), dtype=np.uint8)
    make_video(videos / "cut.mp4", seconds=6, picture=lambda n: noise[n - 1], container={"movflags": "faststart"})
    truncate(videos / "cut.mp4", 0.7)
    make_video(videos / "short.mp4", seconds=2, sound=clicks(6, 16_000))
    rows = [row(20, 2.0), row(22, 2.2)]
    train = {
        "good": [*rows, row(23, 2.3, "[[400, 10, 420, 40]]")],
        "missing": rows,
        "silent": rows,
        "garbage": rows,
        "cut": [row(18, 1.7), row(40, 3.9)],
        "short": [row(20, 2.0), row(30, 3.0)],
        "unnoted": [],
    }
    write_annotations(root / "notes", train, {"test": rows})
    return videos, root / "notes"


def test_every_kind_of_bad_input_is_counted_and_listed(tmp_path, capsys):
    videos, notes = damaged_world(tmp_path)
    out = tmp_path / "out"
    command = ["--videos", str(videos), "--annotations", str(notes), "--out", str(out), "--validation", "0"]
    assert main([*command, "--workers", "2"]) == 0
    told = capsys.readouterr()
    entries = {(left["video"], left["key"]): (left["reason"], left["detail"]) for left in left_out(out)}
    expected = {
        ("missing", None): ("video file missing", "missing{.mp4,.mkv,.webm,.avi,.mov} is not in videos/ (2 pairs)"),
        ("silent", None): ("no audio track", "silent.mp4 has none; add one or take the video out of the lists"),
        ("garbage", None): (
            "video file unreadable",
            "garbage.mp4: Invalid data found when processing input; it may be incomplete: fetch it again (2 pairs)",
        ),
        ("cut", "cut_000040"): ("sound truncated or damaged", "3 s around 3.9 s: cut.mp4: "),
        ("short", "short_000030"): ("frame past the end of the video", "short.mp4: frame 30 at 3 s, it has 20 frames"),
        ("good", "good_000023"): ("box outside the frame", "good.csv line 4: box [400, 10, 420, 40] of a 320x180"),
        ("unnoted", None): ("no annotations", "annotation/group/unnoted.csv has a header and no row"),
    }
    assert entries.keys() == expected.keys()
    for place, (reason, detail) in expected.items():
        assert entries[place][0] == reason and entries[place][1].startswith(detail), entries[place]
        assert reason.split()[0] in told.out
    assert "15 annotation rows were read: 0 share" in told.err
    assert "left_out.jsonl" in told.out.replace("\n", "") and str(tmp_path) not in (out / "left_out.jsonl").read_text()
    assert Manifest.load(out).header["splits"]["train"]["pairs"] == 4

    assert main([*command, "--strict"]) == 1  # a finished folder keeps its answer
    err = capsys.readouterr().err
    assert (
        "strict: 7 entries were left out" in err and "nothing to do; 4 videos or pairs were left out for faults" in err
    )


def test_strict_accepts_windows_that_leave_the_track(tmp_path):
    make_video(tmp_path / "videos/a.mp4")
    make_video(tmp_path / "videos/b.mp4")
    write_annotations(tmp_path / "notes", {"a": [row(5, 0.4), row(20, 2.0)]}, {"b": [row(20, 2.0)]})
    places = ["--videos", str(tmp_path / "videos"), "--annotations", str(tmp_path / "notes")]
    assert main([*places, "--strict", "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    assert Manifest.load(tmp_path / "out").header["left_out"] == {media.WINDOW: 1}


def test_a_truncated_video_keeps_the_pairs_before_the_cut(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (100, 90, 160, 3), dtype=np.uint8)
    path = tmp_path / "videos/a.mp4"
    make_video(path, seconds=10, picture=lambda n: noise[n - 1], container={"movflags": "faststart"})
    truncate(path, 0.6)
    rows = [row(fid, fid / 10) for fid in range(16, 85, 4)]
    write_annotations(tmp_path / "notes", {}, {"a": rows})
    manifest = prepare(tmp_path / "videos", tmp_path / "notes", tmp_path / "out", workers=1, progress=False)
    kept = sorted(int(key.decode()[-6:]) for key in manifest.keys)
    assert kept == list(range(16, kept[-1] + 1, 4)) and 32 <= kept[-1] <= 52
    left = left_out(tmp_path / "out")
    assert len(left) == len(rows) - len(kept)
    assert all(entry["reason"].endswith("truncated or damaged") and "of 10.0" in entry["detail"] for entry in left)


def test_no_pair_left_says_why(tmp_path):
    make_video(tmp_path / "videos/a.mp4")
    make_video(tmp_path / "videos/b.mp4", sound=None)
    write_annotations(tmp_path / "notes", {"a": [row(20, 2.0)]}, {"b": [row(20, 2.0), row(21, 2.1)], "c": []})
    with pytest.raises(InputError, match=r"no pair is left for the split test of 2 videos; most often: no a") as error:
        prepare(tmp_path / "videos", tmp_path / "notes", tmp_path / "out", workers=1, progress=False)
    listing = tmp_path / "out/.parts/left_out.jsonl"
    assert str(listing) in str(error.value) and len(listing.read_text().splitlines()) == 2
    assert not (tmp_path / "out/manifest.json").exists()
    make_video(tmp_path / "videos/b.mp4")  # mended: the same command goes on
    assert len(prepare(tmp_path / "videos", tmp_path / "notes", tmp_path / "out", workers=1, progress=False)) == 3


def test_middle_policy_asks_the_video_for_its_frame_rate(tmp_path):
    make_video(tmp_path / "videos/a.mp4", seconds=6)
    notes = write_annotations(
        tmp_path / "notes",
        {"a": ['20,1.9,30,"[[0,0,32,18]]",siren']},
        {},
        header="start_fid,start_time,end_fid,bbox,ssl",
    )
    manifest = prepare(tmp_path / "videos", notes, tmp_path / "out", frame="middle", workers=1, progress=False)
    assert manifest.key(0) == "a_000025" and manifest.time[0] == pytest.approx(1.9 + 0.5)


def test_a_file_system_without_locks(world, reference, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available")))
    run(world, tmp_path / "out", progress=True)
    assert "out has no locks (No locks available): make sure that no other prepare" in capsys.readouterr().err
    assert hashes(tmp_path / "out") == hashes(reference)


@pytest.mark.parametrize("gone", [("stdout",), ("stderr",), ("stdout", "stderr")], ids=" and ".join)
def test_a_closed_terminal_does_not_end_it(world, reference, tmp_path, monkeypatch, gone):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    for name in gone:
        monkeypatch.setattr(sys, name, Gone())
    code = main([*arguments(world, tmp_path / "out"), "--workers", "1"])
    monkeypatch.undo()
    assert code == 0 and hashes(tmp_path / "out") == hashes(reference)


def test_a_folder_that_cannot_be_written(world, tmp_path, monkeypatch):
    workers_that(monkeypatch, "def full(*_): raise OSError(28, 'No space left on device')\nos.replace = full")
    with pytest.raises(InputError, match="cannot make a part in .*No space left on device.*; free some space"):
        run(world, tmp_path / "out")


def test_prepare_works_in_a_script_without_a_guarded_main(world, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom essl_fast.prepare import prepare\n"
        f"print(len(prepare({str(world / 'videos')!r}, {str(world / 'notes')!r}, 'out', workers=2)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) >= 20, done.stderr
    assert done.stderr.splitlines()[-1].startswith("prepare: ") and done.stderr.count("videos (") <= 10


def test_errors_of_the_command(world, tmp_path, capsys):
    out = ["--out", str(tmp_path / "o")]
    given = ["--videos", str(tmp_path / "no"), "--annotations", str(world / "notes"), *out]
    assert command(lambda: main(given), PROG) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{PROG}: error: ") and error.count("\n") == 1 and "no is not a folder" in error
    (tmp_path / "notes/annotation/group").mkdir(parents=True)
    (tmp_path / "notes/annotation/group/a.csv").write_text("")
    (tmp_path / "notes/train_ssl.txt").write_text("a\n")
    (tmp_path / "notes/test_ssl.txt").write_text("")
    with pytest.raises(InputError, match="a.csv is empty"):
        main(["--videos", str(tmp_path), "--annotations", str(tmp_path / "notes"), *out])
    assert not (tmp_path / "o").exists()
    for settings in ({"workers": 0}, {"pairs_per_shard": 0}):
        with pytest.raises(InputError, match="is 0: give 1 or more"):
            run(world, tmp_path / "o", **settings)
    with pytest.raises(InputError, match="visual is 'png': choose one of auto, clip, jpeg"):
        run(world, tmp_path / "o", visual="png")
    for given in ([], ["--videos", str(world / "videos")], ["--verify", "--annotations", str(world / "notes")]):
        with pytest.raises(SystemExit, match="2"):
            main([*given, *out])
        assert "give --videos and --annotations" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments(world, tmp_path / "o"), "--annotation-size", "320"])
    assert "must be width x height in pixels, such as 320x180, got '320'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for option in "frame row-boxes annotation-size validation seed workers strict visual verify".split():
        assert f"--{option}" in text

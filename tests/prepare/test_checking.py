"""`prepare --check`: what is missing or wrong is told from headers alone, before anything is prepared."""

import json
from unittest import mock

import av
import numpy as np
import pytest
from PIL import Image

from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.data.datasets import annotations, chaotic_world
from essl_fast.data.media import audio, decoding, probing, stills
from essl_fast.data.shards import Manifest
from essl_fast.prepare import __main__ as door
from essl_fast.prepare import check, checking, reporter
from tests.tools.datasets import make_flickr
from tests.tools.media import VP9, clicks, make_video, row, truncate, write_annotations

RIGHT = [row(16, 1.5), row(21, 2.0), row(24, 2.3)]


def call(*words) -> int:
    try:
        return command(lambda: door.main([str(word) for word in words]), door.PROG)
    except SystemExit as ended:
        return ended.code


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two videos with right annotations, and the words of the command."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "t"):
        make_video(tmp_path / "videos" / f"{name}.mp4")
    annotate(tmp_path)
    return tmp_path


WORDS = ["--check", "--videos", "videos", "--annotations", "notes"]


def annotate(place, rows=RIGHT, video="b"):
    write_annotations(place / "notes", {"a": RIGHT, video: rows}, {"t": RIGHT})


def files(place):
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


def test_what_is_right_is_told_and_drawn_and_nothing_else_is_decoded_or_written(here, capsys):
    before, probed = files(here), []

    def probe(path, own=probing.probe):
        probed.append(path)
        return own(path)

    with (
        mock.patch.object(audio, "decode_sound", side_effect=AssertionError("sound was decoded")),
        mock.patch.object(checking.media, "probe", probe),
    ):
        assert call(*WORDS) == 0
    assert len(probed) == 9  # for the pictures of preview.png: nine pairs
    said = capsys.readouterr().out
    assert "nothing is wrong" in said and "preview.png" in said and "train" in said
    after = files(here)
    assert after.keys() - before.keys() == {"preview.png"} and before.items() <= after.items()
    sheet = np.asarray(Image.open(here / "preview.png").convert("RGB")).astype(int)
    green = (sheet[..., 1] > 200) & (sheet[..., 0] < 60)
    assert sheet.shape == (3 * 134, 4 * 160, 3) and green[:90, :160].any() and not green[2 * 134 :, 160:].any()


def test_the_folder_that_got_the_preview_can_be_prepared(here):
    assert call(*WORDS, "--out", "new/prepared") == 0
    assert [path.name for path in (here / "new/prepared").iterdir()] == ["preview.png"]
    assert call(*WORDS[1:], "--out", "new/prepared", "--visual", "jpeg", "--workers", "1") == 0
    assert len(Manifest.load(here / "new/prepared")) == 9


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no video at all")


WRONG = {  # what happens to b.mp4, or its rows -> reason, part of the line
    "missing": (lambda path: path.unlink(), RIGHT, media.MISSING, "(3 pairs)"),
    "empty": (empty, RIGHT, media.UNREADABLE, "b.mp4"),
    "no video": (text, RIGHT, media.UNREADABLE, "b.mp4"),
    "cut off": (lambda path: truncate(path, 0.5), RIGHT, media.UNREADABLE, "b.mp4"),
    "silent": (lambda path: make_video(path, sound=None), RIGHT, media.NO_SOUND, "b.mp4 has none"),
    "past the end": (None, [row(16, 1.5), row(99, 9.8)], media.PAST_END, "b_000099: b.mp4: frame 99"),
    "one past the end": (None, [row(41, 2.0)], media.PAST_END, "b_000041"),
    "frame 0": (None, [row(0, 2.0), row(16, 1.5)], annotations.BAD_FRAME, "b"),
    "box outside": (None, [row(16, 1.5, "[[330, 10, 340, 20]]")], annotations.OUTSIDE, "b"),
    "box inverted": (None, [row(16, 1.5, "[[50, 10, 40, 20]]")], annotations.INVERTED, "b"),
    "no table": ("table", RIGHT, annotations.NO_FILE, "b"),
    "empty table": (None, [], annotations.NO_ROWS, "b"),
    "other rate": (None, [row(16, 0.75), row(21, 1.6)], checking.CONTRADICTION, "in 2 of 2 pairs"),
    "other size": (None, [row(16, 1.5, "[[900, 500, 1900, 1000]]")], checking.SIZE, "--annotation-size"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_a_line_with_its_file(here, capsys, what):
    happens, rows, reason, told = WRONG[what]
    if what.startswith("box") or what == "other size":  # of the test split, where pairs must be scored
        write_annotations(here / "notes", {"a": RIGHT}, {"t": RIGHT, "b": rows})
    else:
        annotate(here, rows)
    if callable(happens):
        happens(here / "videos" / "b.mp4")
    elif happens == "table":
        (here / "notes/annotation/group/b.csv").unlink()
    assert call(*WORDS, "--validation", "0") == 1
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith(f"{reason}: ")]
    assert lines and told in lines[0] and "something is wrong" in said.out and "Traceback" not in said.err
    assert (here / "preview.png").exists() and sorted(path.name for path in here.iterdir()) == [
        "notes",
        "preview.png",
        "videos",
    ]


def test_what_was_read_is_counted_and_what_cannot_be_used_is_not_drawn(here, monkeypatch):
    make_video(here / "videos/b.mp4", sound=None)
    drawn = []
    monkeypatch.setattr(checking, "draw_preview", lambda path, pictures: drawn.extend(pictures))
    found = check(chaotic_world(here / "videos", here / "notes", validation=0), here, reporter(False))
    assert found.videos == {"train": 2, "val": 0, "test": 1} and found.pairs == {"train": 6, "val": 0, "test": 3}
    assert list(found.wrong) == [media.NO_SOUND]
    assert sorted({key.partition("_")[0] for key, *_ in drawn}) == ["a", "t"] and len(drawn) == 6


def test_pairs_whose_sound_leaves_the_track_are_no_fault(here, capsys):
    annotate(here, [row(2, 0.1), *RIGHT, row(39, 3.8)])
    assert call(*WORDS) == 0
    assert f"2 pairs would be left out, as always: {media.WINDOW} (first: b_000002: 3 s" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["mkv", "webm", "avi", "mov", "mp4"])
def test_headers_tell_what_packets_tell(tmp_path, kind):
    """Frames, rate, size and sound of every container; no frame that is there counts as past the end."""
    options = VP9 if kind == "webm" else {"sound_codec": "pcm_s16le"} if kind in ("avi", "mkv", "mov") else {}
    path = make_video(tmp_path / f"v.{kind}", **options)
    seen, read = media.glance(path), media.probe(path)
    assert seen.place(40, 3.9) is not None and len(seen.pts) - 40 in (0, 1) and len(read.pts) == 40
    assert seen.constant and seen.frame_rate == pytest.approx(10, rel=0.03) and seen.audio
    assert seen.shown_size == read.shown_size == (160, 90) and seen.sound_end == pytest.approx(read.sound_end, abs=0.15)


def test_where_the_rate_varies_the_time_decides(tmp_path):
    pts = np.cumsum([0, *([1, 3] * 20)]).tolist()  # mean rate 5
    path = make_video(tmp_path / "videos/b.mkv", pts=pts, ticks=10, sound=clicks(9, 16_000), sound_codec="pcm_s16le")
    make_video(tmp_path / "videos/t.mp4")
    write_annotations(tmp_path / "notes", {"b": [row(11, 2.0), row(21, 4.0)]}, {"t": RIGHT})
    dataset = chaotic_world(tmp_path / "videos", tmp_path / "notes", validation=0)
    assert not media.glance(path).constant or not media.probe(path).constant
    assert check(dataset, tmp_path, reporter(False)).wrong == {}


def test_a_file_without_a_length_is_read(tmp_path):
    """A recording that was broken off: its header says nothing, its packets do."""
    path = make_video(tmp_path / "v.mkv", sound_codec="pcm_s16le", container={"live": "1"})
    with av.open(str(path)) as file:
        assert not file.duration
    assert len(media.glance(path).pts) == len(media.probe(path).pts) == 40


def test_pictures_and_sound_files_are_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    boxes = {name: [[10, 10, 60, 60]] * 3 for name in ("3", "4")}
    make_flickr(tmp_path / "data", ["1", "2", "5"], ["3", "4"], boxes)
    words = ["--check", "--dataset", "flickr", "--data", "data", "--train-list", "data/flickr_10k.txt"]
    words += ["--test-list", "data/flickr_test.csv"]
    with mock.patch.object(audio, "decode_sound", side_effect=AssertionError("sound was decoded")):
        assert call(*words) == 0
        (tmp_path / "data/frames/1.jpg").write_bytes(b"no picture")
        (tmp_path / "data/audio/2.wav").write_bytes(b"no sound")
        assert call(*words) == 1
    said = capsys.readouterr().out
    assert f"{stills.BAD_PICTURE}: 1: 1.jpg" in said and f"{media.UNREADABLE}: 2: 2.wav" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--check", "--verify", "--out", "x"], "--check is for what was not prepared yet"),
        (["--check"], "give --videos and --annotations"),
        (["--videos", "v", "--annotations", "a"], "required: --out"),
        (["--verify"], "required: --out"),
        ([*WORDS, "--against", "videos"], "--against goes with --verify"),
        ([*WORDS, "--out", "notes/train_ssl.txt"], "--out: notes/train_ssl.txt is no folder"),
        (["--check", "--videos", "nowhere", "--annotations", "notes"], "nowhere is not a folder"),
    ],
)
def test_options_that_do_not_go_together(here, capsys, words, said):
    assert call(*words) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (here / "preview.png").exists()


def test_many_faults_of_a_kind_are_counted(here, capsys):
    annotate(here, [row(16, 1.5), *(row(fid, fid / 10) for fid in range(100, 220))])
    assert call(*WORDS) == 1
    said = capsys.readouterr().out
    assert said.count(f"{media.PAST_END}: b_0") == 50 and f"{media.PAST_END}: and 70 more" in said


def test_a_data_set_that_cannot_be_stored_is_refused(here):
    dataset = chaotic_world(here / "videos", here / "notes")
    dataset.annotations.pairs._boxes.extend([0, 0, 999, 999])
    dataset.annotations.pairs._box_end[-1] += 1
    with pytest.raises(InputError, match="outside of the 224 grid"):
        check(dataset, here, reporter(False))


def test_nothing_but_the_preview_is_decoded(here):
    decoded = []

    def decode_frames(path, requests, found=None, own=decoding.decode_frames):
        decoded.extend(requests)
        return own(path, requests, found)

    with mock.patch.object(checking.media, "decode_frames", decode_frames):
        annotate(here, [row(fid, (fid - 1) / 10) for fid in range(16, 26)])
        assert call(*WORDS) == 0
    assert len(decoded) == 16
    assert json.loads(json.dumps(decoded))  # plain numbers, of which a message could be made

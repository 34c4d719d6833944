"""What the page makes of a video, and the one line that it shows of every error."""

import json
import os
import sys

import numpy as np
import pytest

from essl_fast.app import Answer, Limits, answer, work
from essl_fast.app import __main__ as door
from essl_fast.app.blocks import about, said, table
from essl_fast.app.work import HEADS
from essl_fast.common.commands import command
from essl_fast.localize import SoundFinder
from tests.export.conftest import make_run
from tests.tools.media import make_video


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    return SoundFinder.open(make_run(tmp_path_factory.mktemp("run")), "cpu")


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * 16_000)).astype(np.float32)


def test_a_video(finder, tmp_path):
    path, folder = make_video(tmp_path / "v.mp4", seconds=2, sound=noise(2)), tmp_path / "work"
    folder.mkdir()
    found = answer(finder, path, folder, Limits(), rate=2, min_score=-1)
    assert not found.failed and found.said[0] == "4 of 4 moments are shown."
    assert "knows its 2 toy objects only (bell, car)" in found.said[1]
    assert all(file.is_file() for file in (found.overlay, found.sheet, found.moments))
    told = json.loads(found.moments.read_text())["moments"]
    assert [row[0] for row in found.rows] == ["0.00", "0.50", "1.00", "1.50"]
    assert [row[1] for row in found.rows] == [f"{moment['score']:.3f}" for moment in told]
    assert all(len(row) == len(HEADS) and row[3].count(",") == 3 for row in found.rows)  # a box
    again = answer(finder, path, folder, Limits(), rate=1, min_score=0.5101)  # the model's own is 0.51
    assert all("is below 0.510" in row[3] for row in again.rows)  # why there is none
    assert any("stay dark" in line for line in again.said)
    assert len(list(folder.iterdir())) == 1  # the results of earlier videos are gone


@pytest.mark.parametrize(
    "kind, words",
    [
        ("none", "give a video first"),
        ("long", "v.mp4 lasts 2 s, and this page takes 1 (--max-seconds)"),
        ("large", "v.mp4 has 2 MB, and this page takes 1 (--max-mb)"),
        ("no video", "video file unreadable: v.mp4"),
        ("no sound", "v.mp4 has no audio track"),
    ],
)
def test_errors_are_one_line(finder, tmp_path, kind, words):
    path = tmp_path / "v.mp4"
    if kind == "no video":
        path.write_text("<b>no\nvideo</b>")
    elif kind != "none":
        make_video(path, seconds=2.2, sound=None if kind == "no sound" else noise(2))
    if kind == "large":
        os.truncate(path, 2_000_000)
    (tmp_path / "work").mkdir()
    found = answer(
        finder,
        None if kind == "none" else path,
        tmp_path / "work",
        Limits(megabytes=1, seconds=1 + 9 * (kind != "long")),
    )
    assert found.failed and found.overlay is None and len(found.said) == 1
    assert words in found.said[0] and "\n" not in found.said[0] and str(tmp_path) not in found.said[0]


def test_whatever_happens_the_page_stays(finder, tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=0.5)
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(work, "localize", lambda *_, **__: 1 / 0)
    assert answer(finder, path, tmp_path / "work", Limits()).said == ["ZeroDivisionError: division by zero"]


def test_lines_are_escaped():
    found = Answer(["<script>alert('x')</script>"], failed=True, rows=[["<script>"] * len(HEADS)])
    assert "<script" not in said(found) + table(found) and 'class="wrong"' in said(found)


def test_lines_are_sentences():
    found = Answer(["this is one", "v.mp4 has no audio track", "it ends."], failed=True)
    assert '<p class="wrong">This is one.</p>' in said(found) and ">v.mp4 has no audio track.</p>" in said(found)
    assert ">It ends.</p>" in said(found)


def test_what_stands_above(finder):
    text = about(finder, Limits(megabytes=3, seconds=4))
    assert str(finder.path) in text and "\n\nThis model was trained on the demo" in text
    assert "means nothing. Upload a video with sound, of up to 3 MB and 4 s." in text


def test_without_gradio(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command(lambda: door.main(["--checkpoint", str(tmp_path)]), door.PROG) == 2
    error = capsys.readouterr().err
    assert "gradio cannot be imported" in error and "pip install" in error and error.count("\n") == 1

"""What prepare says, and keeps, where a file, a disk, an option or a terminal is not as usual; without a world."""

import io
import json
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.data import media, shards
from essl_fast.data.datasets import Dataset
from essl_fast.data.media import nvdec
from essl_fast.prepare import decoders, notes, parts, prepare_dataset, prepare_part, reporting, run, verifying
from essl_fast.prepare.decoding import Stored
from essl_fast.prepare.tasks import Task


def task_of(folder, pairs: int = 3) -> Task:
    path = folder / "a.mp4"
    path.write_bytes(b"a video")
    return Task("a", str(path), tuple((f"a_{n:06d}", n, n / 10) for n in range(1, pairs + 1)))


@pytest.mark.parametrize(
    ("error", "reason", "detail", "again"),
    [
        (media.MediaError("frame damaged", "a.mp4: no key frame"), "frame damaged", "a.mp4: no key frame", False),
        (MemoryError(), media.UNREADABLE, "a.mp4: MemoryError: the memory was not enough", True),
        (ValueError("the stream ends"), media.UNREADABLE, "a.mp4: ValueError: the stream ends", False),
        (TypeError("no keyword x"), media.OWN_FAULT, "a.mp4: TypeError: no keyword x (test_refusals.py, line", False),
    ],
)
def test_what_ends_a_video_is_kept_with_the_pairs_before_it(tmp_path, monkeypatch, error, reason, detail, again):
    task = task_of(tmp_path)

    def decode(task, losses):
        yield Stored(task.requests[0][0], b"frame", 0, 0, 0, b"sound")
        raise error

    monkeypatch.setattr(parts, "decode", decode)
    part = parts.make_part(task, tmp_path / "parts")
    assert list(part["members"]) == ["a_000001"]
    ((key, said, text),) = part["left_out"]
    assert (key, said) == ("", reason) and text.startswith(detail) and text.endswith("(2 pairs)")
    assert ("again" in part) == again
    kept = parts.finished_part(task, tmp_path / "parts", task.fingerprint())
    assert kept == json.loads(json.dumps(part))
    monkeypatch.setattr(parts, "_boot", lambda: "another")  # the machine was started again
    assert parts.finished_part(task, tmp_path / "parts", task.fingerprint()) is None


def test_a_disk_that_fails_is_not_the_videos_fault(tmp_path, monkeypatch):
    def decode(task, losses):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(parts, "decode", decode)
    with pytest.raises(OSError, match="No space left"):
        parts.make_part(task_of(tmp_path), tmp_path / "parts")
    assert not list((tmp_path / "parts").iterdir())


def test_a_machine_that_does_not_tell_its_start(monkeypatch):
    def gone(*_):
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr(parts.Path, "read_text", gone)
    assert getattr(parts._boot, "__wrapped__", parts._boot)() == ""


SETTINGS = {"visual": "jpeg", "decoder": "auto"}


@pytest.mark.parametrize(
    ("settings", "able", "said"),
    [
        (SETTINGS, {"h264": [1, 1, 2, 2]}, "NVDEC decodes h264, PyAV the rest"),
        (SETTINGS, {}, "PyAV decodes, since there is no driver"),
        ({"visual": "auto", "decoder": "pyav"}, {"h264": [1, 1, 2, 2]}, "this machine's GPU decodes h264: frames of"),
        (
            {"visual": "auto", "decoder": "pyav"},
            {},
            "frames become JPEG, since there is no driver; --visual clip copies",
        ),
    ],
)
def test_what_decodes(tmp_path, monkeypatch, settings, able, said):
    monkeypatch.setattr(nvdec, "detect", lambda: (able, "" if able else "there is no driver"))
    told = []
    assert decoders.choose_decoders(tmp_path, settings, SimpleNamespace(line=told.append)) == able
    assert len(told) == 1 and told[0].startswith(said)
    held = {**settings, "decoders": {"av1": [1, 1, 2, 2]}, "format": 2}  # of a run that began on another machine
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": held}))
    assert decoders.choose_decoders(tmp_path, settings, SimpleNamespace(line=told.append)) == held["decoders"]
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": held | {"visual": "other"}}))
    assert decoders.choose_decoders(tmp_path, settings, SimpleNamespace(line=told.append)) == able


def test_a_decoder_that_is_asked_for_and_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(nvdec, "detect", lambda: ({}, "there is no driver"))
    with pytest.raises(InputError, match="decoder: nvdec cannot be used, since there is no driver; take pyav"):
        decoders.choose_decoders(tmp_path, {"visual": "jpeg", "decoder": "nvdec"}, SimpleNamespace())
    assert decoders.choose_decoders(tmp_path, {"visual": "jpeg", "decoder": "pyav"}, SimpleNamespace()) is None


def probe_of(pts, constant=False) -> SimpleNamespace:
    """As far as notes read it: ticks of a hundredth of a second."""
    pts = np.array(pts)
    rate = (len(pts) - 1) / ((pts[-1] - pts[0]) / 100)
    return SimpleNamespace(
        pts=pts,
        start=int(pts[0]),
        time_base=Fraction(1, 100),
        frame_rate=rate,
        constant=constant,
        counted="",
        track="",
        shown_size=(64, 48),
    )


VARYING = [0, 10, 20, 30, 60, 90, 120, 150, 160, 170, 180, 190, 200, 300, 400]


@pytest.mark.parametrize(
    ("fids", "times", "said"),
    [
        ([6, 7, 10], [1.2, 1.5, 1.8], ", as if numbered from 0 on"),
        ([11, 21, 31], [1.0, 2.0, 3.0], ", as if numbered at a constant rate of 10 a second"),
        ([2, 14, 3], [3.0, 0.1, 2.0], ""),  # nothing simple
        ([14, 2], [0.1, 3.0], ""),
    ],
)
def test_what_would_explain_numbers_of_a_varying_rate(fids, times, said):
    assert notes._guess_of_varying(probe_of(VARYING), np.array(fids), np.array(times)) == said


def test_numbers_that_contradict_times_are_noted_with_the_rate():
    found = notes.of_video(probe_of(VARYING), [("a", 11, 1.0), ("b", 21, 2.0), ("c", 31, 3.0)])
    assert found[0] == [notes.SIZE, "64x48"] and found[-1][0] == notes.APART
    assert "the rate varies, on average it is 3.5 a second" in found[-1][1]
    assert found[-1][1].endswith(
        ", as if numbered at a constant rate of 10 a second; the picture and the sound follow the time"
    )


def test_numbers_of_a_constant_rate_that_begin_elsewhere():
    found = notes._guess(10.0, np.array([31, 41]), np.array([0.0, 1.0]))
    assert found == ", as if numbered from 31 on"
    assert notes._guess(10.0, np.array([1, 26]), np.array([0.0, 1.0])) == ", as if numbered at a rate of 25 a second"
    assert notes._guess(10.0, np.array([31]), np.array([0.0])) == ", as if numbered from 31 on"


DATASET = Dataset.__new__(Dataset)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: prepare_part(DATASET, "s3://b/a?sig=x", 1, 2), "--part makes its part in a folder .*, not s3://b/a"),
        (
            lambda: prepare_dataset(DATASET, "s3://b/a", join=True),
            "--join makes a folder of this machine, not s3://b/a",
        ),
        (lambda: run._settings(DATASET, "jpeg", "gpu", 5), "decoder is 'gpu': choose one of"),
        (lambda: run._settings(DATASET, "clip", "nvdec", 5), "decoder nvdec is for visual jpeg, .* not for clip"),
        (lambda: run._settings(DATASET, "png", "pyav", 5), "visual is 'png': choose one of"),
        (lambda: run._settings(DATASET, "jpeg", "pyav", 0), "pairs_per_shard is 0: give 1 or more"),
        (lambda: run._check_workers(0), "workers is 0: give 1 or more"),
    ],
)
def test_arguments_that_do_not_go_together(call, said):
    with pytest.raises(InputError, match=said):
        call()


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    stream = io.StringIO()
    real = reporting.Console
    monkeypatch.setattr(
        reporting, "Console", lambda **_: real(file=stream, force_terminal=True, width=80, color_system=None)
    )
    with reporting.reporter(True).bar("videos [a]", 4) as step:
        step(3)
        step(1)
    assert "prepare: videos [a]" in stream.getvalue() and "4/4" in stream.getvalue()
    with reporting.reporter(False).bar("videos", 4) as step:
        step(4)  # says nothing


def test_lines_come_for_each_tenth_and_all_goes_to_standard_error(monkeypatch, capsys):
    with reporting.reporter(True).bar("videos", 25) as step:
        for _ in range(25):
            step(1)
    said = capsys.readouterr()
    assert said.err.splitlines()[::3] == [f"prepare: {done}/25 videos ({4 * done}%)" for done in (3, 10, 18, 25)]
    assert len(said.err.splitlines()) == 10 and said.out == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with reporting.reporter(True).bar("videos", 2) as step:
        step(2)
    said = capsys.readouterr()
    assert "prepare: videos" in said.err and said.out == ""


def test_of_many_notes_the_first_are_shown():
    stream = io.StringIO()
    told = {f"v{number:03d}": "another track" for number in range(reporting.MOST_LINES + 7)}
    manifest = SimpleNamespace(
        header={"sound_tracks": told, "boxes": "of another size"}, named=lambda file: f"out/{file}"
    )
    reporting._print_notes(manifest, reporting.Console(file=stream, width=200))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "warning: of another size" and lines[1] == "v000: sound: another track"
    assert len(lines) == reporting.MOST_LINES + 2
    assert lines[-1] == "7 more videos are under sound_tracks in out/manifest.json"


def test_a_stored_frame_that_pillow_does_not_know():
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 9, 9)).save(stream, "PNG")
    whole = stream.getvalue()
    assert verifying.decode_frame(whole, shards.PNG, 0).shape == (48, 64, 3)
    header = whole[:33]  # its size can be read, and nothing more
    with pytest.raises((ValueError, OSError)):
        verifying.decode_frame(header + b"IDAT" * 5, shards.PNG, 0)
    loud = np.array([0, -300, 200], "<i2")
    assert verifying._loudest(loud.tobytes(), np.dtype("<i2")) == 300
    assert verifying._loudest(np.array([0, np.nan], "<f4").tobytes(), np.dtype("<f4")) is None
    assert verifying._loudest(np.array([0.5, 0], "<f4").tobytes(), np.dtype("<f4")) == 16384

"""The command: what it writes of every kind of input, and one line for each input that is wrong."""

import json
import runpy
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from essl_fast import checkpoints
from essl_fast.common import outputs
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data.media import MediaError, decode_frames, probe
from essl_fast.data.media.audio import decode_sound
from essl_fast.data.media.footage import Video
from essl_fast.data.media.writing import VideoWriter
from essl_fast.localize import __main__ as localize_door
from essl_fast.localize import localize
from tests import ROOT
from tests.localize.conftest import noise
from tests.tools.media import clicks, make_sound, make_video, number_of, numbered, set_matrix, truncate


def call(*argv) -> int:
    """The exit code of a command line."""
    try:
        return command(lambda: localize_door.main([str(word) for word in argv]), localize_door.PROG)
    except SystemExit as ended:
        return ended.code


def packets(path, kind: str) -> list[tuple[float, bytes]]:
    """(seconds, bytes) of each packet of a file's first video or audio track."""
    with av.open(str(path)) as file:
        stream = next(stream for stream in file.streams if stream.type == kind)
        return [(float(p.pts * p.time_base), bytes(p)) for p in file.demux(stream) if p.size]


def shown(path) -> list[float]:
    """When each frame of a video is shown, in seconds."""
    return Video(probe(path)).times.tolist()


def test_a_video(run, tmp_path, capsys):
    path = make_video(tmp_path / "v.mp4", seconds=5, sound=noise(5))
    (tmp_path / "v.json").write_text(json.dumps([{"fid": 11, "boxes": [[10, 10, 90, 60]]}]))
    out = tmp_path / "a" / "b"
    options = ("--rate", 4, "--opacity", 0, "--threshold", 0.75, "--boxes", tmp_path / "v.json")
    assert call(path, "--checkpoint", run, "--out", out, *options) == 0
    assert sorted(file.name for file in out.iterdir()) == ["v.moments.json", "v.overlay.mp4", "v.sheet.png"]
    overlay = out / "v.overlay.mp4"
    assert shown(overlay) == shown(path) and (probe(overlay).width, probe(overlay).height) == (160, 90)
    assert packets(overlay, "audio") == packets(path, "audio")
    for index, frame in decode_frames(overlay, [(fid, 0.0) for fid in range(1, 51)]):
        plain = np.where((frame > 250).all(-1, keepdims=True), 128, frame)  # without the contour
        assert number_of(np.repeat(np.median(plain, axis=0, keepdims=True), 90, axis=0)) == index + 1

    result = json.loads((out / "v.moments.json").read_text())
    assert (result["width"], result["height"], result["frames"], result["frame_rate"]) == (160, 90, 50, 10.0)
    assert result["faults"] == [] and result["threshold"] == 0.75
    assert result["version"] == 2 and result["min_score"] is None and result["scale"]["low"] < result["scale"]["high"]
    moments = result["moments"]
    assert [moment["frame"] for moment in moments] == [
        1,
        3,
        6,
        8,
        *(n + d for n in range(11, 50, 10) for d in (0, 2, 5, 7)),
    ]
    assert all(moment["time"] == pytest.approx((moment["frame"] - 1) / 10) for moment in moments)
    assert moments[0]["sound"] == [0, 3] and moments[10]["sound"] == pytest.approx([1.0, 4.0])
    assert moments[-1]["sound"][1] == pytest.approx(5, abs=0.07)
    for moment in moments:
        scores = [region["score"] for region in moment["regions"]]
        assert scores == sorted(scores, reverse=True) and all(-1 <= score <= moment["score"] for score in scores)
        assert scores or moment["why"] == "its heat stays below the threshold"
        for region in moment["regions"]:
            x1, y1, x2, y2 = region["box"]
            assert 0 <= x1 < x2 <= 160 and 0 <= y1 < y2 <= 90 and 0 < region["share"] <= 1
            assert region["share"] <= (x2 - x1) * (y2 - y1) / (160 * 90) + 0.01
    assert [moment["frame"] for moment in moments if "truth" in moment] == [11]
    assert moments[4]["truth"] == [[10, 10, 90, 60]] and 0 <= moments[4]["ciou"] <= 1
    with Image.open(out / "v.sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width > 4 * 160
    said = capsys.readouterr().out
    assert (
        "localized 20 of 20 moments on cpu, decoded by PyAV in " in said
        and "drew 50 frames of 160x90" in said
        and "\r" not in said
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_its_decoder_decodes(run, tmp_path, capsys):
    path = make_video(tmp_path / "v.mp4", seconds=5, sound=noise(5))
    result = {}
    for decoder in ("nvdec", "pyav"):
        out = tmp_path / decoder
        assert call(path, "--checkpoint", run, "--out", out, "--device", "cuda", "--decoder", decoder) == 0
        result[decoder] = json.loads((out / "v.moments.json").read_text())
        said = capsys.readouterr().out
        assert (
            "localized 25 of 25 moments on cuda" in said
            and "decoded by " + {"nvdec": "NVDEC"}.get(decoder, "PyAV") in said
        )
    assert not result["nvdec"]["faults"]
    for mine, other in zip(result["nvdec"]["moments"], result["pyav"]["moments"], strict=True):
        assert (mine["frame"], mine["sound"]) == (other["frame"], other["sound"])
        assert mine["regions"][0]["score"] == pytest.approx(other["regions"][0]["score"], abs=0.03)


KINDS = {
    "one frame": {"seconds": 0.1, "sound": noise(0.5)},
    "short": {"seconds": 1.0, "sound": noise(1)},
    "odd": {"seconds": 1.0, "sound": noise(1), "pix_fmt": "yuv444p", "picture": lambda n: numbered(n, 161, 91)},
    "irregular": {"seconds": 1.0, "sound": noise(1), "pts": [0, 7, 11, 40, 41, 90], "ticks": 100},
    "late": {
        "name": "v.mkv",
        "pts": range(500, 1500, 100),
        "ticks": 1000,
        "sound": clicks(2, 16_000, at=(1.0,)),
        "sound_codec": "pcm_s16le",
    },
    "10 bit": {"name": "v.mkv", "seconds": 0.5, "pix_fmt": "yuv420p10le", "sound": noise(1), "sound_codec": "flac"},
    "avi": {
        "name": "v.avi",
        "seconds": 1.0,
        "codec": "mjpeg",
        "pix_fmt": "yuvj420p",
        "sound": noise(1),
        "sound_codec": "pcm_s16le",
    },
    "webm": {
        "name": "v.webm",
        "seconds": 1.0,
        "codec": "libvpx",
        "sound": noise(1, 48_000),
        "sound_codec": "libopus",
        "rate": 48_000,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_videos_of_all_kinds(run, tmp_path, kind):
    make = dict(KINDS[kind])
    path = make_video(tmp_path / make.pop("name", "v.mp4"), **make)
    assert call(path, "--checkpoint", run, "--out", tmp_path / "out") == 0
    overlay = tmp_path / "out" / "v.overlay.mp4"
    assert shown(overlay) == pytest.approx(shown(path), abs=2e-3)
    found = probe(overlay)
    assert (found.width, found.height) == ((162, 92) if kind == "odd" else (160, 90))
    before, after = decode_sound(path), decode_sound(overlay)
    assert len(after.mono) / after.rate == pytest.approx(len(before.mono) / before.rate, abs=0.07)
    if kind == "late":
        assert first_click(before) == pytest.approx(0.5, abs=0.002) == first_click(after)
    result = json.loads((tmp_path / "out" / "v.moments.json").read_text())
    assert result["frames"] == len(shown(path)) and all(moment["regions"] for moment in result["moments"])


def first_click(sound) -> float:
    return float(np.argmax(np.abs(sound.mono) > 0.3)) / sound.rate


def test_a_turned_video_stands_upright(run, tmp_path):
    path = set_matrix(make_video(tmp_path / "silent.mp4", seconds=0.5, sound=None), 0, 1, -1, 0)
    sound = make_sound(tmp_path / "a.wav", noise(1), "pcm_s16le", 16_000)
    assert call(path, "--sound", sound, "--checkpoint", run, "--out", tmp_path) == 0
    result = json.loads((tmp_path / "silent.moments.json").read_text())
    assert (result["width"], result["height"]) == (90, 160)
    assert (probe(tmp_path / "silent.overlay.mp4").width, probe(tmp_path / "silent.overlay.mp4").height) == (90, 160)


def test_a_picture_and_a_sound(run, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    sound = make_sound(tmp_path / "a.wav", noise(4), "pcm_s16le", 16_000)
    for given in ((tmp_path / "p.png",), ("--image", tmp_path / "p.png")):
        assert call(*given, "--sound", sound, "--checkpoint", run, "--out", tmp_path, "--rate", 1) == 0
        result = json.loads((tmp_path / "p.moments.json").read_text())
        assert (result["width"], result["height"], result["frames"]) == (80, 60, 40) and len(result["moments"]) == 4
        assert len(shown(tmp_path / "p.overlay.mp4")) == 40
        (tmp_path / "p.moments.json").unlink()


def test_silence_and_the_tracks_end_give_nothing(run, tmp_path):
    path = make_video(tmp_path / "v.mkv", seconds=4, sound=np.zeros((1, 32_000), np.float32), sound_codec="pcm_s16le")
    assert call(path, "--checkpoint", run, "--out", tmp_path, "--rate", 1) == 0
    moments = json.loads((tmp_path / "v.moments.json").read_text())["moments"]
    silent, ended = (
        {"sound": [0.0, 2.0], "why": "the sound is silent"},
        {"sound": None, "why": "the sound track has ended"},
    )
    for moment, expected in zip(moments, [silent, silent, silent, ended], strict=True):
        assert {key: moment[key] for key in ("sound", "why")} == expected and moment["regions"] == []


def test_a_truncated_video_gives_what_is_there(run, tmp_path, capsys):
    path = make_video(tmp_path / "v.mkv", seconds=4, sound=noise(4), sound_codec="pcm_s16le")
    truncate(path, 0.6)
    assert call(path, "--checkpoint", run, "--out", tmp_path, "--no-video") == 0
    result = json.loads((tmp_path / "v.moments.json").read_text())
    assert any("of 4.0" in fault for fault in result["faults"]) and 5 < result["frames"] < 40
    assert result["faults"][0] in capsys.readouterr().out and not (tmp_path / "v.overlay.mp4").exists()


def test_frames_that_cannot_be_decoded_are_told_and_left_out(run, tmp_path, capsys, monkeypatch):
    """Of 8 faults the command shows a few; the file has them all."""
    path = make_video(tmp_path / "v.mp4", seconds=4, sound=noise(4))
    real, some = Video.some, Video.all

    def broken(self, places):
        for place, picture in real(self, places):
            yield place, MediaError("frame damaged", f"frame {place + 1}") if place < 24 else picture

    monkeypatch.setattr(Video, "some", broken)
    monkeypatch.setattr(Video, "all", lambda self: (each for each in some(self) if each[0] >= 24))
    assert call(path, "--checkpoint", run, "--out", tmp_path, "--rate", 4) == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "v.moments.json").read_text())
    lost = [moment for moment in result["moments"] if moment["frame"] <= 24]
    assert len(lost) == 10 and all("frame damaged" in moment["why"] and not moment["regions"] for moment in lost)
    assert len(result["faults"]) == 11 and result["faults"][0] == "the frame at 0.00 s: frame damaged: frame 1"
    assert result["faults"][10] == "24 frames cannot be decoded: the overlay leaves them out"
    assert "the frame at 0.00 s" in said and " more faults are in " in said
    assert len(shown(tmp_path / "v.overlay.mp4")) == 16

    monkeypatch.setattr(Video, "some", lambda self, places: ((p, MediaError("damaged", "all of it")) for p in places))
    assert call(path, "--checkpoint", run, "--out", tmp_path / "none") == 2
    assert "damaged: all of it" in capsys.readouterr().err


def wrong(kind: str, place, run) -> tuple[list, str]:
    """An impossible command line, and a part of the one line that it gives."""
    video, checkpoint_ = place / "v.mp4", run
    out = place / "out"
    if kind == "no file":
        video, message = place / "none.mp4", "there is no file"
    elif kind == "no audio track":
        make_video(video, seconds=0.5, sound=None)
        message = "has no audio track; give its sound as a file of its own, --sound FILE"
    elif kind == "unreadable":
        video.write_text("no video")
        message = "video file unreadable: v.mp4"
    elif kind == "no picture":
        (place / "p.png").write_text("no picture")
        return [
            "--image",
            place / "p.png",
            "--sound",
            place / "p.png",
            "--checkpoint",
            run,
            "--out",
            out,
        ], "not a picture"
    elif kind == "nothing":
        return ["--checkpoint", run], "give one VIDEO, or --image FILE with --sound FILE"
    else:
        make_video(video, seconds=0.5)
        if kind == "out is a file":
            (place / "file").touch()
            out, message = place / "file" / "out", "--out: "
        elif kind == "no checkpoint":
            checkpoint_, message = place / "none", "there is no checkpoint"
        elif kind == "no best.pt":
            checkpoint_, message = place, "has no best.pt"
        elif kind == "foreign checkpoint":
            checkpoint_, message = place / "x.pt", "not an essl_fast checkpoint"
            torch.save({"x": 1}, checkpoint_)
        elif kind == "another architecture":
            checkpoint_, message = place / "x.pt", "another architecture"
            state = checkpoints.load(run / "best.pt")
            state["config"]["model"]["out_dim"] *= 2
            checkpoints.save(checkpoint_, {key: state[key] for key in ("model", "config")})
        elif kind == "boxes":
            return [video, "--checkpoint", run, "--boxes", place / "none.json"], "no file or folder"
        elif kind == "rate":
            return [video, "--checkpoint", run, "--rate", "0"], "must be from 0.01 to 1,000, got '0'"
        elif kind == "decoder":
            return [video, "--checkpoint", run, "--out", out, "--decoder", "nvdec", "--device", "cpu"], "take pyav"
        elif kind == "sound":
            return [video, "--checkpoint", run, "--sound", run / "best.pt", "--out", out], "unreadable: best.pt"
    return [video, "--checkpoint", checkpoint_, "--out", out], message


WRONG = [
    *("no file", "no audio track", "unreadable", "no picture", "nothing", "out is a file"),
    *("no checkpoint", "no best.pt", "foreign checkpoint", "another architecture"),
    *("boxes", "rate", "sound", "decoder"),
]


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_inputs_give_one_line(run, tmp_path, capsys, kind):
    argv, message = wrong(kind, tmp_path, run)
    assert call(*argv) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{localize_door.PROG}: error: ") and message in said and said.count("\n") == 1


def test_a_picture_needs_a_sound_and_a_pictures_name(run, tmp_path, capsys):
    Image.new("RGB", (64, 48)).save(tmp_path / "p.png")
    video, more = make_video(tmp_path / "v.mp4", seconds=0.5), ("--checkpoint", run, "--out", tmp_path / "out")
    assert call(tmp_path / "p.png", *more) == 2
    assert "p.png is a picture: give the sound that goes with it, --sound FILE" in capsys.readouterr().err
    assert call("--image", video, "--sound", video, *more) == 2
    assert f"--image: {video} has no picture's ending; give a JPEG or PNG file" in capsys.readouterr().err


def test_a_folder_that_may_not_be_written(run, tmp_path, capsys, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=0.5)

    def refuse(*_, **named):  # the tests may run as root, who may write anywhere
        raise PermissionError(13, "Permission denied", str(named["dir"]))

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    assert call(path, "--checkpoint", run, "--out", tmp_path) == 2
    assert f"--out: {tmp_path} cannot be written (permission denied)" in capsys.readouterr().err


def test_inputs_are_not_overwritten(run, tmp_path, capsys):
    path = make_video(tmp_path / "v.mp4", seconds=0.5)
    boxes = tmp_path / "v.moments.json"
    boxes.write_text('[{"time": 0, "boxes": []}]')
    assert call(path, "--checkpoint", run, "--out", tmp_path, "--boxes", boxes) == 2
    assert "v.moments.json is an input and would be overwritten" in capsys.readouterr().err
    assert boxes.read_text() == '[{"time": 0, "boxes": []}]'


def test_a_full_disk_leaves_no_half_video(run, tmp_path, capsys, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=0.5)
    out = tmp_path / "out"

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VideoWriter, "finish", full)
    assert call(path, "--checkpoint", run, "--out", out) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["v.sheet.png"]


def test_help(capsys):
    assert call("--help") == 0
    said = capsys.readouterr().out
    assert "--checkpoint RUN" in said and "DIR/<name>.overlay.mp4" in said


def test_the_function_does_what_the_command_does(run, tmp_path, capsys):
    path = make_video(tmp_path / "v.mp4", seconds=2, sound=noise(2))
    assert call(path, "--checkpoint", run, "--out", tmp_path / "command") == 0
    capsys.readouterr()
    found = localize(str(path), str(run), str(tmp_path / "function"))
    assert capsys.readouterr().out == "" and len(found.moments) == 10
    ours, theirs = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("function", "command")
    )
    assert ours == theirs and len(ours) == 3
    with pytest.raises(InputError, match="there is no file"):
        localize(tmp_path / "none.mp4", run, tmp_path)
    with pytest.raises(InputError, match="video file unreadable"):
        localize(run / "best.pt", run, tmp_path)


def test_modules_of_ones_own_are_imported_first(run, tmp_path, monkeypatch, capsys):
    path = make_video(tmp_path / "v.mp4", seconds=0.5)
    (tmp_path / "essl_fast_test_part.py").write_text("print('my part')\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--checkpoint", run, "--out", tmp_path, "--no-video")
    assert call(path, *options, "--import", "json", "--import", "essl_fast_test_part") == 0
    assert capsys.readouterr().out.startswith("my part\n")
    assert call(path, *options, "--import", "essl_fast_no_such_part") == 2
    said = capsys.readouterr().err
    assert "essl_fast_no_such_part" in said and said.count("\n") == 1


def test_the_example(run, tmp_path, monkeypatch):
    file = ROOT / "examples" / "heatmap.py"
    assert len(file.read_text().splitlines()) <= 15
    Image.new("RGB", (64, 48)).save(tmp_path / "p.png")
    sound = make_sound(tmp_path / "a.wav", noise(4), "pcm_s16le", 16_000)
    words = ["heatmap.py", run, tmp_path / "p.png", sound, tmp_path / "heat.png"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    runpy.run_path(str(file))
    with Image.open(tmp_path / "heat.png") as picture:
        assert picture.size == (64, 48) and np.asarray(picture).max() > 100  # the picture was black
    monkeypatch.setattr(sys, "argv", ["heatmap.py"])
    with pytest.raises(SystemExit, match="^usage: python examples/heatmap.py RUN IMAGE SOUND OUT$"):
        runpy.run_path(str(file))

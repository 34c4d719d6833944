"""The command: what it writes of every kind of input, and one line for each input that is wrong."""

import json
import runpy
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

from essl_fast import checkpoints, config, kernels, models
from essl_fast.common.commands import command
from essl_fast.common.errors import InputError
from essl_fast.data.media import nvdec
from essl_fast.data.media.audio import decode_sound
from essl_fast.data.media.footage import Still, Video
from essl_fast.data.media.video import decode_frames, probe
from essl_fast.localize import __main__ as localize_door
from essl_fast.localize import moments
from essl_fast.localize.finder import SoundFinder, heat_of, stored_frame
from tests import ROOT
from tests.tools.media import clicks, make_sound, make_video, number_of, numbered, set_matrix, truncate


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with a checkpoint of the demo's network, untrained."""
    place = tmp_path_factory.mktemp("run")
    settings = config.load("demo")
    torch.manual_seed(0)
    state = {"model": checkpoints.trained_state(models.build(settings.model)), "config": config.to_dict(settings)}
    checkpoints.save(place / "best.pt", state)
    return place


def call(*argv) -> int:
    return command(lambda: localize_door.main([str(word) for word in argv]), localize_door.PROG)


def packets(path, kind: str) -> list[tuple[float, bytes]]:
    """(seconds, bytes) of each packet of a file's first video or audio track."""
    with av.open(str(path)) as file:
        stream = next(stream for stream in file.streams if stream.type == kind)
        return [(float(p.pts * p.time_base), bytes(p)) for p in file.demux(stream) if p.size]


def shown(path) -> list[float]:
    """When each frame of a video is shown, in seconds."""
    return Video(probe(path)).times.tolist()


def noise(seconds: float, rate: int = 16_000) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (1, round(seconds * rate))).astype(np.float32)


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

    told = json.loads((out / "v.moments.json").read_text())
    assert (told["width"], told["height"], told["frames"], told["frame_rate"]) == (160, 90, 50, 10.0)
    assert told["faults"] == [] and told["threshold"] == 0.75
    moments = told["moments"]
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
        assert scores == sorted(scores, reverse=True) and scores and -1 <= min(scores) and max(scores) <= 1
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


def test_each_moment_is_what_evaluation_makes_of_it(run, tmp_path):
    """Frame, sound and map, of one moment by hand; the box is that of the metric's threshold."""
    path = make_video(tmp_path / "v.mp4", seconds=5, sound=noise(5))
    finder = SoundFinder.open(run)
    found = moments.localize(finder, Video(probe(path)), path, rate=10, batch=3)
    moment = found.moments[24]
    ((_, picture),) = decode_frames(path, [(25, 2.4)])
    sound = decode_sound(path)
    pcm = sound.mono[round(0.9 * 16_000) :][:48_000]
    heat = finder.heatmap(picture, pcm, 16_000)
    assert np.allclose(heat, heat_of(moment.similarity), atol=1e-4)
    rows, columns = np.nonzero(heat >= 0.5)
    boxes = np.array([region.box for region in moment.regions])
    assert boxes[:, 0].min() == columns.min() * 160 // 224 and boxes[:, 3].max() == -(-(rows.max() + 1) * 90 // 224)


def test_moments_that_dali_decodes(run, tmp_path):
    """DALI's decoder for CPUs in NVDEC's place: maps, thumbs and sounds are those of PyAV's frames."""
    path = make_video(
        tmp_path / "v.webm",
        seconds=5,
        codec="libvpx-vp9",
        sound=noise(5, 48_000),
        sound_codec="libopus",
        rate=48_000,
        options={"deadline": "realtime", "cpu-used": "8"},
    )
    finder, video = SoundFinder.open(run, "cpu"), Video(probe(path))
    ours, theirs = (moments.localize(finder, video, path, rate=7, batch=4, dali=dali) for dali in (True, False))
    assert (ours.width, ours.height, ours.faults) == (theirs.width, theirs.height, []) == (160, 90, [])
    assert len(ours.moments) == len(theirs.moments) == 35 and len(ours.thumbs) == 12
    for mine, other in zip(ours.moments, theirs.moments, strict=True):
        assert (mine.frame, mine.time, mine.sound) == (other.frame, other.time, other.sound)
        assert np.abs(mine.similarity - other.similarity).max() < 0.02
    for (mine, thumb), (other, picture) in zip(ours.thumbs, theirs.thumbs, strict=True):
        assert mine.frame == other.frame == number_of(thumb) == number_of(picture)


def test_frames_that_dali_cannot_decode_are_told(run, tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=4, sound=noise(4))
    finder = SoundFinder.open(run, "cpu")
    found = moments.localize(finder, Video(probe(path)), path, rate=2, dali=True)
    assert len(found.faults) == 1 and found.helped
    told = "v.mp4: DALI could not decode 8 frames from 0.00 s on (Assert on "
    assert found.faults[0].startswith(told) and "Failed to create video decoder" in found.faults[0]
    assert found.faults[0].endswith("PyAV decodes them; --decoder pyav would not try")
    plain = moments.localize(finder, Video(probe(path)), path, rate=2)
    assert all(np.array_equal(a.similarity, b.similarity) for a, b in zip(found.moments, plain.moments, strict=True))


CUDA = torch.device("cuda", 0)
KNOWN = {"h264": [48, 16, 4096, 4096]}


@pytest.mark.parametrize(
    "asked, device, decoders, name, why",
    [
        ("auto", CUDA, KNOWN, "v.mp4", ""),
        ("nvdec", CUDA, KNOWN, "v.mp4", ""),
        ("pyav", CUDA, KNOWN, "v.mp4", None),
        ("auto", torch.device("cpu"), KNOWN, "v.mp4", "the network runs on the cpu"),
        ("auto", CUDA, {}, "v.mp4", "there is no driver"),
        ("auto", CUDA, {"hevc": KNOWN["h264"]}, "v.mp4", "h264 is not decoded by this machine's GPU"),
        ("auto", CUDA, {"h264": [48, 16, 128, 128]}, "v.mp4", "160x90 pixels"),
        ("auto", CUDA, KNOWN, "v.avi", "its times do not tell"),
    ],
)
def test_who_decodes_the_moments(tmp_path, monkeypatch, asked, device, decoders, name, why):
    monkeypatch.setattr(nvdec, "detect", lambda: (decoders, "" if decoders else "there is no driver"))
    footage = Video(probe(make_video(tmp_path / name, seconds=0.5, sound=None)))
    dali, told = moments.pick_decoder(asked, footage, device)
    assert dali is (why == "") and (why in told if why else told == "")
    if why and asked == "auto":
        with pytest.raises(InputError, match="--decoder: nvdec cannot be used, since .*; take pyav"):
            moments.pick_decoder("nvdec", footage, device)
    assert moments.pick_decoder(asked, Still(np.zeros((4, 4, 3), np.uint8), 1.0), device) == (False, "")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_its_decoder_decodes(run, tmp_path, capsys):
    path = make_video(tmp_path / "v.mp4", seconds=5, sound=noise(5))
    told = {}
    for decoder in ("nvdec", "pyav"):
        out = tmp_path / decoder
        assert call(path, "--checkpoint", run, "--out", out, "--device", "cuda", "--decoder", decoder) == 0
        told[decoder] = json.loads((out / "v.moments.json").read_text())
        said = capsys.readouterr().out
        assert (
            "localized 25 of 25 moments on cuda" in said
            and "decoded by " + {"nvdec": "NVDEC"}.get(decoder, "PyAV") in said
        )
    assert not told["nvdec"]["faults"]
    for mine, other in zip(told["nvdec"]["moments"], told["pyav"]["moments"], strict=True):
        assert (mine["frame"], mine["sound"]) == (other["frame"], other["sound"])
        assert mine["regions"][0]["score"] == pytest.approx(other["regions"][0]["score"], abs=0.03)


def test_the_heat_is_the_metrics(run):
    similarity = torch.randn(5, 14, 14, generator=torch.Generator().manual_seed(0))
    everything = torch.tensor([[[0, 0, 224, 224]]], dtype=torch.int32).expand(5, 1, 4)
    for threshold in (0.3, 0.5):
        counted, _ = kernels.localization_counts(similarity, everything, threshold=threshold)
        assert (heat_of(similarity.numpy()) >= threshold).sum((1, 2)).tolist() == counted.tolist()
    assert not heat_of(np.full((14, 14), 0.3)).any()


def test_heat_fades_from_moment_to_moment():
    maps = [np.eye(14, dtype=np.float32), None, np.eye(14, dtype=np.float32)[::-1], np.ones((14, 14), np.float32)]
    moments = [moments.Moment(n + 1, n / 2, similarity=similarity) for n, similarity in enumerate(maps)]
    heat = moments.Localization(160, 90, moments, []).heats()
    assert np.allclose(heat(0.0), heat_of(maps[0])) and np.allclose(heat(0.4), heat_of(maps[0]))
    assert heat(0.6) is None
    assert np.allclose(heat(1.0), heat_of(maps[2])) and np.allclose(heat(1.25), heat_of(maps[2]) / 2, atol=1e-6)
    assert not heat(1.5).any() and not heat(9.0).any()


@pytest.mark.parametrize(
    "rate, places", [(1, [0, 10, 20]), (3, [0, 3, 6, 10, 13, 16, 20, 23]), (1000, list(range(25)))]
)
def test_moments_are_frames_on_screen(rate, places):
    assert moments.moments_of(np.arange(25) / 10, rate) == places
    assert moments.moments_of(np.zeros(1), rate) == [0]


def test_times_that_a_file_rounds_cost_no_moment():
    times = np.round(np.arange(31) / 30, 3)  # as in WebM and MKV
    assert moments.moments_of(times, 30) == list(range(31)) == moments.moments_of(times, 1000)
    assert moments.moments_of(times, 10) == list(range(0, 31, 3)) == moments.moments_of(np.arange(31) / 30, 10)


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
    told = json.loads((tmp_path / "out" / "v.moments.json").read_text())
    assert told["frames"] == len(shown(path)) and all(moment["regions"] for moment in told["moments"])


def first_click(sound) -> float:
    return float(np.argmax(np.abs(sound.mono) > 0.3)) / sound.rate


def test_a_turned_video_stands_upright(run, tmp_path):
    path = set_matrix(make_video(tmp_path / "silent.mp4", seconds=0.5, sound=None), 0, 1, -1, 0)
    sound = make_sound(tmp_path / "a.wav", noise(1), "pcm_s16le", 16_000)
    assert call(path, "--sound", sound, "--checkpoint", run, "--out", tmp_path) == 0
    told = json.loads((tmp_path / "silent.moments.json").read_text())
    assert (told["width"], told["height"]) == (90, 160)
    assert (probe(tmp_path / "silent.overlay.mp4").width, probe(tmp_path / "silent.overlay.mp4").height) == (90, 160)


def test_a_picture_and_a_sound(run, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    sound = make_sound(tmp_path / "a.wav", noise(4), "pcm_s16le", 16_000)
    for given in ((tmp_path / "p.png",), ("--image", tmp_path / "p.png")):
        assert call(*given, "--sound", sound, "--checkpoint", run, "--out", tmp_path, "--rate", 1) == 0
        told = json.loads((tmp_path / "p.moments.json").read_text())
        assert (told["width"], told["height"], told["frames"]) == (80, 60, 40) and len(told["moments"]) == 4
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
    told = json.loads((tmp_path / "v.moments.json").read_text())
    assert any("of 4.0" in fault for fault in told["faults"]) and 5 < told["frames"] < 40
    assert told["faults"][0] in capsys.readouterr().out and not (tmp_path / "v.overlay.mp4").exists()


def wrong(kind: str, place, run) -> tuple[list, str]:
    """An impossible command line, and what its one line must say."""
    video, checkpoint_ = place / "v.mp4", run
    out = place / "out"
    if kind == "no file":
        video, told = place / "none.mp4", "there is no file"
    elif kind == "no audio track":
        make_video(video, seconds=0.5, sound=None)
        told = "has no audio track; give its sound as a file of its own, --sound FILE"
    elif kind == "unreadable":
        video.write_text("no video")
        told = "video file unreadable: v.mp4"
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
            out, told = place / "file" / "out", "--out: "
        elif kind == "no checkpoint":
            checkpoint_, told = place, "there is no checkpoint"
        elif kind == "foreign checkpoint":
            checkpoint_, told = place / "x.pt", "not an essl_fast checkpoint"
            torch.save({"x": 1}, checkpoint_)
        elif kind == "another architecture":
            checkpoint_, told = place / "x.pt", "another architecture"
            state = checkpoints.load(run / "best.pt")
            state["config"]["model"]["out_dim"] *= 2
            checkpoints.save(checkpoint_, {key: state[key] for key in ("model", "config")})
        elif kind == "boxes":
            return [video, "--checkpoint", run, "--boxes", place / "none.json"], "no file or folder"
        elif kind == "rate":
            return [video, "--checkpoint", run, "--rate", "0"], "must be from 0.01 to 1000, got 0"
        elif kind == "decoder":
            return [video, "--checkpoint", run, "--out", out, "--decoder", "nvdec", "--device", "cpu"], "take pyav"
        elif kind == "sound":
            return [video, "--checkpoint", run, "--sound", run / "best.pt", "--out", out], "unreadable: best.pt"
    return [video, "--checkpoint", checkpoint_, "--out", out], told


WRONG = (
    "no file",
    "no audio track",
    "unreadable",
    "no picture",
    "nothing",
    "out is a file",
    "no checkpoint",
    "foreign checkpoint",
    "another architecture",
    "boxes",
    "rate",
    "sound",
    "decoder",
)


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_inputs_give_one_line(run, tmp_path, capsys, kind):
    argv, told = wrong(kind, tmp_path, run)
    assert call(*argv) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"{localize_door.PROG}: error: ") and told in said and said.count("\n") == 1


def test_a_folder_that_may_not_be_written(run, tmp_path, capsys, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=0.5)
    monkeypatch.setattr(moments.os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
    assert call(path, "--checkpoint", run, "--out", tmp_path) == 2
    assert "nothing may be written" in capsys.readouterr().err


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

    monkeypatch.setattr("essl_fast.data.media.writing.VideoWriter.finish", full)
    assert call(path, "--checkpoint", run, "--out", out) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [file.name for file in out.iterdir()] == ["v.sheet.png"]


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        call("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "--checkpoint RUN" in said and "DIR/<name>.overlay.mp4" in said


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


def test_the_finder_refuses_other_shapes(run):
    finder = SoundFinder.open(run / "best.pt", device="cpu")
    with pytest.raises(ValueError, match="frames: expected"):
        finder.similarity(np.zeros((1, 10, 10, 3), np.uint8), np.zeros((1, 48_000), np.int16))
    with pytest.raises(ValueError, match="pcm: expected"):
        finder.similarity(stored_frame(np.zeros((9, 9, 3), np.uint8))[None], np.zeros((1, 48_000), np.float32))

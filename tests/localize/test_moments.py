"""Moments: which frames they are, what the network makes of them, who decodes them, and heat between them."""

import numpy as np
import pytest
import torch

from essl_fast import kernels
from essl_fast.common.errors import InputError
from essl_fast.data.media import decode_frames, nvdec, probe
from essl_fast.data.media.audio import decode_sound
from essl_fast.data.media.footage import Still, Video
from essl_fast.localize import Localization, Moment, SoundFinder, find_moments, heat_of, moment_places, stored_frame
from essl_fast.localize.heat import HeatScale, resize_map
from essl_fast.localize.inputs import pick_decoder
from essl_fast.localize.overlay_video import FadingHeat
from tests.localize.conftest import noise
from tests.tools.media import make_video, number_of


def test_each_moment_is_what_evaluation_makes_of_it(run, tmp_path):
    """Frame, sound and map, of one moment by hand; the box is that of the metric's threshold."""
    path = make_video(tmp_path / "v.mp4", seconds=5, sound=noise(5))
    finder = SoundFinder.open(run)
    found = find_moments(finder, Video(probe(path)), path, rate=10, batch=3)
    moment = found.moments[24]
    ((_, picture),) = decode_frames(path, [(25, 2.4)])
    sound = decode_sound(path)
    pcm = sound.mono[round(0.9 * 16_000) :][:48_000]
    assert np.allclose(finder.heatmap(picture, pcm, 16_000), heat_of(moment.similarity), atol=1e-4)
    heat = found.heat(moment)
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
    ours, theirs = (find_moments(finder, video, path, rate=7, batch=4, dali=dali) for dali in (True, False))
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
    found = find_moments(finder, Video(probe(path)), path, rate=2, dali=True)
    assert len(found.faults) == 1 and found.pyav_helped
    message = "v.mp4: DALI could not decode 8 frames from 0.00 s on (Assert on "
    assert found.faults[0].startswith(message) and "Failed to create video decoder" in found.faults[0]
    assert found.faults[0].endswith("PyAV decodes them; --decoder pyav would not try")
    plain = find_moments(finder, Video(probe(path)), path, rate=2)
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
    dali, reason = pick_decoder(asked, footage, device)
    assert dali is (why == "") and (why in reason if why else reason == "")
    if why and asked == "auto":
        with pytest.raises(InputError, match="--decoder: nvdec cannot be used, since .*; take pyav"):
            pick_decoder("nvdec", footage, device)
    assert pick_decoder(asked, Still(np.zeros((4, 4, 3), np.uint8), 1.0), device) == (False, "")


def test_the_heat_is_the_metrics(run):
    similarity = torch.randn(5, 14, 14, generator=torch.Generator().manual_seed(0))
    everything = torch.tensor([[[0, 0, 224, 224]]], dtype=torch.int32).expand(5, 1, 4)
    for threshold in (0.3, 0.5):
        counted, _ = kernels.localization_counts(similarity, everything, threshold=threshold)
        assert (heat_of(similarity.numpy()) >= threshold).sum((1, 2)).tolist() == counted.tolist()
    assert not heat_of(np.full((14, 14), 0.3)).any()


def test_heat_fades_from_moment_to_moment():
    maps = [np.eye(14, dtype=np.float32), None, np.eye(14, dtype=np.float32)[::-1], np.zeros((14, 14), np.float32)]
    moments = [Moment(n + 1, n / 2, similarity=m, shown=m is not None) for n, m in enumerate(maps)]
    found = Localization(160, 90, moments, [], scale=HeatScale(0.0, 1.0))
    heat, first, third = FadingHeat(found).at, resize_map(maps[0]), resize_map(maps[2])
    assert np.allclose(heat(0.0), first) and np.allclose(heat(0.4), first)
    assert heat(0.6) is None
    assert np.allclose(heat(1.0), third) and np.allclose(heat(1.25), third / 2, atol=1e-6)
    assert not heat(1.5).any() and not heat(9.0).any()


@pytest.mark.parametrize(
    "rate, places", [(1, [0, 10, 20]), (3, [0, 3, 6, 10, 13, 16, 20, 23]), (1000, list(range(25)))]
)
def test_moments_are_frames_on_screen(rate, places):
    assert moment_places(np.arange(25) / 10, rate) == places
    assert moment_places(np.zeros(1), rate) == [0]


def test_times_that_a_file_rounds_cost_no_moment():
    times = np.round(np.arange(31) / 30, 3)  # as in WebM and MKV
    assert moment_places(times, 30) == list(range(31)) == moment_places(times, 1000)
    assert moment_places(times, 10) == list(range(0, 31, 3)) == moment_places(np.arange(31) / 30, 10)


def test_the_finder_refuses_other_shapes(run):
    finder = SoundFinder.open(run / "best.pt", device="cpu")
    with pytest.raises(ValueError, match="frames: expected"):
        finder.similarity(np.zeros((1, 10, 10, 3), np.uint8), np.zeros((1, 48_000), np.int16))
    with pytest.raises(ValueError, match="pcm: expected"):
        finder.similarity(stored_frame(np.zeros((9, 9, 3), np.uint8))[None], np.zeros((1, 48_000), np.float32))


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "the network's map is not finite"), (0.25, "the map is the same everywhere")]
)
def test_a_map_that_shows_no_place(run, tmp_path, monkeypatch, value, why):
    path = make_video(tmp_path / "v.mp4", seconds=4, sound=noise(4))
    finder = SoundFinder.open(run, "cpu")
    same = lambda self, frames, pcm: np.full((len(frames), 7, 7), value, np.float32)  # noqa: E731
    monkeypatch.setattr(SoundFinder, "similarity", same)
    found = find_moments(finder, Video(probe(path)), path, rate=1)
    heard = [moment for moment in found.moments if moment.sound]
    assert heard and all(moment.why == why and not moment.shown for moment in heard)
    assert found.scale is None and found.heat(heard[0]) is None

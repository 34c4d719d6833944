"""Reels: each wanted frame comes out of one, bit for bit as out of the file, or is reported as missing."""

import numpy as np
import pytest

from essl_fast.data.media import NO_CLIP, cut_reels, decode_clip, groups, probe
from tests.tools.clips import STREAMS, every_frame, x264
from tests.tools.media import make_video, noisy


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("SVT_LOG", "0")


@pytest.mark.parametrize("name", ["h264_open_b_pyramid.mkv", "hevc_open.mp4", "vp9.webm", "av1_long.mkv", "mjpeg.mov"])
@pytest.mark.parametrize("together", [1, 4, 99])
def test_reels_hold_several_frames(tmp_path, name, together, quiet):
    path = make_video(tmp_path / name, seconds=4, picture=noisy, sound=None, **STREAMS[name])
    found, every = probe(path), every_frame(path)
    begins = [int(np.searchsorted(found.keys, tick, "right")) for tick in found.pts]  # which group each is of
    for places in (range(len(every)), [0, 1, 5, 6, 7, 8, 30, 39], [11]):
        got = list(cut_reels(found, list(places), together))
        assert [place for some, _ in got for place in some] == list(places)
        for some, reel in got:
            assert some == reel.places and 1 <= len(some) <= together and len({begins[place] for place in some}) == 1
            for place, target in zip(some, reel.targets, strict=True):
                np.testing.assert_array_equal(decode_clip(reel.data, target), every[place])
        sizes = [sum(begins[place] == group for place in places) for group in sorted({begins[p] for p in places})]
        assert len(got) == sum(-(-size // together) for size in sizes)


@pytest.mark.parametrize("together", [4, 99])
@pytest.mark.parametrize("share", [0.85, 0.7, 0.5])
def test_of_a_damaged_group_with_b_frames_each_frame_is_answered(tmp_path, share, together):
    path = make_video(tmp_path / "v.mkv", seconds=4, picture=noisy, sound=None, **STREAMS["h264.mp4"])
    found, whole = probe(path), every_frame(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    got = list(cut_reels(found, list(range(40)), together))
    assert [place for some, _ in got for place in some] == list(range(40))
    held = [reel for _, reel in got if reel is not None]
    assert held and got[-1][1] is None
    for reel in held:
        assert reel.places == tuple(range(reel.places[0], reel.places[0] + len(reel.places)))
        for place, target in zip(reel.places, reel.targets, strict=True):
            np.testing.assert_array_equal(decode_clip(reel.data, target), whole[place])


def test_of_a_damaged_group_the_reel_holds_what_is_there(tmp_path):
    path = make_video(tmp_path / "v.mkv", seconds=4, picture=noisy, sound=None, **STREAMS["h264_no_b_frames.mov"])
    found, whole = probe(path), every_frame(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.75)])
    got = list(cut_reels(found, list(range(40)), 99))
    reels = [reel for _, reel in got if reel is not None]
    there = [place for reel in reels for place in reel.places]
    assert 15 < len(there) < 35 and there == list(range(len(there))) and len(reels[-1].places) % 12
    assert [some for some, reel in got if reel is None] == [(place,) for place in range(len(there), 40)]
    for reel in reels:
        for place, target in zip(reel.places, reel.targets, strict=True):
            np.testing.assert_array_equal(decode_clip(reel.data, target), whole[place])


def test_a_group_that_is_too_long_is_cut_as_far_as_it_may_be(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mkv", seconds=4, picture=noisy, sound=None, **x264("keyint=40", bf="0"))
    monkeypatch.setattr(groups, "_MOST_PACKETS", 20)
    (some, reel), *rest = cut_reels(probe(path), list(range(0, 40, 3)), 99)
    assert some == reel.places == (0, 3, 6, 9, 12, 15, 18) and [some for some, _ in rest] == [
        (p,) for p in range(21, 40, 3)
    ]
    assert all(error.reason == NO_CLIP and "too far apart" in error.detail for _, error in rest)

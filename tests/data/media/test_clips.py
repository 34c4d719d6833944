"""Clips: every frame comes out of its clip bit for bit as out of the file, and nothing else is in the clip."""

import io
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest

from essl_fast.data import media
from essl_fast.data.media import NO_CLIP, MediaError, can_copy, cut_clips, decode_frames, groups, opening, probe
from essl_fast.data.media.display import upright
from essl_fast.data.media.groups import make_reel
from essl_fast.data.media.mp4 import ClipHeader
from essl_fast.data.media.packets import Packet
from tests.tools.clips import STREAMS, check_all, every_frame, requests_of, shown
from tests.tools.containers import Adrift, Astray, Counted
from tests.tools.media import irregular, make_video, noisy, number_of, set_edits, set_matrix


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setenv("SVT_LOG", "0")


@pytest.mark.parametrize("rate", ["constant", "varying"])
@pytest.mark.parametrize("name", STREAMS)
def test_every_frame_of_every_kind_of_stream(tmp_path, name, rate, quiet):
    timing = {"seconds": 4} if rate == "constant" else {"pts": irregular(40), "ticks": 30}
    path = make_video(tmp_path / name, picture=noisy, sound=None, **timing, **STREAMS[name])
    cut = check_all(path, constant=rate == "constant", codec=name.split(".")[0].split("_")[0])
    with av.open(str(path)) as file:
        sizes = {bytes(packet): packet.size for packet in file.demux(video=0)}
    for clip in cut[::3]:
        with av.open(io.BytesIO(clip.data)) as file:  # as others read it: FFmpeg, DALI
            packets = [packet for packet in file.demux(video=0) if packet.size]
            assert {bytes(packet) for packet in packets[1:]} <= sizes.keys() and packets[0].is_keyframe
            assert any(
                size and bytes(packets[0]).endswith(data) for data, size in sizes.items()
            )  # behind what it lacked
            assert len(clip.data) < sum(packet.size for packet in packets) + 1024
        with av.open(io.BytesIO(clip.data)) as file:
            frames, count = list(file.decode(video=0)), file.streams.video[0].frames
        assert len(frames) == len(packets) == count
        ticks = [frame.pts for frame in frames]
        assert ticks[0] == 0 and len(set(np.diff(ticks))) <= 1
        np.testing.assert_array_equal(upright(frames[clip.target]), shown(clip))


@pytest.mark.parametrize(
    "name, share",
    [
        ("h264.mp4", 0.75),
        ("h264_open.mp4", 0.75),
        ("hevc.mp4", 0.75),
        ("hevc_layers.mp4", 0.75),
        ("h264_no_b_frames.mov", 1),
    ],
)
def test_pictures_that_nobody_refers_to_stay_out(tmp_path, name, share):
    path = make_video(tmp_path / name, seconds=6, picture=noisy, sound=None, **STREAMS[name])
    found = probe(path)
    pictures = needed = 0
    for index, clip in cut_clips(path, requests_of(found), found):
        with av.open(io.BytesIO(clip.data)) as file:
            pictures += file.streams.video[0].frames
        with av.open(str(path)) as file:  # all packets from the key frame to the frame's
            ticks = [packet.pts for packet in file.demux(video=0) if packet.size]
        key = max(tick for tick in found.keys if tick <= found.pts[index])
        span = ticks[ticks.index(key) : ticks.index(found.pts[index]) + 1]
        needed += sum(tick >= key for tick in span)
    assert pictures <= share * needed and (share < 1 or pictures == needed)


def test_a_picture_that_a_higher_layer_may_refer_to_stays(tmp_path):
    path = make_video(tmp_path / "v.mp4", sound=None, **STREAMS["hevc.mp4"])
    with av.open(str(path)) as file:
        header = ClipHeader.of(file, probe(path))
    packets = [
        Packet(tick, tick == 0, b"12345", layer, needed)
        for tick, layer, needed in ((0, 0, True), (8, 0, False), (4, 1, False), (6, 1, False))
    ]

    def reel(packets, *ticks):
        cut = make_reel(header, packets, ticks, range(len(ticks)))
        return cut.data.count(b"12345"), cut.targets

    assert reel(packets, 6) == (3, (1,)) and reel(packets[:2], 8) == (2, (1,))
    assert reel(packets, 4, 6) == (4, (1, 2)) and reel(packets, 0, 8) == (2, (0, 1))
    flat = [packet._replace(layer=0) for packet in packets]
    assert reel(flat, 6) == (2, (1,)) and reel(flat, 4, 6) == (3, (1, 2))


def test_what_a_clip_holds_depends_on_its_frame_alone(tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=6, picture=noisy, **STREAMS["h264_open.mp4"])
    requests = [(7, 0), (41, 0), (7, 0.3), (99, 0), (12, 0), (0, 0)]
    got = list(cut_clips(path, requests))
    assert [index for index, _ in got] == [3, 5, 0, 2, 4, 1]  # in the order of showing, what cannot be first
    got = dict(got)
    assert got[0] is got[2] and {got[3].reason, got[5].reason} == {media.PAST_END}
    for index in (0, 1, 4):
        assert list(cut_clips(path, [requests[index]])) == [(0, got[index])]
    expected = {index: error for index, error in decode_frames(path, requests) if isinstance(error, MediaError)}
    assert {index: str(error) for index, error in expected.items()} == {3: str(got[3]), 5: str(got[5])}
    mvhd = got[0].data.index(b"mvhd") + 8
    assert got[0].data[mvhd : mvhd + 8] == bytes(8)  # no time of creation


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_one_pass_and_no_reading_of_what_nobody_wants(tmp_path, monkeypatch, name):
    path = make_video(tmp_path / name, seconds=60, **STREAMS["h264.mp4"])
    found, real, seen = probe(path), opening.open_file, {"seeks": 0, "packets": 0}
    monkeypatch.setattr(opening, "open_file", lambda path: Counted(real(path), seen))
    assert sum(1 for _ in cut_clips(path, requests_of(found), found)) == 600
    assert seen["seeks"] == 0 and seen["packets"] <= 601
    seen["packets"] = 0
    got = {index: number_of(shown(clip)) for index, clip in cut_clips(path, [(590, 0), (5, 0), (305, 0)], found)}
    assert got == {0: 590, 1: 5, 2: 305}
    assert seen["seeks"] == 2 and seen["packets"] <= 60


def test_a_seek_that_leads_past_the_frame_falls_back(tmp_path, monkeypatch):
    path, real, sought = make_video(tmp_path / "v.mkv", seconds=40, **STREAMS["h264.mp4"]), opening.open_file, []
    found = probe(path)
    monkeypatch.setattr(opening, "open_file", lambda path: Astray(real(path), sought))
    got = {index: number_of(shown(clip)) for index, clip in cut_clips(path, [(250, 0), (390, 0), (4, 0)], found)}
    assert got == {0: 250, 1: 390, 2: 4} and len(sought) == 1


def test_a_seek_that_fails_falls_back(tmp_path, monkeypatch):
    path, real, sought = make_video(tmp_path / "v.mkv", seconds=40, **STREAMS["h264.mp4"]), opening.open_file, []
    found = probe(path)
    monkeypatch.setattr(opening, "open_file", lambda path: Adrift(real(path), sought))
    got = {index: number_of(shown(clip)) for index, clip in cut_clips(path, [(250, 0), (390, 0), (4, 0)], found)}
    assert got == {0: 250, 1: 390, 2: 4} and len(sought) == 1


def test_key_frames_too_far_apart(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=6, sound=None, options={"preset": "veryfast", "g": "30", "bf": "0"})
    found = probe(path)
    monkeypatch.setattr(groups, "_MOST_PACKETS", 20)
    got = dict(cut_clips(path, requests_of(found), found))
    for index, clip in got.items():
        if index % 30 < 20:
            assert number_of(shown(clip)) == index + 1
        else:
            assert clip.reason == NO_CLIP and "v.mp4: its key frames are too far apart (21 packets" in clip.detail
    monkeypatch.setattr(groups, "_MOST_PACKETS", 600)
    monkeypatch.setattr(groups, "_MOST_BYTES", 1000)
    assert NO_CLIP in {getattr(clip, "reason", "") for _, clip in cut_clips(path, requests_of(found), found)}


@pytest.mark.parametrize(
    "name, kind, why",
    [
        ("v.webm", {"codec": "libvpx"}, "its codec vp8 is none of h264, hevc, vp9, av1, mjpeg"),
        ("v.mp4", {"codec": "mpeg4"}, "its codec mpeg4 is none of"),
        ("v.avi", {}, "its times do not tell which packet is which frame"),
    ],
)
def test_videos_that_are_not_cut(tmp_path, name, kind, why):
    path = make_video(tmp_path / name, sound=None, **kind)
    assert can_copy(path).startswith(f"{name}: {why}")
    got = dict(cut_clips(path, [(3, 0), (99, 0)]))
    assert got[0].reason == NO_CLIP and why in got[0].detail and got[1].reason == media.PAST_END


def test_what_clips_cannot_say(tmp_path):
    path = make_video(tmp_path / "v.mp4", sound=None)
    mirrored = set_matrix(path, -1, 0, 0, 1)
    assert can_copy(mirrored) == "v.mp4: it asks players to mirror it"
    path = make_video(tmp_path / "w.mp4", sound=None)
    assert "which packet is which frame" in can_copy(set_edits(path, [(1, 0.2), (1.5, 2.3)]))
    with pytest.raises(MediaError, match="no video stream|unreadable"):
        can_copy(tmp_path / "none.mp4")


def test_decoding_in_threads(tmp_path):
    path = make_video(tmp_path / "v.mp4", picture=noisy, sound=None, **STREAMS["h264.mp4"])
    cut = [clip for _, clip in cut_clips(path, [(fid, 0) for fid in range(1, 41)])]
    with ThreadPoolExecutor(4) as pool:
        for frame, expected in zip(pool.map(shown, cut), every_frame(path), strict=True):
            np.testing.assert_array_equal(frame, expected)

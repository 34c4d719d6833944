"""Decoding: the right frame, the right sound, and what a bad file costs."""

import numpy as np
import pytest
from av import Packet, VideoFrame
from av import open as av_open

from essl_fast.data import media
from essl_fast.data.media import MediaError, decode_frames, decoding, display, opening, probe
from essl_fast.data.media.audio import decode_sound
from tests.tools.containers import Adrift, Astray
from tests.tools.media import (
    make_video,
    noisy,
    number_of,
    numbered,
    set_edits,
    set_matrix,
    truncate,
)


def numbers(path, requests):
    """fid of each request → the number its frame shows, or the error's reason."""
    got = {}
    for index, frame in decode_frames(path, requests):
        assert index not in got
        got[index] = number_of(frame) if isinstance(frame, np.ndarray) else frame.reason
    assert sorted(got) == list(range(len(requests)))
    return [got[index] for index in range(len(requests))]


CODECS = {
    "h264_bframes.mp4": {"options": {"bf": "3", "preset": "veryfast"}},
    "h264.mkv": {"options": {"bf": "2", "preset": "veryfast"}},
    "h264.avi": {"options": {"bf": "2", "preset": "veryfast"}, "sound_codec": "libmp3lame"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "vp8.webm": {"codec": "libvpx", "sound_codec": "libopus", "rate": 48_000},
    "vp9.webm": {
        "codec": "libvpx-vp9",
        "sound_codec": "libopus",
        "rate": 48_000,
        "options": {"deadline": "realtime", "cpu-used": "8"},
    },
}


@pytest.mark.parametrize("name", CODECS)
def test_the_nth_frame_is_the_nth_shown(tmp_path, name):
    path = make_video(tmp_path / name, seconds=6, **CODECS[name])
    fids = [31, 1, 2, 60, 45, 12, 11, 10, 31]
    found = probe(path)
    assert found.constant and len(found.pts) == 60 and found.audio and not found.truncated
    assert found.frame_rate == pytest.approx(10)
    assert numbers(path, [(fid, -1.0) for fid in fids]) == fids  # a constant rate never looks at the time


def test_hidden_vp8_frames_are_not_counted(tmp_path):
    """Alternate reference frames are packets of their own, decoded and never shown."""
    shown, hidden = make_video(tmp_path / "shown.webm", codec="libvpx", sound=None), tmp_path / "hidden.webm"
    with av_open(str(shown)) as source, av_open(str(hidden), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            twin = Packet(bytes([bytes(packet)[0] & ~0x10]) + bytes(packet)[1:]) if packet.is_keyframe else None
            packet.stream = stream
            file.mux(packet)
            if twin is not None:  # a key frame again, hidden, changes nothing that is shown
                twin.stream, twin.time_base = stream, packet.time_base
                twin.pts = twin.dts = packet.pts + 1
                file.mux(twin)
    with av_open(str(hidden)) as file:
        assert sum(packet.size > 0 for packet in file.demux(video=0)) == 44
    found = probe(hidden)
    assert found.constant and len(found.pts) == 40
    assert numbers(hidden, [(fid, 0) for fid in (1, 2, 11, 40)]) == [1, 2, 11, 40]


def test_seeking_gives_the_frames_of_a_full_decode(tmp_path):
    path = make_video(tmp_path / "v.mp4", seconds=30, options={"bf": "3", "preset": "veryfast"})
    with av_open(str(path)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [number_of(frame) for frame in every] == list(range(1, 301))
    fids = [1, 9, 10, 11, 40, 41, 119, 120, 121, 205, 300]
    for index, frame in decode_frames(path, [(fid, 0) for fid in fids]):
        np.testing.assert_array_equal(frame, every[fids[index] - 1])


def test_seeking_skips_most_of_the_work(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=60)
    seen = []
    real = decoding.decode_places
    monkeypatch.setattr(decoding, "decode_places", lambda *args: (seen.append(1) or item for item in real(*args)))
    assert numbers(path, [(5, 0), (305, 0), (592, 0)]) == [5, 305, 592]
    assert len(seen) <= 30  # of 600 frames


def test_a_seek_that_leads_past_the_frame_falls_back(tmp_path, monkeypatch):
    path, real, sought = make_video(tmp_path / "v.mkv", seconds=20), opening.open_file, []
    monkeypatch.setattr(opening, "open_file", lambda path: Astray(real(path), sought))
    assert numbers(path, [(100, 0), (130, 0), (4, 0)]) == [100, 130, 4]
    assert len(sought) == 1


def test_a_seek_that_fails_falls_back(tmp_path, monkeypatch):
    path, real, sought = make_video(tmp_path / "v.mkv", seconds=20), opening.open_file, []
    monkeypatch.setattr(opening, "open_file", lambda path: Adrift(real(path), sought))
    assert numbers(path, [(100, 0), (130, 0), (4, 0)]) == [100, 130, 4]
    assert len(sought) == 1


def test_a_varying_frame_rate_goes_by_time(tmp_path):
    stamps = [0, 100, 200, 1200, 1240, 1280, 3000, 3040]
    path = make_video(tmp_path / "v.mkv", pts=stamps, ticks=1000, options={"bf": "2", "preset": "veryfast"})
    found = probe(path)
    assert not found.constant
    asked = [(1, 0.0), (99, 0.09), (1, 0.1), (1, 1.19), (1, 1.2), (3, 1.27), (7, 2.9), (2, 3.04), (1, -1.0)]
    assert numbers(path, asked) == [1, 1, 2, 3, 4, 5, 6, 8, 1]
    assert numbers(path, [(1, 9.0)]) == [media.PAST_END]


@pytest.mark.parametrize("decimals", [2, 3, 4])
def test_a_rounded_time_finds_its_frame_at_a_varying_rate(tmp_path, decimals):
    stamps = [*range(0, 3000, 100), *range(3000, 4500, 50)]  # 30 and 60 frames a second in 1/3000 s
    path = make_video(tmp_path / "v.mp4", pts=stamps, ticks=3000, sound=None)
    assert not probe(path).constant
    times = [round(stamp / 3000, decimals) for stamp in stamps]
    assert sum(time < stamp / 3000 for time, stamp in zip(times, stamps, strict=True)) > 15  # rounded down
    assert numbers(path, [(1, time) for time in times]) == list(range(1, len(stamps) + 1))
    assert numbers(path, [(1, 0.025)]) == [1]  # between two frames the earlier one is on screen


CORNERS = {  # display matrix (a, b, c, d) → where it shows the picture's top left, in the turned picture's shape
    (0, 1, -1, 0): ((80, 48), (slice(0, 8), slice(40, 48))),  # a quarter clockwise: a phone held upright
    (-1, 0, 0, -1): ((48, 80), (slice(40, 48), slice(72, 80))),
    (0, -1, 1, 0): ((80, 48), (slice(72, 80), slice(0, 8))),
    (-1, 0, 0, 1): ((48, 80), (slice(0, 8), slice(72, 80))),  # the other four mirror
    (1, 0, 0, -1): ((48, 80), (slice(40, 48), slice(0, 8))),
    (0, 1, 1, 0): ((80, 48), (slice(0, 8), slice(0, 8))),
    (0, -1, -1, 0): ((80, 48), (slice(72, 80), slice(40, 48))),
}


@pytest.mark.parametrize("matrix", CORNERS)
def test_a_turned_video_comes_out_upright(tmp_path, matrix):
    picture = np.full((48, 80, 3), 40, np.uint8)
    picture[:16, :16] = 240
    path = set_matrix(make_video(tmp_path / "v.mp4", seconds=3, picture=lambda _: picture, sound=None), *matrix)
    shape, where = CORNERS[matrix]
    for _, frame in decode_frames(path, [(1, 0), (25, 0)]):
        assert frame.shape == (*shape, 3) and frame[where].min() > 200
        assert (frame > 200).mean() < 0.1


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), *list(CORNERS)[:3]])
def test_side_data_without_a_name_leaves_a_video_upright(tmp_path, monkeypatch, matrix):
    """FFmpeg has kinds that PyAV has not; a damaged HEVC file had number 30."""
    path = set_matrix(make_video(tmp_path / "v.mp4", seconds=1, sound=None), *matrix)
    ((_, expected),) = decode_frames(path, [(7, 0)])

    def unknown(frame):
        raise ValueError("30 is not a valid Type")

    monkeypatch.setattr(display, "SideDataContainer", unknown)
    ((_, frame),) = decode_frames(path, [(7, 0)])
    np.testing.assert_array_equal(frame, expected)


@pytest.mark.parametrize(
    "edits, expected",
    [
        ([(3, 0.75)], range(7, 37)),  # FFmpeg's own begin at 0.2 s, where the first of the reordered frames is shown
        ([(0.5, None), (4, 0.2)], range(1, 41)),
        ([(1, 0.2), (1.5, 2.3)], [*range(1, 11), *range(22, 37)]),
        ([(1, 1.2), (1, 1.2)], [*range(11, 21), *range(11, 21)]),
        ([(1, 2.2), (1, 0.7)], [*range(21, 31), *range(6, 16)]),
    ],
)
def test_edit_lists(tmp_path, edits, expected):
    options = {"bf": "3", "preset": "veryfast", "x264-params": "keyint=10:scenecut=0:b-adapt=0"}
    path = set_edits(make_video(tmp_path / "v.mp4", options=options, sound=None), edits)
    expected = list(expected)
    assert len(probe(path).pts) == len(expected)
    for fid in (1, 9, 10, 11, 12, len(expected)):
        assert numbers(path, [(fid, 0)]) == [expected[fid - 1]]
    assert numbers(path, [(fid, 0) for fid in range(1, len(expected) + 2)]) == [*expected, media.PAST_END]


def test_a_stream_without_whole_key_frames(tmp_path):
    """Each picture refreshes one stripe; the file calls a picture a key frame where a refresh begins."""
    options = {"preset": "veryfast", "x264-params": "intra-refresh=1:keyint=12:scenecut=0"}
    path = make_video(tmp_path / "v.mp4", seconds=6, picture=noisy, options=options, sound=None)
    with av_open(str(path)) as file:
        every = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    with av_open(str(path)) as file:
        assert sum(packet.is_keyframe for packet in file.demux(video=0)) > 3
    assert len(probe(path).keys) == 1
    for fid in (1, 14, 30, 60):
        ((_, frame),) = decode_frames(path, [(fid, 0)])
        np.testing.assert_array_equal(frame, every[fid - 1])


def test_a_tag_that_is_not_utf_8_does_not_matter(tmp_path):
    path = make_video(tmp_path / "v.avi", sound_codec="libmp3lame", tags={"title": "Cafe_ au lait"})
    data = path.read_bytes()
    assert data.count(b"Cafe_") == 1
    path.write_bytes(data.replace(b"Cafe_", "Café_".encode("latin-1")))
    assert numbers(path, [(7, 0)]) == [7] and len(decode_sound(path).mono) > 60_000


def test_lossless_frames_come_out_exactly(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 90, 160, 3), dtype=np.uint8)
    path = make_video(
        tmp_path / "v.mkv", codec="ffv1", pix_fmt="bgr0", seconds=0.4, picture=lambda n: frames[n - 1], sound=None
    )
    for index, frame in decode_frames(path, [(4, 0), (2, 0)]):
        np.testing.assert_array_equal(frame, frames[[3, 1][index]])


@pytest.mark.parametrize("space", [1, 5])  # BT.709, BT.601
def test_the_colour_space_of_the_stream_is_respected(tmp_path, space):
    colour = np.array([200, 30, 40], np.uint8)
    path = tmp_path / "v.mp4"
    with av_open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        video.codec_context.colorspace, video.codec_context.color_range = space, 1
        frame = VideoFrame.from_ndarray(np.tile(colour, (64, 64, 1)), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=space, dst_color_range=1)
        frame.pts = 0
        file.mux([*video.encode(frame), *video.encode()])
    ((_, rgb),) = decode_frames(path, [(1, 0)])
    assert np.abs(rgb[32, 32].astype(int) - colour).max() <= 4  # the wrong matrix is 20 off


def test_a_frame_past_the_end_and_frame_zero(tmp_path):
    path = make_video(tmp_path / "v.mp4")
    assert numbers(path, [(41, 4.0), (40, 3.9), (0, 0.0)]) == [media.PAST_END, 40, media.PAST_END]


def test_a_truncated_file_keeps_what_precedes_the_cut(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 20, (90, 160, 3))  # so that size is spread over the file
    picture = lambda n: np.clip(numbered(n) + np.roll(noise, 7 * n, 1), 0, 255).astype(np.uint8)  # noqa: E731
    for name, options in (("v.mp4", {"movflags": "faststart"}), ("v.mkv", {})):
        path = make_video(tmp_path / name, seconds=6, picture=picture, container=options)
        truncate(path, 0.6)
        found = probe(path)
        assert name in found.truncated and "of 6.0" in found.truncated
        assert 20 < len(found.pts) < 50
        got = numbers(path, [(3, 0.3), (18, 1.8), (59, 5.9)])
        assert got == [3, 18, media.TRUNCATED]


def test_a_truncated_file_without_its_index_cannot_be_opened(tmp_path):
    path = make_video(tmp_path / "v.mp4")
    truncate(path, 0.6)
    with pytest.raises(MediaError, match="video file unreadable: v.mp4: Invalid data.*fetch it again"):
        probe(path)
    with pytest.raises(MediaError, match="unreadable"):
        decode_sound(path)
    path.write_bytes(b"")
    with pytest.raises(MediaError, match="unreadable"):
        probe(path)


@pytest.mark.parametrize("part", ["all", "half"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("name, b_frames", [("v.mp4", 0), ("v.mkv", 0), ("v.mp4", 3), ("v.mkv", 3), ("v.avi", 0)])
def test_damage_costs_only_frames_that_depend_on_it(tmp_path, name, b_frames, step, part):
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 20, (90, 160, 3))
    picture = lambda n: np.clip(numbered(n) + np.roll(noise, 7 * n, 1), 0, 255).astype(np.uint8)  # noqa: E731
    options = {"bf": str(b_frames), "preset": "veryfast", "sc_threshold": "0"}
    path = make_video(tmp_path / name, seconds=5, picture=picture, sound=None, options=options)
    requests = [(fid, 0) for fid in range(1, 51)]
    clean = dict(decode_frames(path, requests))
    with av_open(str(path)) as file:
        packets = [(packet.pts, packet.is_keyframe, bytes(packet)) for packet in file.demux(video=0) if packet.size]
    ticks, keys = [tick for tick, _, _ in packets], [tick for tick, key, _ in packets if key]
    hit = ticks.index(keys[2]) + step  # in the third of five groups of pictures
    data, raw = path.read_bytes(), packets[hit][2]
    at, kept = data.index(raw), 4 if part == "all" else len(raw) // 2
    path.write_bytes(data[: at + kept] + bytes(len(raw) - kept) + data[at + len(raw) :])  # a hole in a download

    order = sorted(ticks)
    before = {order.index(tick) for tick in ticks[:hit]}  # decoded before the damage
    following = order.index(keys[3]) if name != "v.avi" else 50  # where frames are counted, the count is lost
    got = dict(decode_frames(path, requests))
    lost = {index for index, frame in got.items() if isinstance(frame, MediaError)}
    assert order.index(ticks[hit]) in lost and lost <= set(range(following)) - before
    assert {got[index].reason for index in lost} == {media.TRUNCATED}
    for index in got.keys() - lost:
        np.testing.assert_array_equal(got[index], clean[index])


def test_open_groups_of_pictures(tmp_path):
    """Pictures shown before a key frame may come after it in the file and refer to what precedes it."""
    options = {"bf": "3", "preset": "veryfast", "x264-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0:scenecut=0"}
    path, cut = make_video(tmp_path / "v.mp4", seconds=12, options=options, sound=None), tmp_path / "cut.mkv"
    found = probe(path)
    key = int(np.searchsorted(found.pts, found.keys[5]))
    for fid in (3, key, key + 1, key + 2, 120):
        assert numbers(path, [(fid, 0)]) == [fid]
    assert numbers(path, [(fid, 0) for fid in range(1, 121)]) == list(range(1, 121))

    with av_open(str(path)) as source, av_open(str(cut), "w") as file:
        stream = file.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        begin = next(at for at, packet in enumerate(packets) if packet.pts == found.keys[5])
        leading = sum(packet.pts < found.keys[5] for packet in packets[begin:])
        assert leading >= 1
        for packet in packets[begin:]:
            packet.stream = stream
            file.mux(packet)
    # frame 1 of what was cut out is the first that can be decoded
    assert len(probe(cut).pts) == 120 - key
    assert numbers(cut, [(1, 0), (2, 0), (60, 0)]) == [key + 1, key + 2, key + 60]

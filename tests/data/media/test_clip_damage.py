"""Clips of damaged files, and damaged clips: no frame is wrong, and none is lost that `decode_frames` gives."""

import av
import numpy as np
import pytest

from essl_fast.data import media
from essl_fast.data.media import Clip, MediaError, cut_clips, decode_clip, decode_frames, opening, probe
from essl_fast.data.media.mp4 import read_index
from tests.tools.clips import STREAMS, every_frame, requests_of, shown, x264
from tests.tools.containers import Flagged
from tests.tools.media import make_video, noisy, number_of, truncate


@pytest.mark.parametrize("part", ["all", "half"])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("name, b_frames", [("v.mp4", 0), ("v.mp4", 3), ("v.mkv", 3)])
def test_damage_costs_no_more_than_in_the_file(tmp_path, name, b_frames, step, part):
    path = make_video(tmp_path / name, seconds=5, picture=noisy, sound=None, **x264(bf=str(b_frames)))
    found = probe(path)
    requests, clean = requests_of(found), every_frame(path)
    with av.open(str(path)) as file:
        packets = [(packet.pts, bytes(packet)) for packet in file.demux(video=0) if packet.size]
    hit = next(place for place, (pts, _) in enumerate(packets) if pts == found.keys[2]) + step
    raw, data = packets[hit][1], path.read_bytes()
    at, kept = data.index(raw), 4 if part == "all" else len(raw) // 2
    path.write_bytes(data[: at + kept] + bytes(len(raw) - kept) + data[at + len(raw) :])
    lost = {index for index, frame in decode_frames(path, requests) if isinstance(frame, MediaError)}
    assert lost
    got = set()
    for index, clip in cut_clips(path, requests):
        try:
            frame = shown(clip)
        except MediaError as error:
            assert error.reason == media.TRUNCATED
            got.add(index)
        else:
            np.testing.assert_array_equal(frame, clean[index])
    # A clip goes without pictures that nobody refers to, so damage to them costs only themselves.
    assert got <= lost and int(np.searchsorted(found.pts, packets[hit][0])) in got


@pytest.mark.parametrize("first", range(12, 18))
def test_packets_that_are_known_to_be_cut_off(tmp_path, monkeypatch, first):
    path = make_video(tmp_path / "v.mp4", picture=noisy, sound=None, **STREAMS["h264_open.mp4"])
    every, real = every_frame(path), opening.open_file
    requests = requests_of(probe(path))
    with av.open(str(path)) as file:
        ticks = [packet.pts for packet in file.demux(video=0)][first : first + 2]
    monkeypatch.setattr(opening, "open_file", lambda path: Flagged(real(path), ticks))
    found = probe(path)
    assert "cut off" in found.truncated and len(found.pts) == 38 and not found.constant  # a frame goes by its time
    expected, got = dict(decode_frames(path, requests, found)), dict(cut_clips(path, requests, found))
    assert (
        {index for index, clip in got.items() if isinstance(clip, MediaError)}
        == {index for index, frame in expected.items() if isinstance(frame, MediaError)}
        != set()
    )
    for index, clip in got.items():
        if isinstance(clip, Clip):
            np.testing.assert_array_equal(shown(clip), expected[index])
    assert sum(np.array_equal(frame, every[index]) for index, frame in expected.items()) > 20


def test_a_truncated_file_loses_the_same_frames(tmp_path):
    for name, options in (("v.mp4", {"movflags": "faststart"}), ("v.mkv", {})):
        path = make_video(tmp_path / name, seconds=6, picture=noisy, container=options, **STREAMS["h264.mp4"])
        every = every_frame(path)
        truncate(path, 0.6)
        found = probe(path)
        requests = [(fid, 0) for fid in range(1, 61)]
        expected = {index: frame for index, frame in decode_frames(path, requests)}
        got = dict(cut_clips(path, requests, found))
        assert len(got) == 60
        for index, clip in got.items():
            if isinstance(expected[index], MediaError):
                assert str(clip) == str(expected[index])
            else:
                np.testing.assert_array_equal(shown(clip), every[index])
        assert isinstance(got[59], MediaError) and isinstance(got[10], Clip)


def test_a_clip_that_is_broken_or_asked_for_what_it_lacks(tmp_path):
    path = make_video(tmp_path / "v.mp4", picture=noisy, sound=None, **STREAMS["h264.mp4"])
    ((_, clip),) = cut_clips(path, [(20, 0)])
    for place in range(clip.target):
        assert number_of(decode_clip(clip.data, place)) <= 20
    count = read_index(clip.data).begins
    with pytest.raises(ValueError, match=f"frame {len(count) - 1} of a clip of {len(count) - 1} frames"):
        decode_clip(clip.data, len(count) - 1)
    with pytest.raises(ValueError, match="frame -1 of a clip"):
        decode_clip(clip.data, -1)
    for data in (b"", clip.data[:-1], clip.data[:400], clip.data + b"\0", b"no clip at all, and not short either" * 9):
        with pytest.raises(MediaError, match=f"unreadable: a clip of {len(data)} bytes is cut off or no clip"):
            decode_clip(data, 0)
    spoiled = clip.data[:-40] + bytes(40)
    with pytest.raises(MediaError, match="damaged|Invalid data"):
        decode_clip(spoiled, clip.target)

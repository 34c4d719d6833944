"""Cropping that a container asks for, and pixels that are no squares."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from essl_fast.data import media
from essl_fast.data.media import can_copy, cropping, cut_clips, decode_frames, probe
from essl_fast.data.media.footage import Video
from tests.tools.crops import BOTTOM, LEFT, RIGHT, TOP, cropped_matroska, cropped_mp4
from tests.tools.media import make_video, number_of, numbered, set_matrix


@pytest.mark.parametrize("make, name", [(cropped_matroska, "v.mkv"), (cropped_mp4, "v.mp4")])
def test_the_frame_is_what_players_show(tmp_path, make, name):
    path = make(tmp_path / name)
    found = probe(path)
    assert (found.width, found.height) == (200, 106) and found.crop == (LEFT, TOP, RIGHT, BOTTOM)
    assert found.shown_size == (160, 90)
    for index, frame in decode_frames(path, [(3, 0), (27, 0)], found):
        assert frame.shape == (90, 160, 3) and number_of(frame) == (3, 27)[index]
        assert np.abs(frame[:, 4].astype(int) - numbered((3, 27)[index])[:, 4]).max() < 40
    assert "crops the picture" in can_copy(found)
    assert [clip.reason for _, clip in cut_clips(path, [(3, 0)], found)] == [media.NO_CLIP]


def test_cropping_that_leaves_nothing_is_none(tmp_path, monkeypatch):
    path = cropped_mp4(tmp_path / "v.mp4")
    data = path.read_bytes()
    at = data.index(b"clap") + 4
    for bad in (struct.pack(">2i", 0, 1), struct.pack(">2i", 160, 0), struct.pack(">2i", 400, 1)):
        path.write_bytes(data[:at] + bad + data[at + 8 :])
        assert probe(path).crop == (0, 0, 0, 0)
    matroska = cropped_matroska(tmp_path / "v.mkv")
    data = matroska.read_bytes()
    for end in range(40, 600, 7):  # wherever it breaks off
        matroska.write_bytes(data[:end])
        assert len(cropping.of_file(matroska, {"matroska"}, 200, 106)) == 4


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts"])
def test_the_shape_of_pixels(tmp_path, name):
    path = tmp_path / name
    with av.open(str(path), "w") as file:
        video = file.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 160, 128, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(64, 45)
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(numbered(number + 1, 160, 128), format="rgb24")
            frame.pts = number
            file.mux(video.encode(frame))
        file.mux(video.encode())
    found = probe(path)
    assert found.aspect == Fraction(64, 45)
    assert Video(found).aspect(160, 128) == Fraction(64, 45)
    if name == "v.mp4":
        assert Video(probe(set_matrix(path, 0, 1, -1, 0))).aspect(128, 160) == Fraction(45, 64)
    plain = Video(probe(make_video(tmp_path / "plain.mp4", sound=None)))
    assert plain.found.aspect == 1 and plain.aspect(160, 90) is None

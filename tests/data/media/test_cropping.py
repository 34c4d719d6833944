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


def box(kind: bytes, content: bytes, long: bool = False) -> bytes:
    head = struct.pack(">I4sQ", 1, kind, len(content) + 16) if long else struct.pack(">I4s", len(content) + 8, kind)
    return head + content


def movie(kind: bytes = b"vide", more: bytes = b"") -> bytes:
    """A track of 200 x 106 pixels with a clean aperture of 160 x 90 in the middle; `more` comes before it."""
    clap = box(b"clap", struct.pack(">8i", 160, 1, 90, 1, 0, 1, 0, 1))
    sample = box(b"stsd", bytes(16) + bytes(78) + clap)
    parts = box(b"hdlr", bytes(8) + kind + bytes(12)) + box(b"minf", box(b"stbl", sample))
    return box(b"moov", more + box(b"trak", box(b"mdia", parts)))


@pytest.mark.parametrize(
    ("data", "crop"),
    [
        (box(b"ftyp", b"isom") + movie(), (20, 8, 20, 8)),
        (box(b"mdat", bytes(100), long=True) + movie(), (20, 8, 20, 8)),  # 64 bits of size
        (movie(more=box(b"mvhd", bytes(20))), (20, 8, 20, 8)),
        (movie(more=struct.pack(">I4s", 3, b"free")), (0, 0, 0, 0)),  # smaller than its own header
        (movie(b"soun"), (0, 0, 0, 0)),
        (box(b"mdat", bytes(100)), (0, 0, 0, 0)),  # no movie
        (struct.pack(">I4s", 0, b"mdat") + movie(), (0, 0, 0, 0)),  # to the end of the file
        (movie()[:-20], (0, 0, 0, 0)),  # cut off in the aperture
        (b"", (0, 0, 0, 0)),
    ],
)
def test_boxes_of_all_sizes(tmp_path, data, crop):
    (tmp_path / "v.mp4").write_bytes(data)
    assert cropping.of_file(tmp_path / "v.mp4", {"mov", "mp4"}, 200, 106) == crop


@pytest.mark.parametrize(
    ("data", "crop"),
    [
        (b"\x1a\x45\xdf\xa3\x80", (0, 0, 0, 0)),  # a header, and nothing behind it
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\xff\x1f\x43\xb6\x75\x81\0", (0, 0, 0, 0)),  # a cluster comes first
        (b"\x18\x53\x80\x67\xff\x16\x54\xae\x6b\x84\xae\x82\xe1\x80", (0, 0, 0, 0)),  # a track without video
        (b"\x18\x53\x80\x67\xff\x16\x54\xae\x6b\x8c\xae\x8a\xe0\x88\x54\xcc\x81\x05\x54\xbb\x81\x03", (5, 3, 0, 0)),
        (b"\x18\x53\x80\x67\xff\x16\x54", (0, 0, 0, 0)),  # cut off
    ],
)
def test_elements_up_to_the_first_cluster(tmp_path, data, crop):
    (tmp_path / "v.mkv").write_bytes(data)
    assert cropping.of_file(tmp_path / "v.mkv", {"matroska", "webm"}, 200, 106) == crop
    assert cropping.of_file(tmp_path / "v.mkv", {"avi"}, 200, 106) == (0, 0, 0, 0)

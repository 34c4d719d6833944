"""Where clips begin: with everything that a decoder needs which has seen nothing else."""

import av
import numpy as np
import pytest

from essl_fast.data.media import Clip, cut_clips, nvdec_clips, probe, starts
from essl_fast.data.media.headers import StreamHeader, parameter_sets, stream_header
from essl_fast.data.media.mp4 import read_index
from essl_fast.data.media.packets import units
from tests.tools.clips import STREAMS, check_all, requests_of, shown, x264, x265
from tests.tools.media import make_video, noisy

AVCC = bytes([1, 100, 0, 30, 0xFF, 0xE1, 0, 3]) + b"\x67ab" + bytes([1, 0, 2]) + b"\x68c"
IDR, I_SLICE, SPS, DELIMITER, POINT = b"\x65\x88ab", b"\x41\x88ab", b"\x67ab", b"\x09\x10", b"\x06\x06\x01\xc4\x80"
SETS = [b"\x67ab", b"\x68c"]


def h264(*parts: bytes, size: int = 4) -> bytes:
    return b"".join(len(unit).to_bytes(size) + unit for unit in parts)


@pytest.mark.parametrize(
    "parts, expected",
    [
        ([IDR], [IDR]),
        ([SPS, b"\x68c", IDR], [SPS, b"\x68c", IDR]),
        ([POINT, I_SLICE], [*SETS, POINT, I_SLICE]),
        ([DELIMITER, POINT, I_SLICE], [DELIMITER, *SETS, POINT, I_SLICE]),
        ([SPS, POINT, I_SLICE], [SPS, POINT, I_SLICE]),
        ([I_SLICE], None),  # a file may call it a key frame
        ([b"\x06\x06\x01\x0c\x80", I_SLICE], None),  # recovers some frames later
    ],
)
def test_h264_begins_at_an_idr_or_a_recovery_point_with_parameter_sets(parts, expected):
    data, why = starts.as_first("h264", h264(*parts), AVCC)
    assert (data, why) == ((h264(*expected), "") if expected else (h264(*parts), starts._NO_START))


def test_parameter_sets_that_are_missing_or_cut_off():
    packet = h264(POINT, I_SLICE)
    for settings in (AVCC[:5] + b"\xe0\0", AVCC[:-1], AVCC[:9]):
        assert starts.as_first("h264", packet, settings) == (packet, "its parameter sets are missing")
    short = bytes([*AVCC[:4], 0xFD]) + AVCC[5:]  # lengths of two bytes
    assert starts.as_first("h264", h264(POINT, I_SLICE, size=2), short)[0] == h264(*SETS, POINT, I_SLICE, size=2)
    assert list(parameter_sets("h264", AVCC)) == SETS


@pytest.mark.parametrize(
    "kind, fits", [(19, True), (20, True), (16, True), (21, True), (1, False), (9, False), (0, False)]
)
def test_hevc_begins_at_idr_bla_or_cra(kind, fits):
    hvcc = bytes([1] * 21 + [0xF3, 0])
    packet = h264(b"\x4e\x01ab", bytes([kind << 1, 1]) + b"abc")
    assert starts.as_first("hevc", packet, hvcc) == (packet, "" if fits else starts._NO_START)


@pytest.mark.parametrize(
    "first, fits",
    [(0x82, True), (0x86, False), (0x8A, False), (0x42, False), (0xB0, True), (0xB2, False), (0xB4, False)],
)
def test_vp9_begins_at_a_key_frame(first, fits):
    assert not starts.as_first("vp9", bytes([first, 1, 2]), None)[1] == fits


@pytest.mark.parametrize(
    "packet, settings, expected",
    [
        (b"\x12\0\x0a\1s\x32\2\x10f", b"", b"\x12\0\x0a\1s\x32\2\x10f"),  # delimiter, sequence header, key frame
        (b"\x12\0\x32\2\x10f", b"1234\x0a\1s", b"\x12\0\x0a\1s\x32\2\x10f"),
        (b"\x32\2\x10f", b"1234\x0a\1s", b"\x0a\1s\x32\2\x10f"),
        (b"\x32\2\x10f", b"1234", "its sequence header is missing"),
        (b"\x0a\1s\x32\2\x30f", b"", starts._NO_START),  # an inter frame
        (b"\x0a\1s\x32\2\0f", b"", starts._NO_START),  # a key frame that is not shown
        (b"\x0a\1s\x1a\1\x90", b"", starts._NO_START),  # shows an earlier one
        (b"\x0a\1s", b"", starts._NO_START),
        (b"", b"", starts._NO_START),
    ],
)
def test_av1_begins_at_a_key_frame_with_its_sequence_header(packet, settings, expected):
    found = starts.as_first("av1", packet, settings)
    assert found == ((packet, expected) if isinstance(expected, str) else (expected, ""))


@pytest.mark.parametrize("name", [name for name in STREAMS if "10_bit" not in name and "422" not in name])
def test_every_clip_can_go_to_nvdec(tmp_path, name):
    """Its first packet needs nothing that is not in it, or that DALI's bit stream filter puts in front."""
    path = make_video(tmp_path / name, seconds=2.4, picture=noisy, sound=None, **STREAMS[name])
    found = probe(path)
    clips = [clip for _, clip in cut_clips(path, requests_of(found), found)]
    for clip in clips:
        index = read_index(clip.data)
        first = clip.data[index.begins[0] : index.begins[1]]
        assert (
            starts.as_first(index.codec, first, index.settings) == (first, "") and nvdec_clips.fit(clip.data).why == ""
        )
    if name.startswith("h264_open"):
        with_sets = [b"\x67" in {clip.data[unit : unit + 1] for unit, _ in in_first(clip)} for clip in clips]
        assert not with_sets[0] and with_sets[-1], "x264 makes no IDR after the first in open groups"


def in_first(clip: Clip):
    """The units of a clip's first packet, as places in the clip."""
    index = read_index(clip.data)
    packet = clip.data[index.begins[0] : index.begins[1]]
    return [(index.begins[0] + unit, end) for unit, end in units(packet, 4)]


def test_an_older_clip_without_parameter_sets_is_not_nvdecs(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=2.4, picture=noisy, sound=None, **STREAMS["h264_open.mp4"])
    check_all(path)
    with monkeypatch.context() as patch:
        patch.setattr(starts, "as_first", lambda codec, data, settings: (data, ""))  # as earlier versions cut
        old = dict(cut_clips(path, [(1, 0.0), (20, 1.9)]))
    assert nvdec_clips.fit(old[0].data).why == ""
    assert nvdec_clips.fit(old[1].data).why == "its parameter sets are not in its first packet"
    assert shown(old[1]).shape == (96, 160, 3)


def test_a_key_frame_that_is_none_makes_no_clip(tmp_path, monkeypatch):
    path = make_video(tmp_path / "v.mp4", seconds=2.4, sound=None, **x264(bf="0"))
    found, whole, seen = probe(path), starts.as_first, []

    def no_idr(codec: str, data: bytes, settings: bytes | None) -> tuple[bytes, str]:
        seen.append(len(data))
        return whole(codec, data if len(seen) == 1 else h264(I_SLICE), settings)

    monkeypatch.setattr(starts, "as_first", no_idr)
    answers = dict(cut_clips(path, requests_of(found), found))
    assert len(seen) == 2 and all(isinstance(answers[at], Clip) for at in range(12))
    assert {str(answers[at]) for at in range(12, 24)} == {
        f"no clip can be cut for this frame: v.mp4: {starts._NO_START}"
    }


def test_pictures_of_two_fields_make_no_clip():
    slices = [b"\x65\x88ab", b"\x65\x48ab", b"\x61\x88ab"]  # the first macroblock is 0, 1, 0
    assert starts.has_two_pictures("h264", h264(*slices), AVCC)
    assert not starts.has_two_pictures("h264", h264(*slices[:2]), AVCC)
    assert not starts.has_two_pictures("hevc", h264(*slices), AVCC)


HEADERS = [
    ("a.mp4", {**x264(), "pix_fmt": "yuv444p"}, StreamHeader(160, 96, None, 2, False, False)),
    ("b.mp4", x264("colormatrix=bt709:fullrange=on"), StreamHeader(160, 96, True, 1, False, True)),
    ("c.mp4", x264("interlaced=1"), StreamHeader(160, 96, None, 2, True, True)),
    ("d.mp4", x265("colormatrix=bt2020nc:range=full:bframes=4:ref=4"), StreamHeader(160, 96, True, 9, False, True)),
    ("e.mp4", x265("temporal-layers=3:bframes=7:b-pyramid=1", "fast"), StreamHeader(160, 96, False, 2, False, True)),
    ("f.mp4", x265("scaling-list=default:sar=2"), StreamHeader(160, 96, False, 2, False, True)),
    ("g.webm", {"codec": "libvpx-vp9"}, StreamHeader(160, 96, False, 2, False, True)),
]


@pytest.mark.parametrize("name, how, expected", HEADERS, ids=[row[0] for row in HEADERS])
def test_stream_headers(tmp_path, name, how, expected):
    path = make_video(tmp_path / name, seconds=0.3, sound=None, picture=noisy, **how)
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        settings, packet = video.codec_context.extradata, bytes(next(file.demux(video)))
    codec = probe(path).codec
    assert stream_header(codec, settings, packet) == expected
    for length in range(0, len(settings or b"") - 1):  # cut off anywhere: no error
        stream_header(codec, settings[:length], packet[:length])
    rng = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(settings or packet[:30])
        broken[rng.integers(6, len(broken))] ^= 1 << rng.integers(8)
        stream_header(codec, bytes(broken), bytes(broken))

"""What tests of clips share: streams of every kind, and the comparison of a clip's frame with a whole decode."""

from __future__ import annotations

import av
import numpy as np

from essl_fast.data.media import Clip, can_copy, cut_clips, decode_clip, decode_frames, probe
from essl_fast.data.media.display import upright


def x264(params: str = "", **options) -> dict:
    params = f"keyint=12:scenecut=0:b-adapt=0:{params}".rstrip(":")
    return {"options": {"preset": "veryfast", "bf": "3", "x264-params": params, **options}}


def x265(params: str, preset: str = "ultrafast") -> dict:
    fixed = "log-level=none:pools=none:frame-threads=1:keyint=12:scenecut=0:b-adapt=0"
    return {"codec": "libx265", "options": {"preset": preset, "x265-params": f"{fixed}:{params}"}}


# With alternate reference pictures, which are never shown themselves.
_VP9_OPTIONS = "deadline=realtime cpu-used=7 auto-alt-ref=1 lag-in-frames=16 g=60 b=200k"
VP9_HIDDEN = {"codec": "libvpx-vp9", "options": dict(option.split("=") for option in _VP9_OPTIONS.split())}
STREAMS = {
    "h264.mp4": x264(),
    "h264_no_b_frames.mov": x264(bf="0"),
    "h264_b_pyramid.mkv": x264("b-pyramid=normal:ref=5", bf="8"),
    "h264_open.mp4": x264("open-gop=1"),
    "h264_open_b_pyramid.mkv": x264("open-gop=1:b-pyramid=normal:ref=4", bf="5"),
    "h264_interlaced.mp4": x264("interlaced=1"),
    "h264_stripes.mp4": x264("intra-refresh=1", bf="0"),
    "hevc.mp4": x265("open-gop=0:bframes=4:b-pyramid=1"),
    "hevc_open.mp4": x265("open-gop=1:bframes=4:b-pyramid=1:ref=4"),  # RASL pictures
    "hevc_radl.mkv": x265("open-gop=0:radl=2:bframes=4"),
    "hevc_layers.mp4": x265("temporal-layers=3:open-gop=1:bframes=7:b-pyramid=1", "fast"),
    "hevc_10_bit.mp4": {**x265("bframes=4"), "pix_fmt": "yuv420p10le"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "good", "cpu-used": "5", "lag-in-frames": "12"}},
    "vp9_hidden.mp4": VP9_HIDDEN,
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
    "av1_long.mkv": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1", "g": "33"}},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mjpeg_422.mkv": {"codec": "mjpeg", "pix_fmt": "yuvj422p"},
}


def requests_of(found) -> list[tuple[int, float]]:
    """One for each frame, in the order of showing."""
    return [(fid, float((int(tick) - found.start) * found.time_base)) for fid, tick in enumerate(found.pts, 1)]


def shown(clip: Clip) -> np.ndarray:
    return decode_clip(clip.data, clip.target)


def every_frame(path) -> list[np.ndarray]:
    """FFmpeg's, decoded from the first to the last."""
    with av.open(str(path)) as file:
        return [upright(frame) for frame in file.decode(video=0)]


def check_all(path, **probed) -> list[Clip]:
    """Clips of all frames of a sound file, each compared with a decoder that reads the whole file."""
    found, every = probe(path), every_frame(path)
    requests = requests_of(found)
    assert len(found.pts) == len(every) > 10 and can_copy(found) is None
    for name, value in probed.items():
        assert getattr(found, name) == value
    cut = list(cut_clips(path, requests, found))
    assert [index for index, _ in cut] == list(range(len(every)))
    for index, clip in cut:
        np.testing.assert_array_equal(shown(clip), every[index], f"frame {index + 1} of {len(every)}")
    for index, frame in decode_frames(path, requests, found):
        np.testing.assert_array_equal(frame, every[index])
    return [clip for _, clip in cut]

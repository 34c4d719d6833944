"""Small real video files whose frames carry their number, and annotations in Chaotic World's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 160, 90
BITS = 10


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """RGB uint8 (height, width, 3): the bits of `number` as dark and bright bars that survive any codec."""
    frame = np.full((height, width, 3), 128, np.uint8)
    step = width // BITS
    for bit in range(BITS):
        frame[:, bit * step : (bit + 1) * step] = 225 if number >> bit & 1 else 30
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that `numbered` drew."""
    step = frame.shape[1] // BITS
    bars = [frame[10:-10, bit * step + 4 : (bit + 1) * step - 4].mean() for bit in range(BITS)]
    assert all(abs(bar - 128) > 40 for bar in bars), bars
    return sum(1 << bit for bit, bar in enumerate(bars) if bar > 128)


def clicks(seconds: float, rate: int, at: Sequence[float] = (), level: float = 0.8) -> np.ndarray:
    """float32 (n,): a faint tone with clicks of 5 ms at the given seconds."""
    n = round(seconds * rate)
    sound = (0.01 * np.sin(np.arange(n) * 2 * np.pi * 220 / rate)).astype(np.float32)
    for time in at:
        start = round(time * rate)
        sound[start : start + rate // 200] = level
    return sound


def make_video(
    path: Path,
    *,
    seconds: float = 4.0,
    fps: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict | None = None,
    sound: np.ndarray | None | str = "clicks",
    sound_codec: str = "aac",
    rate: int = 16_000,
    pts: Sequence[int] | None = None,
    ticks: int | None = None,
    picture: Callable[[int], np.ndarray] = numbered,
    container: dict | None = None,
    sound_start: float = 0.0,
    tags: dict[str, str] | None = None,
) -> Path:
    """A file whose n-th frame (from 1) shows n. `sound`: float32 (n,) or (channels, n), None for no track. `pts`: when
    each frame is shown, in 1/`ticks` s, instead of a constant rate. `container`: options of the muxer. `tags`: the
    file's metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pts = list(range(round(seconds * fps))) if pts is None else list(pts)
    ticks = ticks or fps
    first = picture(1)
    if isinstance(sound, str):
        sound = clicks(seconds, rate, at=(2.0,))
    with av.open(str(path), "w", options=container or {}) as file:
        file.metadata.update(tags or {})
        video = file.add_stream(codec, rate=fps, options={"preset": "ultrafast", **(options or {})} if "264" in codec
                                else options or {})  # fmt: skip
        video.width, video.height, video.pix_fmt = first.shape[1], first.shape[0], pix_fmt
        video.codec_context.gop_size = 10
        video.codec_context.time_base = Fraction(1, ticks)
        if sound is not None:
            sound = np.atleast_2d(np.asarray(sound, np.float32))
            layout = "mono" if len(sound) == 1 else "stereo"
            track = file.add_stream(sound_codec, rate=rate, layout=layout)
        for number, stamp in enumerate(pts, 1):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, ticks)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if sound is not None:
            size = track.codec_context.frame_size or 1024
            resampler = av.AudioResampler(track.codec_context.format.name, layout, rate, frame_size=size)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(sound_start * rate)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                file.mux(track.encode(piece))
            file.mux(track.encode())
    return path


def truncate(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def damage_sound(path: Path, second: float, value: int = 255) -> float:
    """Overwrite the first packet of sound from `second` on with a byte. Returns when it began."""
    with av.open(str(path)) as file:
        hit = next(packet for packet in file.demux(audio=0) if float(packet.pts * packet.time_base) >= second)
        raw, begin = bytes(hit), float(hit.pts * hit.time_base)
    data = path.read_bytes()
    assert data.count(raw) == 1
    path.write_bytes(data.replace(raw, bytes([value]) * len(raw)))
    return begin


GROUP_HEADER = "start_fid,start_time,end_fid,end_time,bbox,ssl"


def write_annotations(
    root: Path, train: dict[str, Sequence[str]], test: dict[str, Sequence[str]], header: str = GROUP_HEADER
) -> Path:
    """`train` and `test`: video → rows of its group CSV (without header)."""
    group = root / "annotation" / "group"
    group.mkdir(parents=True, exist_ok=True)
    for name, videos in (("train_ssl.txt", train), ("test_ssl.txt", test)):
        (root / name).write_text("".join(f"{video}\n" for video in videos))
        for video, rows in videos.items():
            (group / f"{video}.csv").write_text("\n".join([header, *rows]) + "\n")
    return root


def row(fid: int, time: float, boxes="[[32, 18, 160, 90]]", label: str = "siren", end: int | None = None) -> str:
    """A row under GROUP_HEADER."""
    end = fid if end is None else end
    return f'{fid},{time},{end},{time},"{boxes}",{label}'

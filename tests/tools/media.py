"""Small real video files whose frames carry their number, and annotations in Chaotic World's layout."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 160, 90
BITS = 10
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
# Options of `make_video` for streams that DALI decodes without a GPU.
VP9 = {
    "codec": "libvpx-vp9",
    "sound_codec": "libopus",
    "rate": 48_000,
    "options": {"deadline": "realtime", "cpu-used": "8"},
}
MJPEG = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """RGB uint8 (height, width, 3): the bits of `number` as dark and bright bars that survive any codec."""
    frame = np.full((height, width, 3), 128, np.uint8)
    step = width // BITS
    for bit in range(BITS):
        frame[:, bit * step : (bit + 1) * step] = 225 if number >> bit & 1 else 30
    return frame


def noisy(number: int, width: int = WIDTH, height: int = 96) -> np.ndarray:
    """`numbered`, fainter, over noise that moves: every frame of a codec's then refers to others, and none is small."""
    noise = np.random.default_rng(0).normal(0, 20, (height, width, 3))
    return np.clip(numbered(number, width, height) * 0.6 + 50 + np.roll(noise, 7 * number, 1), 0, 255).astype(np.uint8)


def irregular(count: int) -> list[int]:
    """When `count` frames are shown, in ticks: 1, 2 or 3 apart in no order."""
    return np.cumsum(np.random.default_rng(1).choice([1, 1, 2, 3], count)).tolist()


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
        video = file.add_stream(
            codec, rate=fps, options={"preset": "ultrafast", **(options or {})} if "264" in codec else options or {}
        )
        video.width, video.height, video.pix_fmt = first.shape[1], first.shape[0], pix_fmt
        video.codec_context.gop_size = 10
        video.codec_context.time_base = Fraction(1, ticks)
        if sound is not None:
            sound = np.atleast_2d(np.asarray(sound, np.float32))
            track = file.add_stream(sound_codec, rate=rate, layout=LAYOUTS[len(sound)])
        for number, stamp in enumerate(pts, 1):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, ticks)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if sound is not None:
            _encode_sound(file, track, sound, rate, sound_start)
    return path


def make_sound(path: Path, sound: np.ndarray, codec: str, rate: int) -> Path:
    """A file of one sound track: float32 (n,) or (channels, n)."""
    sound = np.atleast_2d(np.asarray(sound, np.float32))
    with av.open(str(path), "w") as file:
        _encode_sound(file, file.add_stream(codec, rate=rate, layout=LAYOUTS[len(sound)]), sound, rate)
    return path


def _encode_sound(file, track, sound: np.ndarray, rate: int, start: float = 0.0) -> None:
    layout = LAYOUTS[len(sound)]
    size = track.codec_context.frame_size or 1024
    resampler = av.AudioResampler(track.codec_context.format.name, layout, rate, frame_size=size)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
    frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
    frame.pts = round(start * rate)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        file.mux(track.encode(piece))
    file.mux(track.encode())


def join_tracks(path: Path, *sources: Path) -> Path:
    """A file of the first track of each source, copied."""
    with av.open(str(path), "w") as file, contextlib.ExitStack() as stack:
        opened = [stack.enter_context(av.open(str(source))) for source in sources]
        tracks = [file.add_stream_from_template(source.streams[0], opaque=True) for source in opened]
        for source, track in zip(opened, tracks, strict=True):
            for packet in source.demux(source.streams[0]):
                assert packet.dts is not None or not packet.size, f"{path.name}: the muxer needs times of decoding"
                if packet.size:
                    packet.stream = track
                    file.mux(packet)
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


_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")  # boxes of MP4 that only hold boxes


def rewrite_header(path: Path, change: Callable[[bytes, bytes], bytes]) -> Path:
    """Pass the boxes in the header of an MP4 with one track, as FFmpeg writes it, through `change`: (type, content) →
    content, b"" to drop the box."""

    def again(data: bytes) -> bytes:
        out, at = b"", 0
        while at < len(data):
            size, kind = struct.unpack_from(">I4s", data, at)
            content = data[at + 8 : at + size]
            content = again(content) if kind in _FOLDERS else change(kind, content)
            out += struct.pack(">I4s", 8 + len(content), kind) + content if content else b""
            at += size
        return out

    data = path.read_bytes()
    at = data.index(b"moov") - 4  # behind the samples, which stay where they are
    assert data.index(b"mdat") < at
    path.write_bytes(data[:at] + again(data[at:]))
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Make an MP4 of `make_video` ask players to show the pixel at (x, y) at (ax + cy, bx + dy)."""
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    change = lambda kind, content: content[:40] + matrix + content[76:] if kind == b"tkhd" else content  # noqa: E731
    return rewrite_header(path, change)


def set_edits(path: Path, edits: Sequence[tuple[float, float | None]]) -> Path:
    """Give an MP4 of `make_video` without sound this edit list: (seconds, from which second of the track on, None for
    nothing) each."""
    data = path.read_bytes()
    movie, track = (struct.unpack_from(">I", data, data.index(kind) + 16)[0] for kind in (b"mvhd", b"mdhd"))
    rows = [(round(length * movie), -1 if begin is None else round(begin * track)) for length, begin in edits]
    elst = struct.pack(">2I", 0, len(rows)) + b"".join(struct.pack(">IiI", *row, 1 << 16) for row in rows)
    edts = struct.pack(">I4s", 8 + len(elst), b"elst") + elst
    return rewrite_header(path, lambda kind, content: edts if kind == b"edts" else content)


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

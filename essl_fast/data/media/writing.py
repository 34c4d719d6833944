"""Writes an MP4 file of new pictures, in H.264, with the sound track of another file, copied where MP4 allows it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_path
from essl_fast.data.media import opening
from essl_fast.data.media.audio import find_sound

COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")  # players know these in MP4; others become AAC
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
_BT709 = 1  # ITU-T H.273: the number of its primaries, its transfer and its matrix
_LOUDEST = 1000.0  # of float samples, whose full scale is 1
_PAUSE = 0.04  # seconds by which stamps leave the count of samples, until sound that is encoded again is cut or padded
_MOST_THREADS = 8  # each holds pictures, and more threads hardly help with this preset


class VideoWriter:
    """Encodes pictures, RGB uint8 (height, width, 3), into an open MP4 file.

    H.264 in 4:2:0 needs even sides: an odd side is made even by repeating the last row or column.
    """

    def __init__(
        self, out, width: int, height: int, time_base: Fraction, frame_rate: float, aspect: Fraction | None = None
    ):
        self._out, self._time_base = out, time_base
        self._last: int | None = None  # tick of the last picture
        self._sound: _Sound | None = None
        self._odd = ((0, height % 2), (0, width % 2), (0, 0))
        try:
            stream = out.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
        except UnknownCodecError:
            raise InputError("this PyAV has no H.264 encoder; install 'av' again from its wheel") from None
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = time_base
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        context.options = {"preset": "veryfast", "crf": "20", **_instructions()}
        context.thread_count = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        self._video, self._reformatter = stream, VideoReformatter()

    def add_sound(self, container, path: Path, zero: float | None = None) -> None:
        """Add the sound track of an open file, its time 0 (as in `find_sound`) at tick 0. Call it before the first
        picture."""
        self._sound = _Sound(container, self._out, path, zero)

    def add(self, picture: np.ndarray, tick: int) -> None:
        """Encode the next picture, shown at `tick` (in time bases), or one tick after the last one if that is later."""
        tick = self._last = tick if self._last is None else max(tick, self._last + 1)
        if any(side for _, side in self._odd):
            picture = np.pad(picture, self._odd, mode="edge")
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = self._reformatter.reformat(
            frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = tick, self._time_base
        if self._sound is not None:  # in step with the pictures, or the muxer would hold packets in memory
            self._sound.advance(self._out, float(tick * self._time_base))
        self._out.mux(self._video.encode(frame))

    def finish(self) -> None:
        """Write what the encoders still hold, and the rest of the sound."""
        self._out.mux(self._video.encode(None))
        if self._sound is not None:
            self._sound.advance(self._out, math.inf)


@cache
def _instructions(cpuinfo: str = "/proc/cpuinfo") -> dict[str, str]:
    """Options that keep x264 from AVX-512. Its code for `mbtree` reads memory that nothing wrote there, so the same
    pictures would give other bytes each time. AVX2 is as fast, and every processor with AVX-512 has it."""
    try:
        with open(cpuinfo) as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:  # not Linux
        flags = ""
    return {"x264-params": "asm=avx2"} if "avx512f" in flags.split() else {}


class _Sound:
    """Copies the sound track of an open file into another, from the file's time 0 on, or encodes it again."""

    def __init__(self, container, out, path: Path, zero: float | None):
        self._stream, self._zero = find_sound(container, path, zero)
        opening.read_only(container, self._stream)
        self._packets = container.demux(self._stream)
        self.copied = self._stream.codec_context.codec.canonical_name in COPIED
        if self.copied:
            self._out = out.add_stream_from_template(self._stream)
        else:
            self._rate = self._stream.rate if self._stream.rate in _AAC_RATES else 48_000
            self._layout = "mono" if self._stream.codec_context.channels == 1 else "stereo"
            self._out = out.add_stream("aac", rate=self._rate, layout=self._layout)
            self._resampler = av.AudioResampler("fltp", self._layout, self._rate)
            self._next: int | None = None  # number of the next sample
        self._ready = self._converted()
        self._held = next(self._ready, None)

    def advance(self, out, until: float) -> None:
        """Write the sound up to `until` (seconds)."""
        while self._held is not None and self._held[0] <= until:
            out.mux(self._held[1])
            self._held = next(self._ready, None)

    def _converted(self) -> Iterator[tuple[float, object]]:
        """(seconds, packet or packets to write)."""
        with suppress(av.FFmpegError):  # the file breaks off here; `SoundWindows.faults` says so
            for packet in self._packets:
                if packet.is_corrupt or (self.copied and packet.dts is None):
                    continue  # a damaged packet, or the flush packet at the end
                yield from self._copied(packet) if self.copied else self._encoded(packet)
        if not self.copied:
            yield math.inf, self._out.encode(None)

    def _copied(self, packet) -> Iterator[tuple[float, object]]:
        shift = round(self._zero / packet.time_base)
        packet.dts -= shift
        if packet.pts is not None:
            packet.pts -= shift
        packet.stream = self._out
        yield float(packet.dts * packet.time_base), packet

    def _encoded(self, packet) -> Iterator[tuple[float, object]]:
        try:
            frames = packet.decode()
        except av.FFmpegError:
            return  # silence takes its place; `SoundWindows.faults` says so
        for decoded in frames:
            for frame in self._resampler.resample(_audible(decoded)):
                due = self._next or 0 if frame.time is None else round((frame.time - self._zero) * self._rate)
                if self._next is None:
                    self._next = due
                while due - self._next > _PAUSE * self._rate:
                    count = min(due - self._next, self._rate)
                    silence = np.zeros((1 if self._layout == "mono" else 2, count), np.float32)
                    yield from self._numbered(av.AudioFrame.from_ndarray(silence, "fltp", self._layout))
                if self._next - due > _PAUSE * self._rate:
                    continue  # packets that overlap, or a clock that runs fast
                yield from self._numbered(frame)

    def _numbered(self, frame) -> Iterator[tuple[float, object]]:
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._next, Fraction(1, self._rate)
        self._next += frame.samples
        yield frame.pts / self._rate, self._out.encode(frame)


def _audible(frame: av.AudioFrame) -> av.AudioFrame:
    """A decoded frame as an encoder takes it: samples that are no numbers are silence, and if some are far beyond full
    scale, all are clipped to it."""
    if not frame.format.name.startswith(("flt", "dbl")):
        return frame
    samples = frame.to_ndarray()
    if (np.abs(samples) < _LOUDEST).all():
        return frame
    samples = np.clip(np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0), -1, 1)
    clean = av.AudioFrame.from_ndarray(samples, frame.format.name, frame.layout.name)
    clean.sample_rate, clean.pts, clean.time_base = frame.sample_rate, frame.pts, frame.time_base
    return clean


@contextmanager
def video_file(
    path: Path,
    width: int,
    height: int,
    time_base: Fraction,
    frame_rate: float,
    sound: Path | None,
    *,
    zero: float | None = None,
    aspect: Fraction | None = None,
) -> Iterator[VideoWriter]:
    """A writer of an MP4 file. The file is put in place when the block ends; on an error, `path` stays as it was.

    Args:
        path: of the MP4 file.
        width, height: of the pictures, pixels.
        time_base: seconds of a tick.
        frame_rate: frames per second, for the header.
        sound: a file whose sound track is added, its time 0 at tick 0; or None.
        zero: time 0 of that file, as in `audio.find_sound`.
        aspect: width of a pixel over its height; None: 1.

    Raises:
        MediaError: `sound` has no sound track.
        OSError: the file cannot be written.
    """
    with atomic_path(path) as partial:
        with (
            av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as out,
            opening.open_file(sound) if sound else nullcontext() as source,
        ):
            writer = VideoWriter(out, width, height, time_base, frame_rate, aspect)
            if source is not None and sound is not None:
                writer.add_sound(source, sound, zero)
            yield writer
            writer.finish()

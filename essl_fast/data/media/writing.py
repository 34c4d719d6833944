"""An MP4 file of new pictures, in H.264, with the sound of another file, as it is there where MP4 takes that."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from essl_fast.common.errors import InputError
from essl_fast.data.media.audio import find_sound
from essl_fast.data.media.video import open_file

COPIED = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")  # that players find in MP4; others become AAC
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
_BT709 = 1  # ITU-T H.273: the number of its primaries, transfer and matrix alike
_PAUSE = 0.1  # seconds without sound that become silence where the sound is encoded anew
_MOST_THREADS = 8  # each holds pictures, and more of them hardly help at this preset


class VideoWriter:
    """Pictures (height, width, 3) uint8 RGB into `out`; sides that are odd are repeated once, for H.264's 4:2:0."""

    def __init__(self, out, width: int, height: int, time_base: Fraction, frame_rate: float):
        self._out, self._time_base = out, time_base
        self._sound: _Sound | None = None
        self._odd = ((0, height % 2), (0, width % 2), (0, 0))
        try:
            stream = out.add_stream("libx264", rate=Fraction(frame_rate).limit_denominator(1001))
        except UnknownCodecError:
            raise InputError("this PyAV has no H.264 encoder; install 'av' again from its wheel") from None
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = time_base
        context.options = {"preset": "veryfast", "crf": "20"}
        context.thread_count = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        self._video, self._reformatter = stream, VideoReformatter()

    def add_sound(self, container, path: Path) -> None:
        """Let the sound track of an open file go along, its time 0 at tick 0; before the first picture."""
        self._sound = _Sound(container, self._out, path)

    def add(self, picture: np.ndarray, tick: int) -> None:
        """The next picture, shown at `tick` of the time base."""
        if any(side for _, side in self._odd):
            picture = np.pad(picture, self._odd, mode="edge")
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = self._reformatter.reformat(
            frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts, frame.time_base = tick, self._time_base
        if self._sound is not None:  # in step, or the muxer would hold what comes too early
            self._sound.advance(self._out, float(tick * self._time_base))
        self._out.mux(self._video.encode(frame))

    def finish(self) -> None:
        self._out.mux(self._video.encode(None))
        if self._sound is not None:
            self._sound.advance(self._out, math.inf)


class _Sound:
    """The sound track of an open file on its way into another, from the file's time 0 on."""

    def __init__(self, container, out, path: Path):
        self._stream, self._zero = find_sound(container, path)
        for stream in container.streams:
            if stream is not self._stream:
                stream.discard = av.stream.Discard.all
        self._packets = container.demux(self._stream)
        self.copied = self._stream.codec_context.codec.canonical_name in COPIED
        if self.copied:
            self._out = out.add_stream_from_template(self._stream)
        else:
            self._rate = self._stream.rate if self._stream.rate in _AAC_RATES else 48_000
            self._layout = "mono" if self._stream.codec_context.channels == 1 else "stereo"
            self._out = out.add_stream("aac", rate=self._rate, layout=self._layout)
            self._resampler = av.AudioResampler("fltp", self._layout, self._rate)
            self._next: int | None = None  # the sample that comes next
        self._ready = self._converted()
        self._held = next(self._ready, None)

    def advance(self, out, until: float) -> None:
        """Write what is heard up to `until` seconds."""
        while self._held is not None and self._held[0] <= until:
            out.mux(self._held[1])
            self._held = next(self._ready, None)

    def _converted(self) -> Iterator[tuple[float, object]]:
        """(seconds, packet or packets to write)."""
        with suppress(av.FFmpegError):  # where the file breaks off, which `SoundWindows.faults` tells of
            for packet in self._packets:
                if packet.is_corrupt or (self.copied and packet.dts is None):
                    continue  # damaged; or the flush packet at the end
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
            return  # its time becomes silence; `SoundWindows.faults` tells of it
        for decoded in frames:
            for frame in self._resampler.resample(decoded):
                due = self._next or 0 if frame.time is None else round((frame.time - self._zero) * self._rate)
                if self._next is None:
                    self._next = due
                while due - self._next > _PAUSE * self._rate:
                    count = min(due - self._next, self._rate)
                    silence = np.zeros((1 if self._layout == "mono" else 2, count), np.float32)
                    yield from self._numbered(av.AudioFrame.from_ndarray(silence, "fltp", self._layout))
                yield from self._numbered(frame)

    def _numbered(self, frame) -> Iterator[tuple[float, object]]:
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._next, Fraction(1, self._rate)
        self._next += frame.samples
        yield frame.pts / self._rate, self._out.encode(frame)


@contextmanager
def video_file(
    path: Path, width: int, height: int, time_base: Fraction, frame_rate: float, sound: Path | None
) -> Iterator[VideoWriter]:
    """A writer of the MP4 `path`, which is there, whole, when the block ends well, and else as it was.

    sound: a file whose sound track goes along, its time 0 at tick 0. MediaError if that has none; OSError.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with (
            av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as out,
            open_file(sound) if sound else nullcontext() as source,
        ):
            writer = VideoWriter(out, width, height, time_base, frame_rate)
            if source is not None:
                writer.add_sound(source, sound)
            yield writer
            writer.finish()
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

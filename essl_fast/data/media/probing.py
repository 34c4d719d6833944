"""Reads a video file once without decoding it, at the speed of a copy: when is each frame shown, which are key frames.

Time 0 of a file is where its video stream starts, for frames and sound alike: frame 1 is on screen at 0 s.

Frames are numbered from 1 in the order in which they are shown. Where the frame rate is constant, frame `fid` is the
fid-th frame shown. Where the rate varies, programs number frames differently, so the time of the annotation decides:
the frame on screen at that time is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from essl_fast.data.media import cropping, limits, opening
from essl_fast.data.media.clock import Stamps, is_constant, make_clock
from essl_fast.data.media.cropping import NO_CROP, Crop
from essl_fast.data.media.errors import LIMIT, PAST_END, TRUNCATED, UNREADABLE, MediaError
from essl_fast.data.media.packets import HIDING, is_gradual, is_hidden
from essl_fast.data.media.slices import SliceReader
from essl_fast.data.media.tracks import choose_sound

_SEEKABLE = {"mov", "mp4", "matroska", "webm"}  # with these formats, a seek finds the key frame that it is given
_ROUNDED = Fraction(51, 10_000)  # seconds: the largest error of a time rounded to two decimals, and a little more


@dataclass(frozen=True, eq=False)
class Probe:
    """What a video file holds.

    Attributes:
        path: the file.
        pts: int64 (n,), when each frame is shown, ascending, in ticks of `time_base` seconds.
        keys: int64 (k,), the same for the key frames alone.
        time_base: seconds of a tick.
        start: the tick of time 0.
        width, height: pixels, before the picture is turned upright.
        constant: the frame rate is constant.
        counted: "", or why packets do not tell which frame they hold: frames are counted as the decoder gives them.
        seekable: a seek finds the key frame that it is given.
        truncated: "" or what is missing from the file, in words.
        audio: there is a sound track.
        aspect: width over height of a pixel, as the file states it.
        crop: pixels at the left, top, right and bottom, before the picture is turned, that its container hides.
        track: "" or, if there are several, which one is used and why (`tracks`).
        sound_end: seconds at which the sound track ends, by its packets; 0 if there is none.
        codec: FFmpeg's name of the video codec ("h264", "hevc", "vp9", "av1", "mjpeg", ...).
        pixels: FFmpeg's name of the pixel format ("yuv420p", ...).
    """

    path: Path
    pts: np.ndarray
    keys: np.ndarray
    time_base: Fraction
    start: int
    width: int
    height: int
    constant: bool
    counted: str
    seekable: bool
    truncated: str
    audio: bool
    codec: str
    pixels: str
    aspect: Fraction = Fraction(1)
    crop: Crop = NO_CROP
    track: str = ""
    sound_end: float = 0.0

    @property
    def zero(self) -> float:
        """Time 0, in seconds of the file's clock."""
        return float(self.start * self.time_base)

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height of what players show, pixels, before the picture is turned."""
        left, top, right, bottom = self.crop
        return self.width - left - right, self.height - top - bottom

    @property
    def frame_rate(self) -> float | None:
        """Mean number of frames per second; None for a video of fewer than two frames."""
        span = float((self.pts[-1] - self.pts[0]) * self.time_base) if len(self.pts) > 1 else 0.0
        return (len(self.pts) - 1) / span if span > 0 else None

    def place(self, fid: int, time: float) -> int | None:
        """Position in `pts` of the frame that an annotation means; None if the video ends before it.

        Args:
            fid: number of the frame, from 1; used where the frame rate is constant.
            time: seconds; used otherwise.
        """
        if self.constant:
            return fid - 1 if 1 <= fid <= len(self.pts) else None
        tick = self.start + Fraction(time) / self.time_base
        if tick > int(self.pts[-1] + 2 * np.diff(self.pts).max()):  # a NumPy integer would overflow in a Fraction
            return None
        place = max(int(np.searchsorted(self.pts, math.floor(tick), "right")) - 1, 0)
        if place + 1 < len(self.pts):  # a time that was rounded down lies a little before its frame
            now, following = int(self.pts[place]), int(self.pts[place + 1])
            if following - tick <= min(_ROUNDED / self.time_base, Fraction(following - now, 2)):
                return place + 1
        return place

    def key_before(self, place: int) -> int:
        """Position in `keys` of the last key frame that is shown at or before the frame at `place`."""
        return max(int(np.searchsorted(self.keys, self.pts[place], "right")) - 1, 0)

    def place_of_key(self, key: int) -> int:
        """Position in `pts` of the key frame at position `key` of `keys`; 0 if no key frame is known."""
        return int(np.searchsorted(self.pts, self.keys[key])) if len(self.keys) else 0


def probe(path: str | Path) -> Probe:
    """Read the packets of `path` without decoding them.

    Raises:
        MediaError: the file cannot be opened, has no video stream or no frame, or is beyond the limits.
    """
    path = Path(path)
    with opening.open_file(path) as container:
        video = opening.video_stream(container, path)
        audio, track = choose_sound(container)
        assert video.time_base is not None  # FFmpeg gives every stream one
        read = _Packets.of(container, video, audio, path)
        if not read.shown:
            why = read.trouble or "it is empty"
            raise MediaError(UNREADABLE, f"{path.name}: its video stream has no frame ({why})")
        formats = set(container.format.name.split(","))
        clock = make_clock(path, formats, read.stamps(), read.keys)
        sound_end = float(read.ends.get(audio.index, 0) * (audio.time_base or 0)) if audio is not None else 0.0
        start = int(clock.pts[0])
        return Probe(
            path=path,
            pts=clock.pts,
            keys=np.array([] if clock.counted else sorted(key for key in read.keys if key is not None), np.int64),
            time_base=video.time_base,
            start=start,
            width=video.width,
            height=video.height,
            constant=is_constant(clock.pts, video.time_base),
            counted=clock.counted,
            seekable=not clock.counted and bool(formats & _SEEKABLE),
            truncated=read.truncated(container, path),
            audio=audio is not None,
            codec=video.codec_context.codec.canonical_name,
            pixels=video.codec_context.pix_fmt or "",
            aspect=_aspect(video),
            crop=cropping.of_file(path, formats, video.width, video.height),
            track=track,
            sound_end=max(sound_end - float(start * video.time_base), 0.0),
        )


@dataclass(frozen=True)
class _Packets:
    """What the packets of a file say.

    pts, dts, visible: of each packet of the video from the first key frame on, as in `clock.Stamps`; keys: ticks of
    the key frames; fields, reorders, gradual: as there; ends: stream index → tick at which its last packet ends;
    trouble: "" or why reading ended early.
    """

    pts: list[int | None]
    dts: list[int | None]
    visible: list[bool]
    keys: list[int | None]
    fields: bool
    reorders: bool | None
    gradual: bool
    ends: dict[int, int]
    trouble: str

    @property
    def shown(self) -> bool:
        """Whether any picture is shown."""
        return any(self.visible)

    def stamps(self) -> Stamps:
        return Stamps(self.pts, self.dts, self.visible, self.fields, self.reorders, self.gradual)

    @classmethod
    def of(cls, container, video, audio, path: Path) -> _Packets:
        """Read all packets. MediaError if there are more frames than the limit."""
        codec, settings = video.codec_context.codec.canonical_name, video.codec_context.extradata
        reader = SliceReader(settings) if codec == "h264" else None
        hides = codec in HIDING
        pts: list[int | None] = []
        keys: list[int | None] = []
        ends: dict[int, int] = {}
        dts, visible, trouble = [], [], ""
        begun = False  # amid a gradual refresh
        rising = True  # so far, packets are stamped in the order of the file
        try:
            for packet in container.demux(*(stream for stream in (video, audio) if stream is not None)):
                if packet.size == 0:
                    continue  # the flush packet at the end
                if packet.is_corrupt:
                    trouble = "a packet is cut off"
                    continue
                stamp = packet.dts if packet.pts is None else packet.pts
                stream = packet.stream_index
                if stamp is not None and (tick := stamp + (packet.duration or 0)) > ends.get(stream, 0):
                    ends[stream] = tick
                if stream != video.index or not (keys or packet.is_keyframe):
                    continue  # what comes before the first key frame can never be shown
                if packet.is_keyframe:
                    gradual = is_gradual(codec, bytes(packet), settings)
                    begun = begun or (gradual and not keys)
                    if not (keys and gradual):
                        keys.append(packet.pts)
                if reader is not None and (packet.is_keyframe or (reader.tells and (rising or not reader.whole))):
                    reader.read(packet)
                if pts and (packet.pts is None or pts[-1] is None or packet.pts <= pts[-1]):
                    rising = False
                pts.append(packet.pts)
                dts.append(packet.dts)
                visible.append(not packet.is_discard and not (hides and is_hidden(codec, packet)))
                if len(pts) > limits.FRAMES:
                    raise MediaError(LIMIT, f"{path.name}: {limits.length(0, len(pts))}")
        except av.FFmpegError as error:
            trouble = opening.error_text(error)
        reorders = _reorders(video) if reader is None else reader.reorders
        fields = reader is not None and reader.fields
        return cls(pts, dts, visible, keys, fields, reorders, begun, ends, trouble)

    def truncated(self, container, path: Path) -> str:
        """What is missing from the file, in words; "" if nothing is."""
        end = max((float(tick * container.streams[at].time_base) for at, tick in self.ends.items()), default=0.0)
        declared = (container.duration or 0) / av.time_base
        trouble = self.trouble
        if declared - end > 0.5:
            trouble = trouble or "the file ends early"
        return f"{path.name}: {trouble}: {end:.2f} s of {max(declared, end):.2f} s are there" if trouble else ""


def _aspect(video) -> Fraction:
    """Width over height of a pixel; 1 if it is not stated, or is no ratio that a picture has."""
    stated = video.sample_aspect_ratio or video.codec_context.sample_aspect_ratio
    return stated if stated and Fraction(1, 16) <= stated <= 16 else Fraction(1)


def _reorders(video) -> bool | None:
    """Whether the order of showing may differ from that of decoding, by the header of the stream; None: unknown."""
    if not video.codec_context.codec.reorder:
        return False
    if video.codec_context.codec.canonical_name == "hevc":  # its parameter sets must say so
        return bool(video.codec_context.has_b_frames)
    return None


Requests = Sequence[tuple[int, float]]  # frames that a caller wants: (fid, time in seconds) each


def find_places(found: Probe, requests: Requests) -> tuple[dict[int, list[int]], list[tuple[int, MediaError]]]:
    """Which frames the requests mean.

    Returns:
        {place in `found.pts`: indexes of the requests that mean it}, and [(index of a request, why there is no such
        frame), ...].
    """
    wanted: dict[int, list[int]] = {}
    errors = []
    for index, (fid, time) in enumerate(requests):
        place = found.place(fid, time)
        if place is not None:
            wanted.setdefault(place, []).append(index)
        elif found.truncated:
            errors.append((index, MediaError(TRUNCATED, f"frame {fid}: {found.truncated}")))
        else:
            detail = f"{found.path.name}: frame {fid} at {time:g} s, it has {len(found.pts)} frames"
            errors.append((index, MediaError(PAST_END, detail)))
    return wanted, errors


def damaged_frame(found: Probe, fid: int) -> MediaError:
    """The answer to a request of a frame that the file has, but damaged."""
    why = found.truncated or f"{found.path.name}: the decoder cannot restore this frame"
    return MediaError(TRUNCATED, f"frame {fid}: {why}")

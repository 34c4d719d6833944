"""Video files → the frames that pairs need, decoded with PyAV (FFmpeg), nothing else; `audio` has their sound.

One clock for both: time 0 is where the video stream starts, so frame 1 is on screen at 0 s.

Frames are numbered from 1 in the order they are shown. Where the frame rate is constant, frame `fid` is the fid-th
shown; where it varies, numbering depends on who counts, so the frame on screen at the annotation's time is taken.

`probe` reads the file once without decoding (a copy's speed) to learn when each frame is shown. `decode_frames` then
decodes from the last key frame before a wanted frame and seeks over what nobody wants: on a 10-minute clip with key
frames every 2 s and 20 annotated moments that decodes about a thirtieth of the frames.

Every problem of a file is a `MediaError` with a short fixed `reason`, that people can count, and a `detail`, that names
the file. What comes before the damage of a damaged file is still used, and pictures again from the next key frame on.
Damage is what FFmpeg notices: H.264 carries no checksum, and some noise decodes as well as a picture.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from time import thread_time

import av
import numpy as np

from essl_fast.data.media import limits
from essl_fast.data.media.display import upright
from essl_fast.data.media.packets import is_gradual, is_hidden

EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov")

MISSING = "video file missing"
UNREADABLE = "video file unreadable"
NO_VIDEO = "no video stream"
NO_SOUND = "no audio track"
WINDOW = "sound window leaves the audio track"
PAST_END = "frame past the end of the video"
TRUNCATED = "video truncated or damaged"
SOUND_TRUNCATED = "sound truncated or damaged"
LIMIT = "beyond the decoding limits"  # of `limits`

_SEEKABLE = {"mov", "mp4", "matroska", "webm"}  # their indexes lead to the key frame that was asked for
_WORTH_A_SEEK = 8  # frames to skip before a seek is cheaper than decoding on
_ROUNDED = Fraction(51, 10_000)  # seconds that a time rounded to two decimals is off at most, and a little


def as_text(told: str) -> str:
    """What a UTF-8 file can hold of it: the bytes of a file's name that are no UTF-8 are written out."""
    return told.encode(errors="backslashreplace").decode()


class MediaError(ValueError):
    """A file cannot give what was asked of it. `reason`: one of this module's constants; `detail`: names the file."""

    def __init__(self, reason: str, detail: str):
        detail = as_text(detail)
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    def __reduce__(self):
        return MediaError, (self.reason, self.detail)


@dataclass(frozen=True, eq=False)
class Probe:
    """What a file holds.

    pts: int64 (n,) when each frame is shown, ascending, in ticks of `time_base` seconds; keys: those of the key frames.
    start: tick of time 0. constant: the frame rate is. counted: timestamps cannot be trusted, frames must be counted.
    truncated: "" or what is missing of the file. audio: there is a sound track. codec: FFmpeg's name of the video's
    ("h264", "hevc", "vp9", "av1", "mjpeg", ...); pixels: of its pixel format ("yuv420p", ...).
    """

    path: Path
    pts: np.ndarray
    keys: np.ndarray
    time_base: Fraction
    start: int
    width: int
    height: int
    constant: bool
    counted: bool
    seekable: bool
    truncated: str
    audio: bool
    codec: str
    pixels: str

    @property
    def frame_rate(self) -> float | None:
        """Mean frames per second; None of less than two frames."""
        span = float((self.pts[-1] - self.pts[0]) * self.time_base) if len(self.pts) > 1 else 0.0
        return (len(self.pts) - 1) / span if span > 0 else None

    def place(self, fid: int, time: float) -> int | None:
        """Position in `pts` of the frame that an annotation means; None if the video ends before it."""
        if self.constant or self.counted:
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


def find_video(folder: str | Path, video: str) -> Path:
    """The file `video` + one of EXTENSIONS in any case, the first in their order. MediaError if there is none."""
    folder = Path(folder)
    for extension in EXTENSIONS:
        for spelling in (extension, extension.upper()):
            path = folder / f"{video}{spelling}"
            try:
                if path.is_file():
                    return path
            except OSError as error:
                raise unreadable(path, error) from error
    raise MediaError(MISSING, f"{video}{{{','.join(EXTENSIONS)}}} is not in {folder.name}/")


def probe(path: str | Path) -> Probe:
    """Read the packets of `path` without decoding them. MediaError if it cannot be opened or has no video stream."""
    path = Path(path)
    with open_file(path) as container:
        video = video_stream(container, path)
        audio = container.streams.best("audio")
        codec, settings = video.codec_context.codec.canonical_name, video.codec_context.extradata
        shown, keys, ends, trouble = [], [], {}, ""  # ends: tick of each stream
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
                    continue  # what precedes the first key frame can never be shown
                if packet.is_keyframe and not (keys and is_gradual(codec, bytes(packet), settings)):
                    keys.append(packet.pts)
                if not packet.is_discard and not is_hidden(codec, packet):
                    shown.append(packet.pts)
                if len(shown) > limits.FRAMES:
                    raise MediaError(LIMIT, f"{path.name}: {limits.length(0, len(shown))}")
        except av.FFmpegError as error:
            trouble = say(error)
        if not shown:
            raise MediaError(UNREADABLE, f"{path.name}: its video stream has no frame ({trouble or 'it is empty'})")
        end = max((float(tick * container.streams[stream].time_base) for stream, tick in ends.items()), default=0.0)
        declared = (container.duration or 0) / av.time_base
        if declared - end > 0.5:
            trouble = trouble or "the file ends early"
        if trouble:
            trouble = f"{path.name}: {trouble}: {end:.2f} s of {max(declared, end):.2f} s are there"
        formats = set(container.format.name.split(","))
        # AVI stores no time of showing, so FFmpeg's guesses may be out of order, and an edit list of several parts lets
        # the times of undisplayed packets overlap those of others: count the decoder's output instead.
        counted = "avi" in formats or None in shown or None in keys or any(b <= a for a, b in pairwise(keys))
        # What is shown before the first key frame refers to frames that are not in the file.
        pts = np.arange(len(shown)) if counted else np.array(sorted(stamp for stamp in shown if stamp >= min(keys)))
        steps = np.diff(pts)
        return Probe(
            path=path,
            pts=pts.astype(np.int64),
            keys=np.array([] if counted else sorted(keys), np.int64),
            time_base=1 / video.average_rate if counted and video.average_rate else video.time_base,
            start=0 if counted else int(pts[0] if video.start_time is None else video.start_time),
            width=video.width,
            height=video.height,
            constant=counted or len(steps) < 2 or bool(np.abs(steps - steps.mean()).max() <= 1),
            counted=counted,
            seekable=not counted and bool(formats & _SEEKABLE),
            truncated=trouble,
            audio=audio is not None,
            codec=codec,
            pixels=video.codec_context.pix_fmt or "",
        )


def decode_frames(
    path: str | Path, requests: Sequence[tuple[int, float]], found: Probe | None = None
) -> Iterator[tuple[int, np.ndarray | MediaError]]:
    """Decode the frames of `requests`, (fid, time in seconds) each, in one forward pass.

    Yields, once for every request and in the order of showing, (its index, RGB uint8 (H, W, 3), upright), or (its
    index, MediaError) where the file does not give that frame. `found`: `probe(path)`, where the caller has it. Raises
    MediaError as `probe` does. Decoding stops at the last frame wanted.
    """
    found = found or probe(path)
    wanted, errors = find_places(found, requests)
    yield from errors
    left = sorted(wanted)
    if not left:
        return
    for place, rgb in _decode_places(found, left):
        while left and left[0] < place:
            yield from lost(found, wanted, left.pop(0), requests)
        if left and left[0] == place:
            for index in wanted[left.pop(0)]:
                yield index, rgb()
        if not left:
            return
    for place in left:
        yield from lost(found, wanted, place, requests)


def decode_all(found: Probe) -> Iterator[tuple[int, np.ndarray]]:
    """Decode every frame that is undamaged, in one forward pass: (its place in `found.pts`, RGB uint8 (H, W, 3),
    upright). Memory holds a few frames. Raises MediaError as `probe` does."""
    left = deque(range(len(found.pts)))
    for place, rgb in _decode_places(found, left):
        while left and left[0] < place:
            left.popleft()
        if left and left[0] == place:
            left.popleft()
            yield place, rgb()
        if not left:
            return


def find_places(found: Probe, requests) -> tuple[dict[int, list[int]], list[tuple[int, MediaError]]]:
    """({place in `found.pts`: indexes of the requests that mean it}, [(index, why there is no such frame), ...])."""
    wanted: dict[int, list[int]] = {}
    errors = []
    for index, (fid, time) in enumerate(requests):
        place = found.place(fid, time)
        if place is not None:
            wanted.setdefault(place, []).append(index)
        elif found.truncated:
            errors.append((index, MediaError(TRUNCATED, f"frame {fid}: {found.truncated}")))
        else:
            told = f"{found.path.name}: frame {fid} at {time:g} s, it has {len(found.pts)} frames"
            errors.append((index, MediaError(PAST_END, told)))
    return wanted, errors


def lost(found: Probe, wanted: dict[int, list[int]], place: int, requests) -> Iterator[tuple[int, MediaError]]:
    """What the requests of a frame that is there but damaged get."""
    why = found.truncated or f"{found.path.name}: the decoder cannot restore this frame"
    for index in wanted[place]:
        yield index, MediaError(TRUNCATED, f"frame {requests[index][0]}: {why}")


def _decode_places(found: Probe, left: list[int]):
    """(place, function that makes the RGB array) of undamaged frames, in a forward pass that seeks toward left[0].

    The caller shortens `left` as it takes frames. From a packet that the decoder refuses to the next key frame nothing
    can be trusted: the frames decoded before it are fetched by a second run that stops there (in the first they are
    stuck in the decoder), then a fresh decoder goes on at the key frame, since a used one keeps traces of the error.
    """
    key = 0
    while True:
        bad = yield from _decode_run(found, left, key)
        if bad is None or found.counted or not left:
            return  # where frames are counted, the count is lost
        following = max(key + 1, int(np.searchsorted(found.keys, bad, "right")))
        if found.pts[left[0]] < (found.keys[following] if following < len(found.keys) else math.inf):
            yield from _decode_run(found, left, key, stop=bad)
        if following >= len(found.keys):
            return
        key = following


def _decode_run(found: Probe, left: list[int], key: int, stop: int | None = None):
    """Decode from the key frame of this number. Returns the tick of the packet or frame where damage ends the run, None
    at the file's end or before the packet shown at `stop`."""
    with open_file(found.path) as container:
        video = video_stream(container, found.path)
        # One thread: prepare runs a process a video, and which frame an error belongs to must not depend on timing.
        video.codec_context.thread_count = 1
        # A damaged picture may be shown after those that refer to it: let so many go by before one is given out.
        lag = 4 if video.codec_context.has_b_frames and not found.counted else 0
        place_of = {} if found.counted else {int(pts): place for place, pts in enumerate(found.pts)}
        place = _first_place(found, key)
        count, waiting, seek, packets = 0, True, key > 0 and found.seekable, container.demux(video)
        held: deque = deque()
        while True:
            if found.seekable and left and (later := key_before(found, left[0])) > key:
                if _first_place(found, later) - place > _WORTH_A_SEEK:
                    key, seek = later, True
            if seek:
                try:
                    container.seek(int(found.keys[key]), stream=video, backward=True)
                except av.FFmpegError:  # the index is of no use
                    return (yield from _decode_run(replace(found, seekable=False), left, key, stop))
                packets, waiting, seek, place = container.demux(video), True, False, _first_place(found, key)
                held.clear()
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                packet = None  # nothing behind this can be read
            if packet is not None and packet.size and not found.counted:
                begin = found.keys[key]
                if waiting and found.seekable and packet.is_keyframe and (packet.pts is None or packet.pts > begin):
                    # The file's index led past the key frame: look for it from the start.
                    return (yield from _decode_run(replace(found, seekable=False), left, key, stop))
                # What is shown before the key frame may refer to what was not decoded.
                if packet.pts is None or packet.pts < begin or (waiting and packet.pts != begin):
                    continue
            elif packet is not None and packet.size and waiting and not packet.is_keyframe:
                continue
            waiting = waiting and not (packet and packet.size)
            ended = packet is None or (stop is not None and packet.pts == stop)
            if not ended and packet.is_corrupt:
                return packet.pts
            try:
                frames = video.codec_context.decode(None) if ended else packet.decode()
            except av.FFmpegError:
                if not ended:
                    return packet.pts
                frames = []  # the end was there already
            for frame in frames:
                if frame.is_corrupt:
                    return frame.pts
                place = count if found.counted else place_of.get(frame.pts, place)
                count += 1
                if found.counted or frame.pts in place_of:
                    held.append((place, functools.partial(upright, frame)))
            while len(held) > (0 if ended else lag):
                yield held.popleft()
            if ended:
                return None


def key_before(found: Probe, place: int) -> int:
    """Number of the last key frame shown at or before the frame at `place`."""
    return max(int(np.searchsorted(found.keys, found.pts[place], "right")) - 1, 0)


def _first_place(found: Probe, key: int) -> int:
    return int(np.searchsorted(found.pts, found.keys[key])) if len(found.keys) else 0


def open_file(path: Path):
    begin = thread_time()
    try:
        # The protocol is named, or a path such as "concat:a" would name one. A tag in another encoding is nobody's
        # concern here.
        container = av.open(f"file:{path}", metadata_errors="replace", container_options=limits.DEMUXER)
    except (av.FFmpegError, OSError) as error:
        raise unreadable(path, error) from error
    if wrong := limits.header(thread_time() - begin):  # it is opened several times: no more than once for nothing
        container.close()
        raise MediaError(LIMIT, f"{path.name}: {wrong}")
    return container


def unreadable(path: Path, error: Exception) -> MediaError:
    return MediaError(UNREADABLE, f"{path.name}: {say(error)}; it may be incomplete: fetch it again")


def video_stream(container, path: Path):
    video = container.streams.best("video")
    if video is None or video.disposition & av.stream.Disposition.attached_pic:
        raise MediaError(NO_VIDEO, f"{path.name} has none")
    decodable(video, path)
    many = len(container.streams)
    wrong = f"it has {many} streams, at most {limits.STREAMS} are read" if many > limits.STREAMS else ""
    wrong = wrong or limits.picture(video.width, video.height)
    if wrong := wrong or limits.length((container.duration or 0) / av.time_base):
        raise MediaError(LIMIT, f"{path.name}: {wrong}")
    video.codec_context.options = limits.DECODER
    return video


def decodable(stream, path: Path):
    if stream.codec_context is None:
        raise MediaError(UNREADABLE, f"{path.name}: FFmpeg has no decoder for its {stream.type} stream")
    return stream


def say(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

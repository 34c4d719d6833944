"""The clock of a file: when each picture is shown, in the order of showing.

Packets tell it in most files: each holds one picture and says when that is shown. Then nothing is decoded. In some
files they do not, and every picture is decoded once to learn which packet it comes from:

* packets that are stamped in the order of decoding (AVI; MP4 and Matroska without composition offsets), as soon as
  pictures are shown in another order than they are decoded in;
* H.264 whose packets hold a field, half of the lines of a picture (HEVC's decoder gives each field as a picture of half
  the height, so each counts);
* packets without a stamp, or with that of another one;
* H.264 that starts amid a gradual refresh, in which stripes of many pictures make up for a key frame: the decoder gives
  nothing until all of it was refreshed;
* codecs whose packets are not understood here and which may change the order.

The decoder's order of output is then the order of showing. Where stamps are those of decoding, a decoder that holds D
pictures back shows picture i when packet i + D is due, so its time is that packet's, less the delay at the start.

Time 0 is where the first picture that can be decoded is shown. A recording that starts amid a group of pictures so
loses what cannot be decoded, its picture and its sound alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median  # NumPy's would import its masked arrays, which takes 0.1 s

import av
import numpy as np

from essl_fast.data.media import opening

_FINE = Fraction(1, 500)  # seconds; times in longer ticks are not taken for rounded ones
_SLACK = 2  # ticks by which the times of a constant rate may leave a straight line: each is rounded, in any way
FIELDS = "its packets hold fields, not pictures"
AVI = "AVI does not say when a picture is shown"
DECODING = "its times are those of decoding"
GRADUAL = "it starts amid a gradual refresh"
UNKNOWN = "its packets do not tell which picture they hold"
_DOUBTS = (DECODING, UNKNOWN)  # reasons that decoding may remove
_STATED = {"mov", "mp4", "matroska", "webm"}  # formats that state when each packet is shown


@dataclass(frozen=True)
class Stamps:
    """What the packets of a video stream say, from the first key frame on, in the order of the file.

    Attributes:
        pts, dts: ticks of showing and of decoding, or None where a packet has none.
        shown: the packet's picture is shown.
        fields: a packet holds a single field.
        reorders: pictures may be shown in another order than they are decoded in; None: the packets do not tell.
        gradual: the first of them only begins a gradual refresh.
    """

    pts: Sequence[int | None]
    dts: Sequence[int | None]
    shown: Sequence[bool]
    fields: bool
    reorders: bool | None
    gradual: bool = False


@dataclass(frozen=True, eq=False)
class Clock:
    """When pictures are shown.

    Attributes:
        pts: int64 (n,), tick at which each picture is shown, ascending; equal only where the file says so twice.
        counted: "", or why packets do not tell which of them holds a picture: pictures are counted as the decoder gives
            them, from the start of the file on.
    """

    pts: np.ndarray
    counted: str = ""


def make_clock(path: Path, formats: set[str], stamps: Stamps, keys: Sequence[int | None]) -> Clock:
    """The clock of a video file.

    Args:
        path: the file; it is decoded only if its packets cannot be trusted.
        formats: FFmpeg's names of its format.
        stamps: of its packets; at least one is shown.
        keys: ticks of the key frames, or None.

    Raises:
        MediaError: as `opening.video_stream`.
    """
    pts = [at for at, shown in zip(stamps.pts, stamps.shown, strict=True) if shown]
    rising = all(a is not None and b is not None and a < b for a, b in pairwise(pts))
    decoding = "avi" in formats or (rising and stamps.reorders is not False)  # stamped in the order of decoding
    why = ""
    if stamps.fields:
        why = FIELDS
    elif "avi" in formats:
        if stamps.reorders is False and None not in stamps.dts:
            return Clock(_begun([at for at, shown in zip(stamps.dts, stamps.shown, strict=True) if shown]), AVI)
        why = AVI
    elif stamps.gradual:
        why = GRADUAL
    elif None in pts or None in keys:
        why = "some of its packets have no time"
    elif len(set(pts)) < len(pts):
        why = "it shows two pictures at the same time"
    elif any(b <= a for a, b in pairwise(key for key in keys if key is not None)):
        why = "its key frames are not in the order of showing"
    elif decoding:
        why = DECODING
    elif stamps.reorders is None and not formats & _STATED:
        why = UNKNOWN
    if why:
        return _by_decoder(path, stamps, decoding, why, "avi" in formats)
    # A picture shown before the first key frame refers to pictures that are not in the file.
    first = min(key for key in keys if key is not None)
    return Clock(np.array(sorted(at for at in pts if at is not None and at >= first), np.int64))


def is_constant(pts: np.ndarray, time_base: Fraction) -> bool:
    """Whether pictures shown at these ticks have a constant rate, up to the rounding of times to ticks."""
    if len(pts) < 3:
        return True
    apart = pts - np.linspace(pts[0], pts[-1], len(pts))
    return bool(np.ptp(apart) <= (_SLACK if time_base <= _FINE else 1e-6))


def _by_decoder(path: Path, stamps: Stamps, decoding: bool, why: str, avi: bool) -> Clock:
    """The clock by decoding every picture once. decoding: stamps are those of decoding; avi: so are AVI's, always."""
    order, ahead = _decoded_order(path, stamps.shown)
    pts = [(stamps.dts if avi else stamps.pts)[at] for at in order]
    if decoding and order != sorted(order):
        packets = sorted(order)
        due = [(stamps.dts if avi else stamps.pts)[at] for at in packets]
        return Clock(_shifted(_whole(due), max(sum(at <= ahead for at in packets) - 1, 0)), why)
    if avi:
        return Clock(_begun(pts), why)
    one_to_one = len(order) == sum(stamps.shown) and all(
        a is not None and b is not None and a < b for a, b in pairwise(pts)
    )
    return Clock(_whole(pts), "" if one_to_one and why in _DOUBTS else why)


def _decoded_order(path: Path, shown: Sequence[bool]) -> tuple[list[int], int]:
    """Decode the video once.

    Where the decoder fails, the pictures of the packets from there on count as shown in the order of the file.

    Returns:
        (the packet of each picture, from 0, in the order of showing; the last packet that the decoder got before it
        gave the first picture).
    """
    order: list[int] = []
    read, ahead = 0, 0
    with opening.open_file(path) as container:
        video = opening.video_stream(container, path)
        opening.read_only(container, video)
        video.codec_context.thread_count = 1  # as `decoding` reads it, so that errors come at the same place
        packets = container.demux(video)
        while True:
            packet = opening.next_packet(packets)
            if packet is not None and (packet.size == 0 or (read == 0 and not packet.is_keyframe)):
                continue
            if packet is not None and packet.is_corrupt:
                break
            try:
                if packet is not None:
                    packet.pts, packet.dts = read, None  # pictures then say which packet they come from
                frames = video.codec_context.decode(packet)
            except av.FFmpegError:
                break
            if any(frame.is_corrupt for frame in frames):
                break
            ahead = ahead if order else read
            order += [read if frame.pts is None else frame.pts for frame in frames]
            read += 1
            if packet is None:
                return order, ahead
    seen = set(order)
    return order + [at for at, is_shown in enumerate(shown) if is_shown and at >= read and at not in seen], ahead


def _whole(ticks: Sequence[int | None]) -> np.ndarray:
    """int64 (n,), ascending: ticks where those that are missing, or do not ascend, lie evenly between the others."""
    count = len(ticks)
    kept: list[int] = []
    last: int | None = None
    for at, tick in enumerate(ticks):
        if tick is not None and (last is None or tick > last):
            kept.append(at)
            last = tick
    if len(kept) == count:
        return np.array(ticks, np.int64)
    if len(kept) < 2:
        return np.arange(count, dtype=np.int64) + (0 if last is None else last - kept[0])
    places, values = np.array(kept), np.array([ticks[at] for at in kept], np.float64)
    step = median((np.diff(values) / np.diff(places)).tolist())
    filled = np.interp(np.arange(count), places, values)
    filled += np.minimum(np.arange(count) - places[0], 0) * step + np.maximum(np.arange(count) - places[-1], 0) * step
    return np.floor(filled + 1e-6).astype(np.int64)


def _begun(ticks: Sequence[int | None]) -> np.ndarray:
    """As `_whole`, for AVI: muxers put the first picture at 0 also where rounding moves all others by a tick."""
    whole = _whole(ticks)
    if len(whole) > 2 and whole[1] - whole[0] == 2 and median(np.diff(whole).tolist()) == 1:
        whole[0] += 1
    return whole


def _shifted(due: np.ndarray, held: int) -> np.ndarray:
    """When pictures are shown, if a decoder holds `held` of them back. due: (n,) ticks of decoding, ascending."""
    held = min(held, len(due) - 1)
    step = int(median(np.diff(due).tolist())) if len(due) > 1 else 1
    later = due[-1] + step * np.arange(1, held + 1)
    return np.concatenate([due[held:], later]) - due[held] + due[0]

"""`--verify --against VIDEOS`: compares a sample of the prepared pairs with their videos, by another route.

`prepare` seeks, counts packets and keeps clocks. Here a video is decoded from its first frame to the last that is
wanted, and only what the decoder says counts: the order of its frames, and their stamps. The sound is laid out by the
stamps of its packets alone. So a prepared folder can be trusted without trusting our seeking.

`against.jsonl` lists the differences, one object on each line: {"key", "what": "picture" or "sound", "detail"}.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file
from essl_fast.data import media, shards
from essl_fast.data.media import audio
from essl_fast.data.shards import json_bytes
from essl_fast.prepare.reporting import Reporter
from essl_fast.prepare.verifying import decode_frame, read_pair

LISTING = "against.jsonl"
SAMPLE = 64  # pairs that are compared, evenly spread over the folder
NEAR = 0.02  # seconds by which a sound may be early or late
_ALIKE = 4.0  # grey levels, mean over a picture: another decoder and JPEG stay below
_REACH = 2.0  # seconds around its place in which a sound is looked for
_HEARD = 0.01  # root mean square below which a sound tells nothing
_FITS, _PIECES = 0.5, 48  # a correlation; pieces of a sound, 62 ms each
_AS_WELL = 0.02  # a correlation; a tone fits in many places, and where it should be by this much less at most
_SMALL = (32, 18)  # pixels of the pictures by which the stored one is found again


class Difference(NamedTuple):
    """What differs. what: "picture" or "sound"."""

    key: str
    what: str
    detail: str


class _Pair(NamedTuple):
    row: int
    key: str
    fid: int
    time: float


def compare(manifest: shards.Manifest, videos: Path, say: Reporter, sample: int = SAMPLE) -> tuple[int, int]:
    """Compare a sample of the pairs with their videos, and write the list.

    Args:
        manifest: of the folder.
        videos: folder of the videos.
        say: the reporter.
        sample: how many pairs.

    Returns:
        (pairs that were compared, differences).

    Raises:
        InputError: `videos` is no folder, the folder was not made from videos, or a file cannot be read or written.
    """
    if not videos.is_dir():
        raise InputError(f"--against: {videos} is not a folder; give the one that --videos named")
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(sample, len(manifest))).round().astype(int)).tolist()
    wanted: dict[str, list[_Pair]] = {}
    for row in rows:
        video, _, fid = manifest.key(row).rpartition("_")
        wanted.setdefault(video, []).append(_Pair(row, manifest.key(row), int(fid), float(manifest.time[row])))
    count = 0
    try:
        with atomic_file(manifest.root / LISTING) as file, say.bar("pairs compared", len(rows)) as step:
            for video, pairs in wanted.items():
                for found in _of_video(manifest, videos, video, pairs):
                    file.write(json_bytes(found._asdict()))
                    count += 1
                step(len(pairs))
        manifest.publish(LISTING)
    except OSError as error:
        raise InputError(
            f"{manifest.place} cannot be compared ({error}): mend that, then run --verify again"
        ) from error
    return len(rows), count


def _of_video(manifest: shards.Manifest, videos: Path, video: str, pairs: list[_Pair]) -> Iterator[Difference]:
    try:
        path = media.find_video(videos, video)
        found = media.probe(path)
        stamps, small = [], []
        for frame in _decoded(path):
            stamps.append(frame.time)
            small.append(frame.reformat(*_SMALL, format="gray").to_ndarray())
        yield from _pictures(manifest, found, pairs, stamps, small)
        yield from _sounds(manifest, path, pairs, _zero(path, stamps))
    except (media.MediaError, av.FFmpegError) as error:
        for pair in pairs:
            yield Difference(pair.key, "picture", f"its video cannot be read: {error}")


# ---------------------------------------------------------------- pictures


def _pictures(
    manifest: shards.Manifest, found: media.Probe, pairs: list[_Pair], stamps: list, small: list
) -> Iterator[Difference]:
    """Decode the video from the start once more, for the pictures wanted.

    Args:
        stamps: of all frames, as the decoder gives them.
        small: all frames, grey, uint8 (h, w).
    """
    places = {pair: _place(stamps, pair) for pair in pairs}
    whole = {place for place in places.values() if place is not None}
    kept: dict[int, np.ndarray] = {}
    with av.open(f"file:{found.path}") as container:
        video: Any = container.streams.best("video")
        stated = int(video.codec_context.colorspace)
    for place, frame in enumerate(_decoded(found.path)):
        if place in whole:
            kept[place] = media.upright(frame, colour=stated, crop=found.crop)
        if whole <= kept.keys():
            break
    for pair in pairs:
        data, kind, target, _ = read_pair(manifest, pair.row)
        at = places[pair]
        expected = None if at is None else kept.get(at)
        if at is None or expected is None:
            yield Difference(pair.key, "picture", f"the video has {len(stamps)} frames, by decoding all of them")
            continue
        try:
            stored = decode_frame(data, kind, target)
        except (media.MediaError, ValueError, OSError) as error:
            yield Difference(pair.key, "picture", f"the stored frame cannot be decoded: {error}")
            continue
        if detail := _differs(stored, expected, data, kind, small, at):
            yield Difference(pair.key, "picture", detail)


def _decoded(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(f"file:{path}") as container:
        video: Any = container.streams.best("video")
        video.thread_type = "AUTO"
        for packet in container.demux(video):
            try:
                frames: Any = packet.decode()
            except av.FFmpegError:
                continue  # the decoder goes on at the next key frame
            yield from (frame for frame in frames if not frame.is_corrupt)


def _rise(stamps: Sequence[float | None]) -> bool:
    """Whether frames come out in the order of their stamps; else these mean nothing."""
    return all(a is not None and b is not None and a < b for a, b in pairwise(stamps)) and None not in stamps


def _zero(path: Path, stamps: Sequence[float | None]) -> float:
    """When the first frame is shown, in seconds of the file's clock."""
    with av.open(f"file:{path}") as container:
        made_up = container.format.name == "avi"  # it has none; FFmpeg derives them from the count of chunks
        if stamps and stamps[0] is not None and not made_up and _rise(stamps):
            return stamps[0]
        video: Any = container.streams.best("video")
        return float((video.start_time or 0) * video.time_base)


def _place(stamps: Sequence[float | None], pair: _Pair) -> int | None:
    """Which of the decoder's frames a pair means: by its number if they are evenly spaced, else by its time."""
    if _rise(stamps) and len(stamps) > 2:
        times = np.array(stamps) - stamps[0]
        apart = times - np.linspace(0, times[-1], len(times))
        if np.ptp(apart) > 0.005:
            return max(int(np.searchsorted(times, pair.time + 0.0051, "right")) - 1, 0)
    return pair.fid - 1 if pair.fid <= len(stamps) else None


def _differs(stored: np.ndarray, expected: np.ndarray, data: bytes, kind: int, small: list, place: int) -> str:
    """How the stored picture differs from the one that it should be, in words; "" if it does not."""
    if stored.shape != expected.shape:
        shapes = [f"{shape[1]}x{shape[0]}" for shape in (stored.shape, expected.shape)]
        return f"it has {shapes[0]} pixels instead of {shapes[1]}"
    if kind == shards.CLIP and np.array_equal(stored, expected):
        return ""
    if kind == shards.JPEG:
        if media.stills.as_jpeg(expected) == data:
            return ""
    apart = float(np.abs(stored.astype(np.int16) - expected).mean())
    grey = np.asarray(Image.fromarray(stored).convert("L").resize(_SMALL, Image.Resampling.BICUBIC), np.int16)
    off = [float(np.abs(one.astype(np.int16) - grey).mean()) for one in small]
    best = int(np.argmin(off)) if stored.shape[0] < stored.shape[1] else place  # small pictures are not turned
    if apart <= _ALIKE and off[place] <= off[best] + 1:
        return ""
    return f"it is {apart:.1f} grey levels off frame {place + 1}; frame {best + 1} is nearest to it"


# ---------------------------------------------------------------- sound


def _sounds(manifest: shards.Manifest, path: Path, pairs: list[_Pair], zero: float) -> Iterator[Difference]:
    mono, rate = _laid_out(path, zero)
    for pair in pairs:
        sound: np.ndarray = np.frombuffer(read_pair(manifest, pair.row)[3], manifest.sound).astype(np.float32)
        sound = sound / 32768 if manifest.sound.kind == "i" else sound
        begin = pair.time - audio.SECONDS / 2 - _REACH
        first = round(begin * rate)
        around = np.zeros(round((audio.SECONDS + 2 * _REACH) * rate), np.float32)
        part = mono[max(first, 0) : max(first + len(around), 0)]
        around[max(-first, 0) :][: len(part)] = part[: len(around)]
        around = audio.at_stored_rate(around, rate)
        if max(_loudness(sound), _loudness(around)) < _HEARD:
            continue
        if detail := _heard_elsewhere(around, sound):
            yield Difference(pair.key, "sound", detail)


def _heard_elsewhere(around: np.ndarray, sound: np.ndarray) -> str:
    """Where a sound is heard, if not in the middle of `around`, in words; "" if it is. Both at 16 kHz.

    A track whose clock runs fast or slow fits its stamps only piece by piece, so then pieces are looked for.
    """
    lag, alike = _lag(around, sound, _REACH)
    lags = [lag - _REACH] if alike >= _FITS else []
    if not lags:
        size = len(sound) // _PIECES
        for begin in range(0, size * _PIECES, size):
            piece = sound[begin : begin + size]
            lag, alike = _lag(around, piece, _REACH + begin / audio.RATE)
            if _loudness(piece) >= _HEARD and alike >= _FITS:
                lags.append(lag - _REACH - begin / audio.RATE)
    if not lags:
        return "it is not in the video around its time"
    lag = float(np.median(lags))
    if abs(lag) <= NEAR:
        return ""
    return f"it is what the video has {abs(lag):.3f} s {'earlier' if lag < 0 else 'later'}"


def _loudness(sound: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(sound, dtype=np.float64)))) if len(sound) else 0.0


def _lag(around: np.ndarray, sound: np.ndarray, due: float | None = None) -> tuple[float, float]:
    """(seconds of `around` at which `sound` fits best, their correlation there). due: where it should, which counts if
    it fits there as well as anywhere."""
    size = 1 << (len(around) + len(sound)).bit_length()
    fit = np.fft.irfft(np.fft.rfft(around, size) * np.conj(np.fft.rfft(sound, size)), size)
    energy = np.cumsum(np.concatenate([[0.0], np.square(around, dtype=np.float64)]))
    count = len(around) - len(sound) + 1
    there = np.sqrt(np.maximum(energy[len(sound) :][:count] - energy[:count], 1e-12))
    alike = fit[:count] / (there * max(float(np.linalg.norm(sound)), 1e-9))
    best = int(np.argmax(alike))
    if due is not None:
        as_good = np.flatnonzero(alike >= alike[best] - _AS_WELL)
        nearest = int(as_good[np.argmin(np.abs(as_good - due * audio.RATE))])
        best = nearest if abs(nearest / audio.RATE - due) <= NEAR else best
    return best / audio.RATE, float(alike[best])


def _laid_out(path: Path, zero: float) -> tuple[np.ndarray, int]:
    """(float32 (n,) mono from `zero` seconds on, its rate): each decoded block where its stamp puts it."""
    mono, rate, due = np.empty(0, np.float32), 0, 0
    with av.open(f"file:{path}") as container:
        track, _ = media.choose_sound(container)
        if track is None:
            return mono, audio.RATE
        for packet in container.demux(track):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                rate = rate or frame.sample_rate
                due = due if frame.time is None else round((frame.time - zero) * rate)
                part = audio.mono_of(frame)[max(-due, 0) :]
                begin, due = max(due, 0), due + frame.samples
                if begin + len(part) > len(mono):
                    mono = np.concatenate([mono, np.zeros(max(begin + len(part) - len(mono), len(mono)), np.float32)])
                mono[begin : begin + len(part)] = np.nan_to_num(part)
    return mono, rate or audio.RATE

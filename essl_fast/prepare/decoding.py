"""The frames and sounds of one video's pairs, as they are stored.

A frame is decoded and stored as JPEG, or, if the task says so, copied as a clip without decoding anything. If no clip
can be cut for a frame, the frame is stored as JPEG, with the reason. Pillow is imported only where pictures are made.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from essl_fast.data import datasets, media
from essl_fast.data.datasets import HDF5, MIDDLE, STILL, VIDEO
from essl_fast.data.media import audio, nvdec
from essl_fast.data.shards import CLIP, JPEG, PNG
from essl_fast.prepare import notes
from essl_fast.prepare.tasks import Task

NOT_ON_GPU = "no GPU here decodes the video"  # why a frame is JPEG and no clip; so are these, and media.NO_CLIP
NOT_REUSED = "no decoder of the GPU is used again at this size"
TOO_LARGE = "clip too large"
LARGEST_CLIP = 4 << 20  # bytes; a JPEG of 1080p takes 1 MB at most


class Stored(NamedTuple):
    """A pair as it is stored."""

    key: str
    frame: bytes
    visual: int  # JPEG, CLIP or PNG
    target: int  # which frame of the clip; 0 for a picture
    quarters: int  # quarter turns counterclockwise; 0 for a picture
    sound: bytes  # 48,000 little-endian samples, int16 or float32


@dataclass
class Losses:
    """What decoding a video could not give.

    Attributes:
        left_out: (key, reason, detail) of pairs that are left out.
        jpeg_instead: reason → [detail of the first, how many] of frames that are JPEG although clips were asked for.
        notes: what else is to be told of the video, as in `notes`.
    """

    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    jpeg_instead: dict[str, list] = field(default_factory=dict)
    notes: list[notes.Note] = field(default_factory=list)

    def no_clip(self, reason: str, detail: str, count: int = 1) -> None:
        self.jpeg_instead.setdefault(reason, [detail, 0])[1] += count


class _Wanted(NamedTuple):
    """A pair whose sound is there, and whose frame is still to come."""

    key: str
    fid: int
    time: float  # seconds
    window: np.ndarray  # 3 s of sound, a view of the whole track
    rate: int  # of the window, Hz

    def pcm(self) -> bytes:
        """The sound as 48,000 little-endian int16 samples at 16 kHz."""
        return audio.to_pcm16(audio.to_stored(self.window, self.rate)).astype("<i2").tobytes()


def decode(task: Task, losses: Losses) -> Iterator[Stored]:
    """The pairs of a task that its files can give. The others are added to `losses`.

    Raises:
        MediaError: the file as a whole cannot be read. The pairs that were not yielded yet are lost.
    """
    path = Path(task.path)
    if task.kind == HDF5:
        for key, frame, sound in datasets.hdf5.stored_rows(
            path, Path(task.sound), task.requests, task.rows, losses.left_out
        ):
            yield Stored(key, frame, PNG, 0, 0, sound)
    elif task.kind == STILL:
        picture, middle = media.stills.picture_file(path), media.stills.middle_sound(Path(task.sound))
        stored = middle.astype("<f4") if task.float_sound else audio.to_pcm16(middle).astype("<i2")
        yield Stored(task.requests[0][0], picture, JPEG, 0, 0, stored.tobytes())
    else:
        yield from _video(task, losses)


def _video(task: Task, losses: Losses) -> Iterator[Stored]:
    """The pairs of a video: clips first, then pictures."""
    path = Path(task.path)
    found = media.probe(path)
    losses.notes = notes.of_video(found, task.requests if task.kind == VIDEO else ())
    if task.kind == MIDDLE:
        fid, time = media.stills.middle_frame(found)
        sound = media.stills.middle_sound(path, False, found.zero)
        wanted = [_Wanted(task.requests[0][0], fid, time, sound, audio.RATE)]
    else:
        wanted = _with_sound(task, found, losses)
    refusal = nvdec.refusal(task.decoders, found) if wanted and task.decoders else ""
    on_gpu = False
    slow = nvdec.not_reused(found) if wanted and task.decoders and not refusal else ""
    if task.clips and (refusal or slow):
        losses.no_clip(NOT_ON_GPU if refusal else NOT_REUSED, f"{path.name}: {refusal or slow}", len(wanted))
    elif task.clips:
        wanted = yield from _clips(path, found, wanted, losses)
    else:
        on_gpu = bool(task.decoders) and not refusal
    yield from _pictures(path, found, wanted, on_gpu, losses)


def _with_sound(task: Task, found: media.Probe, losses: Losses) -> list[_Wanted]:
    """The pairs whose 3 s of sound are there."""
    path, wanted = Path(task.path), []
    last = max(time for _, _, time in task.requests)
    sound = audio.decode_sound(path, until=last + audio.SECONDS / 2, zero=found.zero)
    for key, fid, time in task.requests:
        window = sound.window(time)
        hole = "" if window is None else sound.hole(time)
        broken = (sound.damage or found.truncated) if window is None and time >= audio.SECONDS / 2 else ""
        if hole:
            losses.left_out.append((key, media.SOUND_TRUNCATED, f"{path.name}: 3 s around {time:g} s: {hole}"))
        elif window is not None:
            wanted.append(_Wanted(key, fid, time, window, sound.rate))
        elif broken:
            losses.left_out.append((key, media.SOUND_TRUNCATED, f"3 s around {time:g} s: {broken}"))
        else:
            losses.left_out.append((key, media.WINDOW, f"{path.name}: {_outside(time, found, sound)}"))
    return wanted


def _outside(time: float, found: media.Probe, sound: audio.Sound) -> str:
    """Why the 3 s around `time` are not in the track, in words."""
    length = max(found.sound_end, sound.seconds)  # decoding stops where the last pair needs no more
    where = "begin before 0 s" if time < audio.SECONDS / 2 else f"end at {time + audio.SECONDS / 2:g} s"
    return f"3 s around {time:g} s {where}, the track has {length:.2f} s"


def _clips(
    path: Path, found: media.Probe, wanted: list[_Wanted], losses: Losses
) -> Generator[Stored, None, list[_Wanted]]:
    """The pairs that can be clips; returns those that must be pictures."""
    left = []
    for at, clip in media.cut_clips(path, [(pair.fid, pair.time) for pair in wanted], found):
        pair = wanted[at]
        if isinstance(clip, media.MediaError) and clip.reason != media.NO_CLIP:
            losses.left_out.append((pair.key, clip.reason, clip.detail))
        elif isinstance(clip, media.MediaError):
            losses.no_clip(clip.reason, clip.detail)
            left.append(pair)
        elif len(clip.data) > LARGEST_CLIP:
            size = len(clip.data) / 2**20
            losses.no_clip(TOO_LARGE, f"{path.name}: {size:.1f} MB from one key frame to the frame")
            left.append(pair)
        else:
            yield Stored(pair.key, clip.data, CLIP, clip.target, clip.quarters, pair.pcm())
    return left


def _pictures(path: Path, found: media.Probe, wanted: list[_Wanted], on_gpu: bool, losses: Losses) -> Iterator[Stored]:
    """The pairs with decoded frames, as JPEG. on_gpu: NVDEC decodes them, not PyAV."""
    decode_frames = media.decode_frames
    if on_gpu:
        media.release_memory()
        from essl_fast.data.media import hardware  # imports DALI and makes a CUDA context, so only if it is needed

        decode_frames = hardware.decode_frames
    for at, frame in decode_frames(path, [(pair.fid, pair.time) for pair in wanted], found):
        pair = wanted[at]
        if isinstance(frame, media.MediaError):
            losses.left_out.append((pair.key, frame.reason, frame.detail))
            continue
        yield Stored(pair.key, media.stills.as_jpeg(frame), JPEG, 0, 0, pair.pcm())

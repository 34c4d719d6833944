"""What the headers of a video file say of its frames and sound: no packet is read, and nothing decoded.

Headers know how many frames there are and when the last one is shown, not when each one is, nor whether the file holds
what they promise. So a glance finds what is missing in milliseconds a file, and `probing.probe` judges what it doubts.
"""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from essl_fast.data.media import cropping, limits, opening
from essl_fast.data.media.errors import LIMIT, NO_SOUND, UNREADABLE, MediaError
from essl_fast.data.media.probing import Probe, probe
from essl_fast.data.media.tracks import choose_sound

_ALIKE = (
    0.002  # share by which the mean rate and the smallest step between frames may differ where the rate is constant
)


def glance(path: str | Path) -> Probe:
    """What :func:`probe` gives, as far as the headers tell: frames lie evenly from the beginning to the end.

    A file whose headers do not say how long it is (a recording that was broken off, a raw stream) is probed.

    Raises:
        MediaError: the file cannot be opened, has no video stream, or is beyond the limits.
    """
    path = Path(path)
    with opening.open_file(path) as container:
        video = opening.video_stream(container, path)
        audio, track = choose_sound(container)
        rate = video.average_rate
        whole = (container.duration or 0) / av.time_base
        seconds = float(video.duration * video.time_base) if video.duration and video.time_base else whole
        if not rate or seconds <= 0:
            return probe(path)
        frames = video.frames or math.ceil(seconds * rate)
        if frames > limits.FRAMES:
            raise MediaError(LIMIT, f"{path.name}: {limits.length(0, frames)}")
        sound = float(audio.duration * audio.time_base) if audio and audio.duration and audio.time_base else whole
        steps = video.base_rate or rate  # what the smallest step between two frames would give
        return Probe(
            path=path,
            pts=np.arange(frames, dtype=np.int64),
            keys=np.array([], np.int64),
            time_base=1 / Fraction(rate),
            start=0,
            width=video.width,
            height=video.height,
            constant=bool(abs(steps / rate - 1) <= _ALIKE),
            counted="",
            seekable=False,
            truncated="",
            audio=audio is not None,
            codec=video.codec_context.codec.canonical_name,
            pixels=video.codec_context.pix_fmt or "",
            crop=cropping.of_file(path, set(container.format.name.split(",")), video.width, video.height),
            track=track,
            sound_end=sound if audio is not None else 0.0,
        )


def check_sound(path: str | Path) -> None:
    """MediaError if the headers of a sound file say that it has no sound, or if it cannot be opened."""
    path = Path(path)
    with opening.open_file(path) as container:
        if not container.streams.audio:
            raise MediaError(NO_SOUND, f"{path.name} has none")
        if container.duration is not None and container.duration <= 0:
            raise MediaError(UNREADABLE, f"{path.name}: its header says that it is empty")

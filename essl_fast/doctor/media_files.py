"""Whether video and sound files can be written and read here: a file of one frame is, for nothing less proves it."""

from __future__ import annotations

import importlib
import tempfile
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from essl_fast.doctor.findings import INSTALL, OK, STOPS, Case, Finding

WIDTH, HEIGHT, RATE = 64, 48, 16_000  # pixels; samples of sound a second
MOST_APART = 8.0  # grey levels, on average: H.264 costs 1 or 2 at this quality
TONE = 1000  # Hz


def check_media(case: Case) -> Iterator[Finding]:
    """PyAV and its FFmpeg: one picture and half a second of a tone, as H.264 and AAC in an MP4 file, and back."""
    av = importlib.import_module("av")
    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    values = {"av": av.__version__, **libraries}
    name = f"PyAV {av.__version__} (libavcodec {libraries.get('libavcodec', 'of unknown version')})"
    try:
        with tempfile.TemporaryDirectory() as folder:
            wrong = round_trip(Path(folder))
    except OSError:  # the disk's fault, which says itself which file
        raise
    except Exception as error:  # another PyAV than ours may raise anything
        wrong = " ".join(f"{type(error).__name__}: {error}".split())
    if wrong:
        yield Finding("media", STOPS, f"{name} cannot write and read a video file: {wrong}", INSTALL, values)
    else:
        yield Finding("media", OK, f"{name} wrote and read a file of one frame and a tone", "", values)


def round_trip(folder: Path) -> str:
    """Write a file into a folder, and read it. What came back wrong, in words; "" if nothing did.

    Raises:
        Exception: whatever the libraries raise.
    """
    import numpy as np

    from essl_fast.data.media import audio, decode_frames, video_file

    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([255 * x // WIDTH, 255 * y // HEIGHT, 128 + 0 * x], axis=-1).astype(np.uint8)
    tone = 0.5 * np.sin(2 * np.pi * TONE * np.arange(RATE // 2) / RATE)
    with wave.open(str(folder / "tone.wav"), "wb") as sound:
        sound.setparams((1, 2, RATE, 0, "NONE", ""))
        sound.writeframes((tone * 32767).astype("<i2").tobytes())
    file = folder / "one.mp4"
    with video_file(file, WIDTH, HEIGHT, Fraction(1, 25), 25.0, folder / "tone.wav") as writer:
        writer.add(picture, 0)
    ((_, back),) = decode_frames(file, [(1, 0.0)])
    if isinstance(back, Exception):
        raise back
    apart = float(np.abs(back.astype(float) - picture).mean()) if back.shape == picture.shape else 255.0
    if apart > MOST_APART:
        return f"the picture came back as {back.shape}, {apart:.0f} grey levels apart"
    heard = audio.decode_sound(file)
    spectrum = np.abs(np.fft.rfft(heard.mono[: RATE // 2] * np.hanning(len(heard.mono[: RATE // 2]))))
    loudest = float(spectrum.argmax()) * heard.rate / max(len(heard.mono[: RATE // 2]), 1)
    if heard.rate != RATE or abs(loudest - TONE) > 10:
        return f"a tone of {TONE} Hz came back with {loudest:.0f} Hz at {heard.rate} samples a second"
    return ""

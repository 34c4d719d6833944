"""Video files → the seconds of sound that pairs need, decoded with PyAV (FFmpeg) and resampled with soxr.

Time 0 is where the video stream starts, as for frames (`probing`): the sound is cut there, or padded with silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import av
import numpy as np
import soxr
from av.audio.stream import AudioStream

from essl_fast.data.media import limits, opening
from essl_fast.data.media.errors import LIMIT, NO_SOUND, UNREADABLE, MediaError
from essl_fast.data.media.sound_clock import SoundClock, resampled
from essl_fast.data.media.tracks import choose_sound

RATE = 16_000  # Hz, of stored sound
SECONDS = 3  # of sound that a pair has around its frame
SAMPLES = RATE * SECONDS

_JUMP = 0.04  # seconds; what a stamp leaves the count of samples by at once is a pause or an overlap, and no drift
_OVERLAP = 2  # seconds; no packets overlap by more
_SETTLE = 0.25  # seconds after a lost packet until any decoder has forgotten it (MP3's reservoir, Opus's prediction)
_LONGEST = 3600  # seconds; a longer pause is a broken timestamp
_SCALE = {"u8": 2.0**-7, "s16": 2.0**-15, "s32": 2.0**-31, "s64": 2.0**-63}


@dataclass(frozen=True, eq=False)
class Sound:
    """A decoded sound track.

    Attributes:
        mono: float32 (n,) in [-1, 1], from time 0 on.
        rate: Hz.
        damage: "" or where and why the track breaks off, in words.
        holes: (begin, end) in samples of each part before that which cannot be decoded.
        broken: likewise, of each part with a sample that is no number.
        clock: when each sample is heard.
    """

    mono: np.ndarray
    rate: int
    damage: str = ""
    holes: tuple[tuple[int, int], ...] = ()
    broken: tuple[tuple[int, int], ...] = ()
    clock: SoundClock = field(default_factory=SoundClock)

    @property
    def seconds(self) -> float:
        """When the track ends."""
        return self.clock.heard(len(self.mono)) / self.rate

    def window(self, time: float) -> np.ndarray | None:
        """The 3 s around `time` (seconds), float32 (3 * rate,), by the stamps of the sound; None if they leave the
        track."""
        offset, length = window_span(time, self.rate)
        start = self.clock.start(offset, length, self.rate)
        if start == offset:
            return sound_window(self.mono, self.rate, time)
        if time < SECONDS / 2 or offset + length > self.clock.heard(len(self.mono)):
            return None
        if start is None:
            return resampled(self.mono, 0, self.clock.positions(offset, length))
        start = min(max(start, 0), len(self.mono) - length)  # a track that is too short by the last samples of a window
        return self.mono[start : start + length]

    def hole(self, time: float) -> str:
        """The first hole that overlaps the 3 s around `time` (seconds), in words; "" if there is none."""
        offset, length = window_span(time, self.rate)
        for holes, what in ((self.holes, "cannot be decoded"), (self.broken, "holds samples that are no numbers")):
            for begin, end in ((self.clock.heard(begin), self.clock.heard(end)) for begin, end in holes):
                if offset < end and begin < offset + length:
                    return f"the sound from {begin / self.rate:.2f} s to {end / self.rate:.2f} s {what}"
        return ""


def decode_sound(path: str | Path, until: float | None = None, alone: bool = False, zero: float | None = None) -> Sound:
    """Decode the sound track of a file to mono, at its own rate.

    Channels are averaged in float32. FFmpeg skips the samples that an encoder put before the sound. Stamps say when a
    packet is heard: pauses become silence, of packets that overlap the later one counts, and `Sound.clock` follows a
    track that runs slower or faster than its rate. A packet that cannot be decoded leaves a hole, and the sound after
    it keeps its time. If the track cannot be read to its end, the result holds what was read. Memory holds the result
    and one frame.

    Args:
        path: the file.
        until: seconds after which decoding stops; None: at the end.
        alone: time 0 is where the sound track starts. For sound files, whose video stream may be an album's picture.
        zero: time 0 in seconds of the file's clock, `Probe.zero`; None: where its video stream starts.

    Raises:
        MediaError: there is no sound track, nothing of it can be decoded, or it is beyond the limits.
    """
    path = Path(path)
    with opening.open_file(path) as container:
        audio, zero = find_sound(container, path, zero)
        if alone:
            zero = float((audio.start_time or 0) * (audio.time_base or 0))
        blocks, mono = Blocks(container, audio, zero), np.empty(0, np.float32)
        for at, part in blocks:
            end = at + len(part)
            if end > len(mono):
                if wrong := limits.sound(blocks.rate, 1, end):
                    raise MediaError(LIMIT, f"{path.name}: {wrong}")
                # Memory that is never written costs nothing, so the array may be larger than needed.
                most = max(end, limits.SAMPLES)
                longer = np.zeros(min(max(2 * len(mono), end, 60 * blocks.rate), most), np.float32)
                longer[: len(mono)] = mono
                mono = longer
            mono[at:end] = part
            if until is not None and blocks.reached > until * blocks.rate + 1:
                break
        filled, rate, damage = blocks.filled, blocks.rate, blocks.damage
        if filled * RATE <= rate:  # at most one sample at 16 kHz
            raise MediaError(UNREADABLE, f"{path.name}: no sound can be decoded ({damage or 'the track is empty'})")
        mono = mono[:filled]
        damage = damage and f"{path.name}: {damage}, {filled / rate:.2f} s of sound are there"
        return Sound(mono, rate, damage, tuple(blocks.holes), tuple(blocks.broken), blocks.clock)


def find_sound(container, path: Path, zero: float | None = None) -> tuple[AudioStream, float]:
    """The sound track of an open file (`tracks`), and time 0 in seconds of the file's clock.

    Args:
        container: the file.
        path: its path.
        zero: time 0 where the caller knows it; None: where the video stream starts.

    Raises:
        MediaError: there is no sound track, no decoder for it, or it is beyond the limits.
    """
    audio, _ = choose_sound(container)
    if audio is None:
        raise MediaError(NO_SOUND, f"{path.name} has none; add one or take the video out of the lists")
    video = container.streams.best("video")
    if zero is None:
        zero = float(video.start_time * video.time_base) if video is not None and video.start_time is not None else 0.0
    opening.check_decoder(audio, path)
    if wrong := limits.sound(audio.rate or limits.RATES[0], audio.channels):
        raise MediaError(LIMIT, f"{path.name}: {wrong}")
    return audio, zero


class Blocks:
    """Iterates over the blocks of a sound track: (number of its first sample, float32 (n,) mono), in order.

    Samples are counted from time 0, which is `zero` seconds on the file's clock. Sound before time 0 is left out; a gap
    between two blocks is silence, and a block may overlap the one before it, whose end then does not count.

    Attributes:
        rate: Hz; 0 before the first block.
        filled: samples from time 0 to the end of the last block so far.
        clock, holes, broken, damage: of the track so far, as in `Sound`.
    """

    def __init__(self, container, audio: AudioStream, zero: float):
        audio.codec_context.thread_count = 1
        opening.read_only(container, audio)
        self._frames, self._zero = _sound_frames(container, audio), zero
        self.rate, self.filled, self.damage = 0, 0, ""
        self.holes: list[tuple[int, int]] = []
        self.broken: list[tuple[int, int]] = []
        self.clock = SoundClock()

    @property
    def reached(self) -> int:
        """Up to where the sound is known, in samples from time 0."""
        clock = self.clock
        return clock.last + clock.late if self.rate and clock.off(self.rate) else self.filled

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        due, lost = None, ""  # number of the next sample; why the packet before this frame was lost
        shape = 0, 0  # sample rate and channels of the last frame
        try:
            for frame in self._frames:
                if isinstance(frame, av.FFmpegError):
                    lost = lost or opening.error_text(frame)
                    continue
                if shape != (now := (frame.sample_rate, frame.layout.nb_channels)):
                    rate, shape = self.rate or now[0], now
                    self.rate = rate
                    if wrong := limits.sound(*shape):
                        self.damage = wrong  # the header said otherwise
                        break
                    if shape[0] != rate:
                        self.damage = f"the sample rate changes from {rate} to {shape[0]} Hz"
                        break
                time = frame.time
                if lost and time is None:
                    break  # the time of this frame is unknown
                late = self.clock.late
                stamp = (due or 0) + late if time is None else round((time - self._zero) * rate)
                if due is not None and stamp - due < -_OVERLAP * rate:  # the stamps begin again: they mean nothing here
                    self._zero -= (due + late - stamp) / rate
                    stamp = due + late
                if lost:
                    assert due is not None  # something is lost only after what was there
                    begin, due = due, max(due, stamp)
                    self.holes.append((max(begin, 0), max(due, 0) + round(_SETTLE * rate)))
                    lost = ""
                if due is None or abs(stamp - due - late) > _JUMP * rate:  # a pause, or packets that overlap
                    due = stamp
                if abs(due - self.filled) > _LONGEST * rate:
                    self.damage = f"a timestamp says {due / rate:.0f} s"
                    break
                part, at = mono_of(frame), due
                due += len(part)
                if at < 0:
                    part, at = part[-at:], 0
                self.clock.mark(at, stamp - due + frame.samples)
                self.filled = max(self.filled, at + len(part))
                with np.errstate(over="ignore"):
                    square = part.dot(part)  # which is quick
                if not isfinite(square) and not np.isfinite(part).all():
                    self.broken.append((at, at + len(part)))
                    part = np.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0)
                yield at, part
        except av.FFmpegError as error:
            self.damage = opening.error_text(error)
        self.damage = self.damage or lost


def _sound_frames(container, audio):
    """Decoded frames, and the error of each packet that cannot be decoded.

    Such packets are skipped before the first frame: a track that was cut may begin in the middle of a frame.
    """
    begun = False
    for packet in container.demux(audio):
        if packet.is_corrupt:
            raise av.InvalidDataError(0, "a packet is cut off")
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            frames = [error] if begun else []
        begun = begun or bool(frames)
        yield from frames


def mono_of(frame) -> np.ndarray:
    """Mean of a decoded audio frame's channels, float32 (samples,); integers are divided by their full range."""
    kind = frame.format.name
    if kind == "fltp":  # AAC, MP3 and Opus; `to_ndarray` would take twice as long as decoding
        samples = frame.samples
        first, *others = [np.frombuffer(plane, np.float32, samples) for plane in frame.planes]
        if not others:
            return first.copy()  # its memory is freed with the frame
        mono = first + others[0]
        for channel in others[1:]:
            mono += channel
        mono /= 1 + len(others)
        return mono
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(frame.samples, -1).T
    kind = kind.removesuffix("p")
    if kind in _SCALE:
        data = (data.astype(np.float64) - (128 if kind == "u8" else 0)) * _SCALE[kind]
    data = data.astype(np.float32)
    return data[0] if len(data) == 1 else data.mean(axis=0, dtype=np.float32)


def window_span(time: float, rate: int) -> tuple[int, int]:
    """(offset, length) in samples of the 3 s around `time` (seconds).

    int() truncates the product of floats, as the published code does.
    """
    return int((time - SECONDS / 2) * rate), int(SECONDS * rate)


def sound_window(mono: np.ndarray, rate: int, time: float) -> np.ndarray | None:
    """The 3 s of `mono` (n,) around `time` (seconds), a view at the same rate; None if they leave the track."""
    offset, length = window_span(time, rate)
    return None if time < SECONDS / 2 or offset + length > len(mono) else mono[offset : offset + length]


def to_stored(window: np.ndarray, rate: int) -> np.ndarray:
    """Resample float32 (n,) at `rate` Hz to 16 kHz (soxr HQ) and bring it to float32 (48000,) with `fit_length`."""
    return fit_length(np.asarray(at_stored_rate(window, rate), np.float32), SAMPLES)


def at_stored_rate(sound: np.ndarray, rate: int) -> np.ndarray:
    """A sound (n,) at `rate` Hz, at 16 kHz (soxr HQ)."""
    return sound if rate == RATE else soxr.resample(sound, rate, RATE, quality="HQ")


def fit_length(sound: np.ndarray, length: int) -> np.ndarray:
    """Bring a sound (n,), n > 0, to (length,) as the published code does: repeat it if too short, take its middle."""
    if len(sound) < length:
        sound = np.tile(sound, length // len(sound) + 1)
    offset = (len(sound) - length) // 2
    return sound[offset : offset + length]


def to_pcm16(sound: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] → int16, rounded to nearest (ties to even) and clipped."""
    return np.clip(np.rint(sound * np.float32(32768)), -32768, 32767).astype(np.int16)

"""Sounds whose place or pitch is known, and files of several sound tracks or programmes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.tools.media import join_tracks, make_video

RATE, BLOCK = 16_000, 1024


def beeps(seconds: float) -> np.ndarray:
    """float32 (n,): in each tenth of a second 30 ms of a rumble that is like no other."""
    sound = np.zeros(round(seconds * RATE), np.float32)
    for number in range(int(seconds * 10)):
        burst = np.convolve(np.random.default_rng(number).uniform(-0.6, 0.6, 480), np.hanning(40) / 8, "same")
        sound[number * RATE // 10 :][: len(burst)] = burst[: len(sound) - number * RATE // 10]
    return sound


def stamped(path, sound, stamps):
    """A Matroska file whose block k of BLOCK samples is stamped stamps[k] seconds."""
    with av.open(str(path), "w") as file:
        track = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        pcm = (sound * 32767).astype(np.int16)
        for number, stamp in enumerate(stamps):
            frame = av.AudioFrame.from_ndarray(pcm[None, BLOCK * number :][:, :BLOCK], format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, BLOCK * number, Fraction(1, RATE)
            for packet in track.encode(frame):
                packet.pts = packet.dts = round(stamp * 1000)
                packet.time_base = Fraction(1, 1000)
                file.mux(packet)
    return path


def error_of(window: np.ndarray, time: float, sound: np.ndarray, source_time) -> float:
    """By how many seconds a beep of the 3 s around `time` is off at most; source_time: when a sample of `sound`, in
    seconds of itself, is heard."""
    worst, found = 0.0, 0
    for number in range(int(len(sound) / RATE * 10)):
        due = source_time(number / 10) - (time - 1.5)
        if not 0.15 < due < 2.8:
            continue
        beep = sound[number * RATE // 10 :][:480]
        begin = round((due - 0.12) * RATE)
        part = window[begin : begin + 3840 + 480]
        fits = np.correlate(part, beep)
        at = int(np.argmax(fits))
        assert fits[at] > 0.35 * np.dot(beep, beep), (time, number)
        worst = max(worst, abs((begin + at) / RATE - due))
        found += 1
    assert found > 15
    return worst


def tone(hertz: float, seconds: float = 4.0, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    return np.repeat(wave[None].astype(np.float32), channels, 0)


def several(path, *tracks):
    """A video with a sound track for each (Hz, disposition, title, channels)."""
    base = make_video(path.with_name("base.mp4"), sound=None)
    with av.open(str(base)) as source, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        added = []
        for _, disposition, title, channels in tracks:
            track = out.add_stream("aac", rate=RATE, layout="stereo" if channels == 2 else "mono")
            track.disposition = disposition
            if title:
                track.metadata["title"] = title
            added.append(track)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        for (hertz, _, _, channels), track in zip(tracks, added, strict=True):
            for begin in range(0, 4 * RATE, 1024):
                part = np.ascontiguousarray(tone(hertz, channels=channels)[:, begin : begin + 1024])
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=track.layout.name)
                frame.sample_rate, frame.pts, frame.time_base = RATE, begin, Fraction(1, RATE)
                out.mux(track.encode(frame))
            out.mux(track.encode(None))
    return path


def two_programmes(folder: Path) -> tuple[Path, Path]:
    """Two transport streams for `tests.tools.clocks.merged`: 160x90 with 300 Hz; 32x32 with 500 Hz, which has more
    bits of sound."""
    sound = {"sound_codec": "mp2", "rate": RATE}
    ours = make_video(folder / "a.ts", sound=tone(300), **sound, options={"crf": "10"})
    theirs = make_video(
        folder / "b.ts",
        sound=tone(500, channels=2),
        **sound,
        picture=lambda number: np.zeros((32, 32, 3), np.uint8),
        container={
            "mpegts_service_id": "2",
            "mpegts_start_pid": "512",
            "mpegts_pmt_start_pid": "4200",
        },
    )
    return ours, theirs


def with_stamps(folder: Path, sound: np.ndarray, stamps: np.ndarray) -> Path:
    """A Matroska file of numbered pictures, 10 a second, and a sound whose blocks are stamped so (`stamped`)."""
    silent = make_video(folder / "silent.mkv", seconds=float(max(stamps)), sound=None)
    return join_tracks(folder / "v.mkv", silent, stamped(folder / "sound.mkv", sound, stamps))


PACED = {  # what is wrong with the clock of a sound: how long a second of samples is by the stamps
    "1% fast": 0.99,
    "4% slow": 1.04,
}


def paced(folder: Path, pace: float, seconds: float = 9) -> tuple[Path, np.ndarray]:
    """(a file whose sound has a clock of that pace, the samples): `error_of` tells how far a window is off."""
    sound = beeps(seconds)
    return with_stamps(folder, sound, np.arange(len(sound) // BLOCK) * BLOCK / RATE * pace), sound


def pitch_of(samples: np.ndarray) -> int:
    """Of a second or more of a tone at RATE, to 100 Hz."""
    found = np.argmax(np.abs(np.fft.rfft(np.asarray(samples[:RATE], np.float64))))
    return round(float(found) / 100) * 100

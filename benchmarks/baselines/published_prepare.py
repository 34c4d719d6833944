"""The published preparation: every frame of every video as PNG, the sound as WAV, and HDF5 arrays of what is needed.

    extract  ffmpeg writes frames/<video>/000001.png, ... and sound/<video>.wav                    of every video
    select   the annotated frame is copied to pairs/<key>.png, its 3 s of sound cut to pairs/<key>.wav  of every pair
    pack     frames (N, 256, 256, 3), sounds (N, 48000) and log-mels (N, 3, 96, 64), float32, into HDF5

Where there is no `ffmpeg` on PATH, PyAV does what it does, with the same library: decode, convert to RGB, encode with
FFmpeg's own PNG encoder at its default settings, one thread a process.

It is faster than the published scripts, so that we gain nothing from mere mistakes: several processes share videos and
pairs, and threads share the packing (there: one process, one video after another); arrays are written row by row
(there: collected in memory first); the log-mel is the compiled one of this package; and nothing is synced to the disk.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import soxr
from PIL import Image

from essl_fast.data.media import find_video
from essl_fast.data.media.audio import RATE, SAMPLES, fit_length, window_span

ROOT = Path(__file__).resolve().parents[2]
FRAME = 256  # side of a stored frame
_TOGETHER = 64  # pairs packed at a time


def extract(video: Path, frames: Path, sound: Path) -> None:
    """All frames of a video as `frames`/%06d.png, from 1, and its sound track as the 16-bit WAV file `sound`."""
    frames.mkdir(parents=True)
    sound.parent.mkdir(parents=True, exist_ok=True)
    if program := shutil.which("ffmpeg"):
        command = [program, "-nostdin", "-v", "error", "-threads", "1", "-i", str(video)]
        pictures = ["-map", "0:v:0", "-fps_mode", "passthrough", "-threads", "1", str(frames / "%06d.png")]
        subprocess.run([*command, *pictures, "-map", "0:a:0", "-c:a", "pcm_s16le", str(sound)], check=True)
        return
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        encoder = av.CodecContext.create("png", "w")
        encoder.width, encoder.height, encoder.pix_fmt = stream.width, stream.height, "rgb24"
        encoder.time_base, encoder.thread_count = stream.time_base, 1
        number = 0
        for frame in container.decode(stream):
            for packet in encoder.encode(frame.reformat(format="rgb24")):
                number += 1
                (frames / f"{number:06d}.png").write_bytes(bytes(packet))
    with av.open(str(video)) as container, wave.open(str(sound), "wb") as file:
        track = container.streams.audio[0]
        track.codec_context.thread_count = 1
        zero = container.streams.video[0].start_time or 0
        file.setparams((track.channels, 2, track.rate, 0, "NONE", ""))
        resampler = av.AudioResampler("s16", track.layout.name, track.rate)
        due = None
        for frame in container.decode(track):
            if due is None:  # a track that begins before or after the video
                due = round((float(frame.time or 0) - float(zero * container.streams.video[0].time_base)) * track.rate)
                file.writeframes(bytes(2 * track.channels * max(due, 0)))
            for part in resampler.resample(frame):
                samples = part.to_ndarray().reshape(-1, track.channels)[max(-due, 0) :]
                due += part.samples if due < 0 else 0
                file.writeframes(samples.tobytes())


def select(wanted: Iterable[tuple[str, int, float]], frames: Path, sound: Path, pairs: Path) -> list[str]:
    """Copy frame and sound of the pairs (key, fid, seconds) of a video. Returns the keys whose 3 s are in the track."""
    kept = []
    pairs.mkdir(parents=True, exist_ok=True)
    with wave.open(str(sound), "rb") as file:
        rate, width = file.getframerate(), file.getnchannels()
        track = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, width)
    for key, fid, time in wanted:
        offset, length = window_span(time, rate)
        if time < 1.5 or offset + length > len(track):
            continue
        shutil.copy(frames / f"{fid:06d}.png", pairs / f"{key}.png")
        with wave.open(str(pairs / f"{key}.wav"), "wb") as file:
            file.setparams((width, 2, rate, 0, "NONE", ""))
            file.writeframes(track[offset : offset + length].tobytes())
        kept.append(key)
    return kept


def read_pair(pairs: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(256, 256, 3) float32 RGB from 0 to 255, and (48000,) float32 sound at 16 kHz, its minimum brought to -1 and its
    maximum just below 1."""
    with Image.open(pairs / f"{key}.png") as image:
        frame = np.asarray(resized(image.convert("RGB")), np.float32)
    with wave.open(str(pairs / f"{key}.wav"), "rb") as file:
        rate, width = file.getframerate(), file.getnchannels()
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, width)
    mono = (samples.astype(np.float32) / np.float32(32768)).mean(axis=1, dtype=np.float32)
    return frame, normalized(fit_length(soxr.resample(mono, rate, RATE, quality="HQ"), SAMPLES))


def resized(image: Image.Image) -> Image.Image:
    return image.resize((FRAME, FRAME), Image.Resampling.BILINEAR)


def normalized(sound: np.ndarray) -> np.ndarray:
    """(n,) float32 → minimum -1, maximum just below 1, in the published code's three steps."""
    sound = sound - sound.min()
    return (sound / (sound.max() + np.float32(1e-3)) - np.float32(0.5)) * np.float32(2)


def pack(pairs: Path, keys: list[str], file: Path, threads: int) -> None:
    """Write the HDF5 arrays `frames`, `audios` and `spects` of the pairs, in this order."""
    import h5py
    import torch

    from essl_fast import kernels

    shapes = {"frames": (FRAME, FRAME, 3), "audios": (SAMPLES,), "spects": (3, 96, 64)}
    with h5py.File(file, "w") as held, ThreadPoolExecutor(threads) as pool:
        arrays = {name: held.create_dataset(name, (len(keys), *shape), "float32") for name, shape in shapes.items()}
        for at in range(0, len(keys), _TOGETHER):
            some = keys[at : at + _TOGETHER]
            frames, sounds = zip(*pool.map(lambda key: read_pair(pairs, key), some), strict=True)
            arrays["frames"][at : at + len(some)] = np.stack(frames)
            arrays["audios"][at : at + len(some)] = np.stack(sounds)
            spects = kernels.log_mel(torch.from_numpy(np.stack(sounds)), normalize=False)
            arrays["spects"][at : at + len(some)] = spects.numpy()


def prepare(videos: Path, wanted: dict[str, list[tuple[str, int, float]]], out: Path, processes: int) -> list[str]:
    """Extract, select and pack. `wanted`: video → (key, fid, seconds) of its pairs.

    Returns the keys, in the order of the file's rows. RuntimeError if a process fails.
    """
    out.mkdir(parents=True)
    names = list(wanted)
    share = math.ceil(len(names) / processes)
    started = []
    for number in range(processes):
        mine = {name: wanted[name] for name in names[number * share : (number + 1) * share]}
        if mine:
            job = out / f"job-{number}.json"
            job.write_text(json.dumps({"videos": str(videos), "out": str(out), "wanted": mine}))
            command = [sys.executable, "-m", "benchmarks.baselines.published_prepare", str(job)]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            started.append((job, subprocess.Popen(command, cwd=ROOT, env=environment)))
    keys = []
    for job, process in started:
        if process.wait():
            raise RuntimeError(f"{job}: its process ended with status {process.returncode}; its message is above")
        keys += json.loads(job.with_suffix(".keys").read_text())
    pack(out / "pairs", keys, out / "pairs.h5", processes)
    return keys


def _work(job: Path) -> None:
    told, keys = json.loads(job.read_text()), []
    out = Path(told["out"])
    for video, pairs in told["wanted"].items():
        frames, sound = out / "frames" / video, out / "sound" / f"{video}.wav"
        extract(find_video(told["videos"], video), frames, sound)
        keys += select(pairs, frames, sound, out / "pairs")
    job.with_suffix(".keys").write_text(json.dumps(keys))


if __name__ == "__main__":
    _work(Path(sys.argv[1]))

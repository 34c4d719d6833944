"""The video files of the demo world: a scene's frames and sound out of its plan, encoded as MP4.

Frames and sound are functions of the plan, and encoders run on one thread. So a file depends neither on the number of
workers nor on the other files.

Measured: about 80 ms per video on one CPU core (AMD EPYC): sound 16 ms, frames 14 ms, H.264 23 ms and AAC 26 ms.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from av.video.stream import VideoStream

from essl_fast.common.errors import InputError
from essl_fast.data.synthetic import look, sound
from essl_fast.data.synthetic.look import HEIGHT, WIDTH
from essl_fast.data.synthetic.plan import ScenePlan

# codec: (encoders, the best first; pixel format; options). Presets are fast: videos are small and decoded a few times.
ENCODERS: dict[str, tuple[tuple[str, ...], str, dict[str, str]]] = {
    "h264": (("libx264",), "yuv420p", {"preset": "ultrafast", "crf": "25", "bf": "0", "x264-params": "keyint=24"}),
    "hevc": (
        ("libx265",),
        "yuv420p",
        {
            "preset": "ultrafast",
            "crf": "24",
            "x265-params": "keyint=24:bframes=0:pools=none:frame-threads=1:log-level=none",
        },
    ),
    "vp9": (
        ("libvpx-vp9",),
        "yuv420p",
        {"deadline": "realtime", "cpu-used": "8", "crf": "28", "b": "0", "g": "24", "row-mt": "0"},
    ),
    "av1": (("libsvtav1",), "yuv420p", {"preset": "11", "crf": "30", "svtav1-params": "lp=1:keyint=24"}),
    "mjpeg": (("mjpeg",), "yuvj420p", {"qmin": "3", "qmax": "3"}),
}
AAC = {"b": "96k", "aac_coder": "fast", "aac_pns": "0"}  # the default coder takes longer than the rest of a video


def render_frames(plan: ScenePlan) -> Iterator[np.ndarray]:
    """The video's frames in order, RGB uint8 (180, 320, 3); the first is fid 1. `plan.sounding` has no influence."""
    rng = plan.rng("look")
    ground = look.background(rng)
    stamps = [[look.stamp(pose) for pose in look.sprite(o.kind, rng, o.width, o.height)] for o in plan.objects]
    sheet = look.noise_sheet()
    offsets = rng.integers(0, 64, (plan.frames, 2))
    pan, turn = rng.uniform(0.05, 0.25, 2), rng.random(2)
    for fid in range(1, plan.frames + 1):
        now = plan.time(fid)
        dx, dy = (
            round(margin * (1 + math.sin(2 * math.pi * (speed * now + start))))
            for margin, speed, start in zip((look.MARGIN_X, look.MARGIN_Y), pan, turn, strict=True)
        )
        frame = ground[dy : dy + HEIGHT, dx : dx + WIDTH].copy()
        for thing, poses in zip(plan.objects, stamps, strict=True):
            look.paste(frame, poses[thing.pose(now)], *thing.box(now)[:2])
        y, x = offsets[fid - 1]
        frame += sheet[y : y + HEIGHT, x : x + WIDTH]  # modulo 256; the frame stays NOISE away from 0 and 255
        yield frame


def render_sound(plan: ScenePlan) -> np.ndarray:
    """The video's sound: float32 (channels, samples) in (-1, 1) at `plan.rate` Hz; several sources are mixed."""
    rng = plan.rng("sound")
    kinds = [plan.objects[index].kind for index in plan.sources]
    clips = [sound.clip(kind, rng, plan.settings.seconds, plan.rate, plan.channels) for kind in kinds]
    return clips[0] if len(clips) == 1 else np.tanh(sum(clips))  # tanh: the sum of two peaks clips no more than one


def encoder(codec: str) -> str:
    """FFmpeg's name of the encoder for `codec`. InputError if PyAV's FFmpeg has none."""
    os.environ.setdefault("SVT_LOG", "1")  # otherwise SVT-AV1 prints its settings for every file
    for name in ENCODERS[codec][0]:
        try:
            av.codec.Codec(name, "w")
        except UnknownCodecError:
            continue
        return name
    raise InputError(
        f"demo world: this PyAV has no {codec} encoder ({' or '.join(ENCODERS[codec][0])}); "
        "choose another --codec or reinstall 'av' from its wheel"
    )


def write_video(path: Path, codec: str, fps: int, frames: Iterable[np.ndarray], sound: np.ndarray, rate: int) -> None:
    """Encode an MP4 file.

    Args:
        path: of the file.
        codec: one of `settings.CODECS`.
        fps: frames per second.
        frames: RGB uint8 (180, 320, 3) each.
        sound: float32 (1 or 2 channels, samples) in (-1, 1).
        rate: of the sound, Hz.

    Raises:
        InputError: PyAV's FFmpeg has no encoder for the codec.
    """
    name, (_, pixels, options) = encoder(codec), ENCODERS[codec]
    layout = "mono" if len(sound) == 1 else "stereo"
    with av.open(str(path), "w", format="mp4") as out:
        video = cast(VideoStream, out.add_stream(name, rate=fps, options=options))
        video.width, video.height, video.pix_fmt, video.thread_count = WIDTH, HEIGHT, pixels, 1
        audio = out.add_stream("aac", rate=rate, layout=layout, options=AAC)
        for picture in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
        for start in range(0, sound.shape[1], 1024):  # one block of AAC
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 1024]), "fltp", layout)
            block.sample_rate, block.pts = rate, start
            out.mux(audio.encode(block))
        out.mux(audio.encode(None))


def make_videos(plans: list[ScenePlan], folder: Path) -> Iterator[str]:
    """Write each plan's MP4 file into a folder, and yield its name."""
    for plan in plans:
        path = folder / f"{plan.name}.mp4"
        write_video(path, plan.settings.codec, plan.settings.fps, render_frames(plan), render_sound(plan), plan.rate)
        yield plan.name

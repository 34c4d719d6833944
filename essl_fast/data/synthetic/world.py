"""The demo world: real video files in Chaotic World's own layout, made from a seed.

    python -m essl_fast.data.synthetic --out DIR [--codec h264|hevc|vp9|av1|mjpeg] [--seed N]

    OUT/videos/<NAME>.mp4                        320x180 video, AAC sound
    OUT/annotations/annotation/group/<NAME>.csv  start_fid, end_fid, start_time, end_time, bbox, ssl: a row per stretch
    OUT/annotations/annotation/frame/<NAME>.csv  fid, time, bbox, ssl: a row per annotated frame
    OUT/annotations/train_ssl.txt, test_ssl.txt  one video name a line
    OUT/objects.json                             "{video}_{fid:06d}" -> each object's class, box, area, sounding or not
    OUT/world.json                               settings; written last, so a folder without it was never finished

A scene holds three to five moving objects of distinct classes over a cluttered background. One of them sounds; which
one can be told only by knowing which look goes with which sound: classes sound equally often, the sounding object has
every rank in size equally often, objects lie anywhere, and all of them move and change pose alike. `plan_world` draws
all of this without making a pixel; frames and sound are functions of the plan, and encoders run on one thread, so the
files do not depend on the number of workers. Frames are counted from 1 and a frame's time is fid / fps, as in the
published annotations.

Measured: about 80 ms a video on one CPU core (AMD EPYC), of which sound 16, frames 14, H.264 23 and AAC 26 ms.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
from av.codec.codec import UnknownCodecError
from rich.progress import track

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file
from essl_fast.common.subprocesses import with_package
from essl_fast.data.synthetic import look, sound
from essl_fast.data.synthetic.look import HEIGHT, WIDTH
from essl_fast.data.synthetic.plan import CLASSES, SPLITS, ScenePlan, WorldSettings, plan_world

PROG = "python -m essl_fast.data.synthetic"
FORMAT, VERSION = "essl_fast demo world", 1
# codec: (encoders, best first; pixel format; options). Fast presets: a video is small and decoded only a few times.
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
AAC = {"b": "96k", "aac_coder": "fast", "aac_pns": "0"}  # the default coder takes longer than all the rest of a video


@dataclass(frozen=True)
class World:
    """A finished demo world on disk. `videos` and `annotations` are what `essl_fast.prepare` takes."""

    path: Path
    settings: WorldSettings
    train: list[str]
    test: list[str]
    reused: bool
    seconds: float

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    @property
    def annotations(self) -> Path:
        return self.path / "annotations"

    @property
    def objects(self) -> Path:
        return self.path / "objects.json"


def render_frames(plan: ScenePlan) -> Iterator[np.ndarray]:
    """The video's frames in order, each (180, 320, 3) uint8 RGB; the first is fid 1. `plan.sounding` plays no part."""
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
        frame += sheet[y : y + HEIGHT, x : x + WIDTH]  # modulo 256: the frame keeps NOISE away from both ends
        yield frame


def render_sound(plan: ScenePlan) -> np.ndarray:
    """The video's sound, (channels, samples) float32 in (-1, 1) at `plan.rate`."""
    return sound.clip(plan.kind, plan.rng("sound"), plan.settings.seconds, plan.rate, plan.channels)


def encoder(codec: str) -> str:
    """FFmpeg's name of the encoder for `codec`. InputError if PyAV's FFmpeg has none."""
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its settings for every file unless told not to
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
    """Encodes an mp4: frames (180, 320, 3) uint8 RGB at `fps`, sound (1 or 2, n) float32 at `rate`."""
    name, (_, pixels, options) = encoder(codec), ENCODERS[codec]
    layout = "mono" if len(sound) == 1 else "stereo"
    with av.open(str(path), "w", format="mp4") as out:
        video = out.add_stream(name, rate=fps, options=options)
        video.width, video.height, video.pix_fmt, video.thread_count = WIDTH, HEIGHT, pixels, 1
        audio = out.add_stream("aac", rate=rate, layout=layout, options=AAC)
        for picture in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
        for start in range(0, sound.shape[1], 1024):  # a block of AAC
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, start : start + 1024]), "fltp", layout)
            block.sample_rate, block.pts = rate, start
            out.mux(audio.encode(block))
        out.mux(audio.encode(None))


def _write_table(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def write_annotations(plans: list[ScenePlan], folder: Path) -> None:
    """The annotation tables and split lists of all videos, in `folder`. A group row's bbox lists one box per frame."""
    for kind in ("group", "frame"):
        (folder / "annotation" / kind).mkdir(parents=True, exist_ok=True)
    for plan in plans:
        boxes = {fid: list(plan.objects[plan.sounding].box(plan.time(fid))) for fid in plan.fids()}
        _write_table(
            folder / "annotation" / "group" / f"{plan.name}.csv",
            ["start_fid", "end_fid", "start_time", "end_time", "bbox", "ssl"],
            [
                [a, b, plan.time(a), plan.time(b), [boxes[f] for f in range(a, b + 1)], plan.kind]
                for a, b in plan.groups
            ],
        )
        _write_table(
            folder / "annotation" / "frame" / f"{plan.name}.csv",
            ["fid", "time", "bbox", "ssl"],
            [[fid, plan.time(fid), [box], plan.kind] for fid, box in boxes.items()],
        )
    for split in SPLITS:
        names = "".join(f"{plan.name}\n" for plan in plans if plan.split == split)
        (folder / f"{split}_ssl.txt").write_text(names, encoding="utf-8")


def all_objects(plans: list[ScenePlan]) -> dict[str, list[dict]]:
    """What objects.json holds: for each annotated frame every object, from back to front; boxes in 320x180 pixels."""
    table = {}
    for plan in plans:
        for fid in plan.fids():
            table[f"{plan.name}_{fid:06d}"] = [
                {
                    "class": thing.kind,
                    "box": list(thing.box(plan.time(fid))),
                    "area": thing.width * thing.height,
                    "sounding": i == plan.sounding,
                }
                for i, thing in enumerate(plan.objects)
            ]
    return table


def _make_videos(plans: list[ScenePlan], folder: Path) -> Iterator[str]:
    """Writes each plan's mp4 and yields its name."""
    for plan in plans:
        path = folder / f"{plan.name}.mp4"
        write_video(path, plan.settings.codec, plan.settings.fps, render_frames(plan), render_sound(plan), plan.rate)
        yield plan.name


def _make_in_parallel(settings: WorldSettings, folder: Path, workers: int) -> Iterator[str]:
    """As `_make_videos`, by `workers` fresh interpreters: forking a process that already runs torch's threads is not
    safe, and multiprocessing's spawn would import the caller's main module, torch and all, again in each."""
    job = [sys.executable, "-m", "essl_fast.data.synthetic", "--out", str(folder), "--job"]
    done, to_done = os.pipe()  # one pipe for all: a name and its newline are one write, which the kernel does not split
    started: list[subprocess.Popen] = []
    try:
        for first in range(workers):
            part = json.dumps({"settings": asdict(settings), "first": first, "step": workers})
            started.append(subprocess.Popen([*job, part], stdout=to_done, env=with_package()))
        os.close(to_done)
        with os.fdopen(done, encoding="ascii") as names:
            for line in names:
                yield line.strip()
        for process in started:
            if process.wait():
                raise RuntimeError(f"demo world: a worker ended with status {process.returncode}; its message is above")
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()


def _read_settings(path: Path) -> dict:
    """Settings in a world.json or in the mark of a half-made world. InputError if it is neither."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            raise KeyError("format")
        return {"version": held["version"], **held["settings"]}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a demo world's file ({error!r}); choose another folder or remove this one"
        ) from error


def _write_whole(path: Path, held: dict) -> None:
    """Writes JSON so that the file is there whole or not at all."""
    with atomic_file(path) as file:
        file.write(json.dumps(held, sort_keys=True, separators=(",", ":")).encode() + b"\n")


def make_world(
    out: Path | str,
    *,
    train_videos: int = 320,
    test_videos: int = 80,
    seed: int = 0,
    codec: str = "h264",
    seconds: float = 4.0,
    fps: int = 12,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> World:
    """Makes the demo world in folder `out`, or returns the one there if finished and of these settings.

    A half-made world is made anew. `workers` processes (default: one a CPU this process may use) share the work and
    do not change the result. Raises InputError for impossible settings, a codec without an encoder, a folder that
    holds something else, or a finished world of other settings (unless `overwrite`).
    """
    out, begun = Path(out), time.monotonic()
    settings = WorldSettings(train_videos, test_videos, seed, codec, float(seconds), fps)
    encoder(codec)
    plans = plan_world(settings)
    names = {split: [plan.name for plan in plans if plan.split == split] for split in SPLITS}
    wanted = {
        "format": FORMAT,
        "version": VERSION,
        "settings": asdict(settings),
        "classes": list(CLASSES),
        "videos": names,
    }
    finished, unfinished = out / "world.json", out / "world.unfinished.json"
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is not a folder; choose another one for the demo world")
    if finished.exists():
        same = _read_settings(finished) == {"version": VERSION, **wanted["settings"]}
        if same and not overwrite and all((out / "videos" / f"{plan.name}.mp4").is_file() for plan in plans):
            return World(out, settings, names["train"], names["test"], True, time.monotonic() - begun)
        if not same and not overwrite:
            raise InputError(
                f"{out}: holds a demo world of other settings; choose another folder, or pass --overwrite to replace it"
            )
    elif unfinished.exists():
        _read_settings(unfinished)
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is not empty and holds no demo world; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    _write_whole(unfinished, wanted)
    for old in (finished, out / "objects.json"):
        old.unlink(missing_ok=True)
    for old in (out / "videos", out / "annotations"):
        if old.exists():
            shutil.rmtree(old)
    (out / "videos").mkdir()
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(workers, len(plans) // 4))  # starting an interpreter costs about as much as four videos
    making = (
        _make_videos(plans, out / "videos") if workers == 1 else _make_in_parallel(settings, out / "videos", workers)
    )
    for _ in track(making, "demo world", total=len(plans), disable=not progress):
        pass
    missing = [plan.name for plan in plans if not (out / "videos" / f"{plan.name}.mp4").is_file()]
    if missing:
        raise RuntimeError(f"{out}: {len(missing)} videos were not written, first {missing[0]}.mp4; run again")
    write_annotations(plans, out / "annotations")
    _write_whole(out / "objects.json", all_objects(plans))
    _write_whole(finished, wanted)
    unfinished.unlink()
    return World(out, settings, names["train"], names["test"], False, time.monotonic() - begun)

"""Makes a demo world in a folder, or finds the one that is there.

    OUT/videos/<NAME>.mp4                        320x180 video, AAC sound
    OUT/annotations/annotation/group/<NAME>.csv  start_fid, end_fid, start_time, end_time, bbox, ssl: a row per stretch
    OUT/annotations/annotation/frame/<NAME>.csv  fid, time, bbox, ssl: a row per annotated frame
    OUT/annotations/train_ssl.txt, test_ssl.txt  one video name per line
    OUT/objects.json                             "{video}_{fid:06d}" -> each object's class, box, area, sounding or not
    OUT/world.json                               settings; written last, so a folder without it was never finished

Frames are counted from 1 and a frame's time is fid / fps, as in the published annotations.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file
from essl_fast.common.locks import locked
from essl_fast.common.pulse import Pulse
from essl_fast.data.synthetic.plan import CLASSES, ScenePlan, plan_world
from essl_fast.data.synthetic.settings import SPLITS, WorldSettings
from essl_fast.data.synthetic.tables import all_objects, write_annotations
from essl_fast.data.synthetic.videos import encoder, make_videos
from essl_fast.data.synthetic.workers import make_in_parallel

FORMAT, VERSION = "essl_fast demo world", 1
LOCK = ".lock"  # in a folder while a world is being made there
_LEAST_SHARE = 4  # videos of a worker: starting an interpreter costs about as much as four videos


@dataclass(frozen=True)
class World:
    """A finished demo world on disk. `videos` and `annotations` are what `essl_fast.prepare` takes.

    Attributes:
        path: the folder.
        settings: what it was made of.
        train, test: names of the videos of each split.
        reused: it was there already.
        seconds: how long this call took.
    """

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


def make_world(
    out: Path | str,
    *,
    train_videos: int = 320,
    test_videos: int = 80,
    seed: int = 0,
    codec: str = "h264",
    seconds: float = 4.0,
    fps: int = 12,
    objects: str = "several",
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> World:
    """Make a demo world, or return the one in the folder if it is finished and has these settings.

    A world that is half made is made again. If another process is making it, this one waits and returns the same.

    Args:
        out: the folder.
        train_videos, test_videos, seed, codec, seconds, fps, objects: see `WorldSettings`.
        workers: processes that share the work (default: one per CPU of this process). The result does not depend on it.
        progress: show a bar, or say a line every 30 s where the output is no terminal.
        overwrite: replace a world of other settings or of another version, or one that lacks videos.
        say: prints a line, such as that this process waits for another one.

    Raises:
        OtherWorld: an InputError; a world of other settings or of another version (unless `overwrite`).
        InputError: impossible settings, a codec without an encoder, or a folder that holds something else.
        RuntimeError: a worker failed.
    """
    out, begun = Path(out), time.monotonic()
    settings = WorldSettings(train_videos, test_videos, seed, codec, float(seconds), fps, objects)
    encoder(codec)
    plans = plan_world(settings)
    names = {split: [plan.name for plan in plans if plan.split == split] for split in SPLITS}
    record = {
        "format": FORMAT,
        "version": VERSION,
        "settings": settings.record(),
        "classes": list(CLASSES),
        "videos": names,
    }
    reused = _is_finished(out, settings, plans, overwrite)
    if not reused:
        out.mkdir(parents=True, exist_ok=True)
        with world_lock(out, say):
            reused = _is_finished(out, settings, plans, overwrite)  # another process may have made it meanwhile
            if not reused:
                _begin(out, record)
                _make_all(plans, settings, out / "videos", workers, progress, say)
                write_annotations(plans, out / "annotations")
                _write_json(out / "objects.json", all_objects(plans))
                _write_json(_finished(out), record)
                _unfinished(out).unlink()
    return World(out, settings, names["train"], names["test"], reused, time.monotonic() - begun)


class OtherWorld(InputError):
    """A folder holds a demo world of other settings, or of another version."""


def world_lock(folder: Path, say: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time make a world in a folder, which must exist; the others say so, and wait.

    Nothing can be made in a folder that must not be written: there it is no lock at all.
    """
    if not os.access(folder, os.W_OK):
        return contextlib.nullcontext()
    return locked(folder / LOCK, lambda who: say(f"waiting for {who}, which is making {folder}"), say)


def _finished(out: Path) -> Path:
    return out / "world.json"


def _unfinished(out: Path) -> Path:
    """The mark of a world that is being made."""
    return out / "world.unfinished.json"


def _is_finished(out: Path, settings: WorldSettings, plans: list[ScenePlan], overwrite: bool) -> bool:
    """Whether the folder holds the wanted world already. OtherWorld if it holds another one, which must stay."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is not a folder; choose another one for the demo world")
    held = _read_settings(_finished(out))
    if held is None:
        return False
    same = held == {"version": VERSION, **settings.record()}
    if not same and not overwrite:
        raise OtherWorld(
            f"{out}: holds a demo world of other settings; choose another folder, or pass --overwrite to replace it"
        )
    kept = [out / "objects.json", *(out / "videos" / f"{plan.name}.mp4" for plan in plans)]
    return same and all(path.is_file() for path in kept)


def _check_free(out: Path) -> None:
    """InputError if a folder holds something that is no demo world.

    Only who holds the lock may ask: while another process makes a world, its files come and go.
    """
    of_a_world = _read_settings(_finished(out)) or _read_settings(_unfinished(out))
    if of_a_world is None and any(path.name != LOCK for path in out.iterdir()):
        raise InputError(f"{out}: is not empty and holds no demo world; choose another folder")


def _begin(out: Path, record: dict) -> None:
    """Mark the folder as begun, and remove what an earlier world left there. InputError if it is no world's."""
    _check_free(out)
    _write_json(_unfinished(out), record)
    for old in (_finished(out), out / "objects.json"):
        old.unlink(missing_ok=True)
    for old in (out / "videos", out / "annotations"):
        if old.exists():
            shutil.rmtree(old)
    (out / "videos").mkdir()


def _make_all(
    plans: list[ScenePlan],
    settings: WorldSettings,
    folder: Path,
    workers: int | None,
    progress: bool,
    say: Callable[[str], None],
) -> None:
    """Write all videos. RuntimeError if one is missing at the end."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(workers, len(plans) // _LEAST_SHARE))
    making: Iterator[str] = make_videos(plans, folder) if workers == 1 else make_in_parallel(settings, folder, workers)
    shown = sys.stdout.isatty()
    if progress and not shown:
        with Pulse(say, "making the demo world", len(plans), "videos") as pulse:
            for _ in making:
                pulse.step()
    else:
        for _ in track(making, "demo world", total=len(plans), disable=not progress):
            pass
    missing = [plan.name for plan in plans if not (folder / f"{plan.name}.mp4").is_file()]
    if missing:
        raise RuntimeError(
            f"{folder.parent}: {len(missing)} videos were not written, first {missing[0]}.mp4; run again"
        )


def _read_settings(path: Path) -> dict | None:
    """Settings in a world.json, or in the mark of a half-made world.

    None: there is no such file. InputError: the file is neither.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            raise KeyError("format")
        return {"version": held["version"], **held["settings"]}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a demo world's file ({error!r}); choose another folder or remove this one"
        ) from error


def _write_json(path: Path, held: dict) -> None:
    """Write a JSON file that is there completely or not at all."""
    with atomic_file(path) as file:
        file.write(json.dumps(held, sort_keys=True, separators=(",", ":")).encode() + b"\n")

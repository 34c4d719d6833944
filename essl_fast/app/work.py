"""What the page does with a video: localize it, and tell the result, or the error, in words and rows."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from essl_fast.common.commands import one_line
from essl_fast.common.errors import InputError
from essl_fast.data import media
from essl_fast.localize import SoundFinder, localize

HEADS = ("time, s", "score", "regions", "the hottest (x1, y1, x2, y2), or why there is none")
STEP = 0.001  # of the page's smallest score


@dataclass(frozen=True)
class Limits:
    """What the page takes.

    Attributes:
        megabytes: of a file.
        seconds: of a video.
    """

    megabytes: int = 200
    seconds: float = 600.0


@dataclass
class Answer:
    """What the page shows of a video.

    Attributes:
        said: a few lines, or the one line of an error.
        failed: whether it is an error.
        overlay, sheet, moments: the files; None after an error.
        rows: a row for each moment, as in HEADS.
    """

    said: list[str]
    failed: bool = False
    overlay: Path | None = None
    sheet: Path | None = None
    moments: Path | None = None
    rows: list[list[str]] = field(default_factory=list)


def answer(
    finder: SoundFinder,
    video: str | Path | None,
    folder: Path,
    limits: Limits,
    rate: float = 5.0,
    threshold: float = 0.5,
    min_score: float | None = None,
) -> Answer:
    """Localize the sound of a video; an error becomes a line.

    Args:
        finder: the model.
        video: the file that was uploaded; None if there is none.
        folder: for the results, each in a folder of its own; those of earlier videos are removed.
        limits: of the video.
        rate, threshold, min_score: as of `localize`.
    """
    for old in folder.iterdir():
        shutil.rmtree(old, ignore_errors=True)
    try:
        path = _accepted(video, limits)
        out = Path(tempfile.mkdtemp(dir=folder))
        own = finder.trust.min_score
        if own is not None and min_score is not None and abs(min_score - own) < STEP:
            min_score = None  # the model's own, which is then told
        found = localize(path, finder, out, rate=rate, threshold=threshold, min_score=min_score)
    except InputError as error:
        line = str(error).replace(str(video), Path(video).name) if video else str(error)  # not where uploads are kept
        return Answer([one_line(line)], failed=True)
    except Exception as error:  # the page stays, whatever a file does to a decoder
        return Answer([one_line(f"{type(error).__name__}: {error}")], failed=True)
    shown = sum(moment.shown for moment in found.moments)
    rows = []
    for moment in found.moments:
        where = ", ".join(map(str, moment.regions[0].box)) if moment.regions else moment.why
        score = "" if moment.score is None else f"{moment.score:.3f}"
        rows.append([f"{moment.time:.2f}", score, str(len(moment.regions)), where])
    lines = [f"{shown} of {len(found.moments)} moments are shown.", *found.notes, *found.faults]
    overlay, sheet, listed = (out / f"{path.stem}.{kind}" for kind in ("overlay.mp4", "sheet.png", "moments.json"))
    return Answer(lines, False, overlay, sheet, listed, rows)


def _accepted(video: str | Path | None, limits: Limits) -> Path:
    """The file, if the page takes it; InputError otherwise."""
    if not video:
        raise InputError("give a video first")
    path = Path(video)
    size = path.stat().st_size / 1e6
    if size > limits.megabytes:
        raise InputError(f"{path.name} has {size:.0f} MB, and this page takes {limits.megabytes} (--max-mb)")
    try:
        found = media.probe(path)
    except media.MediaError as error:
        raise InputError(str(error)) from error
    length = float((found.pts[-1] - found.start) * found.time_base)
    if length > limits.seconds:
        raise InputError(f"{path.name} lasts {length:.0f} s, and this page takes {limits.seconds:g} (--max-seconds)")
    return path

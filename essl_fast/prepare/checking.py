"""`--check`: annotations against the headers of the videos, in seconds, before anything is prepared.

What the headers make doubtful (a frame past the end, a number and a time that contradict each other) is judged by the
packets of that video, as `prepare` does. Only the pictures of `preview.png` are decoded. Damage inside of a file shows
when it is prepared, or with `--verify`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from rich.text import Text

from essl_fast.common import commands
from essl_fast.data import media
from essl_fast.data.datasets import HDF5, MIDDLE, STILL, VIDEO, Dataset, Files, hdf5, pair_key
from essl_fast.data.media import audio, stills
from essl_fast.data.shards import SPLITS
from essl_fast.prepare import notes
from essl_fast.prepare.preview import PREVIEW, draw_preview, spread
from essl_fast.prepare.reporting import MOST_LINES, Reporter

CONTRADICTION = "frame numbers against times"
SIZE = "size of the annotated frames"
_NO_FAULTS = (media.WINDOW,)  # reasons for which pairs are left out of any data set


@dataclass
class Checked:
    """What a check found.

    Attributes:
        videos, pairs: split → how many the annotations name.
        wrong: reason → a line for each case.
        left_out: reason → a line for each pair that is left out although nothing is wrong.
    """

    videos: dict[str, int]
    pairs: dict[str, int]
    wrong: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, line: str) -> None:
        """Add a case."""
        of = self.left_out if reason in _NO_FAULTS else self.wrong
        of.setdefault(reason, []).append(media.as_text(line))


def check(dataset: Dataset, out: str | Path, say: Reporter) -> Checked:
    """Look at every video's headers, and draw `preview.png`. Nothing else is written.

    Args:
        dataset: what would be prepared.
        out: folder of `preview.png`.
        say: reports the progress.

    Raises:
        InputError: the data set cannot be stored.
        OSError: the picture cannot be written.
    """
    dataset.check()
    every = [(video, split, span) for video, split, span in dataset.annotations.pairs.videos()]
    found = Checked(dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0))
    for left in dataset.annotations.left_out:
        found.add(left.reason, f"{left.key or left.video}: {left.detail}")
    told: dict[str, list[notes.Note]] = {}
    files: dict[str, Files] = {}
    with say.bar("videos looked at", len(every)) as step:
        for video, split, span in every:
            found.videos[split] += 1
            found.pairs[split] += len(span)
            try:
                files[video] = dataset.files_of(video)
                told[video] = _look_at(dataset, video, files[video], span, found)
            except media.MediaError as error:
                found.add(error.reason, f"{video}: {error.detail} ({_pairs(len(span))})")
                files.pop(video, None)
            step(1)
    said = notes.header(told, dataset.annotations.sizes.doubt())
    for video, text in said.get("contradictions", {}).items():
        found.add(CONTRADICTION, f"{video}: {text}")
    if "boxes" in said:
        found.add(SIZE, said["boxes"])
    _draw(dataset, files, Path(out) / PREVIEW)
    return found


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count != 1)}"


def _look_at(dataset: Dataset, video: str, files: Files, span: range, found: Checked) -> list[notes.Note]:
    """Add what is wrong with a video and its pairs. MediaError if it cannot be used at all."""
    if files.kind == HDF5:
        return []  # the reader has looked at the arrays
    if files.kind == STILL:
        assert files.sound is not None  # a picture has a file of its own for it
        stills.check_picture(files.path)
        media.check_sound(files.sound)
        return []
    seen = media.glance(files.path)
    if not seen.audio:
        raise media.MediaError(media.NO_SOUND, f"{files.path.name} has none")
    if files.kind == MIDDLE:
        return []
    pairs = dataset.annotations.pairs
    requests = [(pair_key(video, int(pairs.fid[at])), int(pairs.fid[at]), float(pairs.time[at])) for at in span]
    if _doubtful(seen, requests):
        seen = media.probe(files.path)
    lost = dict(media.find_places(seen, [(fid, time) for _, fid, time in requests])[1])
    for at, (key, _, time) in enumerate(requests):
        if at in lost:
            found.add(lost[at].reason, f"{key}: {lost[at].detail}")
        elif not audio.SECONDS / 2 <= time <= seen.sound_end - audio.SECONDS / 2:
            length = f"whose sound has {seen.sound_end:.2f} s"
            found.add(media.WINDOW, f"{key}: 3 s around {time:g} s leave {files.path.name}, {length}")
    return notes.of_video(seen, requests)


def _doubtful(seen: media.Probe, requests: Sequence[tuple[str, int, float]]) -> bool:
    """Whether headers say that a frame is past the end, or that a number and a time contradict each other."""
    _, errors = media.find_places(seen, [(fid, time) for _, fid, time in requests])
    return bool(errors) or any(kind == notes.APART for kind, _ in notes.of_video(seen, requests))


def _draw(dataset: Dataset, files: dict[str, Files], path: Path) -> None:
    """Draw `preview.png` of pairs whose files were found."""
    pairs = dataset.annotations.pairs
    known = [(video, split, at) for video, split, span in pairs.videos() if video in files for at in span]
    labelled = np.array([pairs.box_span(at)[0] < pairs.box_span(at)[1] for _, _, at in known], bool)
    pictures = []
    for place in spread(labelled):
        pair = pairs.get(*known[place])
        pictures.append((pair.key, _frame(files[pair.video], pair.fid, pair.time), pair.boxes.tolist()))
    draw_preview(path, pictures)


def _frame(files: Files, fid: int, time: float) -> np.ndarray | None:
    """A pair's frame, uint8 (H, W, 3); None if it cannot be decoded."""
    try:
        if files.kind in (VIDEO, MIDDLE):
            seen = media.probe(files.path)
            wanted = stills.middle_frame(seen) if files.kind == MIDDLE else (fid, time)
            frame: Any = next((frame for _, frame in media.decode_frames(files.path, [wanted], seen)), None)
            return None if isinstance(frame, media.MediaError) else frame
        if files.kind == STILL:
            stored = stills.picture_file(files.path)
        else:
            with hdf5.open_array(files.path, "frames") as frames:
                return hdf5.to_pixels(frames[files.rows[fid] if files.rows else 0])
        return np.asarray(Image.open(io.BytesIO(stored), formats=("JPEG", "PNG")).convert("RGB"))
    except (media.MediaError, ValueError, OSError, LookupError):
        return None  # what is wrong with the file was told, or shows when it is prepared


def print_checked(found: Checked, out: str | Path) -> None:
    """Print what a check found: every case on a line, up to MOST_LINES of a kind, then the numbers."""
    console = commands.console()

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    for reason, cases in sorted(found.wrong.items()):
        for case in _first(cases):
            line(f"{reason}: {case}")
    table = Table(title="read", title_justify="left")
    for heading in ("split", "videos", "pairs"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for split in SPLITS:
        table.add_row(split, str(found.videos[split]), str(found.pairs[split]))
    console.print(table)
    if found.wrong:
        table = Table(title="wrong", title_justify="left")
        table.add_column("what")
        table.add_column("times", justify="right")
        for reason, cases in sorted(found.wrong.items(), key=lambda item: -len(item[1])):
            table.add_row(Text(reason), str(len(cases)))
        console.print(table)
    for reason, cases in found.left_out.items():
        line(f"{_pairs(len(cases))} would be left out, as always: {reason} (first: {cases[0]})")
    line(f"{'nothing is wrong' if not found.wrong else 'something is wrong'}; boxes to look at: {Path(out) / PREVIEW}")


def _first(cases: list[str]) -> Iterator[str]:
    yield from cases[:MOST_LINES]
    if len(cases) > MOST_LINES:
        yield f"and {len(cases) - MOST_LINES} more"

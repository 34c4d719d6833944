"""What `python -m essl_fast.localize` does, as a function."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from essl_fast.common import commands
from essl_fast.common.errors import InputError
from essl_fast.common.files import atomic_file, write_json
from essl_fast.common.outputs import output_file, output_folder
from essl_fast.common.progress import PassProgress
from essl_fast.data import media
from essl_fast.data.datasets import read_truth
from essl_fast.localize.finder import SoundFinder
from essl_fast.localize.inputs import open_input, pick_decoder
from essl_fast.localize.moments import Localization, find_moments, moment_places
from essl_fast.localize.overlay_video import write_overlay
from essl_fast.localize.result import document, sheet

MOST_LINES = 5  # of faults on the terminal


@dataclass(frozen=True)
class Outputs:
    """The files that are written for one input."""

    overlay: Path
    sheet: Path
    moments: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> Outputs:
        """The files of an input called `name`, in a folder."""
        kinds = ("overlay.mp4", "sheet.png", "moments.json")
        return cls(*(folder / f"{name}.{kind}" for kind in kinds))

    def prepare(self, inputs: list[Path | None]) -> None:
        """Make the folder. InputError if an input would be overwritten, or if nothing can be written there."""
        folder = self.moments.parent
        read = {path.resolve(): path for path in inputs if path}
        if taken := [read[path.resolve()] for path in vars(self).values() if path.resolve() in read]:
            raise InputError(f"--out: {taken[0]} is an input and would be overwritten; choose another folder")
        output_folder(folder, "--out")
        for path in vars(self).values():
            output_file(path, "--out")


def localize(
    given: str | Path,
    checkpoint: str | Path | SoundFinder,
    out: str | Path = "localized",
    *,
    sound: str | Path | None = None,
    rate: float = 5.0,
    threshold: float = 0.5,
    min_score: float | None = None,
    opacity: float = 0.6,
    boxes: str | Path | None = None,
    boxes_size: tuple[int, int] | None = None,
    video: bool = True,
    batch: int = 0,
    device: str = "auto",
    decoder: str = "auto",
    precision: str = "auto",
    weights: dict[str, str] | None = None,
    console: Console | None = None,
) -> Localization:
    """Localize the sound of a video, or of a picture with a sound, and write the results into a folder.

    One function, since it has every option of the command: most of its lines are signature and docstring.

    Args:
        given: a video, or a picture with `sound`.
        checkpoint: a run directory (its best.pt is taken), a checkpoint, or one that is open.
        out: folder of <name>.overlay.mp4, <name>.sheet.png and <name>.moments.json.
        sound: the file with the sound; None for the video's own.
        rate: moments a second of video.
        threshold: of the heat, 0 to 1, whose scale is the video's: 1 is its largest cosine, 0 its smallest.
        min_score: moments whose largest cosine is smaller stay dark; None takes what the checkpoint says of itself.
        opacity: of the hottest place, 0 to 1.
        boxes: ground truth to draw and to score with: a JSON or CSV file, or Chaotic World's folder.
        boxes_size: (width, height) that the boxes refer to; None for the video's, or 320x180 of a folder.
        video: write the overlay video.
        batch: moments per forward pass; 0 means 64 on a GPU and 8 on a CPU.
        device, precision, weights: as in `SoundFinder.open`.
        decoder: auto, nvdec or pyav, for the moments.
        console: where progress is printed; None prints nothing.

    Returns:
        What the JSON file says, and the maps.

    Raises:
        InputError: an input is missing or cannot be decoded, or the results cannot be written.
        models.WeightsError: a published weight file is missing.
    """
    given, sound, boxes = Path(given), Path(sound) if sound else None, Path(boxes) if boxes else None
    try:
        footage, sound = open_input(given, sound)
        truth = read_truth(boxes, given.stem, boxes_size) if boxes else None
        outputs = Outputs.of(Path(out), given.stem)
        outputs.prepare([given, sound, boxes])
        finder = (
            checkpoint
            if isinstance(checkpoint, SoundFinder)
            else SoundFinder.open(checkpoint, device, precision, weights)
        )
        console = console or commands.console(quiet=True)
        commands.say_imports(console, finder.settings.imports)
        dali, why = pick_decoder(decoder, footage, finder.device)
        look = {"threshold": threshold, "opacity": opacity}
        least = finder.trust.min_score if min_score is None else min_score
        with PassProgress(console) as progress:
            step = progress.over("localizing", len(moment_places(footage.times, rate)))
            found = find_moments(
                finder,
                footage,
                sound,
                rate=rate,
                threshold=threshold,
                min_score=least,
                batch=batch,
                truth=truth,
                dali=dali,
                step=step,
            )
            found.notes = _notes(finder, given, footage.track(sound), min_score)
            count = sum(moment.similarity is not None for moment in found.moments)
            readers = "PyAV" if not dali else "NVDEC and PyAV" if found.pyav_helped else "NVDEC"
            readers += f" ({why})" if why and finder.device.type == "cuda" else ""
            progress.finish(
                f"localized {count} of {len(found.moments)} moments on {finder.device}, decoded by {readers}"
            )
            with atomic_file(outputs.sheet) as file:
                file.write(sheet(found, **look))
            if video:
                step = progress.over("drawing", len(footage.times))
                lost = write_overlay(outputs.overlay, found, footage, sound, truth=truth, step=step, **look)
                progress.finish(f"drew {len(footage.times) - lost} frames of {found.width}x{found.height}")
                if lost:
                    found.faults.append(f"{lost} frames cannot be decoded: the overlay leaves them out")
            found.faults += footage.faults
            about = {"input": str(given), "sound": str(sound), "checkpoint": str(finder.path)}
            write_json(outputs.moments, document(found, footage, rate, threshold, about))
            written = (outputs.overlay, outputs.sheet, outputs.moments)[0 if video else 1 :]
            _print_end(progress, found, written)
    except media.MediaError as error:
        raise InputError(str(error)) from error
    except OSError as error:  # reading gives MediaErrors, so this is a full disk or the like
        raise InputError(f"--out: writing {error.filename or out} failed ({error.strerror or error})") from error
    return found


def _notes(finder: SoundFinder, given: Path, track: str, min_score: float | None) -> list[str]:
    """Which of several sound tracks was taken, and how far to trust what is shown."""
    heard = f"sound: {track}" if track else ""
    lines = heard, finder.trust.warning(given), finder.trust.reason if min_score is None else ""
    return [line for line in lines if line]


def _print_end(progress: PassProgress, found: Localization, written: tuple[Path, ...]) -> None:
    """What is shown and how far to trust it, the faults, the first few of many, and the files."""
    shown, faults = sum(moment.shown for moment in found.moments), found.faults
    with_map = sum(moment.similarity is not None for moment in found.moments)
    if shown < with_map:
        progress.print(f"shown: {shown} of these {with_map} moments")
    for line in (*found.notes, *faults[:MOST_LINES]):
        progress.print(line)
    if len(faults) > MOST_LINES:
        progress.print(f"{len(faults) - MOST_LINES} more faults are in {written[-1]}")
    progress.print(f"written: {', '.join(map(str, written))}")

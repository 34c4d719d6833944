"""One run of prepare: check the arguments, lock the folder, make what is missing, open the result."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from essl_fast.common.errors import InputError, reason
from essl_fast.common.urls import as_url, is_url, redacted
from essl_fast.data.datasets import GRID, Dataset, chaotic_world, digest
from essl_fast.data.media import audio
from essl_fast.data.media.jpeg import JPEG
from essl_fast.data.shards import SPLITS, Manifest
from essl_fast.prepare.assembly import assemble
from essl_fast.prepare.decoders import choose_decoders
from essl_fast.prepare.dividing import Record, make_slice
from essl_fast.prepare.folder import PARTS, open_finished, own_folder
from essl_fast.prepare.options import DECODERS, VISUALS
from essl_fast.prepare.preview import PREVIEW, write_preview
from essl_fast.prepare.reporting import Reporter, reporter
from essl_fast.prepare.sending import Destination
from essl_fast.prepare.slices import Slice, slices_in


def prepare(
    videos: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    visual: str = "auto",
    decoder: str = "pyav",
    frame: str = "start",
    row_boxes: str = "first",
    annotation_size: tuple[int, int] = (320, 180),
    validation: float = 0.1,
    seed: int = 0,
    pairs_per_shard: int = 1024,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Prepare Chaotic World in the folder `out`.

    The arguments are the options of `python -m essl_fast.prepare`, with the same defaults; see `chaotic_world` and
    `prepare_dataset`, which do the work and raise the errors.
    """
    _check_workers(workers)
    dataset = chaotic_world(
        videos,
        annotations,
        frame=frame,
        row_boxes=row_boxes,
        annotation_size=annotation_size,
        validation=validation,
        seed=seed,
    )
    return prepare_dataset(
        dataset,
        out,
        visual=visual,
        decoder=decoder,
        pairs_per_shard=pairs_per_shard,
        workers=workers,
        progress=progress,
    )


def prepare_dataset(
    dataset: Dataset,
    out: str | Path,
    *,
    visual: str = "auto",
    decoder: str = "pyav",
    pairs_per_shard: int = 1024,
    workers: int | None = None,
    progress: bool = True,
    join: bool = False,
) -> Manifest:
    """Prepare the folder `out`, continue an interrupted run, or open a finished folder of the same settings.

    It returns the manifest. The bytes in `out` depend on the files and settings alone, not on `workers` or machines.

    Args:
        dataset: what to prepare.
        out: the folder, which is made if it does not exist, or its URL.
        visual: how frames are stored: clip, jpeg, or auto (clips if a GPU of this machine decodes the video).
        decoder: what decodes frames for `visual="jpeg"`: pyav, nvdec, or auto.
        pairs_per_shard: 1 or more.
        workers: processes, 1 or more. None: one for each core that this process may use, at most 8.
        progress: report on stderr.
        join: make the shards of the parts that `prepare_part` has made in `out`; no video is read.

    Raises:
        PreparedDifferently: an InputError; the folder was made with other settings or from other annotations.
        InputError: an argument is out of range, the data set cannot be stored, `out` holds something else, another run
            works on it, a split has no pair left, or parts do not fit together.
    """
    say, sent = reporter(progress), _destination(out, join)
    place = Path(out) if sent is None else sent.folder
    workers, settings = _checked(dataset, visual, decoder, pairs_per_shard, workers)
    if not (place / PARTS).exists() and (done := open_finished(place, settings, say, sent)):
        return _with_preview(done, say, sent)
    url = "" if sent is None else sent.name
    with _writing(place, url), own_folder(place, say, url=url):
        drawn = (place / PREVIEW).exists() if sent is None else sent.has(PREVIEW)
        if (done := open_finished(place, settings, say, sent)) is None:
            drawn = False  # that of --check shows no pair of the shards
            if (parts := slices_in(place / PARTS)) and not join:
                some = ", ".join(map(str, list(parts)[:4])) + ", …" * (len(parts) > 4)
                raise InputError(f"{out} holds parts of several machines ({some}): add --join, or choose another --out")
            if sent is not None:
                sent.begin()
            settings["decoders"] = choose_decoders(place, settings, say) if dataset.from_videos else None
            if (place / "manifest.json").exists():
                say.line(f"{place} is damaged: preparing it again")
                (place / "manifest.json").unlink()
            assemble(dataset, place, place / PARTS, settings, None if join else workers, say, sent)
            _say_rows(dataset, say)
            if sent is not None:
                sent.finish()
            done = Manifest.load(place if sent is None else sent.store.url)
        if not drawn:  # also where a run ended between the manifest and the preview
            _try_preview(done, say)
        if sent is not None:
            sent.clean(done.entries(SPLITS))
        shutil.rmtree(place / PARTS, ignore_errors=True)
        return done


def _destination(out: str | Path, join: bool) -> Destination | None:
    """Where shards are sent; None if `out` is a folder of this machine. InputError if nothing can be sent there."""
    if not is_url(out):
        return None
    if join:
        raise InputError(f"--join makes a folder of this machine, not {redacted(out)}: copy that there")
    return Destination(as_url(out))


def prepare_part(
    dataset: Dataset,
    out: str | Path,
    number: int,
    count: int,
    *,
    visual: str = "auto",
    decoder: str = "pyav",
    pairs_per_shard: int = 1024,
    workers: int | None = None,
    progress: bool = True,
) -> Record | None:
    """Make part `number`, from 1, of `count` of a prepared folder, or finish it; several machines each make one.

    The parts lie in `out`, under .parts, until `prepare_dataset` joins them (`join=True`). The other arguments are its.

    Returns:
        What the part holds; None if `out` is joined already.

    Raises:
        InputError: as `prepare_dataset`; or `out` holds parts of another count or with other settings.
    """
    if is_url(out):
        raise InputError(f"--part makes its part in a folder that all machines share, not {redacted(out)}")
    out, say, part = Path(out), reporter(progress), Slice(number, count)
    workers, settings = _checked(dataset, visual, decoder, pairs_per_shard, workers)
    if not 1 <= number <= count:
        raise InputError(f"part {part}: give a number from 1 to the count")
    if not (out / PARTS).exists() and open_finished(out, settings, say):
        return None
    if others := {other.total for other in slices_in(out / PARTS)} - {count}:
        some = min(others)
        raise InputError(f"{out} holds parts of {some}, not of {count}: give --part N/{some}, or delete them")
    with _writing(out), own_folder(out, say, part):
        settings["decoders"] = choose_decoders(out, settings, say) if dataset.from_videos else None
        return make_slice(dataset, part, out / PARTS, settings, workers, say)


@contextlib.contextmanager
def _writing(out: Path, url: str = "") -> Iterator[None]:
    """InputError instead of OSError: the folder cannot be written. url: that it is made for, without secrets."""
    try:
        yield
    except OSError as error:
        where, other = str(out), "choose another --out"
        if url:
            where, other = f"{out}, where {url} is made", "name another cache with the variable XDG_CACHE_HOME"
        raise InputError(f"cannot write {where}: {error}; free some space or {other}, then go on") from error


def _with_preview(done: Manifest, say: Reporter, sent: Destination | None) -> Manifest:
    """A finished folder. At a URL it may lack its preview, if this disk was full; a folder here stays as it is."""
    if sent is not None and not sent.has(PREVIEW):
        _try_preview(done, say)
    return done


def _try_preview(done: Manifest, say: Reporter) -> None:
    """Draw the preview; a line instead of it if that fails."""
    try:
        write_preview(done)
    except Exception as error:  # a full disk, a font, a library: the pairs are all there
        say.line(f"{done.named(PREVIEW)} could not be written ({reason(error)}); the data are complete without it")


def _checked(
    dataset: Dataset, visual: str, decoder: str, pairs_per_shard: int, workers: int | None
) -> tuple[int, dict[str, Any]]:
    """(how many workers, everything that decides what is stored). InputError as `prepare_dataset`."""
    _check_workers(workers)
    dataset.check()
    workers = min(len(os.sched_getaffinity(0)), 8) if workers is None else workers
    return workers, _settings(dataset, visual, decoder, pairs_per_shard)


def _check_workers(workers: int | None) -> None:
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more")


def _settings(dataset: Dataset, visual: str, decoder: str, pairs_per_shard: int) -> dict[str, Any]:
    """Everything that decides what is stored. InputError if the arguments do not fit together."""
    if pairs_per_shard < 1:
        raise InputError(f"pairs_per_shard is {pairs_per_shard}: give 1 or more")
    if visual not in VISUALS:
        raise InputError(f"visual is {visual!r}: choose one of {', '.join(VISUALS)}")
    if decoder not in DECODERS:
        raise InputError(f"decoder is {decoder!r}: choose one of {', '.join(DECODERS)}")
    if decoder != "pyav" and visual != "jpeg":
        raise InputError(f"decoder {decoder} is for visual jpeg, where frames are decoded, not for {visual}")
    return {
        "visual": visual,
        "decoder": decoder,
        **dataset.settings,
        "pairs_per_shard": pairs_per_shard,
        "seconds": audio.SECONDS,
        "rate": audio.RATE,
        "grid": GRID,
        "jpeg": dict(JPEG),
        "annotations": digest(dataset.annotations),
        **({"further": further} if (further := dataset.further.digest()) else {}),
    }


def _say_rows(dataset: Dataset, say: Reporter) -> None:
    """Say how the annotation rows of Chaotic World became pairs."""
    read = dataset.annotations
    if "row_boxes" not in dataset.settings or not dataset.from_videos:
        return
    text = f"{read.rows} annotation rows were read: {read.merged} share the frame of an earlier one and joined its pair"
    further = f"; of each row the first box counts, not the {read.further} others (--row-boxes)" if read.further else ""
    say.line(text + further)

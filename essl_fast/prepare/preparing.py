"""Videos and annotations → shards that training reads: read every video once.

    python -m essl_fast.prepare --videos DIR --annotations DIR --out DIR
    python -m essl_fast.prepare --dataset flickr|vggss --data DIR --train-list FILE --test-list FILE --out DIR
    python -m essl_fast.prepare --dataset chaotic|flickr|vggss --from-h5 DIR --out DIR
    python -m essl_fast.prepare --verify --out DIR

A pair is one frame and the 3 s of sound around it, 16 kHz PCM16. Its frame is a JPEG picture, decoded with PyAV on the
CPU (or on NVDEC, `--decoder`), or a clip: the packets from the key frame before it on, copied and never decoded, which
training decodes on the GPU. `--visual auto` makes clips of the videos that this machine's GPU decodes, pictures of all
others.

Videos are read in the order in which their pairs lie in the shards (split, video, frame), so a shard is written as soon
as it is full, and the disk holds everything once. Kill it whenever you like: the same command continues, and ends with
the same bytes as if it had never stopped.

A pair whose 3 s leave the sound track is left out, as in the published code. So is, each with a reason of its own, what
a missing, broken or silent file cannot give. `OUT/left_out.jsonl` lists all of it. What a clip copies is not decoded
here, so damage inside of it goes unnoticed: `--verify` decodes everything once and lists what is wrong in
`OUT/quarantine.jsonl`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from essl_fast.common.errors import InputError
from essl_fast.common.files import parse_json
from essl_fast.data import datasets, media
from essl_fast.data.datasets import annotations as notes
from essl_fast.data.datasets import hdf5
from essl_fast.data.media import audio, nvdec, stills
from essl_fast.data.shards import VERSION, Manifest
from essl_fast.prepare.assembly import SETTINGS, assemble
from essl_fast.prepare.parts import CRASHED, JPEG
from essl_fast.prepare.reporting import Reporter, reporter

PARTS = ".parts"
VISUALS = ("auto", "clip", "jpeg")
DECODERS = ("auto", "nvdec", "pyav")
# Reasons that a better copy of the file removes.
_MENDABLE = {
    media.MISSING,
    media.UNREADABLE,
    media.NO_VIDEO,
    media.NO_SOUND,
    media.TRUNCATED,
    media.SOUND_TRUNCATED,
    CRASHED,
    nvdec.FAILED,
    stills.BAD_PICTURE,
    hdf5.DAMAGED,
}


class PreparedDifferently(InputError):
    """A finished folder that was made with other settings, from other annotations or by another version."""


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
    """Prepare Chaotic World in `out`: `datasets.chaotic`, then `prepare_dataset`, which see."""
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more")
    dataset = datasets.chaotic(
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
    dataset: datasets.Dataset,
    out: str | Path,
    *,
    visual: str = "auto",
    decoder: str = "pyav",
    pairs_per_shard: int = 1024,
    workers: int | None = None,
    progress: bool = True,
) -> Manifest:
    """Prepare `out`, continue an interrupted preparation, or open a finished one of the same settings.

    The arguments are those of the command (`--help`). `workers` None: one for each core this process may use, 8 at
    most; `progress`: report on stderr. The bytes in `out` depend on the files and settings alone, not on `workers`.

    Raises InputError for an `out` that holds something else or is being prepared, and a split of which no pair is left;
    PreparedDifferently, an InputError, for an `out` of other settings.
    """
    out, read = Path(out), dataset.read
    if workers is not None and workers < 1:
        raise InputError(f"workers is {workers}: give 1 or more")
    if pairs_per_shard < 1:
        raise InputError(f"pairs_per_shard is {pairs_per_shard}: give 1 or more")
    if visual not in VISUALS:
        raise InputError(f"visual is {visual!r}: choose one of {', '.join(VISUALS)}")
    if decoder not in DECODERS:
        raise InputError(f"decoder is {decoder!r}: choose one of {', '.join(DECODERS)}")
    if decoder != "pyav" and visual != "jpeg":
        raise InputError(f"decoder {decoder} is for visual jpeg, where frames are decoded, not for {visual}")
    say = reporter(progress)
    settings = {
        "visual": visual,
        "decoder": decoder,
        **dataset.settings,
        "pairs_per_shard": pairs_per_shard,
        "seconds": audio.SECONDS,
        "rate": audio.RATE,
        "grid": notes.GRID,
        "jpeg": dict(JPEG),
        "annotations": notes.digest(read),
    }
    if not (out / PARTS).exists() and (done := _finished(out, settings, say)):
        return done
    try:
        with _locked(out, say):
            if (done := _finished(out, settings, say)) is None:
                settings["decoders"] = _decoders(out, settings, say) if dataset.videos else None
                if (out / "manifest.json").exists():
                    say.line(f"{out} is damaged: preparing it again")
                    (out / "manifest.json").unlink()
                workers = min(len(os.sched_getaffinity(0)), 8) if workers is None else workers
                assemble(dataset, out, out / PARTS, settings, workers, say)
                if dataset.name == "chaotic" and dataset.videos:
                    text = f"{read.rows} annotation rows were read: {read.merged} share the frame of an earlier one"
                    further = f", {read.further} further boxes of rows were ignored (--row-boxes first)"
                    say.line(f"{text} and joined its pair{further if read.further else ''}")
                done = Manifest.load(out)
            shutil.rmtree(out / PARTS, ignore_errors=True)
            return done
    except OSError as error:
        raise InputError(f"cannot write {out}: {error}; free some space or choose another --out, then go on") from error


def _decoders(out: Path, settings: dict, say: Reporter) -> nvdec.Decoders | None:
    """What `visual: auto` may store as clips, and the GPU decode for `visual: jpeg`. What an earlier run with the same
    settings found holds, also if it ran on a machine with another GPU: a folder must not change its mind halfway."""
    if settings["visual"] != "auto" and settings["decoder"] == "pyav":
        return None
    for path in (out / "manifest.json", out / PARTS / "shards" / SETTINGS):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            held = json.loads(path.read_bytes())
            known = dict(held.get("settings", held))
            decoders = known.pop("decoders", None)
            if known == json.loads(json.dumps(settings)) and isinstance(decoders, dict):
                return decoders
    decoders, why = nvdec.detect()
    if settings["visual"] == "jpeg":
        if not decoders and settings["decoder"] == "nvdec":
            raise InputError(f"decoder: nvdec cannot be used, since {why}; take pyav")
        say.line(f"NVDEC decodes {', '.join(decoders)}, PyAV the rest" if decoders else f"PyAV decodes, since {why}")
        return decoders
    able = f"this machine's GPU decodes {', '.join(decoders)}: frames of such videos become clips, others JPEG"
    say.line(able if decoders else f"frames become JPEG, since {why}; --visual clip copies clips nevertheless")
    return decoders


@contextlib.contextmanager
def _locked(out: Path, say: Reporter) -> Iterator[None]:
    """Own `out` and its folder for parts; the lock ends with the process, however that ends."""
    parts = out / PARTS
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: --out must name a folder")
    if not parts.is_dir() and not (out / "manifest.json").exists() and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} holds files that prepare did not make: choose an empty or a new folder for --out")
    parts.mkdir(parents=True, exist_ok=True)
    with open(parts / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another prepare is at work on {out}: wait for it, or choose another --out") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            why = f"the file system of {out} has no locks ({error.strerror})"
            say.line(f"warning: {why}: make sure that no other prepare works on it")
        yield


def _finished(out: Path, settings: dict, say: Reporter) -> Manifest | None:
    """The manifest of a finished folder of these settings, None where there is work to do."""
    path = out / "manifest.json"
    if not path.exists():
        return None
    try:
        header = parse_json(path.read_bytes())
        known, version = {"decoder": "pyav"} | header["settings"], header["version"]  # which was the only one once
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{path} is not a manifest of prepare: delete {out} or choose another --out") from None
    was, now = known | {"format": version}, json.loads(json.dumps(settings)) | {"format": VERSION}
    known_to_both = (was.keys() | now.keys()) - {"decoders"}  # which `visual` decided
    names = sorted(name for name in known_to_both if was.get(name) != now.get(name))
    # Their fingerprint is of what was read under the settings: it tells something only where those are equal.
    telling = [name for name in names if name != "annotations"]
    changed = [f"{name} was {was.get(name)}, is {now.get(name)}" for name in telling]
    if names == ["annotations"]:
        changed = ["the annotations were others"]
    if changed:
        how = "; ".join(changed)
        raise PreparedDifferently(f"{out} was prepared differently ({how}): choose another --out or delete it")
    try:
        manifest = Manifest.load(out)
    except InputError:
        return None  # a shard was deleted, say
    lost = sum(count for reason, count in manifest.header["left_out"].items() if reason in _MENDABLE)
    then = f"once they are mended, delete {out} (or choose another --out) and run again"
    again = f"; {lost} videos or pairs were left out for faults of video files (see left_out.jsonl): {then}"
    say.line(f"{out} is complete: nothing to do{again if lost else ''}")
    return manifest

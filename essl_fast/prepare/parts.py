"""One video → one part: the frames and sounds of its pairs, on disk until they are in a shard.

    PARTS/<video>.part     the bytes, one pair after another
    PARTS/<video>.json     fingerprint of the task, where each pair is, what was left out; written last

A part whose fingerprint fits its task is finished and is not made again: this makes `prepare` resumable. Parts are not
synced to the disk, because that would cost more than to make one again; so after a restart of the machine no part
counts.
"""

from __future__ import annotations

import functools
import os
import traceback
from pathlib import Path

import av

from essl_fast.common.files import atomic_file, sealed, unsealed
from essl_fast.data import media
from essl_fast.data.shards import pair_crc
from essl_fast.prepare.decoding import Losses, decode
from essl_fast.prepare.tasks import Task, stem_of


def make_part(task: Task, folder: Path) -> dict:
    """Make the part of a task: its bytes and, after them, its index.

    Returns:
        The index: {"fingerprint", "bytes", "boot", "members": {key: [offset, bytes of the frame, of the sound, visual,
        target, quarters, CRC-32]}, "left_out": [[key or "", reason, detail], ...], "pictures": [[reason, detail,
        pairs], ...], "notes": [[kind, text], ...]}; where memory was short also "again": the next run makes it again.
        A key of "" means the whole video with all its pairs; "pictures"
        says why frames are JPEG although clips were asked for; `notes` says what notes are.

    Raises:
        MediaError: a file of the task is missing.
        OSError: the part cannot be written.
    """
    fingerprint = task.fingerprint()  # before decoding: if the file changes meanwhile, the part will not fit
    folder.mkdir(parents=True, exist_ok=True)
    data, index = folder / f"{task.stem()}.part", folder / f"{task.stem()}.json"
    members: dict[str, list[int]] = {}
    losses, again = Losses(), {}
    with atomic_file(data, str(os.getpid()), sync=not _boot()) as file:
        offset = 0
        try:
            for pair in decode(task, losses):
                place = pair.visual, pair.target, pair.quarters
                crc = pair_crc(pair.frame, pair.sound)
                members[pair.key] = [offset, len(pair.frame), len(pair.sound), *place, crc]
                offset += file.write(pair.frame) + file.write(pair.sound)
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):
                raise  # the part cannot be written; the video is not the reason
            again = {"again": True} if isinstance(error, MemoryError) else {}  # it may not be the file's fault
            reason, detail = _fault_of_file(error, task)
            left = len(task.requests) - len(members) - len(losses.left_out)
            losses.left_out.append(("", reason, f"{detail} ({left} pair{'s' * (left != 1)})"))
    part = {
        "fingerprint": fingerprint,
        "bytes": offset,
        "boot": _boot(),
        "members": members,
        "left_out": sorted(losses.left_out),
        "pictures": [[reason, *rest] for reason, rest in losses.jpeg_instead.items()],
        "notes": losses.notes,
        **again,
    }
    with atomic_file(index, str(os.getpid()), sync=not _boot()) as file:
        file.write(sealed(part))
    return part


# No content of a file is the reason for these: a library has another interface than expected, or code is wrong.
_OWN_FAULTS = (TypeError, AttributeError, NameError, ImportError, AssertionError, NotImplementedError)


def _fault_of_file(error: Exception, task: Task) -> tuple[str, str]:
    """(reason, detail) of a video that cannot be decoded. Any error counts: one file must not end the whole run."""
    if isinstance(error, media.MediaError):
        return error.reason, error.detail
    name = Path(task.path).name
    short = "the memory was not enough" if isinstance(error, MemoryError) else None
    message = short or getattr(error, "strerror", None) or str(error).replace(task.path, name)
    reason, where = media.UNREADABLE, ""
    if isinstance(error, _OWN_FAULTS):
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = media.OWN_FAULT
        where = f" ({Path(frame.filename).name}, line {frame.lineno}); run python -m essl_fast.doctor, and report it"
    fault = media.MediaError(reason, f"{name}: {type(error).__name__}: {message}{where}")
    return fault.reason, fault.detail


def finished_part(task: Task, folder: Path, fingerprint: str) -> dict | None:
    """The index of the part if it is there, complete, and made for a task of this fingerprint, else None."""
    try:
        index = unsealed((folder / f"{task.stem()}.json").read_bytes())
        complete = (folder / f"{task.stem()}.part").stat().st_size == index["bytes"] and index["boot"] == _boot()
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return index if complete and index["fingerprint"] == fingerprint else None


def drop_part(video: str, folder: Path) -> None:
    """Remove a video's part, if there is one."""
    for kind in ("json", "part"):
        (folder / f"{stem_of(video)}.{kind}").unlink(missing_ok=True)


@functools.cache
def _boot() -> str:
    """An identifier of this start of the machine. "" if it is unknown: then parts are synced."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""

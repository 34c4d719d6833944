"""A run directory, read for a report. The run may still be going on: what is not there yet is left out."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from essl_fast.common.errors import InputError, short
from essl_fast.common.values import flattened
from essl_fast.evaluate.metrics import THRESHOLDS
from essl_fast.report import gallery
from essl_fast.runtime import runlog

RESULTS = {  # the results in a run's summary -> their names for readers
    "test": "trained",
    "test_ema": "trained, averaged weights",
    "untrained": "untrained",
    "centre_prior": "centre prior",
    "object_prior": "object prior",
    "largest_object_prior": "largest-object prior",
}


@dataclass
class Run:
    """A run directory's files."""

    folder: Path
    label: str  # unique among the runs of a report
    config: dict = field(default_factory=dict)
    dataset: str = ""  # its name; "" if the log does not tell
    splits: dict = field(default_factory=dict)  # split -> its pairs and their SHA-256; {} of an earlier version
    environment: dict = field(default_factory=dict)
    epochs: list[dict] = field(default_factory=list)  # from the log, each epoch once
    results: dict[str, dict] = field(default_factory=dict)  # by key of RESULTS, those that the run has
    summary: dict = field(default_factory=dict)  # {} until the run has ended
    pairs: list[dict] = field(default_factory=list)  # lines of test_pairs.jsonl
    pictures: list[gallery.Picture] = field(default_factory=list)
    profile: dict = field(default_factory=dict)  # stages.json of a profile
    events: dict[str, int] = field(default_factory=dict)  # how often each kind of event is in the log
    seconds: float | None = None  # of the whole run, with all processes that resumed it
    notes: list[str] = field(default_factory=list)  # what could not be read

    @property
    def finished(self) -> bool:
        """Whether the run has ended and written its summary."""
        return bool(self.summary)

    @property
    def rate(self) -> float | None:
        """Training pairs per second, over the whole run or the epochs so far; None before the first epoch's end."""
        if self.finished:
            return self.summary["pairs_per_second"]
        seconds = sum(entry["pairs"] / max(entry["pairs_per_second"], 1e-9) for entry in self.epochs)
        return sum(entry["pairs"] for entry in self.epochs) / seconds if seconds else None

    def stages(self) -> list[tuple[str, float]]:
        """(stage, seconds) of the run, in the order in which the stages come; [] if the summary has none."""
        spent = self.summary.get("stage_seconds")
        if not spent:
            return []
        waiting = spent.get("wait", 0.0)
        named = {
            "preparing data": spent.get("data", 0.0),
            "training": spent.get("train", 0.0) - waiting,
            "waiting for data": waiting,
            "evaluation": spent.get("eval", 0.0),
        }
        words = {"compile": "compiling and warming up"}
        named |= {words.get(key, key): spent[key] for key in spent if key not in ("data", "train", "wait", "eval")}
        named["start, checkpoints, pictures"] = max(0.0, self.summary["seconds"] - sum(named.values()))
        return [(name, seconds) for name, seconds in named.items() if seconds > 0]

    def data_name(self) -> str:
        """The name of the data set. An earlier version did not log it, nor did any folder then have another one."""
        root = str(self.config.get("data", {}).get("root", ""))
        if self.dataset or root in ("demo", ""):
            return self.dataset or root
        return str(_json(Path(root) / "manifest.json", []).get("dataset", "chaotic"))

    def best_epoch(self) -> int | None:
        """The epoch that was selected, once the run has ended."""
        return self.summary.get("selected", {}).get("epoch")


def read(folder: str | Path) -> Run:
    """Read a run directory. What cannot be read is left out, with a line in `notes`.

    Raises:
        InputError: it is no run directory, or its log is not what train wrote; the message names the line.
    """
    folder = Path(folder)
    log = folder / "log.jsonl"
    if not log.is_file():
        raise InputError(f"{folder} is not a run directory (it has no log.jsonl); train writes one with --out DIR")
    try:
        events = runlog.read_log(log)
    except OSError as error:
        raise InputError(f"{log} cannot be read ({error.strerror}); restore it, or leave this run out") from error
    run = Run(folder, folder.resolve().name)
    read_events(run, events, log)
    summary = _summary(folder / "summary.json", run.notes) if has_ended(events, folder / "summary.json") else {}
    if summary:
        run.summary = summary
        run.config, run.environment = summary["config"], summary["environment"]
        run.results = {name: summary[name] for name in RESULTS if name in summary}
        run.seconds = summary["seconds"]
    run.pairs = _pairs(folder / gallery.PAIRS, run.notes) if summary else []
    run.profile = _json(folder / "profile" / "stages.json", run.notes)
    if summary and (folder / gallery.GALLERY).is_file():
        try:
            run.pictures = gallery.load(folder / gallery.GALLERY)
        except InputError as error:
            run.notes.append(str(error))
    return run


def has_ended(events: list[dict], summary: Path) -> bool:
    """Whether a summary is of the run's last end: the run has not gone on since."""
    marks = [event for event in events if event.get("event") in ("start", "resume", "end")]
    if not marks or any(mark["event"] == "end" for mark in marks):
        return not marks or marks[-1]["event"] == "end"
    try:  # it was killed between the two writes, or the end of the log is lost
        return summary.stat().st_mtime >= float(marks[-1].get("time", 0))
    except (OSError, TypeError, ValueError):
        return False


def read_events(run: Run, events: list[dict], log: Path) -> None:
    """Put the events of a log into a run.

    Raises:
        InputError: an event lacks what train writes.
    """
    by_epoch: dict[int, dict] = {}
    for number, event in enumerate(events, 1):
        kind = event.get("event", "")
        try:
            run.events[kind] = run.events.get(kind, 0) + 1
            if kind in ("start", "resume"):
                run.config, run.environment = expect(event, CONFIG).get("config", {}), event.get("environment", {})
                run.dataset, run.splits = str(event.get("dataset", "")), event.get("splits", {})
            elif kind == "epoch":  # after a kill an epoch is trained and logged again: the last entry counts
                by_epoch[event["epoch"]] = expect(event, EPOCH)
            elif kind == "baseline":
                run.results[event["name"]] = expect(event["result"], RESULT)
        except (KeyError, TypeError) as error:
            what = str(error).strip("'\"")
            raise InputError(f"{log} cannot be read: line {number}: {what}; restore it, or delete the line") from None
    run.epochs = [by_epoch[number] for number in sorted(by_epoch)]


def found_in(folders: Sequence[str | Path]) -> list[Path]:
    """The run directories: each folder itself or, of one that is none, those below it, in the order of their names.

    Raises:
        InputError: there is none below a folder.
    """
    found = []
    for folder in map(Path, folders):
        if (folder / "log.jsonl").is_file() or not folder.is_dir():
            found.append(folder)  # of one that is not there, the reader says so
            continue
        below = sorted({log.parent for depth in range(1, 4) for log in folder.glob("*/" * depth + "log.jsonl")})
        if not below:
            what = f"{folder} is not a run directory (it has no log.jsonl), and there is none below it"
            raise InputError(f"{what}; train writes one with --out DIR")
        found += below
    return found


def read_all(folders: Sequence[str | Path]) -> list[Run]:
    """Read several runs and give each a unique label. InputError if a folder is no run, or is given twice."""
    resolved = [Path(folder).resolve() for folder in folders]
    for at, folder in enumerate(resolved):
        if folder in resolved[:at]:
            raise InputError(f"{folders[at]} is given twice")
    runs = [read(folder) for folder in folders]
    for run in runs:
        if sum(other.label == run.label for other in runs) > 1:
            run.label = str(run.folder)
    return runs


def differences(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """Settings that differ between runs: (name, each run's value as text). The run's own name and folder are left
    out."""
    flat = [flattened(run.config) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [settings.get(name, "–") for settings in flat]) for name in names if name not in ("out", "name")]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def points(run: Run, *path: str) -> list[tuple[float, float]]:
    """(epoch, entry[path[0]][path[1]]...) of the epochs whose log entry has that value."""
    found = []
    for entry in run.epochs:
        value: Any = entry
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found.append((float(entry["epoch"]), float(value)))
    return found


def percent(values: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (x, share) with their shares in per cent."""
    return [(x, 100 * y if math.isfinite(y) else y) for x, y in values]


NUMBER = (int, float)
# What a report takes from the entries of logs and summaries: by key its type, or the shape of a dict in turn. A key
# that ends in "?" may be missing; "*" is of every value.
RESULT = {
    "success_at_half": NUMBER,
    "auc": NUMBER,
    "pairs": int,
    "curve": list,
    "per_class?": {"*": {"success_at_half": NUMBER, "auc": NUMBER, "pairs": int}},
}
EPOCH = {
    "epoch": int,
    "losses": {"*": NUMBER},
    "pairs": NUMBER,
    "pairs_per_second": NUMBER,
    "waiting": NUMBER,
    "selection?": {"success_at_half": NUMBER, "auc": NUMBER},
}
CONFIG = {
    "config?": {"data?": dict, "model?": dict, "objective?": dict},
    "environment?": {"machine?": dict},
    "splits?": {"*": {"pairs": int, "sha256": str}},
}
SUMMARY = {
    "config": {"data?": dict, "model?": dict, "objective?": dict},
    "environment": {"machine?": dict},
    "seconds": NUMBER,
    "pairs_per_second": NUMBER,
    "selected": {"epoch": int, "split": str},
    "test": RESULT,
    "untrained?": RESULT,
    "centre_prior?": RESULT,
    "largest_object_prior?": RESULT,
    "stage_seconds?": {"*": NUMBER},
    "left_out?": {"*": NUMBER},
}


def expect(value: Any, shape: dict, where: str = "") -> dict:
    """The value itself, a dict of a shape such as SUMMARY; what is wrong with it is the text of a TypeError."""
    if not isinstance(value, dict):
        raise TypeError(f"{where.rstrip('.') or 'it'} is no JSON object")
    for key, kind in [(name, shape["*"]) for name in value] if "*" in shape else shape.items():
        name = key.removesuffix("?")
        if name not in value:
            if key.endswith("?"):
                continue
            raise TypeError(f"{where}{name} is missing")
        if isinstance(kind, dict):
            expect(value[name], kind, f"{where}{name}.")
        elif not isinstance(value[name], kind) or isinstance(value[name], bool):
            raise TypeError(f"{where}{name} is {short(str(value[name]))}, which is of another kind")
    if shape is RESULT and (
        len(value["curve"]) != len(THRESHOLDS) or not all(isinstance(y, NUMBER) for y in value["curve"])
    ):
        raise TypeError(f"{where}curve has not {len(THRESHOLDS)} numbers")
    return value


def _summary(path: Path, notes: list[str]) -> dict:
    found = _json(path, notes)
    try:
        return expect(found, SUMMARY) if found else {}
    except TypeError as error:
        notes.append(f"{path} is not what train wrote ({error}): restore it, or go on with the run")
        return {}


def _check_regular(path: Path) -> None:
    """OSError if a path names a device or FIFO, which might give bytes without end, or none for ever."""
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")


def _json(path: Path, notes: list[str]) -> dict:
    try:
        _check_regular(path)
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        return value
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path} cannot be read ({error}): {gallery.WITHOUT}")
        return {}


def _pairs(path: Path, notes: list[str]) -> list[dict]:
    try:
        _check_regular(path)
        lines = runlog.read_log(path)
        for number, line in enumerate(lines, 1):
            if not isinstance(line.get("ciou", ""), (float, int, NoneType)):
                raise InputError(f"{path} cannot be read: line {number} has no ciou that is a number or null")
        if not lines:
            raise InputError(f"{path} cannot be read: it holds no pair")
        return lines
    except FileNotFoundError:
        notes.append(f"{path} is not there: an earlier version made the run, and did not keep each pair's cIoU")
    except InputError as error:
        notes.append(str(error))
    except OSError as error:
        notes.append(f"{path} cannot be read ({error}): {gallery.WITHOUT}")
    return []

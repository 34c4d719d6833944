"""A run directory, read for a report. The run may still be going on: what is not there yet is left out."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from essl_fast.common.errors import InputError
from essl_fast.report import gallery
from essl_fast.runtime import runlog

RESULTS = {  # the results in a run's summary -> their names for readers
    "test": "trained",
    "untrained": "untrained",
    "centre_prior": "centre prior",
    "largest_object_prior": "largest-object prior",
}


@dataclass
class Run:
    """A run directory's files."""

    folder: Path
    label: str  # unique among the runs of a report
    config: dict = field(default_factory=dict)
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
    def name(self) -> str:
        """The name in the settings, or the folder's."""
        return str(self.config.get("name") or self.folder.name)

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

    def best_epoch(self) -> int | None:
        """The epoch that was selected, once the run has ended."""
        return self.summary.get("selected", {}).get("epoch")


def read(folder: str | Path) -> Run:
    """Read a run directory. InputError if it is none. Files that cannot be read are noted in `notes`."""
    folder = Path(folder)
    log = folder / "log.jsonl"
    if not log.is_file():
        raise InputError(f"{folder} is not a run directory (it has no log.jsonl); train writes one with --out DIR")
    try:
        events = runlog.read_log(log)
    except (OSError, ValueError) as error:
        raise InputError(f"{log} cannot be read ({error}); restore it, or leave this run out") from error
    run = Run(folder, folder.resolve().name)
    by_epoch = {}
    for event in events:
        kind = event.get("event", "")
        run.events[kind] = run.events.get(kind, 0) + 1
        if kind in ("start", "resume"):
            run.config, run.environment = event.get("config", {}), event.get("environment", {})
        elif kind == "epoch":  # after a kill an epoch is trained and logged again: the last entry counts
            by_epoch[event["epoch"]] = event
        elif kind == "baseline":
            run.results[event["name"]] = event["result"]
    run.epochs = [by_epoch[number] for number in sorted(by_epoch)]
    summary = _json(folder / "summary.json", run.notes)
    if summary:
        run.summary = summary
        run.config, run.environment = summary["config"], summary["environment"]
        run.results = {name: summary[name] for name in RESULTS if name in summary}
        run.seconds = summary["seconds"]
    run.pairs = _lines(folder / gallery.PAIRS, run.notes) if summary else []
    run.profile = _json(folder / "profile" / "stages.json", run.notes)
    if summary and (folder / gallery.GALLERY).is_file():
        try:
            run.pictures = gallery.load(folder / gallery.GALLERY)
        except InputError as error:
            run.notes.append(str(error))
    return run


def read_all(folders: list[str | Path]) -> list[Run]:
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
    flat = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = [(name, [settings.get(name, "–") for settings in flat]) for name in names if name not in ("out", "name")]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def flatten(config: dict, prefix: str = "") -> dict[str, str]:
    """Settings as {"a.b": text}."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)
    return found


def points(run: Run, *path: str) -> list[tuple[float, float]]:
    """(epoch, entry[path[0]][path[1]]...) of the epochs whose log entry has that value."""
    found = []
    for entry in run.epochs:
        value = entry
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found.append((float(entry["epoch"]), float(value)))
    return found


def percent(values: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (x, share) with their shares in per cent."""
    return [(x, 100 * y if math.isfinite(y) else y) for x, y in values]


def _json(path: Path, notes: list[str]) -> dict:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({error})")
        return {}


def _lines(path: Path, notes: list[str]) -> list[dict]:
    try:
        return runlog.read_log(path)
    except FileNotFoundError:
        notes.append(f"{path} is not there: an earlier version made the run, and did not keep each pair's cIoU")
        return []
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({error})")
        return []

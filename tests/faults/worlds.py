"""What the faults happen to: a tiny prepared world, a run on it that nothing disturbed, and how two results compare."""

import hashlib
import json
import shutil
from pathlib import Path

import torch

from essl_fast import checkpoints
from tests.faults.server import Server
from tests.tools.prepare import hashes, make_world

TRAIN = (
    "--config demo --device cpu --epochs 2 --data.batch_size 4 --checkpoint_steps 1 "
    "--overlays 0 --optim.warmup 0.5 --data.threads 1 --checkpoint_keep 2"
).split()
PREPARE = ["--validation", "0.25", "--pairs-per-shard", "5", "--visual", "jpeg"]
RUNNING = ("seconds", "epoch_seconds", "elapsed", "untimed", "config", "data_root")  # of a clock, or of a place


class Bench:
    """A folder with everything that the faults need, made on first use.

    videos, notes: of a small world; prepared: what prepare makes of it; reference: a run on that to its end.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.server = Server(self.root / "said")
        self.world = make_world(self.root / "world")
        self.prepared, self.reference = self.root / "prepared", self.root / "reference"
        code, said = self.server.run("prepare", *self.prepare(self.prepared), "--workers", "1")
        assert code == 0, said
        code, said = self.server.run("train", *self.train(self.reference))
        assert code == 0, said
        self._made = 0

    def new(self, name: str) -> Path:
        """A path that nothing is at yet."""
        self._made += 1
        return self.root / f"{name}-{self._made}"

    def prepare(self, out: Path, workers: int = 1) -> list[str]:
        """Arguments of prepare."""
        places = ["--videos", self.world / "videos", "--annotations", self.world / "notes", "--out", out]
        return [*map(str, places), *PREPARE, "--workers", str(workers)]

    def train(self, out: Path, *more: object, data: Path | None = None) -> list[str]:
        """Arguments of a training run."""
        return [*TRAIN, "--data.root", str(data or self.prepared), "--out", str(out), *map(str, more)]

    def copy(self, of: Path, name: str) -> Path:
        return Path(shutil.copytree(of, self.new(name)))

    def close(self) -> None:
        self.server.close()


def same(mine, theirs, where: str = "") -> str | None:
    """Where two states differ, None if they are equal to the bit."""
    if isinstance(theirs, torch.Tensor):
        return None if isinstance(mine, torch.Tensor) and torch.equal(mine, theirs) else where
    if isinstance(theirs, dict):
        if not isinstance(mine, dict) or mine.keys() != theirs.keys():
            return f"{where}: other entries"
        return next((found for key in theirs if (found := same(mine[key], theirs[key], f"{where}.{key}"))), None)
    if isinstance(theirs, (list, tuple)):
        if len(mine) != len(theirs):
            return f"{where}: {len(mine)} of {len(theirs)}"
        pairs = enumerate(zip(mine, theirs, strict=True))
        return next((found for at, (a, b) in pairs if (found := same(a, b, f"{where}[{at}]"))), None)
    return None if mine == theirs else f"{where}: {mine!r} instead of {theirs!r}"


def run_differs(out: Path, reference: Path) -> str | None:
    """What of a finished run is not as in the reference, None if nothing: weights, moments, history, results."""
    for name in ("last.pt", "best.pt"):
        mine, theirs = (
            {key: value for key, value in checkpoints.load(folder / name).items() if key not in RUNNING}
            for folder in (out, reference)
        )
        for state in (mine, theirs):
            state["history"] = [
                {key: value for key, value in entry.items() if key not in ("pairs_per_second", "waiting")}
                for entry in state.get("history", [])
            ]
            for group in state.get("optimizer", {}).get("param_groups", []):
                group.pop("lr")  # of the last step of this process: every step sets it anew, from its number alone
        if found := same(mine, theirs, name):
            return found
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (out, reference))
    names = ("test", "untrained", "centre_prior", "selected", "left_out")
    return same({name: mine.get(name) for name in names}, {name: theirs.get(name) for name in names}, "summary.json")


def data_differs(out: Path, reference: Path) -> str | None:
    """What of a prepared folder is not as in the reference to the byte, None if nothing."""
    mine, theirs = hashes(out), hashes(reference)
    changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    return f"{changed[0]} and {len(changed) - 1} more" if changed else None


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

"""A small world of real videos, its preparation, and what came out of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from essl_fast.data.shards import Manifest
from essl_fast.prepare import prepare, workers
from tests.tools.media import clicks, make_video, row, write_annotations

COMMON = ["--validation", "0.25", "--pairs-per-shard", "5", "--visual", "jpeg"]


def make_world(root: Path) -> Path:
    """Six videos of 4 s at 10 fps, a click at 2.0 s, frames that show their number; 5 pairs each, one too late."""
    for name in ("a", "b", "c", "d", "e.1", "ü f"):
        make_video(root / "videos" / f"{name}.mp4", sound=clicks(4, 16_000, at=(2.0,)))
    rows = [row(16, 1.5), row(18, 1.7, "[]"), row(21, 2.0, label="crash"), row(24, 2.3), row(40, 3.9)]
    write_annotations(
        root / "notes", {name: rows for name in ("a", "b", "c", "d")}, {name: rows for name in ("e.1", "ü f")}
    )
    return root


def run(world: Path, out: Path, **settings) -> Manifest:
    """Prepare the world as COMMON says, in one process, without a word."""
    asked = {"workers": 1, "progress": False, "validation": 0.25, "pairs_per_shard": 5, "visual": "jpeg", **settings}
    return prepare(world / "videos", world / "notes", out, **asked)


def arguments(world: Path, out: Path, *more: str) -> list[str]:
    """Of the command that does the same."""
    return ["--videos", str(world / "videos"), "--annotations", str(world / "notes"), "--out", str(out), *COMMON, *more]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left_out(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]


def workers_that(monkeypatch, patch: str) -> None:
    """Let workers run these lines before they begin; `real` is what makes parts, `die(signal)` ends the worker."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom essl_fast.data import media\n"
        "from essl_fast.prepare import decoding, workers\nreal = workers.make_part\n"
        f"def die(by): os.kill(os.getpid(), by)\n{patch}\nworkers.serve(Path(sys.argv[1]), int(sys.argv[2]))\n"
    )
    monkeypatch.setattr(workers, "WORKER", ("-c", script))

"""Every fault at every stage, and what comes of it. The cases are in `cases` and `damage`, the table is docs/faults.md.

An outcome is one of

    equal   the same command again, or `--resume`, or nothing at all, and the result equals the undisturbed one's to the
            byte (data), to the bit (weights, moments, history, results)
    error   one line names the file and what to do, with exit code 2, or 1 where that is said; nothing else was touched:
            the last good state is there, and with the cause removed the result is equal
"""

from typing import NamedTuple

STAGES = {
    "prepare": "prepare",
    "training": "training",
    "checkpoint": "writing or reading last.pt",
    "evaluation": "evaluate",
}
OUTCOMES = ("equal", "error")


class Cell(NamedTuple):
    """What comes of a fault at a stage: an outcome, or none, and why."""

    outcome: str  # "" where the fault cannot happen there
    words: str


def _no(why: str) -> Cell:
    return Cell("", why)


def _equal(words: str) -> Cell:
    return Cell("equal", words)


def _error(words: str) -> Cell:
    return Cell("error", words)


_AGAIN = "the same command goes on"
_RESUMED = "`--resume` goes on"
_ANEW = "evaluated again"
_NO_SHARDS = _no("reads no shard")
_NO_CHECKPOINT = _no("has no checkpoint")

MATRIX: dict[str, dict[str, Cell]] = {
    "SIGKILL": {
        "prepare": _equal(_AGAIN),
        "training": _equal(_RESUMED),
        "checkpoint": _equal("last.pt is the one before; `--resume` goes on"),
        "evaluation": _equal(_ANEW),
    },
    "SIGTERM": {
        "prepare": _equal(_AGAIN),
        "training": _equal("the step is finished, last.pt written; `--resume` goes on"),
        "checkpoint": _equal("the write is finished; `--resume` goes on"),
        "evaluation": _equal(_ANEW),
    },
    "SIGINT (Ctrl-C)": {
        "prepare": _equal(_AGAIN),
        "training": _equal("the step is finished, last.pt written; `--resume` goes on"),
        "checkpoint": _equal("the write is finished; `--resume` goes on"),
        "evaluation": _equal(_ANEW),
    },
    "full disk": {
        "prepare": _error("names the folder; with space, the same command goes on"),
        "training": _error("at summary.json: names it; with space, `--resume` writes it"),
        "checkpoint": _error("names last.pt, which is the one before; with space, `--resume` goes on"),
        "evaluation": _error("names the file of --json"),
    },
    "output without the right to write": {
        "prepare": _error("names the folder"),
        "training": _error("names the run directory, before the first step"),
        "checkpoint": _error("names last.pt, which is the one before; with the right, `--resume` goes on"),
        "evaluation": _error("names the file of --json"),
    },
    "checkpoint half written": {
        "prepare": _NO_CHECKPOINT,
        "training": _no("reads none while it trains"),
        "checkpoint": _equal("`--resume` says so and goes on from last-1.pt"),
        "evaluation": _error("names it and the checkpoint that is whole"),
    },
    "checkpoint with a flipped bit": {
        "prepare": _NO_CHECKPOINT,
        "training": _no("reads none while it trains"),
        "checkpoint": _equal("`--resume` says so and goes on from last-1.pt"),
        "evaluation": _error("names it and the checkpoint that is whole"),
    },
    "shard cut short": {
        "prepare": _equal("it is made again"),
        "training": _error("names the shard before the first step; made again, `--resume` goes on"),
        "checkpoint": _NO_SHARDS,
        "evaluation": _error("names the shard"),
    },
    "shard with a flipped bit": {
        "prepare": _error("`--verify` lists the pair in quarantine.jsonl, exit code 1"),
        "training": _error("names pair and shard, by the pair's CRC-32; repaired, `--resume` goes on"),
        "checkpoint": _NO_SHARDS,
        "evaluation": _error("names pair and shard"),
    },
    "manifest of another data set": {
        "prepare": _error("says what was different; the folder stays"),
        "training": _error("`--resume` names the folder; with the right one it goes on"),
        "checkpoint": _NO_SHARDS,
        "evaluation": _error("names the folder; `--data` says that it is meant"),
    },
    "a file deleted while running": {
        "prepare": _error("a video: left_out.jsonl lists it, exit code 1 with `--strict`; once it is back, equal"),
        "training": _error("a shard: named; once it is back, `--resume` goes on"),
        "checkpoint": _equal("last.pt: `--resume` goes on from last-1.pt"),
        "evaluation": _error("a shard: named"),
    },
    "a decoding worker killed": {
        "prepare": _equal("another takes its place"),
        "training": _no("decodes in threads"),
        "checkpoint": _no("decodes nothing"),
        "evaluation": _no("decodes in threads"),
    },
    "one rank of several killed": {
        "prepare": _no("has no ranks"),
        "training": _equal("the others end with exit code 1; `--resume` goes on"),
        "checkpoint": _no("rank 0 alone writes: as SIGKILL"),
        "evaluation": _no("has no ranks"),
    },
    "a second process at work on the same": {
        "prepare": _error("the second says so; the first is not disturbed"),
        "training": _error("the second says so; the first is not disturbed"),
        "checkpoint": _no("as training"),
        "evaluation": _equal("evaluation while a run trains"),
    },
}


def cells() -> list[tuple[str, str]]:
    """The (fault, stage) that have an outcome."""
    return [(fault, stage) for fault, row in MATRIX.items() for stage, cell in row.items() if cell.outcome]


def markdown() -> str:
    """The matrix as a table."""
    lines = [
        f"| fault | {' | '.join(STAGES.values())} |",
        f"| --- |{' --- |' * len(STAGES)}",
    ]
    for fault, row in MATRIX.items():
        texts = [f"**{cell.outcome}**: {cell.words}" if cell.outcome else f"– ({cell.words})" for cell in row.values()]
        lines.append(f"| {fault} | {' | '.join(texts)} |")
    return "\n".join(lines)

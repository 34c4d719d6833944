"""Lets every n-th operation on the disk fail, stage by stage, and counts what came of it.

    python -m tests.nth                  all of it, about seven minutes
    python -m tests.nth --stage report   one stage
    python -m tests.nth --write          writes the table of docs/faults.md

The exit code is 1 if anything was lost.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.nth import stages, trials
from tests.nth.disk import KINDS, VARIANTS
from tests.tools import pages

PAGE = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- nth: begin -->", "<!-- nth: end -->"
Row = tuple[str, str, int, int, Counter]  # stage, kind, operations, failures, how often each outcome


def rows_of(stage: stages.Stage, out: Path, shows: bool) -> list[Row]:
    """Try everything in a stage; a line for each failure that lost something, or, if it shows, for each."""
    counts, found = trials.count(stage, out), {kind: Counter() for kind in KINDS}
    for failure, outcome in trials.all_of(stage, out):
        found[failure.kind][outcome.what] += 1
        if shows or outcome.what == trials.LOST:
            print(f"{stage.name}, {failure}: {outcome.what}: {outcome.why}", flush=True)
    # An operation that is repeated after a failure makes the last numbers more than one undisturbed run has.
    return [(stage.name, kind, counts[kind], found[kind].total(), found[kind]) for kind in KINDS if found[kind]]


def markdown(rows: list[Row]) -> str:
    """The rows as a table, with their sum."""
    head = ("stage", "operation", "operations", "failures", *trials.OUTCOMES)
    lines = [f"| {' | '.join(head)} |", f"| --- | --- |{' ---: |' * (len(head) - 2)}"]
    total: Counter = Counter()
    for stage, kind, operations, failures, found in rows:
        total.update(found)
        cells = (stage, kind, operations, failures, *(found[what] for what in trials.OUTCOMES))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    sums = (sum(row[2] for row in rows), sum(row[3] for row in rows), *(total[what] for what in trials.OUTCOMES))
    return "\n".join([*lines, f"| all | | {' | '.join(map(str, sums))} |"])


def page_with_table(page: str, table: str) -> str:
    """The page's text with this table."""
    return pages.between(page, BEGIN, table, END, PAGE)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.nth", description=__doc__.partition("\n")[0])
    names = [made.name for made in stages.STAGES]
    parser.add_argument("--stage", choices=names, help="only this one")
    parser.add_argument("--show", action="store_true", help="print every failure with its outcome")
    parser.add_argument("--write", action="store_true", help="write the table into docs/faults.md")
    options = parser.parse_args()
    if options.write and options.stage:
        parser.error("--write takes all stages")
    begun, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory(prefix="nth-") as place, stages.quiet():
        for number, made in enumerate(stages.STAGES):
            if options.stage in (None, made.name):
                stage = made(Path(place) / f"{number}")
                rows += rows_of(stage, Path(place) / "out-of-trials", options.show)
    table = markdown(rows)
    print(f"{table}\n{time.monotonic() - begun:.0f} s")
    if options.write:
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
    return int(any(row[4][trials.LOST] for row in rows))


if __name__ == "__main__":
    assert VARIANTS.keys() == set(KINDS)
    sys.exit(main())

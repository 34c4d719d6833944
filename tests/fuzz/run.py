"""The long fuzzing: every target, or those given, so many minutes each, one process at a time.

    python -m tests.fuzz.run --minutes 10 [--target NAME ...] [--seed N] [--crashers DIR] [--replay FILE ...]

Prints a table: executions, executions a second, inputs refused, inputs that reached new lines of code, the slowest,
restarts of the child, and each failure once with where it happened; the inputs that failed are kept in --crashers.
--replay runs kept inputs again. Exit code 1 where anything failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.engine import DEADLINE, Child, Failure, Tally, fuzz, save


def report(tally: Tally, restarts: int) -> str:
    return (
        f"{tally.target:12} {tally.executions:9,} {tally.rate:8.1f} {tally.refused:9,} {tally.grown:6} "
        f"{tally.slowest:8.3f} {restarts:8} {len(tally.failures):9}"
    )


def main(arguments: list[str] | None = None) -> int:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of each target (default: 10)")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this; may be given repeatedly")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--crashers", type=Path, default=Path("crashers"), help="folder for inputs that failed")
    parser.add_argument("--replay", type=Path, nargs="+", default=[], help="kept inputs to run again, and nothing else")
    options = parser.parse_args(arguments)
    failures: list[Failure] = []
    columns = f"{'refused':>9} {'grown':>6} {'slowest':>8} {'restarts':>8} {'failures':>9}"
    print(f"{'target':12} {'runs':>9} {'runs/s':>8} {columns}", flush=True)
    for name in options.target or TARGETS:
        kept = [path for path in options.replay if path.name.startswith(f"{name}-")]
        if options.replay and not kept:
            continue
        with tempfile.TemporaryDirectory(prefix="essl_fuzz-") as folder:
            child = Child(Path(folder), [name], DEADLINE)
            try:
                if kept:
                    tally = replay(child, name, kept)
                else:
                    tally = fuzz(child, name, minutes=options.minutes, seed=options.seed)
            finally:
                child.close()
        print(report(tally, child.restarts), flush=True)
        failures += tally.failures.values()
        for failure in tally.failures.values():
            place = "" if kept else f"; kept as {save(failure, options.crashers)}"
            print(f"    {failure.what} at {failure.where}{place}", flush=True)
    return int(bool(failures))


def replay(child: Child, target: str, kept: list[Path]) -> Tally:
    tally = Tally(target)
    for path in kept:
        base = path.name.split("-", 2)[2]
        name = next(part for part in child.parts[target] if Path(part).name == base)
        told = child.ask(target, name, path.read_bytes())
        tally.executions += 1
        tally.seconds += told["seconds"]
        if told["failure"]:
            failure = Failure(target, name, path.read_bytes(), **told["failure"])
            tally.failures.setdefault(failure.key, failure)
            print(failure.trace)
    return tally


if __name__ == "__main__":
    sys.exit(main())

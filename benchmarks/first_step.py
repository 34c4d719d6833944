"""python -m benchmarks.first_step [SETTINGS]: the CPU time that training takes up to its first step.

It trains the demo as `python -m essl_fast.train` does, with these settings (such as `--seed 1`) and a temporary run
directory, and ends when the first step was taken. The time is user and system time of the process from its start on,
and of its children that have ended. Run it twice: the first time makes the demo's world. `--most SECONDS`, given first,
ends with 1 if it took longer.

On a busy machine OpenMP's threads wait for each other while they turn: that is CPU time without work.
"""

import os
import sys
import tempfile
import time


class FirstStep(BaseException):
    """The first step has been taken. No Exception, so that nothing takes it for a fault of the run."""


def cpu_seconds() -> float:
    """User and system time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def main(argv: list[str]) -> int:
    most = float("inf")
    if argv[:1] == ["--most"]:
        most, argv = float(argv[1]), argv[2:]
    begun, before = time.perf_counter(), cpu_seconds()
    from essl_fast.train import Trainer, fit

    imported = cpu_seconds()
    plain = Trainer.take_step

    def first(self, raw) -> None:
        plain(self, raw)
        raise FirstStep

    Trainer.take_step = first  # type: ignore[method-assign]  # to see the first step, and to end there
    with tempfile.TemporaryDirectory() as place:
        try:
            fit("demo", [*argv, "--out", f"{place}/run"])
        except FirstStep:
            took, clock = cpu_seconds(), time.perf_counter() - begun
        else:
            sys.exit("no step was taken")
        finally:
            Trainer.take_step = plain  # type: ignore[method-assign]
    print(
        f"{took:.1f} s of CPU time up to the first step (imports {imported - before:.1f}, then {took - imported:.1f}), "
        f"{clock:.1f} s on the clock"
    )
    return int(took > most)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

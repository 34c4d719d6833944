"""The long version of what the suite does in short: `python -m tests.faults.soak --rounds 200 --prepare 50`.

    --rounds N     training runs, each killed once or twice at random instants and resumed: equal to the bit?
    --prepare N    preparations, likewise: the same bytes?
    --epochs N     one run of so many epochs: memory, file handles, threads and the clock of an epoch stay as they are?

Every round is a function of the seed, but for the machine's own timing. `--json FILE` keeps what was found, with the
environment. Exit code 1 if anything differs.
"""

import argparse
import gc
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from essl_fast.common import files
from essl_fast.data.shards import QUARANTINE, Manifest
from essl_fast.runtime import provenance, runlog
from tests.faults import server, worlds

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDED = {signal.SIGKILL: {-9}, signal.SIGTERM: {-15, 143}, signal.SIGINT: {130, -2}}


def disturbed(chance: random.Random, seconds: float, start, go_on) -> list[str]:
    """Start a command, kill it once or twice, go on after each; what was done to it. AssertionError if it fails.

    start(), go_on(): the child. Each instant is anywhere within the command's usual `seconds`, or a tenth beyond.
    """
    done, child = [], start()
    for _ in range(chance.choice((1, 1, 2))):
        by, after = chance.choice(SIGNALS), chance.uniform(0, 1.1 * seconds)
        if child.poll(after) is not None:
            break
        child.kill(by)
        if chance.random() < 0.1:  # somebody who does not want to wait
            child.kill(by)
        code = child.wait()
        done.append(f"{by.name} after {after:.3f} s")
        assert code in ENDED[by] or code == 0, f"exit code {code} after {by.name}:\n{child.said()}"
        child = go_on()
    code = child.wait()
    assert code == 0, f"exit code {code} in the end:\n{child.said()}"
    return done


def training(bench: worlds.Bench, rounds: int, seed: int, say) -> dict:
    begin = time.perf_counter()
    code, said = bench.server.run("train", *bench.train(bench.new("timed")))
    assert code == 0, said
    usual = time.perf_counter() - begin
    out, kills, steps, differ = bench.root / "run", Counter(), Counter(), []
    for number in range(rounds):
        shutil.rmtree(out, ignore_errors=True)

        def start():
            return bench.server.start("train", *bench.train(out))

        def go_on():
            steps[reached(out)] += 1
            return bench.server.start("train", "--resume", out) if (out / "config.yaml").exists() else start()

        try:
            done = disturbed(random.Random(f"{seed} {number}"), usual, start, go_on)
            found = worlds.run_differs(out, bench.reference)
        except AssertionError as error:
            done, found = [], str(error)
        kills.update(kill.split()[0] for kill in done)
        if found:
            differ.append({"round": number, "kills": done, "found": found})
            shutil.copytree(out, bench.new("differs"))
        if (number + 1) % 10 == 0 or found:
            say(f"training: {number + 1} of {rounds} rounds, {sum(kills.values())} kills, {len(differ)} differ")
    return {
        "rounds": rounds,
        "kills": dict(kills),
        "undisturbed_seconds": usual,
        "differ": differ,
        "killed_after_step": {str(step): count for step, count in sorted(steps.items())},
        "seconds": time.perf_counter() - begin,
    }


def reached(out: Path) -> int:
    """The step of a run's newest checkpoint, -1 if there is none."""
    from essl_fast import checkpoints

    files = checkpoints.existing(out / "last.pt")
    return checkpoints.newest(files[0])[1]["step"] if files else -1


def preparing(bench: worlds.Bench, rounds: int, seed: int, say) -> dict:
    begin = time.perf_counter()
    code, said = bench.server.run("prepare", *bench.prepare(bench.new("timed")))
    assert code == 0, said
    usual = time.perf_counter() - begin
    out, kills, parts, differ = bench.root / "data", Counter(), Counter(), []
    for number in range(rounds):
        shutil.rmtree(out, ignore_errors=True)
        chance = random.Random(f"{seed} prepare {number}")

        def start(chance=chance):
            if out.exists():
                parts[len(list(out.rglob("*.part"))) + len(list(out.glob("*.tar")))] += 1
            return bench.server.start("prepare", *bench.prepare(out, chance.choice((1, 1, 2))))

        try:
            done = disturbed(chance, usual, start, start)
            found = worlds.data_differs(out, bench.prepared)
        except AssertionError as error:
            done, found = [], str(error)
        kills.update(kill.split()[0] for kill in done)
        if found:
            differ.append({"round": number, "kills": done, "found": found})
            shutil.copytree(out, bench.new("differs"))
        if (number + 1) % 10 == 0 or found:
            say(f"prepare: {number + 1} of {rounds} rounds, {sum(kills.values())} kills, {len(differ)} differ")
    return {
        "rounds": rounds,
        "kills": dict(kills),
        "undisturbed_seconds": usual,
        "differ": differ,
        "parts_and_shards_when_killed": {str(count): times for count, times in sorted(parts.items())},
        "seconds": time.perf_counter() - begin,
    }


class Gauge:
    """What the process holds after each epoch of a run in it."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int, int, int]] = []  # clock, resident KiB, file handles, threads

    def read(self) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        handles = len(os.listdir("/proc/self/fd"))
        self.samples.append((time.perf_counter(), int(status["VmRSS"].split()[0]), handles, int(status["Threads"])))

    def found(self, every: int) -> dict:
        """Medians of ten equal parts of the run, the first left out of the verdict: caches fill in it. every: epochs
        between evaluations, so that a part's epochs are alike."""
        size = max(1, len(self.samples) // 10)
        parts = [self.samples[at : at + size] for at in range(0, size * 10, size)]
        clocks = [[b[0] - a[0] for a, b in zip(part, part[1:], strict=False)] for part in parts]
        table = [
            {
                "epoch_ms": 1000 * statistics.median(clock),
                "resident_mib": statistics.median(s[1] for s in part) / 1024,
                "handles": statistics.median(s[2] for s in part),
                "threads": statistics.median(s[3] for s in part),
            }
            for part, clock in zip(parts, clocks, strict=True)
        ]
        second, last = table[1], table[-1]
        growth = last["resident_mib"] - second["resident_mib"]
        flat = {
            "memory": growth < 0.02 * second["resident_mib"],
            "handles": last["handles"] == second["handles"],
            "threads": last["threads"] == second["threads"],
            "clock": last["epoch_ms"] < 1.25 * min(part["epoch_ms"] for part in table[1:4]),
        }
        return {
            "epochs": len(self.samples),
            "loaders_made_anew_every": every,
            "parts": table,
            "memory_growth_mib": growth,
            "flat": flat,
        }


def enduring(bench: worlds.Bench, epochs: int, say) -> dict:
    """One run on four pairs in this process, streaming: every frame is decoded in every epoch, and in every tenth epoch
    a further loader is made and closed by an evaluation, and a checkpoint written."""
    from essl_fast.train import __main__ as train_door

    server.shrink()
    gauge, write, every = Gauge(), runlog.RunLog.write, 10
    data = bench.copy(bench.prepared, "few")
    manifest = Manifest.load(data)
    out = [{"row": int(row), "key": manifest.key(row), "reason": "corrupt"} for row in manifest.rows("train")[4:]]
    (data / QUARANTINE).write_text("".join(json.dumps(entry) + "\n" for entry in out))

    def watched(log, event, **values) -> None:
        write(log, event, **values)
        if event == "epoch":
            gauge.read()
            if len(gauge.samples) % 100 == 0:
                at = gauge.samples[-1]
                say(f"epoch {len(gauge.samples)}: {at[1] / 1024:.0f} MiB, {at[2]} handles, {at[3]} threads")

    runlog.RunLog.write = watched
    begin = time.perf_counter()
    given = {
        "epochs": epochs,
        "checkpoint_steps": 0,
        "checkpoint_epochs": every,
        "eval_every": every,
        "data.resident": "never",
        "baselines": "false",
        "data.batch_size": 2,
        "data.exclude_quarantined": "bad",
    }
    more = [part for name, value in given.items() for part in (f"--{name}", value)]
    try:
        assert train_door.main(bench.train(bench.new("long"), *more, data=data)) == 0
    finally:
        runlog.RunLog.write = write
        gc.collect()
    return gauge.found(every) | {"seconds": time.perf_counter() - begin}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=0, help="training runs to kill")
    parser.add_argument("--prepare", type=int, default=0, help="preparations to kill")
    parser.add_argument("--epochs", type=int, default=0, help="length of the long run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scratch", type=Path, help="folder for what is made (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write what was found here")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    def say(line: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        bench = worlds.Bench((asked.scratch or Path(temporary)).resolve())
        found = {}
        try:
            if asked.rounds:
                found["training"] = training(bench, asked.rounds, asked.seed, say)
            if asked.prepare:
                found["prepare"] = preparing(bench, asked.prepare, asked.seed, say)
            if asked.epochs:
                found["epochs"] = enduring(bench, asked.epochs, say)
        finally:
            bench.close()
    result = {"seed": asked.seed, **found, "environment": provenance.environment(torch.device("cpu"))}
    print(json.dumps(found, indent=1))
    if asked.json:
        files.write_json(asked.json, result)
    differ = [entry for name in ("training", "prepare") for entry in found.get(name, {}).get("differ", [])]
    return int(bool(differ) or not all(found.get("epochs", {}).get("flat", {}).values()))


if __name__ == "__main__":
    sys.exit(main())

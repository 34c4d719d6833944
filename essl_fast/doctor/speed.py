"""The check of the training speed: what is possible at most, and with --probe what is measured."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from essl_fast.doctor.findings import NOTE, OK, Case, Finding
from essl_fast.doctor.prepared_data import keeps_embeddings

if TYPE_CHECKING:
    from essl_fast.train import Trainer

SECONDS = 6.0  # of training that --probe times, after WARM steps
WARM = 4  # steps that compile and warm up


def check_speed(case: Case) -> Iterator[Finding]:
    """An upper bound of the training speed, and with --probe the measured speed."""
    if case.device is None:
        return
    from essl_fast import config
    from essl_fast.profiling import measure_ceilings, step_flop

    settings = case.settings
    flop = step_flop(settings, keeps_embeddings(settings))
    ceilings = measure_ceilings(case.device, case.dtype)
    most = ceilings.flop / flop.step
    values = {
        "gflop_a_pair": flop.step / 1e9,
        "matmul_flop_per_second": ceilings.flop,
        "copy_bytes_per_second": ceilings.copy,
        "most_pairs_per_second": most,
    }
    how = f"{flop.step / 1e9:.3g} GFLOP a pair (counted) at {ceilings.flop / 1e12:.3g} TFLOP/s (measured just now)"
    what = f"{most:.3g} pairs/s if the whole step ran as fast as a {ceilings.dtype} matrix product: {how}"
    more = "" if case.probe else "; it runs at a part of that, which --probe measures"
    yield Finding("speed", NOTE, what + more, "", values)
    if not case.probe:
        return
    if case.manifest is None:
        yield Finding("probe", NOTE, "--probe trains on prepared data: give --data DIR")
        return
    rate, steps, seconds, waiting = probe(case)
    values = {"pairs_per_second": rate, "steps": steps, "seconds": seconds, "waiting": waiting, "share": rate / most}
    size = config.own_batch(as_alone(settings))
    what = f"{rate:.3g} pairs/s, {100 * rate / most:.0f}% of that: {steps} steps of {size} pairs"
    what += f" in {seconds:.1f} s, {100 * waiting:.0f}% of them waiting for data, which a first epoch still decodes"
    yield Finding("probe", OK, what, "", values)


def as_alone(settings: Any) -> Any:
    """The settings as one process can train them: where its part of a global batch is too large, without that."""
    from essl_fast import config

    if config.own_batch(settings) <= settings.data.batch_size:
        return settings
    return replace(settings, data=replace(settings.data, global_batch=0))


class Probe(NamedTuple):
    """What a short training measured."""

    rate: float  # pairs per second
    steps: int
    seconds: float  # of these steps
    waiting: float  # share of the seconds that training waited for data


def probe(case: Case) -> Probe:
    """Train for some seconds. RuntimeError if the settings' whole run is too short to time."""
    torch = importlib.import_module("torch")
    from essl_fast import config
    from essl_fast.train import Trainer

    settings = as_alone(case.settings)
    trainer = Trainer(settings, case.manifest, case.device)
    marks: list[tuple[float, float]] = []  # after each step: the time, and the seconds of waiting so far
    with trainer.loader:
        for _ in _train(trainer):
            if trainer.steps < WARM:
                continue
            if case.device.type == "cuda":
                torch.cuda.synchronize(case.device)
            marks.append((time.perf_counter(), trainer.loader.waited))
            if len(marks) > 1 and marks[-1][0] - marks[0][0] >= SECONDS:
                break
    if len(marks) < 2:
        raise RuntimeError(f"the whole run has {trainer.steps} steps, too few to time after {WARM} that warm up")
    seconds, waited = marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]
    steps = len(marks) - 1
    pairs = config.update_pairs(settings, 1)
    return Probe(steps * pairs / seconds, steps, seconds, waited / seconds)


def _train(trainer: Trainer) -> Iterator[None]:
    """Train to the last epoch, without evaluation or checkpoints; pauses after each step."""
    while trainer.epoch < trainer.settings.epochs:
        for raw in trainer.batches():
            trainer.take_step(raw)
            yield
        trainer.end_epoch()

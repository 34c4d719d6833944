"""Explain a profile of the training step: the largest gaps, in words, written beside the trace."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from essl_fast import config, models
from essl_fast.common import files
from essl_fast.profiling import gaps
from essl_fast.profiling.floors import measure_ceilings, stage_floors, step_flop
from essl_fast.profiling.profile import StepProfile


@dataclass(frozen=True)
class ProfiledRun:
    """The run that was profiled, as far as it explains its speed.

    Args:
        settings: of the run.
        device: of the model.
        dtype: of views and autocast.
        trained: trained parameters of the model.
        compiled: the step went through torch.compile.
        threads: decoding threads of the loader.
        streams: pairs are decoded again in every epoch, because no pool keeps them.
        ranks: processes that train together.
    """

    settings: config.Config
    device: torch.device
    dtype: torch.dtype
    trained: int
    compiled: bool
    threads: int
    streams: bool
    ranks: int = 1


def largest_gaps(run: ProfiledRun, profile: StepProfile, out: Path) -> list[str]:
    """The stages that are farthest above their floors, as lines for the user.

    It measures the machine's ceilings, which takes a second or two.

    Args:
        run: the run.
        profile: its profile, finished.
        out: JSON file for the stages, the floors and the words.
    """
    settings = run.settings
    ceilings = measure_ceilings(run.device, run.dtype)
    flop = step_flop(settings, models.keeps_embeddings(settings))
    batch = config.own_batch(settings, run.ranks)
    pairs = batch * config.own_batches(settings, run.ranks)  # of a step
    floors = stage_floors(flop, pairs, run.trained, ceilings, run.dtype.itemsize, run.ranks)
    setting = gaps.Setting(
        gpu=run.device.type == "cuda",
        compiled=run.compiled,
        captured="step" in profile.stages,
        precision=str(run.dtype).removeprefix("torch."),
        batch=batch,
        threads=run.threads,
        cores=len(os.sched_getaffinity(0)),
        streams=run.streams,
    )
    stages = {name: gaps.Measured(*spent) for name, spent in profile.stages.items()}
    found = gaps.find(profile.step_ms, stages, floors, setting, profile.operators)
    numbers = [{"stage": gap.stage, "ms": gap.milliseconds, "floor_ms": gap.floor} for gap in found]
    more = {"gflop_a_pair": flop.step / 1e9, "ceilings": ceilings._asdict(), "gap_values": numbers}
    files.write_json(out, profile.record() | more | {"gaps": [gap.words for gap in found]})
    lines = [f"{number}. {gap.words}" for number, gap in enumerate(found, 1)]
    return ["the largest gaps:", *lines] if lines else ["every stage is at its floor"]

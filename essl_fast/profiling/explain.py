"""What a profile of a run says about its step: the largest gaps, in words, kept beside the trace."""

import os
from pathlib import Path

from essl_fast.common import files
from essl_fast.models import audio_input
from essl_fast.profiling import floors, gaps


def largest_gaps(trainer, out: Path) -> list[str]:
    """Lines for the user, after a Trainer's profile has finished. ``out`` gets the stages, the floors and the words.

    It measures the machine's ceilings, for a second or two.
    """
    settings, profile, model = trainer.settings, trainer.profile, trainer.model
    embedded = audio_input.sound_of(settings, model, trainer.dtype) is not audio_input.log_mel
    ceilings = floors.measure(trainer.device, trainer.dtype)
    flop = floors.step_flop(settings, embedded)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    least = floors.floors(flop, settings.data.batch_size, trained, ceilings, trainer.dtype.itemsize)
    how = gaps.Setting(
        gpu=trainer.device.type == "cuda",
        compiled=trainer.compiled,
        captured="step" in profile.stages,
        precision=str(trainer.dtype).removeprefix("torch."),
        batch=settings.data.batch_size,
        threads=trainer.loader.threads,
        cores=len(os.sched_getaffinity(0)),
        streams=trainer.loader.pool is None,
    )
    stages = {name: gaps.Measured(*spent) for name, spent in profile.stages.items()}
    found = gaps.find(profile.step_ms, stages, least, how, profile.operators)
    numbers = [{"stage": gap.stage, "ms": gap.milliseconds, "floor_ms": gap.floor} for gap in found]
    more = {"gflop_a_pair": flop.step / 1e9, "ceilings": ceilings._asdict(), "gap_values": numbers}
    files.write_json(out, profile.record() | more | {"gaps": [gap.words for gap in found]})
    lines = [f"{number}. {gap.words}" for number, gap in enumerate(found, 1)]
    return ["the largest gaps:", *lines] if lines else ["every stage is at its floor"]

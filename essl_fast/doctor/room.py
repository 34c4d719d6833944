"""The second half of what `python -m essl_fast.doctor` looks at: data, memory, disk, and the speed to expect."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from essl_fast.doctor.checks import NOTE, OK, SLOWER, STOPS, Case, Finding

SECONDS = 6.0  # of training that --probe times, after the first steps
WARM = 4  # steps that compile and warm up


def check_data(case: Case) -> Iterator[Finding]:
    from essl_fast.common.errors import InputError
    from essl_fast.data.shards import Manifest

    settings = case.settings
    if settings.data.root == "demo":
        yield Finding("data", NOTE, "the synthetic demo world, which train makes; give --data DIR for prepared data")
        return
    try:
        case.manifest = manifest = Manifest.load(settings.data.root)
        quarantined = len(manifest.quarantine())
    except InputError as error:
        yield Finding("data", STOPS, str(error))
        return
    counts = {split: manifest.pairs(split) for split in ("train", "val", "test")}
    text = ", ".join(f"{count} {split}" for split, count in counts.items())
    listed = f"; verify lists {quarantined} of them" if quarantined else ""
    yield Finding("data", OK, f"{manifest.root}: {text} pairs{listed}", "", {**counts, "quarantined": quarantined})
    remedy = "prepare it again, with --validation above 0 for a val split"
    for split in dict.fromkeys(("train", settings.select_on, "test")):
        if not counts[split]:
            yield Finding("data", STOPS, f"{manifest.root} has no {split} split, which training needs", remedy)
    if counts["train"] < settings.data.batch_size and settings.data.last_batch == "drop":
        what = f"data.batch_size {settings.data.batch_size} is more than the {counts['train']} training pairs"
        yield Finding("data", STOPS, what, "choose a smaller one, or --data.last_batch keep")


def check_host(case: Case) -> Iterator[Finding]:
    """Cores and memory."""
    from essl_fast.data.loading.pool import host_memory

    cores, room = len(os.sched_getaffinity(0)), host_memory()
    values = {"cores": cores, "available_bytes": room}
    yield Finding("host", OK, f"{cores} CPU cores, {room / 1e9:.1f} GB of memory available", "", values)


def check_pool(case: Case) -> Iterator[Finding]:
    """What the data set takes in memory, against what the run may take of it."""
    if case.manifest is None or case.device is None:
        return
    from essl_fast import config
    from essl_fast.data.loading.pool import GPU_SHARE, HOST_SHARE, Kept, host_memory

    settings, manifest = case.settings, case.manifest
    embedded = settings.model.audio == "vggish" and settings.data.embeddings != "off"
    torch = importlib.import_module("torch")
    kept = Kept((3, 128), case.dtype) if embedded else Kept((3, 96, 64), torch.float32)
    splits = ["train", *(["val"] if settings.select_on == "test" else [])]
    need = sum(manifest.pairs(split) for split in splits) * kept.pair_bytes(config.STORED_SIDE)
    need += sum(manifest.pairs(s) for s in {settings.select_on, "test"}) * kept.pair_bytes(config.SIZE)
    gpu = case.device.type == "cuda"
    free = torch.cuda.mem_get_info(case.device)[0] if gpu else host_memory()
    given = settings.data.resident_budget_gb
    budget = int(given * 1e9) if given else int((GPU_SHARE if gpu else HOST_SHARE) * free)
    values = {"need_bytes": need, "budget_bytes": budget, "free_bytes": free, "embeddings": embedded}
    size = f"the pairs take {need / 1e9:.2f} GB; the budget is {budget / 1e9:.2f} GB of {free / 1e9:.2f} GB free"
    where = "GPU memory" if gpu else "memory"
    if settings.data.resident == "never":
        yield Finding("pool", NOTE, f"data.resident never: every epoch decodes again ({size} in {where})", "", values)
    elif need <= budget:
        yield Finding("pool", OK, f"each pair is decoded once and stays in {where}: {size}", "", values)
    elif settings.data.resident == "always":
        remedy = "raise data.resident_budget_gb, or use data.resident auto"
        yield Finding("pool", STOPS, f"data.resident always, but {size} in {where}", remedy, values)
    else:
        remedy = f"data.resident_budget_gb {need / 1e9:.2f} or more, where {where} has the room"
        what = f"not all splits stay in {where}, the others are streamed: {size}"
        yield Finding("pool", SLOWER, what, remedy, values)


def check_disk(case: Case) -> Iterator[Finding]:
    """Room for the checkpoints, and whether the run directory can be written."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from essl_fast import models

    settings = case.settings
    with FakeTensorMode():
        parameters = [(p.numel(), p.requires_grad) for p in models.build(settings.model).parameters()]
    trained = sum(count for count, on in parameters if on)
    # float32: weights in best.pt; weights and two moments in each last.pt, of which one more exists while it is written
    need = 4 * trained + 12 * trained * (settings.checkpoint_keep + 1)
    values = {"trained_parameters": trained, "total_parameters": sum(count for count, _ in parameters)}
    place = Path(settings.out or "runs").absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    values |= {"checkpoint_bytes": need, "free_bytes": free}
    text = f"checkpoints take {need / 1e9:.2f} GB, {free / 1e9:.1f} GB are free at {place}"
    if not os.access(place, os.W_OK):
        yield Finding("disk", STOPS, f"{place} cannot be written", "give another run directory with --out DIR", values)
    elif free < need:
        yield Finding("disk", STOPS, text, "free some space, or give another run directory with --out DIR", values)
    else:
        yield Finding("disk", OK, text, "", values)


def check_speed(case: Case) -> Iterator[Finding]:
    """How fast the step can be at most, and with --probe how fast training is."""
    if case.device is None:
        return
    from essl_fast.profiling import floors

    settings = case.settings
    embedded = settings.model.audio == "vggish" and settings.data.embeddings != "off"
    flop = floors.step_flop(settings, embedded)
    ceilings = floors.measure(case.device, case.dtype)
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
    what = f"{rate:.3g} pairs/s, {100 * rate / most:.0f}% of that: {steps} steps of {settings.data.batch_size} pairs"
    what += f" in {seconds:.1f} s, {100 * waiting:.0f}% of them waiting for data, which a first epoch still decodes"
    yield Finding("probe", OK, what, "", values)


class _Enough(Exception):
    """The probe has seen enough steps."""


class _NoBars:
    """In place of runlog.EpochBars."""

    def step(self, epoch: int, text: str = "") -> None:
        """Shows nothing."""


def probe(case: Case) -> tuple[float, int, float, float]:
    """Trains for some seconds: pairs/s, steps that were timed, their seconds, the share of waiting for data."""
    torch = importlib.import_module("torch")
    from essl_fast.train.trainer import Trainer

    trainer = Trainer(case.settings, case.manifest, case.device)
    marks: list[tuple[float, float]] = []

    def on_step() -> None:
        if trainer.step >= WARM:
            if case.device.type == "cuda":
                torch.cuda.synchronize(case.device)
            marks.append((time.perf_counter(), trainer.loader.waited))
            if marks[-1][0] - marks[0][0] >= SECONDS and len(marks) > 1:
                raise _Enough

    try:
        with trainer.loader:
            while trainer.epoch < case.settings.epochs:
                trainer.train_epoch(_NoBars(), on_step)
    except _Enough:
        pass  # that is how it ends, unless the run itself is shorter
    if len(marks) < 2:
        raise RuntimeError(f"the whole run has {trainer.step} steps, too few to time after {WARM} that warm up")
    seconds, waited = marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]
    steps = len(marks) - 1
    return steps * case.settings.data.batch_size / seconds, steps, seconds, waited / seconds

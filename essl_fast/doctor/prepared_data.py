"""Checks of the prepared data: its splits, and whether its decoded pairs fit into memory."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from essl_fast.doctor.findings import NOTE, OK, SLOWER, STOPS, Case, Finding


def check_data(case: Case) -> Iterator[Finding]:
    """The prepared data: its splits, what verify has listed, and whether a batch can be filled."""
    from essl_fast import config
    from essl_fast.common.errors import InputError
    from essl_fast.data.shards import Manifest

    settings = case.settings
    if not settings.data.root:
        yield Finding(
            "data", NOTE, "no prepared folder was named: train needs --data.root DIR; give it here as --data DIR"
        )
        return
    if settings.data.root == "demo":
        yield Finding("data", NOTE, "the synthetic demo world, which train makes; give --data DIR for prepared data")
        return
    try:
        case.manifest = manifest = Manifest.load(settings.data.root, (settings.data.cache, settings.data.cache_gb))
        quarantined = len(manifest.quarantine())
    except InputError as error:
        yield Finding("data", STOPS, str(error))
        return
    counts = {split: manifest.pairs(split) for split in ("train", "val", "test")}
    text = ", ".join(f"{count} {split}" for split, count in counts.items())
    listed = f"; verify lists {quarantined} of them" if quarantined else ""
    yield Finding("data", OK, f"{manifest.place}: {text} pairs{listed}", "", {**counts, "quarantined": quarantined})
    remedy = "prepare it again, with --validation above 0 for a val split"
    for split in dict.fromkeys(("train", settings.select_on, "test")):
        if not counts[split]:
            yield Finding("data", STOPS, f"{manifest.place} has no {split} split, which training needs", remedy)
    least, times = config.update_pairs(settings, 1), settings.optim.accumulate
    if counts["train"] < least and settings.data.last_batch == "drop":
        size = f"data.batch_size {settings.data.batch_size}" + f", times optim.accumulate {times}," * (times > 1)
        size = f"data.global_batch {least}" if settings.data.global_batch else size
        what = f"{size} is more than the {counts['train']} training pairs"
        yield Finding("data", STOPS, what, "choose a smaller one, or --data.last_batch keep")


def keeps_embeddings(settings) -> bool:
    """Whether a batch carries embeddings (3, 128) of a frozen audio network, instead of log-mels (3, 96, 64)."""
    from essl_fast import models

    return models.audio_facts(settings.model.audio).frozen_front and settings.data.embeddings != "off"


def check_pool(case: Case) -> Iterator[Finding]:
    """The memory that the decoded pairs need, against the memory that the run may use."""
    if case.manifest is None or case.device is None:
        return
    from essl_fast import config
    from essl_fast.data.loading import GPU_SHARE, HOST_SHARE, SoundLayout, host_memory

    settings, manifest = case.settings, case.manifest
    embedded = keeps_embeddings(settings)
    torch = importlib.import_module("torch")
    kept = SoundLayout((3, 128), case.dtype) if embedded else SoundLayout((3, 96, 64), torch.float32)
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

"""Run every pair of a split through a model, and measure how well each is localized."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from essl_fast import config, kernels, models
from essl_fast.common.errors import InputError
from essl_fast.data import datasets
from essl_fast.data.loading import Pools
from essl_fast.data.shards import Manifest
from essl_fast.evaluate import class_aware, metrics
from essl_fast.evaluate.consensus import consensus_of
from essl_fast.evaluate.foreign import ForeignSounds
from essl_fast.evaluate.guidance import object_map
from essl_fast.evaluate.loaders import evaluation_loader, ranks_share
from essl_fast.evaluate.parts import Columns, Part, arrays, together
from essl_fast.evaluate.result import Evaluation
from essl_fast.evaluate.samples import frames_of, rows_to_draw, samples
from essl_fast.kernels import centre_view
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import ALONE, World

TOGETHER = 512  # maps that are counted in one launch

_FOREIGN, _OBJECTS, _HEARD, _BY_CLASS = "under ", "object map", "heard", "by class"  # names of columns


@torch.inference_mode()
def evaluate(
    model: models.Localizer,
    manifest: Manifest,
    split: str,
    settings: config.Config,
    device: torch.device,
    dtype: torch.dtype,
    show: int = 0,
    pools: Pools | None = None,
    on_fault: Callable[[int, str], None] | None = None,
    world: World = ALONE,
    foreign: bool = False,
    guidance: bool = False,
    by_class: bool = False,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Localize every pair of a split; results leave the device once, at the end.

    Args:
        model: on ``device``; its mode (training or not) is put back at the end.
        manifest: the prepared data.
        split: "train", "val" or "test".
        settings: ``data`` says how pairs are read, ``objective.consensus`` how boxes are counted. A pair that
            ``data`` leaves out or allows to skip is not in the result.
        device: where frames, sounds and the model are.
        dtype: of the views, and of autocast.
        show: how many pairs to keep with their frames, to be drawn.
        pools: where decoded pairs may be kept for the next evaluation.
        on_fault: called with the row and the reason of each pair that is skipped.
        world: the processes that share the pairs; each of them gets the whole result.
        foreign: also localize each frame under silence, noise and another pair's sound (see :class:`ForeignSounds`).
        guidance: also keep the trunk's object maps (see `guidance.py`).
        by_class: also score every class that sounds by itself (see `class_aware.py`).
        on_batch: called after each batch with its number of pairs.

    Raises InputError if the split is empty, or no pair of it decodes.
    """
    loader = evaluation_loader(manifest, split, settings, model, device, dtype, pools, on_fault, world)
    boxes, consensus = torch.from_numpy(np.array(manifest.boxes)).to(device), consensus_of(settings, manifest)
    others, to_draw = ForeignSounds(loader) if foreign else None, rows_to_draw(manifest.rows(split), show)
    columns, frames = Columns(), dict[int, Any]()
    with contextlib.closing(loader), _evaluating(model, dtype):
        for raw in loader:
            views = centre_view(raw.frames, dtype, raw.rows)
            sounds = others.of(raw) if others else {}
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                maps = model.frame_maps(views)
                attention = model.attend_maps(maps, raw.sound)[0]
                under = {kind: model.attend_maps(maps, sound)[0] for kind, sound in sounds.items()}
                further = {_FOREIGN + kind: each.similarity[0] for kind, each in under.items()}
                further |= {_OBJECTS: object_map(maps)} if guidance else {}
            further |= {_BY_CLASS: _of_each_class(attention, manifest, raw.index, consensus)} if by_class else {}
            further |= {_HEARD: torch.from_numpy(others.rows(raw))} if others else {}
            columns.add(rows=raw.index, similarity=attention.similarity[0], **further)
            frames |= frames_of(raw, to_draw)
            on_batch(len(raw.index))
    part = Part(arrays(_scored(columns.tensors(), boxes, consensus)), frames, loader.lost)
    whole = together(distributed.gather(part, world) if ranks_share(manifest, split, settings, world) else [part])
    return _result(manifest, split, whole, loader.pairs - whole.lost)


def _scored(columns: dict[str, torch.Tensor], boxes: torch.Tensor, consensus: int) -> dict[str, torch.Tensor]:
    """The columns with the cIoU of every pair, in few launches; without the compiled module a map takes 1 MB meanwhile.

    Args:
        columns: "rows" (N,) and "similarity" (N, h, w), among others; or {}, which stays as it is.
        boxes: (all rows, K, 4).
        consensus: as of metrics.ciou.
    """
    if not columns:
        return columns
    parts = zip(columns["similarity"].split(TOGETHER), columns["rows"].split(TOGETHER), strict=True)
    return columns | {"ciou": torch.cat([metrics.ciou(maps, boxes[rows], consensus) for maps, rows in parts])}


def _of_each_class(
    attention: kernels.Attention, manifest: Manifest, index: torch.Tensor, consensus: int
) -> torch.Tensor:
    """The cIoU (B, K) of each class of a batch, whose manifest rows are index (B,); NaN where it does not sound."""
    boxes = torch.from_numpy(datasets.boxes_by_class(manifest, index.cpu().numpy())).to(index.device)
    return class_aware.of_each_class(attention, boxes, consensus)


@contextlib.contextmanager
def _evaluating(model: models.Localizer, dtype: torch.dtype) -> Iterator[None]:
    """The model in evaluation mode, ready for views of ``dtype``; afterwards in the mode that it had."""
    was_training = model.training
    model.eval()
    model.prepare(dtype)
    try:
        yield
    finally:
        model.train(was_training)


def _result(manifest: Manifest, split: str, found: Part, expected: int) -> Evaluation:
    """The columns as an Evaluation, after a check that every pair is there exactly once."""
    if not found.columns:
        raise InputError(f"{manifest.place}: no pair of the {split} split decodes; run prepare again")
    rows, ciou = found.columns["rows"], found.columns["ciou"]
    heard = found.columns.get(_HEARD)
    others = ("rows", "ciou", _HEARD, _BY_CLASS)
    maps = {name: column.astype(np.float32) for name, column in found.columns.items() if name not in others}
    similarity = maps.pop("similarity")
    objects = maps.pop(_OBJECTS, None)
    if len(np.unique(rows)) != len(rows) or len(rows) != expected or not np.isin(rows, manifest.rows(split)).all():
        raise RuntimeError(f"evaluation of {split} saw {len(rows)} pairs, expected each of {expected} once")
    foreign = {name.removeprefix(_FOREIGN): each for name, each in maps.items()}
    drawn = samples(manifest, rows, ciou, similarity, found.frames)
    return Evaluation(rows, ciou, similarity, drawn, foreign, objects, heard, found.columns.get(_BY_CLASS))

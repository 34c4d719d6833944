"""Which files of a batch do not decode, and why."""

from __future__ import annotations

from itertools import repeat

import torch

from essl_fast.data.loading.graph import build_graph, graph_input
from essl_fast.data.media import decode_clip
from essl_fast.data.media.hardware import short_reason
from essl_fast.data.media.jpeg import picture_size
from essl_fast.data.shards import ALTERED, Picture


class DecodeError(RuntimeError):
    """A batch could not be decoded.

    Attributes:
        faults: place in the batch -> reason, for each file at fault. Empty: each of them decodes alone.
    """

    def __init__(self, faults: dict[int, str], cause: str):
        super().__init__(cause)
        self.faults = faults


def visible_fault(picture: Picture) -> str | None:
    """What is wrong with a file as far as can be seen without decoding it; None: nothing.

    DALI must not see damaged JPEG headers: some of them end the process.
    """
    if picture.target is None:
        try:
            picture_size(picture.file)
        except ValueError as error:  # says more than that its bytes changed
            return str(error)
    return ALTERED if picture.altered else None


def find_faults(pictures: list[Picture], known: dict[int, str], clips: bool) -> dict[int, str]:
    """Place -> reason of each file that does not decode. Each is decoded alone, since DALI does not always say which.

    Args:
        known: faults that were found before; these files are not decoded.
        clips: whether DALI decodes clips, too; else they have been decoded elsewhere.
    """
    faults: dict[int, str] = {}
    for i, picture in enumerate(pictures):
        if i in known:
            faults[i] = known[i]
            continue
        try:
            if picture.target is None:  # a new pipeline each, since one that has failed cannot be used any more
                build_graph(repeat(graph_input([picture], True, False)), 1, 1, torch.device("cpu"), 1, 1).run()
            elif clips:
                decode_clip(picture.file.tobytes(), picture.target)
        except (RuntimeError, ValueError) as error:
            faults[i] = short_reason(error)
    return faults

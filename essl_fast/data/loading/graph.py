"""The DALI graph that decodes batches of JPEG files and clips; one function builds it for both devices.

On a GPU a batch of both kinds is split by kind, decoded, merged again and resized there. On a CPU the graph decodes
only pictures, and `decoder` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def, types
from nvidia.dali.data_node import DataNode

from essl_fast.data.loading.resize import resize_dali
from essl_fast.data.media.colours import IDENTITY
from essl_fast.data.media.hardware import decode_clips
from essl_fast.data.shards import Picture

# The share of a batch that the GPU's JPEG engine decodes, where it has one; meanwhile nvJPEG's kernels, which need CPU
# threads, decode the rest. This is DALI's default. Which share suits a chip has not been measured yet.
JPEG_ENGINE_SHARE = 0.65


def build_graph(
    source: Callable[[], object] | Iterator,
    batch_size: int,
    side: int,
    device: torch.device,
    threads: int,
    depth: int,
    *,
    jpegs: bool = True,
    clips: bool = False,
    size_hint: tuple[int, int] = (0, 0),
) -> Pipeline:
    """A DALI pipeline: batches of files in, images out.

    Args:
        source: gives `graph_input` of one batch after another.
        batch_size: most files of a batch.
        side: pixels. On a GPU the images are (side, side, 3) uint8 there; on a CPU they keep their size.
        threads: CPU threads of the pipeline.
        depth: batches that are decoded at a time.
        jpegs, clips: the kinds of files that may come.
        size_hint: width and height of a JPEG, for which the GPU's engine takes memory at once. Larger pictures take
            theirs when they come.
    """
    gpu = device.type == "cuda"
    pipeline = _graph(
        source,
        jpegs,
        clips,
        "mixed" if gpu else "cpu",
        side if gpu else None,
        size_hint,
        batch_size=batch_size,
        num_threads=threads,
        device_id=device.index if gpu else None,
        prefetch_queue_depth=depth,
    )
    pipeline.build()
    return pipeline


def graph_input(pictures: list[Picture], jpegs: bool, clips: bool, turns: Sequence[np.ndarray] | None = None) -> list:
    """A batch as the source of a graph with these kinds gives it: the files; with clips, also the wanted frame of each
    and the correction of its colours, (3, 4) float32; with both kinds, also which of them are clips."""
    parts: list[Any] = [[picture.file for picture in pictures]]
    if clips:
        parts.append(np.array([[picture.target or 0] for picture in pictures], np.int32))
        parts.append(np.stack([IDENTITY] * len(pictures) if turns is None else turns))
    if clips and jpegs:
        parts.append(np.array([picture.target is not None for picture in pictures]))
    return parts


# dynamic: outputs can be ordered with a CUDA stream
@pipeline_def(enable_conditionals=True, exec_dynamic=True)  # type: ignore[call-overload]  # DALI's stub lacks it
def _graph(source, jpegs: bool, clips: bool, backend: str, side: int | None, size_hint: tuple[int, int]):
    count = 1 + 2 * clips + (clips and jpegs)  # what `graph_input` gives
    every: Any = types  # whose names are made by its C++ part
    kinds = [every.UINT8, every.INT32, every.FLOAT, every.BOOL][:count]
    files, *about = fn.external_source(source=source, num_outputs=count, dtype=kinds, ndim=[1, 1, 2, 0][:count])
    if not clips:
        images = _decode_jpegs(files, backend, size_hint)
    elif not jpegs:
        images = decode_clips(files, about[0], about[1], backend)
    else:
        targets, turns, is_clip = about
        if is_clip:  # a value of the graph: DALI splits the batch here and merges it again
            images = decode_clips(files, targets, turns, backend)
        else:
            images = _decode_jpegs(files, backend, size_hint)
    return images if side is None else resize_dali(images, side)


def _decode_jpegs(files: DataNode, backend: str, size_hint: tuple[int, int]) -> DataNode:
    options: dict[str, Any] = {}
    if backend == "mixed":
        options = {
            "preallocate_width_hint": size_hint[0],
            "preallocate_height_hint": size_hint[1],
            "hw_decoder_load": JPEG_ENGINE_SHARE,
            "jpeg_fancy_upsampling": True,  # chroma as on a CPU, and as Pillow and FFmpeg do it
        }
    rgb = types.RGB  # type: ignore[attr-defined]  # made by its C++ part
    return fn.decoders.image(files, device=backend, output_type=rgb, adjust_orientation=False, **options)

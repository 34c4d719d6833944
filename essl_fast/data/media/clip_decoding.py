"""Decodes a frame of a clip with PyAV: bit for bit the frame that `decode_frames` gives of the original video."""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from essl_fast.data.media import limits, opening
from essl_fast.data.media.display import upright
from essl_fast.data.media.errors import LIMIT, TRUNCATED, MediaError
from essl_fast.data.media.mp4 import ClipIndex, read_index

_DECODERS = {"av1": "libdav1d"}  # decoders whose name differs from the codec's


def decode_clip(data: bytes, target: int) -> np.ndarray:
    """Decode one frame of a clip, in one thread; the GIL is free while FFmpeg decodes.

    Args:
        data: the clip, an MP4 file as `cut_clips` and `cut_reels` make it.
        target: the frame's position, from 0, in the order of showing.

    Returns:
        RGB uint8 (H, W, 3), upright.

    Raises:
        MediaError: the clip is damaged, or its picture is too large.
        ValueError: it has no such frame.
    """
    index = read_index(data)
    count = len(index.shown)
    if not 0 <= target < count:
        raise ValueError(f"frame {target} of a clip of {count} frames, counted from 0")
    if wrong := limits.picture(index.width, index.height):
        raise MediaError(LIMIT, f"a clip of {count} frames: {wrong}")
    context, wanted = _decoder(index), None
    try:
        for place, rank in enumerate([*index.shown, None]):
            packet = None
            if rank is not None:
                packet = av.Packet(data[index.begins[place] : index.begins[place + 1]])
                packet.pts, packet.is_keyframe = rank, place == 0
            for frame in context.decode(packet):
                if frame.is_corrupt:
                    raise MediaError(TRUNCATED, f"frame {frame.pts} of a clip of {count} is damaged")
                wanted = frame if frame.pts == target else wanted
    except av.FFmpegError as error:
        raise MediaError(TRUNCATED, f"a clip of {count} frames: {opening.error_text(error)}") from error
    if wanted is None:
        raise MediaError(TRUNCATED, f"the decoder cannot restore frame {target} of a clip of {count}")
    return upright(wanted, index.matrix, index.colour[2] if index.colour else 2)


def _decoder(index: ClipIndex) -> Any:
    context: Any = av.CodecContext.create(_DECODERS.get(index.codec, index.codec), "r")
    context.extradata, context.thread_count = index.settings, 1
    context.width, context.height = index.width, index.height
    if index.colour is not None:
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = index.colour
    # H.264: "strict" gives frames in order also where the stream does not say how many pictures wait for others.
    context.options = limits.DECODER | ({"strict": "strict"} if index.codec == "h264" else {})
    return context

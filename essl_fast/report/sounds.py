"""The 3 s of sound of a pair, small enough for a page: AAC in MP4, which every browser plays."""

from __future__ import annotations

import io

import av
import numpy as np

RATE = 16_000  # Hz
BITS = 24_000  # a second: 9 KB for 3 s
MEDIA_TYPE = "audio/mp4"
MOST_BYTES = 3_000_000  # of all sounds in a page, before base64 adds a third


def encode_sound(pcm: np.ndarray) -> bytes:
    """Mono samples at 16 kHz, int16 (n,), as the bytes of an MP4 file."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        track = file.add_stream("aac", rate=RATE, layout="mono")
        track.bit_rate = BITS
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm, np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        file.mux(track.encode(frame))
        file.mux(track.encode())
    return out.getvalue()

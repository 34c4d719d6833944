"""Single objects and single sounds of the demo world's classes: what its small networks are pretrained on.

They stand for ImageNet and AudioSet: pictures and sounds of the same classes, each by itself, that are no part of any
world. Nothing here says which picture belongs to which sound but the class, which pretraining does not connect.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from essl_fast.data.synthetic import look, sound
from essl_fast.data.synthetic.look import HEIGHT, WIDTH
from essl_fast.data.synthetic.plan import CLASSES

RATE, SAMPLES = 16_000, 48_000  # of a sound, as the audio networks take it
BACKGROUND_USES = 6  # pictures that share a background, at other places of it: drawing one takes 15 ms


def pictures(count: int, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of one object each, anywhere before a cluttered background.

    Args:
        count: how many.
        side: of a picture, pixels.
        rng: the source of everything random.

    Returns:
        uint8 (count, side, side, 3) RGB, and int64 (count,), indices into `plan.CLASSES`; all classes occur equally
        often, within one.
    """
    kinds = rng.permutation(np.arange(count) % len(CLASSES))
    shown = np.empty((count, side, side, 3), np.uint8)
    ground = np.empty(0)
    for at, kind in enumerate(kinds):
        if at % BACKGROUND_USES == 0:
            ground = look.background(rng)
        y, x = int(rng.integers(2 * look.MARGIN_Y + 1)), int(rng.integers(2 * look.MARGIN_X + 1))
        frame = ground[y : y + HEIGHT, x : x + WIDTH].copy()
        if rng.random() < 0.5:
            frame = frame[:, ::-1].copy()
        width, height = (int(rng.uniform(0.25, 0.7) * whole) for whole in (WIDTH, HEIGHT))
        poses = look.sprite(CLASSES[kind], rng, width, height)
        place = int(rng.integers(WIDTH - width + 1)), int(rng.integers(HEIGHT - height + 1))
        look.paste(frame, look.stamp(poses[int(rng.integers(2))]), *place)
        shown[at] = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC))
    return shown, kinds


def sounds(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Three seconds of one class each: int16 (count, 48000) at 16 kHz, and int64 (count,) indices as of `pictures`."""
    kinds = rng.permutation(np.arange(count) % len(CLASSES))
    heard = np.empty((count, SAMPLES), np.int16)
    for at, kind in enumerate(kinds):
        clip = sound.clip(CLASSES[kind], rng, SAMPLES / RATE, RATE, 1)[0]
        heard[at] = np.rint(clip * 32767).astype(np.int16)
    return heard, kinds

"""The one resize, on both devices, beside Pillow's."""

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from essl_fast.data.loading.resize import resize_dali, resize_host
from tests.golden.store import golden


def dali_resize(image: np.ndarray, side: int) -> np.ndarray:
    """What `resize_dali` does, on DALI's CPU backend."""
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipe:
        source = fn.external_source(source=lambda: [image], dtype=types.UINT8, ndim=3, layout="HWC")
        pipe.set_outputs(resize_dali(source, side))
    pipe.build()
    return np.array(pipe.run()[0].at(0))


def host_resize(image: np.ndarray, side: int) -> np.ndarray:
    return resize_host(torch.tensor(image)[None], side)[0].numpy()


@pytest.mark.parametrize("resize", [host_resize, dali_resize])
def test_resize_is_the_published_one(resize):
    """Within 1 grey level of Pillow's bicubic, which the published code ran, on golden's frame."""
    data = golden("frames")
    difference = np.abs(resize(data["image"], 246).astype(int) - data["resize246_uint8"].astype(int))
    assert difference.max() <= 1 and difference.mean() < 0.02


SIZES = [(320, 180, 246), (320, 180, 224), (640, 360, 246), (246, 246, 246)]


@pytest.mark.parametrize(
    ("resize", "width", "height", "side"),
    [*[(r, *size) for r in (host_resize, dali_resize) for size in SIZES], (host_resize, 33, 97, 224)],
)
def test_resize_is_pillows(resize, width, height, side):
    """On pictures of hard contrast that shrink, grow and stay; on the host on noise, too, which clips everywhere."""
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(noise[:9, :16]).resize((width, height), Image.Resampling.BICUBIC))
    for image in (picture, noise) if resize is host_resize else (picture,):
        expected = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        difference = np.abs(resize(image, side).astype(int) - expected)
        assert difference.max() <= 2 and (difference > 1).mean() < 5e-4 and difference.mean() < 0.02

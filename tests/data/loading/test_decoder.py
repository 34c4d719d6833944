"""Decoding of pictures, on both devices."""

import gc
import io
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from essl_fast.data.loading import DecodeError, FrameDecoder
from essl_fast.data.shards import Picture
from tests.data.shards.test_shards import jpeg

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


def decode(batches: list[list[bytes]], side: int, pool, device=CPU, depth: int = 2) -> list[torch.Tensor]:
    """Every batch through a FrameDecoder."""
    feed = iter([[picture(file) for file in batch] for batch in batches])
    decoder = FrameDecoder(lambda: next(feed), max(map(len, batches)), side, device, 2, depth, pool)
    frames = list(decoder)
    decoder.close()
    return frames


def picture(file: bytes) -> Picture:
    return Picture(np.frombuffer(file, np.uint8))


def test_frames_come_in_order_whatever_their_size(pool):
    batches = [[jpeg(1), jpeg(2, (97, 33)), jpeg(3)], [jpeg(4)], [jpeg(5, (20, 80)), jpeg(6)]]
    for batch, frames in zip(batches, decode(batches, 32, pool), strict=True):
        assert frames.shape == (len(batch), 32, 32, 3) and frames.dtype == torch.uint8 and frames.is_contiguous()
        for file, frame in zip(batch, frames, strict=True):
            expected = Image.open(io.BytesIO(file)).resize((32, 32), Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(expected).astype(int) - frame.numpy()).max() <= 2  # JPEG decoders may differ by 1


@pytest.mark.slow
def test_frames_are_the_callers_to_keep(pool):
    batches = [[jpeg(i), jpeg(i + 1)] for i in range(12)]
    kept = decode(batches, 32, pool)
    for batch, frames in zip(batches, kept, strict=True):
        assert torch.equal(frames, decode([batch], 32, pool)[0])


def test_exif_orientation_is_ignored(pool):
    image, exif, file = Image.open(io.BytesIO(jpeg(3))), Image.Exif(), io.BytesIO()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    plain = io.BytesIO()
    image.save(plain, "JPEG", quality=95, subsampling=0)
    turned, straight = decode([[file.getvalue(), plain.getvalue()]], 32, pool)[0]
    assert torch.equal(turned, straight)


def test_grey_frames_become_rgb(pool):
    file = io.BytesIO()
    Image.fromarray(np.full((36, 64), 77, np.uint8)).save(file, "JPEG")
    assert torch.equal(decode([[file.getvalue()]], 16, pool)[0], torch.full((1, 16, 16, 3), 77, dtype=torch.uint8))


@pytest.mark.parametrize("bad", [b"x" * 500, jpeg(2)[: len(jpeg(2)) // 2]], ids=["no jpeg", "cut short"])
def test_a_bad_file_is_found(pool, bad):
    batches = [[jpeg(1), jpeg(2), jpeg(3)], [jpeg(4), bad, bad]]
    with pytest.raises(DecodeError) as error:
        decode(batches, 32, pool, depth=1)
    assert error.value.faults.keys() == {1, 2}
    said = "it is no JPEG file" if bad.startswith(b"x") else "Failed to decode sample"
    assert all(reason.startswith(said) and "\n" not in reason for reason in error.value.faults.values())


@pytest.mark.parametrize("kind", [FileNotFoundError, RuntimeError])
def test_what_the_source_raises_comes_out(pool, kind):
    def source():
        raise kind("gone")

    decoder = FrameDecoder(source, 4, 32, CPU, 1, 2, pool)
    with pytest.raises(kind, match="^gone$"):
        next(decoder)


def test_close_frees_the_pipeline(pool):
    decoder = FrameDecoder(lambda: [picture(jpeg(1))], 1, 32, CPU, 1, 2, pool)
    frames, pipe = next(decoder), weakref.ref(decoder._pipeline)
    gc.disable()
    try:
        decoder.close()
        assert pipe() is None
    finally:
        gc.enable()
    assert frames.shape == (1, 32, 32, 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_decodes_as_the_cpu(pool):
    batches = [[jpeg(i, (320, 180)) for i in range(j, j + 5)] for j in (0, 5)]
    device = torch.device("cuda", torch.cuda.current_device())
    for ours, theirs in zip(decode(batches, 246, pool, device), decode(batches, 246, pool), strict=True):
        assert ours.device == device and ours.dtype == torch.uint8
        assert (ours.cpu().int() - theirs.int()).abs().float().mean() < 2

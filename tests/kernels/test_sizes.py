"""Maps and strides past 2^31 elements: offsets have 64 bits, and what counts with 32 gets the batch in parts."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from essl_fast import models
from essl_fast.kernels import convolution, cosine, pixel_bce_op, reference
from essl_fast.kernels.attention import audio_guided_attention

PAST = 2**31  # elements
IN_32_BITS = ("conv_relu", "max_pool2d")


class Recorder(TorchDispatchMode):
    """The largest tensor that each op got or returned, in elements."""

    def __init__(self):
        super().__init__()
        self.largest = {}

    def __torch_dispatch__(self, op, kinds, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        values = (*args, *(out if isinstance(out, tuple) else (out,)))
        sizes = [x.numel() for x in values if isinstance(x, torch.Tensor)]
        name = op.overloadpacket.__name__
        self.largest[name] = max([self.largest.get(name, 0), *sizes])
        return out


@pytest.mark.parametrize("pairs", [334, 335, 1024])
@pytest.mark.parametrize("form", ["plain", "prepared"])
def test_the_trunk_takes_any_batch(pairs, form):
    """No op that counts with 32 bits sees 2^31 elements; 334 pairs are the last ones that go in one part."""
    with FakeTensorMode(), torch.no_grad():
        trunk = models.VGG16Trunk()
        if form == "prepared":
            trunk.prepare(torch.float32)
            trunk._ready = trunk._ready._replace(fused=[True] * 12)
        images = torch.empty(2 * pairs, 3, 224, 224).to(memory_format=torch.channels_last)
        with Recorder() as seen:
            out = trunk(images)
    assert out.shape == (2 * pairs, 512, 14, 14) and out.is_contiguous(memory_format=torch.channels_last)
    counted = {name: size for name, size in seen.largest.items() if name.startswith(IN_32_BITS)}
    assert counted and max(counted.values()) < PAST
    assert ("cat" in seen.largest) == (pairs > 334)


def test_the_fused_convolution_splits_a_batch(monkeypatch):
    """cuDNN's call gets parts of a batch, in order, and the result is one map."""
    x, weight, bias = torch.randn(7, 3, 5, 4), torch.randn(8, 3, 3, 3), torch.randn(8)
    calls = []

    def cudnn(x, weight, bias, *_):
        calls.append(len(x))
        return reference.conv_relu(x, weight, bias)

    monkeypatch.setattr(torch, "cudnn_convolution_relu", cudnn)
    monkeypatch.setattr(convolution, "MOST_ELEMENTS", 3 * 8 * 20)
    out = convolution._cudnn(x, weight, bias)
    torch.testing.assert_close(out, reference.conv_relu(x, weight, bias))
    assert calls == [3, 3, 1] and out.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(convolution, "MOST_ELEMENTS", 1)  # one sample is already too much: it goes alone
    torch.testing.assert_close(convolution._cudnn(x, weight, bias), out)
    assert calls[3:] == [1] * 7


def far_apart(values):
    """The values (2, ...), the second more than 2^31 elements after the first. Pages that nobody touches cost nothing.

    An offset of 32 bits would be negative: the interpreter would read before the tensor, and the process would end.
    """
    try:
        room = torch.empty(PAST + 64 + values[0].numel(), dtype=values.dtype)
    except RuntimeError as error:
        pytest.skip(f"this machine does not give out memory that is not used: {error}")
    return room.as_strided(values.shape, (PAST + 64, *values.stride()[1:])).copy_(values)


@pytest.mark.usefixtures("triton_on_cpu")
def test_attention_reads_samples_far_apart():
    torch.manual_seed(0)
    features, audio = torch.randn(2, 16, 2, 3, dtype=torch.bfloat16), torch.randn(2, 16)
    found = audio_guided_attention(far_apart(features), audio)
    for have, want in zip(found, reference.audio_guided_attention(features, audio), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("triton_on_cpu")
def test_the_cosine_reads_rows_far_apart():
    torch.manual_seed(0)
    given = [torch.randn(2, 32, dtype=torch.bfloat16) for _ in range(4)]
    for at in range(4):
        inputs = [far_apart(x) if i == at else x for i, x in enumerate(given)]
        found = cosine.negative_cosine_similarity(*inputs)
        torch.testing.assert_close(found, reference.negative_cosine_similarity(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("triton_on_cpu")
def test_the_pixel_loss_reads_maps_far_apart():
    attention = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    boxes, labelled = torch.tensor([[[2, 3, 20, 25]], [[0, 0, 9, 30]]]), torch.tensor([True, True])
    found = pixel_bce_op.pixel_bce(far_apart(attention), boxes, labelled, size=32)
    torch.testing.assert_close(found, reference.pixel_bce(attention, boxes, labelled, size=32), rtol=1e-4, atol=1e-5)

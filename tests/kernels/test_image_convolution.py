"""The first layer's kernel against the reference in float64: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch

from essl_fast import kernels
from essl_fast.kernels import convolution, image_convolution, reference

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def device(request, monkeypatch):
    """Where the kernel runs; its output starts as NaN."""

    def poisoned(shape, like):
        return torch.full(shape, float("nan"), dtype=like.dtype, device=like.device).to(
            memory_format=torch.channels_last
        )

    monkeypatch.setattr(image_convolution, "_empty", poisoned)
    if request.param == "cpu":
        request.getfixturevalue("triton_on_cpu")
    return request.param


def layer(shape, outputs, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(sum(shape))
    shapes = (shape, (outputs, shape[1], 3, 3), (outputs,))
    return [torch.randn(each, generator=generator).to(device, dtype) for each in shapes]


# float32, which no launch uses, has the interpreter's exact sums: bfloat16's products are wrong there.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape, outputs", [((3, 3, 19, 21), 64), ((1, 1, 5, 4), 16), ((2, 2, 1, 1), 32)], ids=str)
def test_it_is_the_convolution(device, dtype, shape, outputs):
    given = layer(shape, outputs, dtype, device)
    expected = reference.conv_relu(*(t.double() for t in given))
    for form in (torch.channels_last, torch.contiguous_format):
        x, weight = (t.contiguous(memory_format=form) for t in given[:2])
        found = image_convolution.image_conv_relu(x, weight, given[2])
        assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
        bound = 4 * torch.finfo(dtype).eps * max(1.0, expected.abs().max().item())
        assert (found.double() - expected).abs().max() <= bound


def test_a_programs_pixels_end_anywhere(device, monkeypatch):
    """Fewer pixels than a block, exactly its pixels, one more; and several programs."""
    monkeypatch.setattr(image_convolution, "BLOCK", 16)
    monkeypatch.setattr(image_convolution, "BLOCKS", 2)
    for width in (15, 16, 17, 32, 33, 70):
        given = layer((1, 3, 1, width), 16, torch.float16, device)
        expected = reference.conv_relu(*(t.float() for t in given))
        torch.testing.assert_close(image_convolution.image_conv_relu(*given).float(), expected, rtol=2e-3, atol=2e-2)


def test_an_offset_past_2_31_is_right(triton_on_cpu, monkeypatch):
    """The last image's pixels are written past 2^31 elements; the pages before them, which nobody touches, are free."""
    from triton.runtime.interpreter import interpreter_builder

    x, weight, bias = layer((1, 3, 4, 5), 16, torch.float16)
    pixels, block = 20, 32
    before = (2**31 // 16 // pixels + 1) * pixels  # whole images
    try:
        image, room = (torch.empty((before + pixels) * width, dtype=torch.float16) for width in (3, 16))
    except RuntimeError as error:
        pytest.skip(f"this machine does not give out memory that is not used: {error}")
    image[-3 * pixels :] = x.permute(0, 2, 3, 1).flatten()
    first = before // block  # the program of the last image's first pixel, where the interpreter begins

    def later(row, *_):
        interpreter_builder.grid_idx = (first + row, 0, 0)

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", later)
    sizes = {"H": 4, "W": 5, "C": 3, "K": 16, "TAPS": 32, "BLOCK": block, "BLOCKS": 1}
    kernel = image_convolution._image_kernel
    kernel[(2,)](image, weight.permute(0, 2, 3, 1).contiguous(), bias, room, before + pixels, **sizes)
    found = room[-16 * pixels :].view(1, 4, 5, 16).permute(0, 3, 1, 2)
    expected = reference.conv_relu(*(t.float() for t in (x, weight, bias)))
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-2)


def test_which_layers_it_takes(monkeypatch):
    gpu, image = torch.device("cuda"), (3, 64)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)  # so that nothing is tried out
    convolution.conv_relu_fuses.cache_clear()
    assert kernels.conv_relu_fuses(gpu, torch.bfloat16, *image) and kernels.conv_relu_fuses(gpu, torch.float16, *image)
    for dtype, channels, outputs in ((torch.float32, 3, 64), (torch.bfloat16, 4, 64), (torch.bfloat16, 3, 48)):
        assert not kernels.conv_relu_fuses(gpu, dtype, channels, outputs)
    assert not kernels.conv_relu_fuses(torch.device("cpu"), torch.bfloat16, *image)
    convolution.conv_relu_fuses.cache_clear()

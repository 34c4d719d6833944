"""Does the pretence hold with this PyTorch? If not, what the other checks say means nothing."""

import contextlib

import torch  # noqa: E402

from tests.phantom.chip import GPU, pretend  # before torch
from tests.phantom.chips import CHIPS
from tests.phantom.watching import Watch


def check(chip: str = "h200") -> list[str]:
    """A line for each thing that the pretended GPU does otherwise than a real one."""
    found: list[str] = []

    def must(holds: bool, what: str) -> None:
        if not holds:
            found.append(f"the pretence does not fit PyTorch {torch.__version__}: {what}")

    with pretend(CHIPS[chip]):
        weight = torch.nn.Parameter(torch.empty(8, 16, 3, 3, device=GPU))
        image = torch.empty(2, 16, 14, 14, device=GPU).to(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16):
            out = torch.conv2d(image, weight)
            product = torch.mm(weight.flatten(1), weight.flatten(1).T)
        must(out.is_contiguous(memory_format=torch.channels_last), "a bf16 convolution is not channels_last")
        must(out.dtype == product.dtype == torch.bfloat16, "autocast gives no bf16")
        try:
            out.float().square().sum().backward()
            must(weight.grad is not None and weight.grad.device == GPU, "a backward pass leaves no gradient on the GPU")
        except RuntimeError as error:
            must(False, f"no backward pass runs: {str(error).splitlines()[0]}")
        count = torch.cuda.get_device_properties(GPU).multi_processor_count
        must(count == CHIPS[chip].multiprocessors, f"{count} multiprocessors")
        must(torch.cuda.get_device_capability() == CHIPS[chip].capability, "another compute capability")
        with Watch() as watch:
            with contextlib.suppress(Exception):  # what a fake tensor says to that differs from version to version
                torch.empty((), device=GPU).item()
            torch.empty(4, device=GPU) + torch.empty(4).to(GPU)
        must(any("waits" in line for line in watch.faults), "a wait for the GPU is not seen")
        must(any("host and GPU" in line for line in watch.faults), "a copy from the host is not seen")
    return found

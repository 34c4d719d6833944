"""The losses of the demo's first 50 steps, in float64 with one thread: whatever changes what is computed shows here.

On one machine two runs agree to the bit; with the stored curve, of any machine, to 1e-9. So everything that differs
between machines is left out: frames, sounds and first weights are NumPy's numbers in place of a decoder's, an FFT's and
those of PyTorch, whose normal distribution depends on the processor. And what differs must not grow: sums in another
order change a loss by 1e-15, and with three pairs a batch, where the head's batch norms know three projections, every
step makes ten times as much of it. With six pairs and a quarter of the demo's learning rates 50 steps make 2e-13 of it.
The head is 256 wide, not 2048, for the time's sake.

`python -m tests.golden.test_loss_curve --write` stores a new curve; say in the changelog why it is another one.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from essl_fast import config, models
from essl_fast.data.loading import RawBatch
from essl_fast.train.data import Labels
from essl_fast.train.step import TrainStep

CURVE = Path(__file__).parent / "data" / "loss_curve.json"
STEPS, PAIRS, BATCH, PER_EPOCH = 50, 12, 6, 5
RATES = ("--optim.lr_sound", "1e-3", "--optim.lr_head", "2.5e-4", "--optim.lr_trunk", "1e-3")


def pairs(random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, Labels]:
    """Frames with a bright box, the log-mel of their sounds, and the boxes; every fourth pair has no label."""
    side, corners = config.STORED_SIDE, random.integers(0, 120, (PAIRS, 2))
    boxes = np.concatenate([corners, corners + random.integers(30, 100, (PAIRS, 2))], axis=1).astype(np.int32)
    frames = random.integers(0, 120, (PAIRS, side, side, 3), dtype=np.uint8)
    for frame, (left, top, right, bottom) in zip(frames, boxes * side // config.SIZE, strict=True):
        frame[top:bottom, left:right] += 100
    sound = random.random((PAIRS, 3, 96, 64)) * np.linspace(0.1, 3, PAIRS)[:, None, None, None] - 2
    labels = Labels(torch.from_numpy(boxes)[:, None], torch.arange(PAIRS) % 4 != 3)
    return torch.from_numpy(frames), torch.from_numpy(sound), labels


def model_of(settings: config.Config, random: np.random.Generator) -> models.Localizer:
    """The demo's networks in float64. Matrices are uniform, as wide as their number of inputs allows; biases are 0."""
    model = models.build(settings.model).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
            elif weight.dim() > 1:
                width = (3 / weight[0].numel()) ** 0.5
                weight.copy_(torch.from_numpy(width * (2 * random.random(tuple(weight.shape)) - 1)))
    model.register_forward_pre_hook(lambda _, inputs: tuple(given.double() for given in inputs))
    return model.train()


def curve(steps: int = STEPS) -> list[float]:
    """The losses of the first steps."""
    random = np.random.Generator(np.random.PCG64(0))
    settings = config.load(
        "demo", ["--data.root", ".", "--data.batch_size", str(BATCH), "--model.head_dim", "256", *RATES]
    )
    frames, sound, labels = pairs(random)
    model, cpu, losses = model_of(settings, random), torch.device("cpu"), []
    step = TrainStep(
        settings,
        model,
        labels,
        consensus=1,
        steps_per_epoch=PER_EPOCH,
        held=True,
        device=cpu,
        dtype=torch.float32,  # without autocast: the model's own type
    )
    for number in range(steps):
        rows = torch.from_numpy(random.permutation(PAIRS)[:BATCH])
        raw = RawBatch(frames, rows, sound[rows], rows)
        losses.append(step(raw, number // PER_EPOCH, number)["loss"].item())
    return losses


@pytest.mark.slow
def test_the_losses_of_the_demos_first_steps(one_thread):
    found = curve()
    assert curve(3) == found[:3]
    stored = json.loads(CURVE.read_text())["losses"]
    np.testing.assert_allclose(found, stored, rtol=0, atol=1e-9)
    assert len(found) == STEPS and np.mean(found[-10:]) < np.mean(found[:10])  # it learns


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.golden.test_loss_curve", description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the curve (default: print it)")
    torch.set_num_threads(1)
    text = json.dumps({"torch": torch.__version__, "losses": curve()}, indent=1) + "\n"
    if parser.parse_args().write:
        CURVE.write_text(text)
    else:
        print(text)

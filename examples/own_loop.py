"""python examples/own_loop.py FOLDER: our loader and kernels in a training loop of one's own.

FOLDER is what `python -m essl_fast.prepare --out FOLDER` made. The network here is a toy: replace it with yours.
"""

import sys

import torch
from torch import nn
from torch.nn import functional

from essl_fast import Loader, kernels


class Toy(nn.Module):
    """views (V * B, 3, 224, 224), log-mel (B, 3, 96, 64) -> maps (V * B, 64, 14, 14), sound (B, 64)."""

    def __init__(self):
        super().__init__()
        self.see = nn.Conv2d(3, 64, kernel_size=16, stride=16)
        self.hear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 64, 64))

    def forward(self, views, sound):
        return self.see(views), self.hear(sound)


def train(folder: str, steps: int = 20, seed: int = 0) -> list[float]:
    """Train for some steps with a contrastive loss, and return the losses."""
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Toy().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses: list[float] = []
    # 246 is the side of the stored frames; the views are windows of 224 x 224 in them.
    with Loader(folder, "train", batch_size=8, side=246, shuffle=True, device=device, seed=seed) as loader:
        while len(losses) < steps:
            epoch = loader.epoch
            for batch in loader:
                windows = kernels.view_params(seed, epoch, batch.index, 246 - 224)
                views = kernels.two_views(batch.frames, batch.rows, *windows, 224, torch.float32)
                maps, sound = model(views.flatten(0, 1), kernels.log_mel(batch.sound))
                attention = kernels.audio_guided_attention(maps, sound.repeat(2, 1))
                pooled = functional.normalize(attention.pooled[: len(sound)], dim=1)
                scores = pooled @ functional.normalize(sound, dim=1).T / 0.1
                loss = functional.cross_entropy(scores, torch.arange(len(scores), device=device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                if len(losses) == steps:
                    break
    return losses


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/own_loop.py FOLDER")
    for number, loss in enumerate(train(sys.argv[1]), 1):
        print(f"step {number}: loss {loss:.4f}")

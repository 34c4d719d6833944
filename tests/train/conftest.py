"""A finished run that tests of training share."""

import pytest
import torch

from essl_fast.train import __main__ as train_door

# The warm-up ends within the first epoch, so that a resume meets every part of the schedule.
ARGUMENTS = (
    "--config demo --epochs 2 --data.batch_size 5 --device cpu --eval_every 1 --overlays 4 --optim.warmup 0.5".split()
)


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """A whole run on the tiny world: (run directory, prepared folder)."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train_door.main([*ARGUMENTS, "--data.root", str(tiny[1]), "--out", str(out)]) == 0
    return out, tiny[1]

"""Running statistics of ranks that take the batches of an update by turns."""

import contextlib
import copy

import pytest
import torch

from essl_fast import models
from essl_fast.runtime import distributed
from essl_fast.runtime.distributed import World
from essl_fast.train.running import RunningStatistics


def test_running_statistics_are_those_of_one_process(monkeypatch):
    """Five batches on three ranks; a norm that a batch passes twice, one in evaluation, and one without statistics."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice = models.norm.ViewBatchNorm(4, momentum=0.3), torch.nn.BatchNorm1d(4)
            self.frozen, self.bare = torch.nn.BatchNorm1d(4).eval(), torch.nn.BatchNorm1d(4, track_running_stats=False)

        def forward(self, x):
            return self.bare(self.frozen(self.twice(self.twice(self.once(x, 2)).square())))

    torch.manual_seed(0)
    alone, batches = Network().double(), [torch.randn(6, 4, dtype=torch.float64) * (1 + number) for number in range(10)]
    ranks = [copy.deepcopy(alone) for _ in range(3)]
    for update in (batches[:5], batches[5:]):
        for batch in update:
            alone(batch)
        parts = []
        for settles in (False, True):  # the first time, only to learn what each rank adds
            total = (
                (lambda _, __, parts=parts: sum(parts)) if settles else (lambda own, _, parts=parts: parts.append(own))
            )
            monkeypatch.setattr(distributed, "total", total)
            before = [copy.deepcopy(each.state_dict()) for each in ranks]
            for rank, network in enumerate(ranks):
                running = RunningStatistics(network, World(rank, 3), 5)
                assert running.share == 5 / 3
                running.begin()
                for batch in update[rank::3]:
                    network(batch)
                    running.keep()
                with contextlib.nullcontext() if settles else pytest.raises(TypeError):
                    running.settle()
            for network, state in zip(ranks, before, strict=True) if not settles else ():
                network.load_state_dict(state)
    for network in ranks:
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-14, atol=1e-14, msg=name)
    assert alone.twice.num_batches_tracked == 20 and not alone.frozen.num_batches_tracked

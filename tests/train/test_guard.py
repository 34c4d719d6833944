"""A step that is not finite changes no weight, no moment and no running statistic."""

import math

import pytest
import torch
from torch import nn

from essl_fast.train import guard


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def steps(batches, poison=(), latch=False):
    """The state of a network and its optimizer after a step with each batch; the gradients of some are spoiled."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    watch, flags = guard.Guard(model, torch.device("cpu"), latch), []
    for number, batch in enumerate(batches):
        watch.begin()
        loss = model(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if number in poison:
            model[0].weight.grad[1, 2] = poison[number]
        optimizer.found_inf = watch.judge(loss, guard.gradient_norm(model.parameters()))
        optimizer.step()
        watch.settle()
        flags.append(watch.flag.item())
    moments = [value for state in optimizer.state.values() for value in state.values()]
    return [*model.state_dict().values(), *moments], flags


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])  # the square of the last overflows
def test_a_gradient_that_is_not_finite_changes_nothing(value):
    batches = list(torch.randn(4, 5, 6))
    spoiled, flags = steps(batches, poison={2: value})
    without, _ = steps(batches[:2] + batches[3:])
    assert flags == [0, 0, 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(spoiled, without, strict=True))


def test_a_batch_that_is_not_finite_leaves_the_running_statistics():
    batches = list(torch.randn(4, 5, 6))
    bad = batches[2].clone()
    bad[0, 0] = math.nan
    spoiled, flags = steps([*batches[:2], bad, batches[3]])
    without, _ = steps(batches[:2] + batches[3:])
    assert flags == [0, 0, 1, 0]
    assert all(torch.equal(a, b) for a, b in zip(spoiled, without, strict=True))


def test_a_latched_guard_keeps_what_the_first_bad_step_began_with():
    batches = list(torch.randn(5, 5, 6))
    latched, flags = steps(batches, poison={2: math.nan}, latch=True)
    until, _ = steps(batches[:2])
    assert flags == [0, 0, 1, 0, 0]
    assert all(torch.equal(a, b) for a, b in zip(latched, until, strict=True))

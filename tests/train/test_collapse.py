"""The collapse of projections is measured, and reported once."""

import pytest
import torch

from essl_fast import models
from essl_fast.train import collapse


def test_how_far_projections_are_apart():
    torch.manual_seed(0)
    spread = torch.randn(2, 64, 2048)
    found = collapse.projection_spread(spread)
    assert found["projection_std"].item() == pytest.approx(1, abs=0.02)
    singular = torch.linalg.svdvals((spread - spread.mean(1, keepdim=True)).double()) ** 2
    expected = (singular.sum(1) ** 2 / (singular**2).sum(1)).mean().item()
    assert found["projection_rank"].item() == pytest.approx(expected, rel=1e-4) and expected > 55
    line = torch.randn(2, 64, 1) * torch.randn(2, 1, 2048)
    assert collapse.projection_spread(line)["projection_rank"].item() == pytest.approx(1, abs=1e-4)
    assert [value.item() for value in collapse.projection_spread(torch.ones(2, 64, 256)).values()] == [0, 0]
    assert {value.dtype for value in collapse.projection_spread(spread.bfloat16()).values()} == {torch.float32}

    head = models.SimSiamHead(128).train()
    pooled = torch.randn(2, 32, 128)
    healthy = collapse.projection_spread(head(pooled)[1])
    assert healthy["projection_std"] > 0.9 and healthy["projection_rank"] > 5
    same = collapse.projection_spread(head(torch.randn(2, 1, 128).expand(2, 32, 128))[1])
    assert same["projection_std"] < collapse.COLLAPSED_BELOW
    along = collapse.projection_spread(head(torch.randn(2, 1, 128) + 1e-3 * pooled[:, :, :1])[1])
    assert along["projection_std"] > 0.9 and along["projection_rank"] < 0.2 * healthy["projection_rank"]


def test_how_far_the_projections_of_several_ranks_are_apart():
    """Rows that do not count are zeros, wherever they stand."""
    torch.manual_seed(0)
    z, counts = torch.randn(2, 9, 64) + 1, torch.tensor([1.0, 1, 0, 1, 1, 1, 0, 1, 0])
    expected = collapse.projection_spread(z[:, counts.bool()])
    found = collapse.projection_spread(z * counts[:, None], counts)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5
    )


def test_the_warning_of_a_collapse():
    entries = [{"projection_std": value, "projection_rank": 9.0} for value in (0.9, 0.05, 0.04, 0.8, 0.02)]
    said = [collapse.collapse_warning(entries[: count + 1], 16) is not None for count in range(5)]
    assert said == [False, True, False, False, True]  # once for each time that it collapses
    text = collapse.collapse_warning(entries[:2], 16)
    assert "collapsed" in text and "optim.lr_head" in text
    assert collapse.collapse_warning([], 16) is None and collapse.collapse_warning([{"losses": {}}], 16) is None
    line = [{"projection_std": 0.95, "projection_rank": 1.1}]
    assert "on a line: projection_rank is 1.10" in collapse.collapse_warning(line, 16)
    assert collapse.collapse_warning(line, 4) is None

"""What each method minimises."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from essl_fast import config, kernels
from essl_fast.models import Forward, objectives


def forward_of(batch=3, seed=0):
    torch.manual_seed(seed)
    p, z = torch.randn(2, batch, 8, requires_grad=True), torch.randn(2, batch, 8)
    attention = torch.rand(2, batch, 14, 14, requires_grad=True)
    return Forward(p, z, torch.randn(2, batch, 14, 14), attention)


BOXES = torch.tensor([[[0, 0, 100, 50]], [[10, 20, 90, 200]], [[0, 0, 0, 0]]], dtype=torch.int32)
LABELLED = torch.tensor([True, True, False])


def test_sspl_is_l_u_alone():
    forward = forward_of()
    loss = objectives.build(config.load("sspl").objective)(forward, BOXES, LABELLED)
    assert set(loss) == {"loss"}
    torch.testing.assert_close(loss["loss"], kernels.negative_cosine_similarity(*forward.p, *forward.z))


def test_semipl_adds_lambda_l_s_over_both_views():
    forward = forward_of()
    settings = config.load("semipl", ["--objective.supervised_weight", "0.25"]).objective
    parts = objectives.build(settings)(forward, BOXES, LABELLED)
    by_view = [kernels.pixel_bce(view, BOXES, LABELLED) for view in forward.attention]
    torch.testing.assert_close(parts["supervised"], sum(by_view) / 2)
    torch.testing.assert_close(parts["loss"], parts["unsupervised"] + 0.25 * parts["supervised"])


def test_boxes_view_by_view():
    forward = forward_of()
    objective = objectives.build(config.load("demo", ["--objective.method", "supervised"]).objective)
    shifted = BOXES + torch.tensor([5, 5, 5, 5], dtype=torch.int32)
    both = objective(forward, torch.stack([BOXES, shifted]), LABELLED)["loss"]
    expected = (
        kernels.pixel_bce(forward.attention[0], BOXES, LABELLED)
        + kernels.pixel_bce(forward.attention[1], shifted, LABELLED)
    ) / 2
    torch.testing.assert_close(both, expected)


def test_unlabelled_pairs_leave_l_s_out():
    forward = forward_of()
    parts = objectives.build(config.load("semipl").objective)(forward, BOXES, torch.zeros(3, dtype=torch.bool))
    assert parts["supervised"].item() == 0
    parts["loss"].backward()
    assert forward.attention.grad.abs().sum() == 0 and forward.p.grad.abs().sum() > 0


def test_wrong_use_is_named():
    with pytest.raises(ValueError, match="objective.method"):
        objectives.build(SimpleNamespace(method="magic"))
    forward = forward_of()
    one_view = Forward(forward.p[:1], forward.z[:1], forward.similarity[:1], forward.attention[:1])
    with pytest.raises(ValueError, match="two views"):
        objectives.unsupervised(one_view)


def test_shares_make_the_mean_over_ranks_the_loss_of_all_pairs():
    forward, objective = forward_of(), objectives.build(config.load("semipl").objective)
    whole = objective(forward, BOXES, LABELLED)
    losses = []
    for mine in (slice(0, 1), slice(1, 3)):  # rank 0 has one pair, rank 1 two; each has one that is labelled
        part = Forward(*(field[:, mine] for field in forward))
        counts, totals = torch.tensor([mine.stop - mine.start, 1.0]), torch.tensor([3.0, 2.0])
        shares = objectives.Shares.of(counts, totals, 2)
        losses.append(objective(part, BOXES[mine], LABELLED[mine], shares))
    for name, value in whole.items():
        torch.testing.assert_close(sum(loss[name] for loss in losses) / 2, value)
    none = objectives.Shares.of(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]), 2)
    assert none.supervised == 0 and none.unsupervised == 1


def test_the_sigmoid_map_says_nowhere_too():
    forward = forward_of()
    similarity = forward.similarity.clone().requires_grad_()
    forward = forward._replace(similarity=similarity)
    settings = config.load("semipl", ["objective.supervised_map=sigmoid", "objective.supervised_scale=3"]).objective
    parts = objectives.build(settings)(forward, BOXES, LABELLED)
    maps = 1 / (1 + (-3 * similarity).exp())
    expected = sum(kernels.pixel_bce(view, BOXES, LABELLED) for view in maps) / 2
    torch.testing.assert_close(parts["supervised"], expected)
    parts["supervised"].backward()
    assert similarity.grad[:, :2].all() and not similarity.grad[:, 2].any() and forward.attention.grad is None
    alone = config.load("semipl", ["objective.supervised_map=sigmoid", "objective.method=supervised"]).objective
    away = forward._replace(similarity=torch.full_like(similarity, -5))  # a map without a peak can agree with no box
    nothing = torch.zeros(3, 1, 4, dtype=torch.int32)
    assert objectives.build(alone)(away, nothing, LABELLED)["loss"] < 1e-5


def plain_l_s(attention, boxes, labelled, consensus):
    """L_S of the published formula in NumPy, one pixel weight a box."""
    losses = []
    for heat, those, wanted in zip(attention, boxes, labelled, strict=True):
        if wanted:
            weights = np.zeros((224, 224))
            for x1, y1, x2, y2 in those:
                weights[y1:y2, x1:x2] += 1
            weights = np.minimum(weights / consensus, 1)
            place = np.clip((np.arange(224) + 0.5) * 14 / 224 - 0.5, 0, 13)
            low, part = np.floor(place).astype(int), place - np.floor(place)
            high = np.minimum(low + 1, 13)
            rows = heat[low] * (1 - part)[:, None] + heat[high] * part[:, None]
            wide = np.clip(rows[:, low] * (1 - part) + rows[:, high] * part, 1e-6, 1 - 1e-6)
            losses.append(-(weights * np.log(wide) + (1 - weights) * np.log(1 - wide)).mean())
    return np.mean(losses)


@pytest.mark.parametrize("consensus", [1, 2])
@pytest.mark.parametrize("method", ["semipl", "supervised"])
def test_all_boxes_of_a_frame_count(method, consensus):
    """Several sources in one frame: overlapping boxes, boxes apart, padding; one frame without a label among them."""
    forward = forward_of(batch=4)
    boxes = torch.tensor(
        [
            [[10, 10, 90, 90], [50, 50, 140, 100], [0, 0, 0, 0]],
            [[0, 0, 30, 30], [180, 180, 224, 224], [100, 0, 120, 9]],
            [[0, 0, 224, 224], [0, 0, 224, 224], [5, 5, 9, 9]],
            [[30, 30, 60, 60], [0, 0, 0, 0], [0, 0, 0, 0]],
        ],
        dtype=torch.int32,
    )
    labelled = torch.tensor([True, True, False, True])
    settings = config.load("semipl", [f"objective.method={method}", f"objective.consensus={consensus}"]).objective
    parts = objectives.build(settings)(forward, boxes, labelled)
    maps = forward.attention.detach().double().numpy()
    expected = np.mean([plain_l_s(view, boxes.numpy(), labelled.tolist(), consensus) for view in maps])
    assert parts["loss" if method == "supervised" else "supervised"].item() == pytest.approx(expected, rel=1e-5)

"""cIoU, success rate, AUC."""

import numpy as np
import pytest
import torch

from essl_fast import metrics


def test_a_perfect_and_a_missed_localization():
    boxes = torch.tensor([[[0, 0, 112, 224]], [[0, 0, 112, 224]]], dtype=torch.int32)
    heat = torch.zeros(2, 14, 14)
    heat[0, :, :7] = 1
    heat[1, :, 7:] = 1
    scores = metrics.ciou(heat, boxes)
    assert scores[0] > 0.98 and scores[1] < 0.05
    summary = metrics.summarize(scores)
    assert summary.success_at_half == 0.5 and summary.curve[0] == 1 and len(summary.curve) == 21


def test_auc_of_known_scores():
    assert metrics.summarize([1.0, 1.0]).auc == pytest.approx(1.0)
    assert metrics.summarize([0.0]).auc == pytest.approx(0.025)  # succeeds at threshold 0 alone
    assert metrics.summarize(np.array([np.nan, 1.0])).success_at_half == 0.5


def test_no_scores_is_an_error():
    with pytest.raises(ValueError, match="N >= 1"):
        metrics.summarize([])


def test_per_class():
    table = metrics.per_class([0.9, 0.1, np.nan, 0.6], [0, 0, 2, 2], ["a", "b", "c"])
    assert table["a"] == {"pairs": 2, "success_at_half": 0.5, "auc": pytest.approx(metrics.summarize([0.9, 0.1]).auc)}
    assert set(table) == {"a", "c"} and table["c"]["success_at_half"] == 0.5

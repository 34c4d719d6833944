"""cIoU, success rate, AUC."""

import numpy as np
import pytest
import torch

from essl_fast.evaluate import metrics


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


def test_a_score_of_exactly_a_threshold_succeeds():
    found = metrics.summarize(torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64))
    assert found.success_at_half == pytest.approx(2 / 3)
    assert found.curve[[5, 10, 20]].tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    assert metrics.summarize([np.nan, 0.0]).curve[0] == 0.5


def test_no_scores_is_an_error():
    with pytest.raises(ValueError, match="N >= 1"):
        metrics.summarize([])


def test_per_class():
    table = metrics.per_class([0.9, 0.1, np.nan, 0.6], [0, 0, 2, 2], ["a", "b", "c"])
    assert table["a"] == {"pairs": 2, "success_at_half": 0.5, "auc": pytest.approx(metrics.summarize([0.9, 0.1]).auc)}
    assert set(table) == {"a", "c"} and table["c"]["success_at_half"] == 0.5


def plain_adaptive(similarity, boxes, consensus):
    """cIoU of one map (h, w) at the threshold that gives it the boxes' area, pixel by pixel."""
    h, w = similarity.shape
    places = [np.clip((np.arange(224) + 0.5) * n / 224 - 0.5, 0, n - 1) for n in (h, w)]
    heat = np.zeros((224, 224))
    for y in range(224):
        for x in range(224):
            top, left = (int(place) for place in (places[0][y], places[1][x]))
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            v, u = places[0][y] - top, places[1][x] - left
            upper = (1 - u) * similarity[top, left] + u * similarity[top, right]
            heat[y, x] = (1 - v) * upper + v * ((1 - u) * similarity[below, left] + u * similarity[below, right])
    weights = np.zeros((224, 224))
    for x1, y1, x2, y2 in boxes:
        weights[y1:y2, x1:x2] += 1
    weights = np.minimum(weights / consensus, 1)
    area = int((weights > 0).sum()) or 224 * 224 // 2
    infer = heat >= np.sort(heat.ravel())[224 * 224 - area]
    return (infer * weights).sum() / (weights.sum() + (infer & (weights == 0)).sum())


@pytest.mark.parametrize("consensus", [1, 2])
def test_the_adaptive_threshold_against_a_loop(consensus):
    rng = np.random.default_rng(consensus)
    similarity = rng.standard_normal((4, 14, 14))
    boxes = np.array(
        [
            [[10, 20, 150, 90], [100, 60, 224, 224]],
            [[0, 0, 17, 5], [0, 0, 0, 0]],
            [[0, 0, 0, 0], [0, 0, 0, 0]],
            [[50, 50, 130, 180], [50, 50, 130, 180]],
        ],
        np.int32,
    )
    similarity[3] = np.pad(np.ones((8, 5)), ((3, 3), (3, 6))) * 3 + rng.standard_normal((14, 14)) / 10  # nearly right
    found = metrics.ciou_adaptive(torch.from_numpy(similarity), torch.from_numpy(boxes), consensus)
    expected = [plain_adaptive(s, b, consensus) for s, b in zip(similarity, boxes, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-4)  # a pixel or two at the threshold may round otherwise
    assert found[2] == 0 and found[3] > 0.8


def test_the_adaptive_threshold_does_not_ask_how_far():
    """A map that peaks in the right place but is wide: wrong at half of its range, right at the boxes' area."""
    at = torch.linspace(-1, 1, 14, dtype=torch.float64)
    heat = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / 4)[None]
    boxes = torch.tensor([[[92, 92, 132, 132]]], dtype=torch.int32)
    assert metrics.ciou(heat, boxes) < 0.1 and metrics.ciou_adaptive(heat, boxes) > 0.7
    nan = torch.full((1, 14, 14), float("nan"))
    assert metrics.ciou_adaptive(nan, boxes) == 0
    assert metrics.ciou_adaptive(torch.ones(1, 14, 14), boxes) == pytest.approx(40 * 40 / 224**2)  # all values tie
    assert metrics.ciou_adaptive(torch.empty(0, 14, 14), boxes[:0]).shape == (0,)


def test_sizes():
    boxes = torch.zeros(6, 2, 4, dtype=torch.int32)
    for row, (x2, y2) in enumerate([(31, 33), (32, 32), (96, 96), (144, 144), (224, 224)]):
        boxes[row, 0] = torch.tensor([0, 0, x2, y2])
    boxes[1, 1] = boxes[1, 0]  # twice the same box covers as much
    area = metrics.areas(boxes)
    assert area.tolist() == [31 * 33, 32 * 32, 96 * 96, 144 * 144, 224 * 224, 0]
    table = metrics.per_size([0.1, 0.9, 0.9, np.nan, 0.6, 0.9], area)
    assert {name: (found["pairs"], found["success_at_half"]) for name, found in table.items()} == {
        "small": (1, 0.0),
        "medium": (1, 1.0),
        "large": (1, 1.0),
        "huge": (2, 0.5),
    }


def plain_detection(confidence, found, negative):
    """Threshold by threshold, pair by pair."""
    points = []
    for threshold in sorted({*confidence, *negative}, reverse=True):
        true = false = missed = 0
        for c, right in zip(confidence, found, strict=True):
            if c >= threshold and right:
                true += 1
            else:
                missed += 1
                false += c >= threshold
        false += sum(c >= threshold for c in negative)
        precision, recall = true / (true + false), true / (true + missed)
        f1 = 2 * precision * recall / (precision + recall) if true else 0.0
        points.append((precision, recall, f1))
    average, before = 0.0, 0.0
    for i, (_, recall, _) in enumerate(points):
        average += (recall - before) * max(precision for precision, _, _ in points[i:])
        before = recall
    return average, max(f1 for _, _, f1 in points)


@pytest.mark.parametrize("seed", range(5))
def test_detection_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    confidence, negative = rng.random(40).round(1 + seed % 2), rng.random(25).round(1 + seed % 2)  # many ties
    found = rng.random(40) < 0.6
    result = metrics.detection(confidence, found, negative)
    average, f1 = plain_detection(confidence, found, negative)
    assert result.average_precision == pytest.approx(average, abs=1e-12)
    assert result.max_f1 == pytest.approx(f1, abs=1e-12)
    detected, false = confidence >= result.threshold, (negative >= result.threshold).sum()
    true = (detected & found).sum()
    assert 2 * true / (2 * true + (detected & ~found).sum() + false + 40 - true) == pytest.approx(f1)


def test_detection_by_hand():
    perfect = metrics.detection([0.8, 0.9], [True, True], [0.1, 0.2])
    assert perfect == metrics.Detection(1.0, 1.0, 0.8)
    deaf = metrics.detection([0.8, 0.9], [True, True], [0.8, 0.9])  # as sure of silence
    assert deaf.average_precision == pytest.approx(0.5) and deaf.max_f1 == pytest.approx(2 / 3)
    # 0.9 found; 0.7 looked for in the wrong place; 0.6 a negative; 0.5 found: precisions 1, 1/2, 1/3, 1/2 at recalls
    # 1/3, 1/3, 1/3, 2/3.
    mixed = metrics.detection([0.9, 0.7, 0.5], [True, False, True], [0.6])
    assert mixed.average_precision == pytest.approx(1 / 3 * 1 + 1 / 3 * 1 / 2)
    assert mixed.max_f1 == pytest.approx(2 * 2 / (2 * 2 + 2 + 1)) and mixed.threshold == 0.5
    lost = metrics.detection([0.9, np.nan], [False, False], [])
    assert lost.average_precision == lost.max_f1 == 0
    with pytest.raises(ValueError, match="N >= 1"):
        metrics.detection([], [], [0.5])
    with pytest.raises(ValueError, match="expected confidence"):
        metrics.detection([0.5], [True, False], [0.5])


def test_the_adaptive_threshold_infers_exactly_the_area_of_the_box():
    heat = torch.arange(64.0).view(1, 8, 8)  # its eight largest values are the last row
    assert metrics.ciou_adaptive(heat, torch.tensor([[[0, 7, 8, 8]]], dtype=torch.int32), size=8).item() == 1


def test_a_confidence_of_nan_is_the_smallest():
    found = metrics.detection([0.9, float("nan")], [True, True], [0.5])
    assert found.average_precision == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)

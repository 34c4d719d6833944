"""Metrics of later work against their definitions, in NumPy: one threshold, masks, scenes, object guidance."""

import numpy as np
import pytest
import torch

from essl_fast.evaluate import guidance, masks, metrics, scenes, universal
from essl_fast.kernels.reference import heat_maps


def maps_and_boxes(count=5, side=14):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 225, (count, 2, 2)), axis=1).reshape(count, 1, 4)[..., [0, 1, 2, 3]]
    return rng.normal(0, 0.3, (count, side, side)).astype(np.float32), corners.astype(np.int32)


def truth_of(box):
    truth = np.zeros((224, 224))
    left, top, right, bottom = box
    truth[top:bottom, left:right] = 1
    return truth


# ---------------------------------------------------------------- one threshold


def test_the_threshold_is_the_largest_third_quartile():
    largest = {"silent": np.array([0.1, 0.2, 0.3, 0.4, 0.5]), "noise": np.array([0.0, 0.0, 0.45, np.nan])}
    assert universal.universal_threshold(largest) == pytest.approx(0.4)
    assert universal.universal_threshold({"silent": np.array([np.nan])}) is None
    assert universal.universal_threshold({}) is None


def test_everything_at_one_threshold():
    similarity, boxes = maps_and_boxes()
    negative = similarity[::-1].copy() - 0.1
    found = universal.at_threshold(similarity, boxes, {"silent": negative}, 0.2, consensus=1)
    heat = heat_maps(torch.from_numpy(similarity)).numpy() >= 0.2
    ciou = []
    for inferred, box in zip(heat, boxes[:, 0], strict=True):
        truth = truth_of(box)
        ciou.append((inferred * truth).sum() / (truth.sum() + (inferred * (truth == 0)).sum()))
    areas = (heat_maps(torch.from_numpy(negative)).numpy() >= 0.2).mean(axis=(1, 2))
    steps = np.arange(21) * 0.05
    aoc = np.trapezoid([(areas <= step).mean() for step in steps], steps)
    auc = np.trapezoid([(np.array(ciou) >= step).mean() for step in steps], steps)
    assert found["own"]["mean_ciou"] == pytest.approx(np.mean(ciou)) and found["own"]["auc"] == pytest.approx(auc)
    assert found["negatives"]["silent"] == {"pairs": 5, "pia": pytest.approx(areas.mean()), "aoc": pytest.approx(aoc)}
    kept = 1 - areas.mean()
    assert found["f_loc"] == pytest.approx(2 * np.mean(ciou) * kept / (np.mean(ciou) + kept))
    assert found["f_auc"] == pytest.approx(2 * auc * aoc / (auc + aoc))


def test_who_hears_marks_nothing_in_silence():
    similarity = np.zeros((1, 14, 14), np.float32)
    similarity[0, 4:8, 4:8] = 1
    boxes = np.array([[[64, 64, 128, 128]]], np.int32)
    good = universal.at_threshold(similarity, boxes, {"silent": similarity * 0}, 0.5, 1)
    assert good["negatives"]["silent"]["pia"] == 0 and good["negatives"]["silent"]["aoc"] == pytest.approx(1)
    deaf = universal.at_threshold(similarity, boxes, {"silent": similarity}, 0.5, 1)
    assert deaf["own"] == good["own"] and deaf["f_loc"] < good["f_loc"]


# ---------------------------------------------------------------- half the frame


def test_the_upper_half_of_a_map_is_inferred():
    similarity, boxes = maps_and_boxes()
    heat = heat_maps(torch.from_numpy(similarity)).numpy()
    expected = []
    for values, box in zip(heat, boxes[:, 0], strict=True):
        truth, inferred = truth_of(box), values >= np.sort(values.ravel())[224 * 224 // 2]
        expected.append((inferred * truth).sum() / (truth.sum() + (inferred * (truth == 0)).sum()))
    got = metrics.ciou_upper_half(torch.from_numpy(similarity), torch.from_numpy(boxes))
    np.testing.assert_allclose(got, expected, atol=1e-9)


# ---------------------------------------------------------------- masks


def test_masks_by_their_definition():
    similarity, boxes = maps_and_boxes()
    truth = np.stack([truth_of(box) for box in boxes[:, 0]]).astype(bool)
    truth[2] = False  # a frame in which nothing sounds
    found = masks.against_masks(similarity, np.packbits(truth, axis=2).reshape(5, -1))
    heat = heat_maps(torch.from_numpy(similarity)).numpy()
    low, high = heat.min((1, 2), keepdims=True), heat.max((1, 2), keepdims=True)
    scaled = (heat - low) / (high - low)
    inferred = scaled >= 0.5
    ious = [(i & t).sum() / (i | t).sum() if t.any() else 1 - i.mean() for i, t in zip(inferred, truth, strict=True)]
    assert found["mean_iou"] == pytest.approx(np.mean(ious)) and found["pairs"] == 5
    curves = []
    for values, mask in zip(scaled, truth, strict=True):
        if mask.any():
            curve = []
            for level in np.linspace(0, 1 - 1e-10, 255)[::16]:
                hit = ((values >= level) & mask).sum()
                precision, recall = hit / max((values >= level).sum(), 1), hit / mask.sum()
                curve.append(1.3 * precision * recall / (0.3 * precision + recall) if hit else 0)
            curves.append(curve)
    got = masks.f_curve(torch.from_numpy(scaled[[0, 1, 3, 4]]), torch.from_numpy(truth[[0, 1, 3, 4]]))
    np.testing.assert_allclose(got[:, ::16], curves, atol=1e-12)
    assert found["f"] == pytest.approx(float(got.mean(0).max()))


def test_a_constant_map_and_only_empty_masks():
    flat = np.full((2, 14, 14), 0.3, np.float32)
    found = masks.against_masks(flat, np.zeros((2, 6272), np.uint8))
    assert found == {"pairs": 2, "mean_iou": 1.0, "f": None, "f_threshold": None}
    full = np.full((2, 6272), 255, np.uint8)
    assert masks.against_masks(flat, full)["mean_iou"] == masks.against_masks(flat * np.nan, full)["f"] == 0


# ---------------------------------------------------------------- scenes


def test_a_frame_counts_if_all_its_sounds_are_found():
    ciou, scene = np.array([0.9, 0.6, 0.9, 0.2, 0.8, np.nan, 1.0]), np.array([1, 1, 2, 2, 3, 3, 4])
    frames, summary = scenes.interactive(ciou, scene)
    assert frames == 3 and summary.success_at_half == pytest.approx(1 / 3)  # scene 4 has one sound
    expected = [np.mean([0.6 >= step, 0.2 >= step, False]) for step in metrics.THRESHOLDS]
    np.testing.assert_allclose(summary.curve, expected)
    with pytest.raises(ValueError, match="no frame has two pairs"):
        scenes.interactive(ciou[:1], scene[:1])


# ---------------------------------------------------------------- object guidance


def test_guidance_is_a_mix_of_two_scaled_maps():
    similarity, boxes = maps_and_boxes()
    features = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (5, 8, 14, 14)).astype(np.float32))
    objects = guidance.object_map(features)
    np.testing.assert_allclose(objects, features.numpy().__abs__().mean(1), rtol=1e-6)
    mixed = guidance.guided_map(torch.from_numpy(similarity), objects, 0.25)

    def scaled(values):
        values = heat_maps(torch.as_tensor(values)).numpy()
        low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
        return (values - low) / (high - low)

    np.testing.assert_allclose(mixed, 0.25 * scaled(similarity) + 0.75 * scaled(objects), atol=1e-12)
    found = guidance.guided(similarity, objects.numpy(), boxes, 1, alpha=1.0)
    plain = metrics.summarize(metrics.ciou(torch.from_numpy(similarity), torch.from_numpy(boxes)))
    assert found["guided"] == {"pairs": 5, "success_at_half": plain.success_at_half, "auc": pytest.approx(plain.auc)}
    alone = guidance.guided(similarity, objects.numpy(), boxes, 1, alpha=0.0)
    assert alone["guided"]["auc"] == pytest.approx(alone["object_map"]["auc"])


# ---------------------------------------------------------------- numbers of the published evaluation codes

# Computed with the formulas of kaistmm/SSLalignment (utils.Evaluator_iiou), xavijuanola/vssl_eval (compute_AUC_pIA,
# compute_f) and OpenNLPLab/AVSBench (mask_iou, Eval_Fmeasure) from the inputs that `published_inputs` makes.
PUBLISHED = {
    "iiou": 1 / 3,
    "iauc": 0.4083333333,
    "aoc": 0.575,
    "f": 0.5079661017,
    "miou": 0.5308313370,
    "F": 0.8616165519,
}


def published_inputs():
    rng = np.random.default_rng(7)
    ciou, areas = rng.random(12), rng.random(9) ** 2
    maps, mask = rng.random((4, 56, 56)), rng.random((4, 56, 56)) < 0.3
    mask |= maps > 0.7
    mask[2] = False
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return ciou, areas, torch.from_numpy((maps - low) / (high - low)), torch.from_numpy(mask)


def test_the_published_evaluation_codes_agree():
    ciou, areas, scaled, mask = published_inputs()
    frames, summary = scenes.interactive(ciou, np.arange(12) % 6)
    there = mask.flatten(1).any(dim=1)
    found = {
        "iiou": summary.success_at_half,
        "iauc": summary.auc,
        "aoc": universal.area_over_curve(areas),
        "f": universal.harmonic(0.37, 0.81),
        "miou": float(masks.mask_iou(scaled, mask).mean()),
        "F": float(masks.f_curve(scaled[there], mask[there]).mean(dim=0).max()),
    }
    assert frames == 6 and found == pytest.approx(PUBLISHED, abs=1e-6)


def test_a_pixel_at_the_threshold_counts():
    """pIA and cIoU take what is >= threshold. Maps of the size of the result, so that no resizing rounds."""
    similarity = torch.full((1, 8, 8), -0.5)
    similarity[0, 2:4, 2:4] = 0.5
    assert universal.image_area(similarity, 0.5, size=8).tolist() == [4 / 64]
    box = torch.tensor([[[2, 2, 4, 4]]])
    assert universal.ciou_at(similarity, box, 0.5, size=8).tolist() == [1.0]


def test_shares_of_nothing():
    assert universal.harmonic(0.0, 0.0) == universal.harmonic(0.5, 0.0) == 0
    assert universal.harmonic(0.5, 0.25) == pytest.approx(1 / 3)
    assert universal.area_over_curve([0.0, 1.0]) == pytest.approx(0.5 + 0.5 * 0.05 / 2)  # the area 0 counts from 0 on

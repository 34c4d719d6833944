"""Class-aware IoU by its definition; and a world in which two objects sound, from its videos to the result."""

import shutil

import numpy as np
import pytest
import torch

from essl_fast.common.errors import InputError
from essl_fast.data.datasets import boxes_by_class
from essl_fast.data.shards import Manifest
from essl_fast.data.synthetic import make_world
from essl_fast.evaluate import class_aware, evaluate_checkpoint, metrics
from essl_fast.kernels import Attention
from essl_fast.prepare import prepare
from essl_fast.train import __main__ as train_door

MULTISOURCE = "--objective.method multisource --model.head classes --model.classes".split()
SHORT = "--config demo --epochs 1 --data.batch_size 4 --data.last_batch drop --device cpu --optim.warmup 0".split()


def test_each_class_by_its_own_map_and_by_one_for_all():
    torch.manual_seed(0)
    own, single = torch.rand(1, 2, 3, 14, 14), torch.rand(1, 2, 14, 14)
    boxes = torch.zeros(2, 3, 1, 4, dtype=torch.int32)
    boxes[0, 0, 0], boxes[0, 2, 0] = torch.tensor([0, 0, 90, 90]), torch.tensor([100, 0, 224, 99])
    boxes[1, 1, 0] = torch.tensor([7, 9, 50, 224])
    pooled = torch.zeros(1, 2, 5)
    for attention, one_for_all in ((Attention(pooled, single, own), False), (Attention(pooled, single, single), True)):
        found = class_aware.of_each_class(attention, boxes, 1)
        for pair, kind in ((0, 0), (0, 2), (1, 1)):
            map_ = single[0, pair] if one_for_all else own[0, pair, kind]
            assert found[pair, kind] == metrics.ciou(map_[None], boxes[pair, kind][None])[0]
        assert found.isnan().tolist() == [[False, True, False], [True, False, True]]


def test_figures_by_their_definition():
    by_class = np.array([[0.9, np.nan, 0.2], [np.nan, 0.4, np.nan], [0.6, 0.5, np.nan], [np.nan] * 3])
    found = class_aware.class_aware(by_class)
    each = [(0.9 + 0.2) / 2, 0.4, (0.6 + 0.5) / 2]
    assert found["pairs"] == 3 and found["mean"] == pytest.approx(np.mean(each))
    assert found["success_at_half"] == pytest.approx(2 / 3) and found["success_at_earlier"] == 1
    assert found["auc"] == metrics.summarize(each).auc and found["all_found"] == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def duet(tmp_path_factory):
    """A small world in which both objects of a frame sound, prepared."""
    place = tmp_path_factory.mktemp("duet")
    size = {"train_videos": 10, "test_videos": 3, "seed": 1, "objects": "both", "workers": 1, "progress": False}
    world = make_world(place / "world", **size)
    prepare(world.videos, world.annotations, place / "prepared", validation=0.2, workers=1, progress=False)
    return place / "prepared"


@pytest.mark.slow
def test_boxes_have_classes_and_stand_class_by_class(duet):
    manifest = Manifest.load(duet)
    assert manifest.header["further"] == ["box_class"] and manifest.boxes.shape[1] == 2
    box_class = np.asarray(manifest.box_class)
    np.testing.assert_array_equal(box_class[:, 0], manifest.class_id)
    assert (box_class[:, 1] != box_class[:, 0]).all() and box_class.min() >= 0
    found = boxes_by_class(manifest)
    assert found.shape == (len(manifest), len(manifest.classes), 1, 4)
    for row in range(len(manifest)):
        for box, kind in zip(manifest.boxes[row], box_class[row], strict=True):
            np.testing.assert_array_equal(found[row, kind, 0], box)
    assert (found.any(axis=(2, 3)).sum(axis=1) == 2).all()


@pytest.mark.parametrize("wrong", [99, -2, None])
def test_a_column_that_does_not_fit_is_refused(duet, tmp_path, wrong):
    shutil.copytree(duet, tmp_path / "copy")
    column = np.load(tmp_path / "copy" / "pairs" / "box_class.npy")
    if wrong is None:
        column = column[:, :1]
    else:
        column[0, 0] = wrong
    np.save(tmp_path / "copy" / "pairs" / "box_class.npy", np.ascontiguousarray(column))
    with pytest.raises(InputError, match="box_class.npy does not fit the boxes, or has a class"):
        Manifest.load(tmp_path / "copy")


def test_pairs_in_which_no_class_sounds_have_no_score():
    assert class_aware.class_aware(np.full((3, 4), np.nan)) == {}
    some = np.array([[np.nan, np.nan], [0.25, 0.75]])
    found = class_aware.class_aware(some)
    assert found["pairs"] == 1 and found["mean"] == 0.5


@pytest.mark.slow
def test_a_run_is_scored_class_by_class(duet, tmp_path):
    count = str(len(Manifest.load(duet).classes))
    words = [*SHORT, *MULTISOURCE, count, "--data.root", str(duet), "--out", str(tmp_path / "run")]
    assert train_door.main(words) == 0
    extra = evaluate_checkpoint(tmp_path / "run", extra=True)["extra"]
    assert extra["class_aware"]["pairs"] == Manifest.load(duet).pairs("test")
    assert 0 <= extra["class_aware"]["all_found"] <= extra["class_aware"]["success_at_half"] <= 1


def test_another_number_of_classes_is_refused(duet, tmp_path):
    with pytest.raises(InputError, match=r"model.classes: .* has \d classes \(b.*got 2; give --model.classes \d"):
        train_door.main([*SHORT, *MULTISOURCE, "2", "--data.root", str(duet), "--out", str(tmp_path / "run")])

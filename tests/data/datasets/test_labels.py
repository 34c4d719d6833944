"""Which pairs keep their labels."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.data.datasets.labels import boxes_by_class, labelled
from essl_fast.data.shards import Manifest
from essl_fast.train import Trainer


def manifest_of(train=60, val=10, test=10, seed=0):
    """A manifest's columns as far as labels go; a tenth of the pairs has none."""
    rng = np.random.default_rng(seed)
    count = train + val + test
    ends = {"train": (0, train), "val": (train, train + val), "test": (train + val, count)}
    return SimpleNamespace(
        keys=np.array([f"VIDEO{i:03d}_{rng.integers(1000):06d}".encode() for i in range(count)]),
        class_id=rng.choice([0, 0, 0, 1, 1, 2], count).astype(np.int32),
        labelled=rng.random(count) < 0.9,
        rows=lambda split: np.arange(*ends[split]),
    )


FRACTIONS = (0, 0.1, 0.25, 0.5, 0.9, 1)


def test_each_class_keeps_its_share_and_other_splits_keep_all():
    manifest = manifest_of()
    for fraction in FRACTIONS:
        kept = labelled(manifest, ["train"], fraction)
        for number in range(3):
            mine = (manifest.class_id[:60] == number) & manifest.labelled[:60]
            assert kept[:60][mine].sum() == int(fraction * mine.sum() + 0.5)
        assert not kept[~manifest.labelled].any()
        np.testing.assert_array_equal(kept[60:], manifest.labelled[60:])


def test_smaller_fractions_are_nested_and_the_smallest_hashes_come_first():
    manifest = manifest_of()
    kept = [labelled(manifest, ["train", "val"], fraction) for fraction in FRACTIONS]
    for less, more in zip(kept, kept[1:], strict=False):
        assert (less <= more).all() and less.sum() < more.sum()
    assert not kept[0][:70].any() and (kept[-1] == manifest.labelled).all()
    ones = [row for row in range(70) if manifest.labelled[row] and manifest.class_id[row] == 1]
    in_order = sorted(ones, key=lambda row: hashlib.sha256(manifest.keys[row]).digest())
    assert set(in_order[: int(len(ones) * 0.25 + 0.5)]) == {row for row in ones if kept[2][row]}


def test_neither_order_nor_other_pairs_splits_change_which():
    manifest = manifest_of()
    order = np.random.default_rng(1).permutation(60)
    shuffled = SimpleNamespace(**vars(manifest))
    for name in ("keys", "class_id", "labelled"):
        column = getattr(manifest, name).copy()
        column[:60] = column[:60][order]
        setattr(shuffled, name, column)
    kept = labelled(manifest, ["train"], 0.3)
    np.testing.assert_array_equal(labelled(shuffled, ["train"], 0.3)[:60], kept[:60][order])
    assert kept[:60].sum() < manifest.labelled[:60].sum()


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_a_split_without_labels(fraction):
    manifest = manifest_of()
    manifest.labelled = np.zeros(80, bool)
    assert not labelled(manifest, ["train"], fraction).any()


def test_a_prepared_folder_is_not_written_to(tiny):
    manifest = Manifest.load(tiny[1])
    kept = labelled(manifest, ["train"], 0.5)
    kept[:] = False
    assert manifest.labelled.any() and kept.dtype == bool


def test_training_goes_without_them(tiny):
    arguments = ["--data.root", str(tiny[1]), "--data.batch_size", "4", "--device", "cpu", "--data.labelled_fraction"]
    manifest = Manifest.load(tiny[1])
    trainer = Trainer(config.load("demo", [*arguments, "0.5"]), manifest, torch.device("cpu"))
    trainer.loader.close()
    rows = manifest.rows("train")
    assert (
        0 < trainer.data.labels.labelled[rows].sum() < len(rows)
        and trainer.data.labels.labelled[manifest.rows("test")].all()
    )
    np.testing.assert_array_equal(trainer.data.labels.labelled, labelled(manifest, ["train"], 0.5))
    assert trainer.data.labels_dropped == manifest.labelled.sum() - trainer.data.labels.labelled.sum() > 0
    with pytest.raises(InputError, match="none has a box at data.labelled_fraction 0"):
        settings = config.load("demo", [*arguments, "0", "--objective.method", "supervised"])
        Trainer(settings, manifest, torch.device("cpu"))
    with pytest.raises(InputError, match="data.labelled_fraction: must be from 0 to 1"):
        config.load("demo", [*arguments, "1.1"])


class Boxes(SimpleNamespace):
    """The columns of three pairs: two boxes, one and none, of three classes."""

    def __len__(self):
        return 3


@pytest.mark.parametrize("known", [False, True])
def test_boxes_by_class(known):
    one, two, three = [1, 1, 5, 5], [2, 2, 6, 6], [3, 3, 7, 7]
    boxes = np.array([[one, two], [three, [0] * 4], [[0] * 4, [4, 4, 4, 9]]], np.int32)
    of = np.array([[2, 0], [1, -1], [-1, -1]]) if known else None
    manifest = Boxes(boxes=boxes, class_id=np.array([2, 1, 0]), classes=("a", "b", "c"), box_class=of)
    found = boxes_by_class(manifest)
    assert found.shape == (3, 3, 1 if known else 2, 4) and found.dtype == np.int32
    expected = {(0, 2, 0): one, (0, 0, 0): two, (1, 1, 0): three}
    if not known:  # both boxes of the first pair are of its class
        expected = {(0, 2, 0): one, (0, 2, 1): two, (1, 1, 0): three}
    filled = {tuple(map(int, place)): found[tuple(place)].tolist() for place in np.argwhere(found.any(axis=-1))}
    assert filled == expected
    assert boxes_by_class(manifest, np.array([1])).tolist() == found[1:2, :, :1].tolist()

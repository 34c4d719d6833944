"""Results as tables and lines, and what stands in for a result where pairs are lost or listed."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from essl_fast import config
from essl_fast.common.errors import InputError
from essl_fast.evaluate import evaluation, extra_tables, metrics
from essl_fast.evaluate.class_aware import class_aware, of_each_class
from essl_fast.evaluate.evaluation import Part
from essl_fast.evaluate.foreign import FOREIGN
from essl_fast.evaluate.loaders import ranks_share
from essl_fast.evaluate.priors import object_prior
from essl_fast.evaluate.tables import trust
from essl_fast.kernels import Attention

ONE = {"pairs": 7, "success_at_half": 0.5, "auc": 0.25}
SCORES = {"average_precision": 0.5, "max_f1": 0.25}
EXTRA = {
    "per_size": {"small": ONE, "large": ONE} if {"small", "large"} <= metrics.SIZES.keys() else {},
    "ciou_adaptive": ONE,
    "foreign": {next(iter(FOREIGN)): SCORES | {"threshold": None, "deaf": SCORES, "perfect": SCORES}},
    "guidance": {"guided": ONE, "object_map": ONE},
    "universal": {
        "threshold": 0.125,
        "own": {"pairs": 7, "mean_ciou": 0.5, "auc": 0.25},
        "negatives": {"own negatives": {"pairs": 3, "pia": 0.75, "aoc": 0.5}},
        "f_loc": 0.5,
        "f_auc": 0.25,
    },
    "class_aware": {
        "pairs": 7,
        "mean": 0.51,
        "success_at_half": 0.52,
        "success_at_earlier": 0.75,
        "auc": 0.26,
        "all_found": 0.125,
    },
    "negatives": {"average_precision": 0.531, "max_f1": 0.541},
    "masks": {"mean_iou": 0.551, "f": 0.561},
    "interactive": {"frames": 3, "iiou": 0.571, "iauc": 0.581},
    "loc_acc": None,
}


def test_every_kind_of_further_result_has_its_lines():
    stream = io.StringIO()
    console = Console(file=stream, width=160, color_system=None)
    for each in extra_tables(EXTRA):
        console.print(each)
    text = stream.getvalue()
    for line in (
        "class-aware, 7 pairs: every class that sounds in its own place",
        "own negatives: pIA, AOC",
        "object map alone, without sound",
        "at one threshold, similarity 0.125",
    ):
        assert line in " ".join(text.split()), line  # a title may be wider than its table
    rows = [" ".join(line.strip("│ ").replace("│", "").split()) for line in text.splitlines()]
    for row in (
        "mean CIoU 51.0",
        "success at CIoU 0.5 52.0",
        "success at CIoU 0.3 75.0",
        "AUC 26.0",
        "every class at cIoU 0.5 12.5",
        "average precision against the set's negatives 53.1",
        "max-F1 against them 54.1",
        "mIoU with masks 55.1",
        "F with masks 56.1",
        "interactive IoU, 3 frames 57.1",
        "interactive AUC 58.1",
        "LocAcc: cIoU 0.5 with the map's upper half –",  # a score that is not defined
    ):
        assert row in rows, row


def test_how_far_a_similarity_is_to_be_trusted():
    assert trust(None) == "the model is wrong more often than right, however large the similarity"
    assert trust(0.51239) == ("a similarity below 0.5123 is wrong more often than right: localize --min-score 0.5123")


@pytest.mark.parametrize(
    ("rows", "expected", "said"),
    [
        ([4, 5, 5], 3, "saw 3 pairs, expected each of 3 once"),
        ([4, 5], 3, "saw 2 pairs, expected each of 3 once"),
        ([1, 4, 5], 3, "saw 3 pairs, expected each of 3 once"),
    ],
)
def test_a_pair_that_is_there_twice_or_not_is_an_error(rows, expected, said):
    manifest = SimpleNamespace(rows=lambda split: np.array([4, 5, 6]), place="prepared")
    columns = {"rows": np.array(rows), "ciou": np.zeros(len(rows)), "similarity": np.zeros((len(rows), 7, 7))}
    with pytest.raises(RuntimeError, match=f"evaluation of test {said}"):
        evaluation._result(manifest, "test", Part(columns, {}, 0), expected)
    with pytest.raises(InputError, match="prepared: no pair of the test split decodes; run prepare again"):
        evaluation._result(manifest, "test", Part({}, {}, 3), 0)


@pytest.mark.parametrize(
    ("size", "exclude", "share"),
    [(1, "none", False), (4, "none", True), (6, "none", False), (4, "bad", False), (3, "bad", True), (3, "all", False)],
)
def test_whether_ranks_share_a_split(size, exclude, share):
    """Of 5 pairs one is damaged and two are silent: each rank must have one at least."""
    manifest = SimpleNamespace(
        pairs=lambda split: 5,
        rows=lambda split: np.arange(10, 15),
        quarantine=lambda: {11: "corrupt", 12: "corrupt", 13: "silent", 3: "corrupt"},
    )
    settings = config.load("demo", ["--data.exclude_quarantined", exclude])
    assert ranks_share(manifest, "test", settings, SimpleNamespace(size=size)) == share


def test_classes_are_scored_in_their_own_places():
    boxes = torch.zeros(2, 3, 1, 4, dtype=torch.int32)
    boxes[0, 0, 0], boxes[0, 2, 0] = torch.tensor([0, 0, 112, 224]), torch.tensor([112, 0, 224, 224])
    maps = torch.zeros(1, 2, 3, 8, 8)
    maps[0, 0, 0, :, :4] = maps[0, 0, 2, :, :4] = 1  # both on the left, where the first one is
    both = Attention(torch.empty(0), maps.amax(2), maps)
    found = of_each_class(both, boxes, 1)
    assert found[0, 0] > 0.9 and found[0, 2] < 0.1
    assert torch.isnan(found[1]).all() and torch.isnan(found[0, 1])
    assert torch.isnan(of_each_class(both, torch.zeros_like(boxes), 1)).all()  # nothing sounds
    one = class_aware(found.numpy())
    assert one["pairs"] == 1 and one["all_found"] == 0 and 0.4 < one["mean"] < 0.6 and one["success_at_earlier"] == 1
    assert class_aware(np.full((2, 3), np.nan)) == {}
    alone = of_each_class(Attention(torch.empty(0), maps[:, :, 0], maps[:, :, 0]), boxes, 1)  # one map for all classes
    assert alone[0, 0] > 0.9 and alone[0, 2] < 0.1


def test_the_object_map_as_an_answer():
    boxes = np.zeros((70, 1, 4), np.int32)
    boxes[:, 0] = [0, 0, 112, 224]
    maps = np.zeros((70, 8, 8), np.float32)
    maps[:35, :, :4] = 1  # of the first half of the pairs it is right
    maps[35:, :, 4:] = 1
    manifest = SimpleNamespace(boxes=boxes, negative=None, class_id=np.zeros(70, int), classes=("a",))
    found = object_prior(manifest, np.arange(70), 1, maps)
    assert found["pairs"] == 70 and found["success_at_half"] == 0.5

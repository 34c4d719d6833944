"""What all readers share: boxes on the grid, and which videos are val."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from essl_fast.data.datasets import Annotations, Pairs, boxes_to_grid, choose_validation
from essl_fast.data.datasets.annotations import EMPTY, INVERTED, OUTSIDE, reason_for_no_area


@settings(derandomize=True, database=None, deadline=None)  # the same examples everywhere, however long one takes
@given(st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 4), max_size=4), st.integers(1, 4000), st.integers(1, 4000))
def test_boxes_to_grid(boxes, width, height):
    grid = boxes_to_grid(boxes, width, height)
    assert grid.dtype == np.int32 and grid.shape == (len(boxes), 4)
    for box, got in zip(boxes, grid.tolist(), strict=True):
        sides = (width, height, width, height)
        assert got == [min(max(int(x / side * 224), 0), 224) for x, side in zip(box, sides, strict=True)]


def test_validation_videos():
    names = [f"v{n}" for n in range(50)]
    chosen = choose_validation(names, 0.1, 0)
    assert chosen == choose_validation(names[::-1], 0.1, 0)
    assert chosen == {"v31", "v39", "v40", "v41", "v48"}  # on every machine, in every version
    assert chosen != choose_validation(names, 0.1, 1)
    assert chosen < choose_validation(names, 0.2, 0)
    assert not choose_validation(names, 0, 0) and not choose_validation(["a"], 0.5, 0)
    assert len(choose_validation(["a", "b"], 0.01, 0)) == 1 and len(choose_validation(["a", "b"], 0.99, 0)) == 1


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((50, 10, 40, 20), INVERTED),
        ((10, 50, 20, 40), INVERTED),
        ((-9, 10, 0, 20), OUTSIDE),
        ((320, 10, 400, 20), OUTSIDE),
        ((10, 180, 20, 190), OUTSIDE),
        ((10, 10, 10.5, 20), EMPTY),
    ],
)
def test_the_reason_of_a_box_without_area(box, reason):
    assert reason_for_no_area(box, 320, 180) == reason


def test_videos_follow_from_the_pairs():
    pairs = Pairs()
    for video, split in (("a", "train"), ("t", "test"), ("b", "train")):
        pairs.add_video(video, split, [(1, 0.0, [], ("hum",))])
    assert Annotations(pairs).videos == {"train": ["a", "b"], "test": ["t"]}
    assert Annotations(pairs, videos={"train": ["a"]}).videos == {"train": ["a"]}

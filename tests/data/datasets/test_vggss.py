"""VGG-SS's annotations: one JSON file of normalised boxes."""

import json

import numpy as np
import pytest

from essl_fast.common.errors import InputError
from essl_fast.data.datasets import vggss
from essl_fast.data.datasets.vggss import JsonLabels, read_boxes
from tests.golden.store import golden
from tests.tools.datasets import label_map


def test_box_maps_equal_goldens(tmp_path):
    data = golden("gt_maps")
    entries = [
        {"file": f"clip{case}_000010", "class": "dog barking", "bbox": boxes[:count].tolist()}
        for case, (boxes, count) in enumerate(zip(data["vggss_boxes"], data["vggss_count"], strict=True))
    ]
    (tmp_path / "vggss.json").write_text(json.dumps(entries))
    labels = JsonLabels([tmp_path])
    for case, expected in enumerate(data["vggss_map"]):
        np.testing.assert_array_equal(label_map(labels, f"clip{case}_000010", 1), expected)
    assert labels("clip0_000010").classes == ("dog barking",) and labels("other") is None


def test_entries_of_one_name_join(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(
        '[{"file": "a", "class": "x", "bbox": [1, 2, 3, 4]}, {"file": "a", "class": "y", "bbox": []},'
        ' {"file": "a", "class": "x", "bbox": [[5, 6, 7, 8], [0, 0, 1, 1]]}]'
    )
    label = read_boxes(path, side=1)["a"]
    assert label.boxes == [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 1, 1]] and label.classes == ("x", "y")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no JSON file"),
        ("[" * 100_000, "no JSON file"),
        ('{"file": 1}', "no list of entries"),
        ('[{"file": "a", "class": "x"}]', "entry 1: .* has not file, class and bbox"),
        ('[{"file": "a", "class": "", "bbox": []}]', "entry 1: file 'a' and class '' must be words"),
        ('[{"file": "a", "class": "x", "bbox": [[1, 2, 3]]}]', "no list of boxes of four finite numbers"),
        ('[{"file": "a", "class": "x", "bbox": [[1, 2, 3, NaN]]}]', "no JSON file .NaN is no number"),
        ('[{"file": "a", "class": "x", "bbox": [[1, 2, 3, 1e999]]}]', "no list of boxes of four finite numbers"),
        ('[{"file": "a", "class": "\\ud800", "bbox": []}]', "no JSON file"),  # nor could a manifest hold it
        ('[{"file": "a", "class": "x", "bbox": [[1, 2, 3, true]]}]', "no list of boxes of four finite numbers"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, told):
    path = tmp_path / "vggss.json"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        read_boxes(path, side=1)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_list_of_annotations_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "vggss.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="vggss.json"):
        read_boxes(path, side=1)
    monkeypatch.setattr(vggss, "_LARGEST", 1)
    with pytest.raises(InputError, match="vggss.json has 0 MB: is it the annotations"):
        read_boxes(path, side=1)


def test_the_file_is_looked_for(tmp_path):
    with pytest.raises(InputError, match="no annotations: looked for .*vggss.json, .*vggss_test_5158.json"):
        JsonLabels([tmp_path])

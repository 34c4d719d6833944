"""Flickr-SoundNet's annotations: XML files of several annotators, and what they must not be able to do."""

import numpy as np
import pytest

from essl_fast.common.errors import InputError
from essl_fast.data.datasets.flickr import XmlLabels, read_boxes
from tests.golden.store import golden
from tests.tools.datasets import label_map, xml


def test_box_maps_equal_goldens(tmp_path):
    data = golden("gt_maps")
    folder = tmp_path / "Annotations"
    folder.mkdir()
    compared = 0
    for case, (boxes, count) in enumerate(zip(data["flickr_boxes256"], data["flickr_count"], strict=True)):
        (folder / f"{case}.xml").write_text(xml(boxes[:count].tolist()))
        ours = label_map(XmlLabels([tmp_path]), str(case), 2)
        if (boxes[:count] < 0).any():  # the published code lets these wrap around; ours are clamped
            clamped = np.clip(boxes[:count], 0, None)
            (folder / f"{case}c.xml").write_text(xml(clamped.tolist()))
            np.testing.assert_array_equal(ours, label_map(XmlLabels([tmp_path]), f"{case}c", 2))
            continue
        np.testing.assert_array_equal(ours, data["flickr_map2x"][case])
        compared += 1
    assert compared >= 10


def test_boxes_by_position_whatever_their_tags(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(
        "<a><x><bbox><i>7</i><p> 1 </p><q>2</q><r>30</r><s>40</s></bbox><note>none</note></x><y/>"
        "<z><bbox><i/><p>5</p><q>6</q><r>7.0</r><s>8</s></bbox></z></a>"
    )
    assert read_boxes(path) == [[1, 2, 30, 40], [5, 6, 7, 8]]


BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>
<a><x><bbox><t>&c;</t><p>1</p><q>2</q><r>3</r><s>4</s></bbox></x></a>"""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (BOMB.encode(), "declares a document type"),
        (BOMB.replace('version="1.0"', 'version="1.0" encoding="utf-16"').encode("utf-16"), "declares a document type"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "declares a document type"),
        (b"<a><x>", "no element found"),
        (b"", "no element found"),
        (b"<a>" + b" " * (1 << 20) + b"</a>", "1,048,583 bytes are no list"),
        (b"<a><x><bbox><t/><p>1</p><q>2</q><r>3</r></bbox></x></a>", "box 1 is no xmin, ymin, xmax, ymax (4 children"),
        (b"<a><x><bbox><t/><p>1</p><q>2</q><r>3</r><s>four</s></bbox></x></a>", "could not convert string"),
        (b"<a><x><bbox><t/><p>1</p><q>2</q><r>3</r><s>nan</s></bbox></x></a>", "a number out of range"),
        (b'<?xml version="1.0" encoding="magic"?><a/>', "cannot be read as XML"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, told):
    path = tmp_path / "123.xml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="123.xml") as error:
        read_boxes(path)
    assert told in str(error.value) and len(str(error.value).splitlines()) == 1


def test_the_folder_is_looked_for(tmp_path):
    (tmp_path / "5k_labeled" / "Annotations").mkdir(parents=True)
    assert XmlLabels([tmp_path]).folder == tmp_path / "5k_labeled" / "Annotations"
    with pytest.raises(InputError, match="no folder of annotations: looked for .*else/Annotations, "):
        XmlLabels([tmp_path / "else"])
    with pytest.raises(InputError, match="looked for .*/mine;"):
        XmlLabels([tmp_path], tmp_path / "mine")

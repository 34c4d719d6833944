"""Annotations and lists of other data sets, as targets of `tests.fuzz.targets`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from essl_fast.data import datasets
from tests.fuzz.target import Parts, changed
from tests.tools.media import row, write_annotations

HEADER_ALL = "fid,time,bbox,ssl"


def notes(place: Path) -> Parts:
    rows = [row(16, 1.5), row(18, 1.7, "[]"), row(21, 2.0, "((1, 2, 30, 40), [5.5, 6, 70, 80],)", end=22), row(21, 2.0)]
    root = write_annotations(place / "notes", {"v": rows, "ü w": rows[:1]}, {"t": rows[1:3]})
    frames = [HEADER_ALL, *(f'{n},{n / 10},"[[{n}, 2, 90, 80]]",horn' for n in range(16, 24))]
    (root / "annotation" / "frame").mkdir(exist_ok=True)
    (root / "annotation" / "frame" / "v.csv").write_text("\n".join(frames) + "\n")
    names = ("annotation/group/v.csv", "annotation/frame/v.csv", "train_ssl.txt", "test_ssl.txt")
    return {name: (root / name).read_bytes() for name in names}


def read_notes(place: Path, name: str, data: bytes) -> None:
    root = place / "notes"
    with changed(root / name, data):
        for frame in datasets.FRAMES:
            read = datasets.read_chaotic_world(root, frame=frame, row_boxes="all", frame_rate=lambda video: 25.0)
            _check_pairs(read)


def _check_pairs(read: datasets.Annotations) -> None:
    keys = [pair.key for pair in read.pairs]
    assert len(keys) == len(set(keys)), "two pairs have one key"
    for pair in read.pairs:
        left, top, right, bottom = pair.boxes.T
        assert (0 <= left).all() and (left < right).all() and (right <= 224).all(), pair
        assert (0 <= top).all() and (top < bottom).all() and (bottom <= 224).all(), pair
        assert pair.fid >= 1 and np.isfinite(pair.time) and pair.class_name, pair
        assert "/" not in pair.video and "\0" not in pair.video, pair
    for left in read.left_out:
        json.dumps(left.as_json(), ensure_ascii=False).encode()
    datasets.digest(read)


_XML = """<?xml version="1.0"?><annotation><annotator><bbox><type/><xmin>10</xmin><ymin>20</ymin><xmax>100</xmax>
<ymax>120</ymax></bbox><bbox><type>x</type><xmin>-3</xmin><ymin>2.5</ymin><xmax>1e2</xmax><ymax>256</ymax></bbox>
</annotator><annotator/></annotation>"""
_LISTS = {
    "flickr.xml": _XML.encode(),
    "flickr.csv": b"12,a\n/mnt/x/34.mp4\n5,b,c\n",
    "vggss.json": json.dumps(
        [
            {"file": "v_000030", "class": "horn", "bbox": [[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]]},
            {"file": "w", "class": "dog", "bbox": [0.1, 0.2, 0.3, 0.4]},
        ]
    ).encode(),
    "truth.csv": b'fid,bbox\n3,"[[1, 2, 30, 40]]"\n5,[]\n',
    "spans.csv": b'start_fid,end_fid,bbox\n3,5,"[[1, 2, 30, 40]]"\n',
    "truth.json": json.dumps([{"fid": 3, "boxes": [[1, 2, 30, 40]]}, {"time": 0.5, "boxes": []}]).encode(),
}


def lists(place: Path) -> Parts:
    return _LISTS


def read_list(place: Path, name: str, data: bytes) -> None:
    from essl_fast.data.datasets import flickr, listed, truth, vggss

    path = place / name
    path.write_bytes(data)
    if name == "flickr.csv":
        for once in (True, False):
            assert all(name and "/" not in name for name in listed.read_names(path, once))
    elif name == "flickr.xml":
        label = listed.Label(flickr.read_boxes(path), flickr.SIDE, (listed.UNKNOWN,), name)
        assert all(len(box) == 4 for box in listed.on_grid(label, "v", "v_000001", []))
    elif name == "vggss.json":
        for key, label in vggss.read_boxes(path, 1).items():
            assert all(len(box) == 4 for box in listed.on_grid(label, key, key, []))
    elif name == "spans.csv":
        table = place / "truth" / "annotation" / "group" / "v.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        path.replace(table)
        truth.read_truth(place / "truth", "v")
    else:
        truth.read_truth(path, "v", (320, 180))

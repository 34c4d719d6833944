"""Ground truth to draw: every format, scaled and timed; malformed files are named."""

import json

import pytest

from essl_fast.common.errors import InputError
from essl_fast.data.datasets.truth import read_truth

RATE, SIZE = 10.0, (640, 360)


def drawn(truth, fid):
    return truth.of(fid, (fid - 1) / RATE, RATE, *SIZE)


def test_json_by_time_and_by_frame(tmp_path):
    by_time, by_frame = tmp_path / "t.json", tmp_path / "f.json"
    by_time.write_text(json.dumps([{"time": 0.2, "boxes": [[1, 2, 3, 4]]}, {"time": 0.4, "boxes": []}]))
    by_frame.write_text(json.dumps([{"fid": 3, "boxes": [[1, 2, 3, 4]]}, {"fid": 5, "boxes": []}]))
    for path in (by_time, by_frame):
        truth = read_truth(path, "any")
        assert [drawn(truth, fid) for fid in (2, 3, 4, 5)] == [
            ([], False),
            ([(1, 2, 3, 4)], True),
            ([(1, 2, 3, 4)], False),
            ([], True),
        ]


def test_a_box_stays_for_half_a_second(tmp_path):
    (tmp_path / "b.csv").write_text('time,bbox\n1.0,"[[0, 0, 10, 10]]"\n')
    truth = read_truth(tmp_path / "b.csv", "any")
    shown = [fid for fid in range(1, 40) if drawn(truth, fid)[0]]
    assert shown == [11, 12, 13, 14, 15]


def test_chaotic_worlds_folder(tmp_path):
    for kind, text in (
        ("frame", 'fid,time,bbox,ssl\n2,0.2,"[[32, 18, 160, 90]]",a\n2,0.2,"[[0, 0, 32, 18]]",b\n'),
        (
            "group",
            'start_fid,end_fid,bbox,ssl\n4,5,"[[32, 18, 160, 90], [0, 0, 320, 180]]",a\n7,9,"[[0, 0, 32, 18]]",b\n',
        ),
    ):
        (tmp_path / "annotation" / kind).mkdir(parents=True)
        (tmp_path / "annotation" / kind / f"{kind}.csv").write_text(text)
    frame, group = read_truth(tmp_path, "frame"), read_truth(tmp_path, "group")
    assert drawn(frame, 2) == ([(64, 36, 320, 180), (0, 0, 64, 36)], True)
    assert [drawn(group, fid)[0] for fid in (3, 4, 5, 9)] == [
        [],
        [(64, 36, 320, 180)],
        [(0, 0, 640, 360)],
        [(0, 0, 64, 36)],
    ]
    assert read_truth(tmp_path, "frame", (640, 360)).of(2, 0.1, RATE, *SIZE)[0][1] == (0, 0, 32, 18)
    with pytest.raises(InputError, match=r"neither annotation/frame/other.csv nor"):
        read_truth(tmp_path, "other")


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "expected a list"),
        ("a.json", '[{"time": 1}]', "entry 0 is"),
        ("a.json", '[{"time": 1, "boxes": [[1, 2, 3]]}]', "entry 0 is"),
        ("a.json", f'[{{"time": 1{"0" * 400}, "boxes": []}}]', "entry 0 is"),  # past the range of a float
        ("a.json", '[{"time": 1, "boxes": []}, {"fid": 1, "boxes": []}]', "counts frames here"),
        ("a.json", "[]", "has no boxes"),
        ("a.csv", "bbox\n[[1,2,3,4]]\n", "neither a column fid nor a column time"),
        ("a.csv", 'time,bbox\n1,"[[1,2]]"\n', "line 2, column bbox"),
    ],
)
def test_malformed_files_are_named(tmp_path, name, text, told):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=told) as caught:
        read_truth(tmp_path / name, "any")
    assert str(tmp_path / name) in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="no file or folder"):
        read_truth(tmp_path / "none.json", "any")

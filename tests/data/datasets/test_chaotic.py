"""Chaotic World's annotations → pairs, and every way in which they can be wrong."""

import math
from pathlib import Path

import numpy as np
import pytest

from essl_fast.common.errors import InputError
from essl_fast.data.datasets import boxes_to_grid, digest
from essl_fast.data.datasets.chaotic import read_chaotic_world
from tests.tools.media import row, write_annotations


def read(root, **settings):
    return read_chaotic_world(root, **{"validation": 0, **settings})


def one(tmp_path, rows, split="train", header=None, **settings):
    """The pairs and left-outs of one video with these rows."""
    lists = {"train": ({"a": rows}, {}), "test": ({}, {"a": rows})}[split]
    write_annotations(tmp_path, *lists, **({"header": header} if header else {}))
    return read(tmp_path, **settings)


def reasons(found):
    return [(left.key, left.reason) for left in found.left_out]


def refused(tmp_path, data, match):
    """InputError for a group CSV of these bytes, naming the file."""
    write_annotations(tmp_path, {"a": []}, {})
    (tmp_path / "annotation/group/a.csv").write_bytes(data)
    with pytest.raises(InputError, match=match) as error:
        read(tmp_path)
    assert str(tmp_path / "annotation/group/a.csv") in str(error.value)
    assert "\n" not in str(error.value)


def test_start_policy(tmp_path):
    found = one(tmp_path, [row(60, 2.0, "[[12, 30, 100, 150], [5, 6, 70, 80]]", "speech", end=90)])
    (pair,) = found.pairs
    assert (pair.key, pair.video, pair.fid, pair.time) == ("a_000060", "a", 60, 2.0)
    assert (pair.class_name, pair.labelled, pair.split, pair.classes) == ("speech", True, "train", ("speech",))
    assert pair.boxes.dtype == np.int32 and pair.boxes.tolist() == [[8, 37, 70, 186]]  # the row's first box
    assert (read(tmp_path).rows, read(tmp_path).further) == (1, 1)
    found = read(tmp_path, row_boxes="all")
    assert found.pairs[0].boxes.tolist() == [[8, 37, 70, 186], [3, 7, 49, 99]] and found.further == 0


def test_columns_are_found_by_header_and_numbers_may_come_from_pandas(tmp_path):
    write_annotations(tmp_path, {"a": []}, {})
    text = '\ufeffNote, SSL ,BBOX,Start_Time, START_FID\r\nx,siren,"[(3.5, 1, 20, 50)]",2e0,60.0\r\n'
    (tmp_path / "annotation/group/a.csv").write_text(text + "\r\n,,,,\r\n", encoding="utf-8", newline="")
    (pair,) = read(tmp_path).pairs
    assert (pair.fid, pair.time, pair.class_name) == (60, 2.0, "siren")
    assert pair.boxes.tolist() == [[2, 1, 14, 62]]


def test_rows_of_one_frame_become_one_pair(tmp_path):
    rows = [
        row(7, 2.0, "[[0, 0, 32, 18]]", "crash"),
        row(9, 3.0),
        row(7, 2.5, "[[32, 18, 64, 36]]", "siren"),
        row(7, 2.0, "[[0, 0, 32, 18]]", "crash"),
    ]
    found = one(tmp_path, rows)
    assert [pair.key for pair in found.pairs] == ["a_000007", "a_000009"] and not found.left_out
    assert found.pairs[0].boxes.tolist() == [[0, 0, 22, 22], [22, 22, 44, 44]]
    assert (found.pairs[0].class_name, found.pairs[0].classes) == ("crash", ("crash", "siren"))
    assert found.pairs[0].time == 2.0
    assert (found.rows, found.merged, found.further) == (4, 2, 0)
    assert found.box_classes == {"a_000007": ("crash", "siren")}  # of one class or row there is nothing to say


@pytest.mark.parametrize("cell", ["32,18,64,36", "(32, 18., 64, 36)", "[32,18,64,36],", "([32,18,64,36],)"])
def test_boxes_may_be_tuples_without_brackets(tmp_path, cell):
    header = "start_fid,start_time,bbox,ssl"
    (pair,) = one(tmp_path, [f'10,1.0,"{cell}",siren'], header=header).pairs
    assert pair.boxes.tolist() == [[22, 22, 44, 44]]
    two = ['10,1.0,"(32,18,64,36),(0,0,32,18)",siren']
    assert len(one(tmp_path, two, header=header, row_boxes="all").pairs[0].boxes) == 2


def test_middle_policy_takes_the_middle_of_the_sound(tmp_path):
    header = "start_fid,start_time,end_fid,end_time,bbox,ssl"
    found = one(tmp_path, ['10,1.0,21,2.2,"[[0,0,32,18],[32,18,64,36]]",siren'], header=header, frame="middle")
    (pair,) = found.pairs
    assert (pair.key, pair.fid, pair.time) == ("a_000015", 15, pytest.approx(1.6))
    assert pair.boxes.tolist() == [[0, 0, 22, 22]]


def test_middle_policy_prefers_the_frame_table(tmp_path):
    rows = ['10,1.0,21,2.2,"[[0,0,32,18]]",siren', '10,1.0,21,2.2,"[[0,0,320,180]]",crash']
    write_annotations(tmp_path, {"a": rows}, {})
    frames = tmp_path / "annotation/frame"
    frames.mkdir()
    (frames / "a.csv").write_text(
        'frame_id,timestamp,bbox,ssl\n14,1.4,"[1,1,2,2]",siren\n15,1.5,"[32,18,64,36]",siren\n'
        '15,1.5,"[[64,36,96,54],[0,0,9,9]]",siren\n15,1.5,"[[0,0,100,100]]",speech\n'
    )
    (pair,) = read(tmp_path, frame="middle").pairs
    # two rows of the siren in the frame table, and the crash's row of the group table, which the other has not
    assert pair.boxes.tolist() == [[22, 22, 44, 44], [44, 44, 67, 67], [0, 0, 224, 224]]
    assert pair.classes == ("siren", "crash")
    assert read(tmp_path, frame="middle").further == 1
    assert read(tmp_path).pairs[0].key == "a_000010"  # start does not look there


def test_middle_policy_with_one_box_a_frame(tmp_path):
    boxes = [[10 * n, 0, 10 * n + 32, 18] for n in range(5)]
    (pair,) = one(tmp_path, [row(10, 1.0, str(boxes), end=14)], frame="middle").pairs
    assert pair.fid == 12 and pair.boxes.tolist() == boxes_to_grid([boxes[2]], 320, 180).tolist()


def test_middle_policy_without_end_time(tmp_path):
    header, rows = "start_fid,start_time,end_fid,bbox,ssl", ['10,1.0,21,"[[0,0,32,18]]",siren']
    (pair,) = one(tmp_path, rows, header=header, frame="middle", frame_rate={"a": 25.0}.get).pairs
    assert pair.time == pytest.approx(1.0 + 5 / 25)
    frames = tmp_path / "annotation/frame"
    frames.mkdir()
    (frames / "a.csv").write_text('fid,time,bbox,ssl\n15,1.25,"[[0,0,32,18]]",siren\n')
    (pair,) = read(tmp_path, frame="middle", frame_rate={"a": 25.0}.get).pairs
    assert pair.time == 1.25  # what the annotators say before what the frame rate says


def test_middle_policy_needs_end_fid(tmp_path):
    with pytest.raises(InputError, match=r"line 1: no column end_fid \(frame policy middle needs it\); its columns"):
        one(tmp_path, ['10,1.0,"[[0,0,32,18]]",siren'], header="start_fid,start_time,bbox,ssl", frame="middle")
    with pytest.raises(InputError, match="a.csv line 2, column end_fid: 9 is before start_fid 10"):
        one(tmp_path, [row(10, 1.0, end=9)], frame="middle")


def frame_table(tmp_path, *lines, header="fid,time,bbox,ssl"):
    (tmp_path / "annotation/frame").mkdir(exist_ok=True)
    (tmp_path / "annotation/frame/a.csv").write_text("\n".join([header, *lines]) + "\n")


def test_all_takes_every_row_of_the_frame_table(tmp_path):
    write_annotations(tmp_path, {"a": [row(10, 1.0, end=14)], "b": []}, {})
    frame_table(
        tmp_path,
        '11,1.1,"[[0,0,32,18],[0,0,9,9]]",siren',
        '10,1.0,"[[0,0,32,18]]",siren',
        '11,1.15,"[[32,18,64,36]]",crash',
        '0,1,"[[0,0,9,9]]",crash',
        '12,1.2,"[]",siren',
    )
    found = read(tmp_path, frame="all")
    assert [(pair.key, pair.time, pair.boxes.tolist(), pair.classes) for pair in found.pairs] == [
        ("a_000011", 1.1, [[0, 0, 22, 22], [22, 22, 44, 44]], ("siren", "crash")),  # instances of a frame: one pair
        ("a_000010", 1.0, [[0, 0, 22, 22]], ("siren",)),
        ("a_000012", 1.2, [], ("siren",)),
    ]
    assert (found.rows, found.merged, found.further) == (5, 1, 1)
    assert reasons(found) == [("a_000000", "frame number below 1"), ("", "no annotations")]
    assert read(tmp_path, frame="all", row_boxes="all").pairs[0].boxes.shape == (3, 4)


def test_all_without_a_group_table(tmp_path):
    write_annotations(tmp_path, {"a": []}, {})
    (tmp_path / "annotation/group/a.csv").unlink()
    frame_table(tmp_path, '31,"[[0,0,32,18]]",siren', header="frame,bbox,ssl")
    (pair,) = read(tmp_path, frame="all", frame_rate={"a": 10.0}.get).pairs
    assert pair.key == "a_000031" and pair.time == 3.0  # frame 1 is at 0 s
    frame_table(tmp_path)
    assert [left.detail for left in read(tmp_path, frame="all").left_out] == [
        "annotation/frame/a.csv has a header and no row"
    ]


def test_all_counts_a_time_that_is_not_there_from_the_sound(tmp_path):
    rows = [row(10, 1.25, end=14), row(30, 3.5, end=40), row(30, 3.75, label="crash", end=40)]
    write_annotations(tmp_path, {"a": rows}, {})
    told = [(13, "siren"), (40, "crash"), (40, "siren"), (18, "siren"), (45, "speech"), (10, "x")]
    frame_table(tmp_path, *(f'{fid},"[[0,0,32,18]]",{label}' for fid, label in told), header="fid,bbox,ssl")
    assert [pair.time for pair in read(tmp_path, frame="all", frame_rate={"a": 10.0}.get).pairs] == pytest.approx(
        [1.25 + 0.3, 3.75 + 1.0, 1.25 + 0.8, 3.5 + 1.5, 1.25]  # the two of frame 40 are one pair
    )
    assert read(tmp_path, frame="all").pairs[0].time == 1.25  # a video that cannot be read: its part will say so


def test_all_without_a_frame_table_takes_sounds_with_a_box_for_each_frame(tmp_path):
    boxes = [[32 * n, 0, 32 * n + 32, 18] for n in range(3)]
    lines = [
        f'10,1.0,12,1.4,"{boxes}",siren',
        '12,1.4,14,1.8,"[[0,0,9,9]]",crash',
        '20,2.0,20,2.0,"[[0,0,32,18]]",x',
        '30,3.0,31,,"[[0,0,32,18],[0,0,32,18]]",x',
    ]
    found = one(tmp_path, lines, frame="all", frame_rate={"a": 4.0}.get)
    assert [(pair.fid, pair.time) for pair in found.pairs] == [
        (10, 1.0),
        (11, 1.2),
        (12, 1.4),
        (20, 2.0),
        (30, 3.0),
        (31, 3.25),
    ]
    assert found.pairs[2].boxes.tolist() == boxes_to_grid([boxes[2]], 320, 180).tolist()
    assert reasons(found) == [("a_000012", "no box for each frame")]
    told = found.left_out[0].detail
    assert told == "a.csv line 3: 1 boxes for the frames 12 to 14, and no annotation/frame/a.csv"
    found = one(tmp_path, lines[1:2], frame="all")
    assert not len(found.pairs) and reasons(found) == [("a_000012", "no box for each frame")]
    with pytest.raises(InputError, match=r"no column end_fid \(frame policy all needs it\)"):
        one(tmp_path, ['10,1.0,"[[0,0,32,18]]",siren'], header="start_fid,start_time,bbox,ssl", frame="all")


def test_a_box_that_leaves_the_frame_is_clamped(tmp_path):
    (pair,) = one(tmp_path, [row(1, 2.0, "[[-10, -10, 160, 500]]")]).pairs
    assert pair.boxes.tolist() == [[0, 0, 112, 224]]


BAD_BOXES = {
    "[[330, 10, 360, 50]]": "box outside the frame",
    "[[-60, 20, -10, 100]]": "box outside the frame",
    "[[10, 180, 20, 190]]": "box outside the frame",
    "[[200, 150, 100, 50]]": "box inverted",
    "[[10, 10, 10, 100]]": "box smaller than a grid pixel",
    "[[0.4, 0.4, 0.9, 0.9]]": "box smaller than a grid pixel",
}


@pytest.mark.parametrize("boxes", BAD_BOXES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_box_of_nothing_is_left_out_with_its_reason(tmp_path, boxes, split):
    found = one(tmp_path, [row(1, 2.0, boxes), row(2, 2.0)], split)
    assert [pair.key for pair in found.pairs] == ["a_000002"]
    assert reasons(found) == [("a_000001", BAD_BOXES[boxes])]
    assert "a.csv line 2: box [" in found.left_out[0].detail and "320x180" in found.left_out[0].detail


def test_a_bad_box_beside_a_good_one(tmp_path):
    rows = [row(1, 2.0, "[[330, 0, 340, 9]]", "crash"), row(1, 2.0, "[[0, 0, 32, 18]]", "siren")]
    found = one(tmp_path, rows)
    assert found.pairs[0].boxes.tolist() == [[0, 0, 22, 22]] and found.pairs[0].class_name == "siren"
    assert reasons(found) == [("a_000001", "box outside the frame")]


def test_a_row_without_boxes(tmp_path):
    rows = [row(1, 2.0, "[]"), row(2, 2.0)]
    found = one(tmp_path, rows)
    assert [(p.key, p.labelled, p.boxes.shape) for p in found.pairs] == [
        ("a_000001", False, (0, 4)),
        ("a_000002", True, (1, 4)),
    ]
    found = one(tmp_path, rows, "test")
    assert [pair.key for pair in found.pairs] == ["a_000002"] and reasons(found) == [("a_000001", "no box")]


def test_frames_count_from_one(tmp_path):
    found = one(tmp_path, [row(0, 2.0), row(1, 2.0)])
    assert [pair.fid for pair in found.pairs] == [1] and reasons(found) == [("a_000000", "frame number below 1")]


HEAD = b"start_fid,start_time,bbox,ssl\n"
MALFORMED = {
    b"": "a.csv is empty: write its header and rows, or take the video out",
    b"\xef\xbb\xbf \n": "a.csv is empty",
    b",,,\n": "line 1: no column start_fid",
    b"start_fid,start_time,bbox\n": "line 1: no column ssl; its columns are 'start_fid, start_time, bbox'; add",
    b"start_fid;start_time;bbox;ssl\n": "line 1: no column start_fid; its columns are 'start_fid;start_time;bbox;ssl'",
    b"start_fid,start_time,bbox,ssl,SSL\n": "line 1: column ssl is there 2 times",
    HEAD + b"1,2,[[1,2,3,4]],x\n": "line 2: 7 cells under 4 columns; put a bbox in double quotes",
    HEAD + b'1,2,"[[1,2,3,4]]",x\n\n7,2,"[]"\n': "line 4: 3 cells under 4 columns",
    HEAD + b'1,2,"[[1,2,3,4]],x\n': "line 2: unexpected end of data; check the double quotes",
    HEAD + b'one,2,"[]",x\n': "line 2, column start_fid: 'one' is not a number; write a decimal",
    HEAD + b'1.5,2,"[]",x\n': "line 2, column start_fid: '1.5' is not a frame's number",
    HEAD + b'1e300,2,"[]",x\n': "column start_fid",
    HEAD + b'1,nan,"[]",x\n': "line 2, column start_time: 'nan' is not a number",
    HEAD + b'1,1e999,"[]",x\n': "line 2, column start_time",
    HEAD + b'1,00:02,"[]",x\n': "line 2, column start_time: '00:02' is not a number",
    HEAD + b'1,2,"[]", \n': "line 2, column ssl: the class is empty",
    HEAD + b"1,2,,x\n": r"line 2, column bbox: cannot read '' as boxes; write a list of boxes such",
    HEAD + b'1,2,"[[1,2,3]]",x\n': "column bbox: .* is not a list of boxes of four finite numbers",
    HEAD + b'1,2,"[[1,2,3,1e999]]",x\n': "column bbox: .* is not a list of boxes",
    HEAD + b"1,2,\"[[1,2,3,'4']]\",x\n": "column bbox: .* is not a list of boxes",
    HEAD + b'1,2,"{1: 2}",x\n': "column bbox: .* is not a list of boxes",
    HEAD + b'1,2,"[[1,2,3,4]",x\n': "column bbox: cannot read",
    HEAD + b"1,2,\"[[1,2,3,__import__('os').getpid()]]\",x\n": "column bbox: cannot read",
    HEAD + b'1,2,"' + b"[" * 5000 + b'",x\n': "column bbox: cannot read '\\[\\[.*\\.\\.\\.'",
    HEAD + b'1,2,"' + b"9" * 5000 + b'",x\n': "column bbox: cannot read",
    HEAD + b'1,2,"' + b" " * 1_000_001 + b'1",x\n': "column bbox",
    HEAD + b'1,2,"[]",\xff\n': r"line 2, column 10 \(byte\): 0xff is not UTF-8; save the file as UTF-8",
}


@pytest.mark.parametrize("data", MALFORMED, ids=lambda data: repr(data[30:60]))
def test_a_malformed_table_is_an_error_with_its_place(tmp_path, data):
    refused(tmp_path, data, MALFORMED[data])


def test_a_box_cell_longer_than_the_limit_is_refused(tmp_path):
    cell = "[" + "[1,2,3,4]," * 100_001 + "]"
    refused(tmp_path, f'start_fid,start_time,bbox,ssl\n1,2,"{cell}",x\n'.encode(), "field larger|more than 1,000,000")


def test_a_table_with_a_header_only_and_a_missing_table(tmp_path):
    write_annotations(tmp_path, {"a": [], "b": [row(1, 2.0)], "c": [row(1, 2.0)]}, {})
    (tmp_path / "annotation/group/c.csv").unlink()
    found = read(tmp_path)
    assert [pair.video for pair in found.pairs] == ["b"]
    assert [(left.video, left.key, left.reason) for left in found.left_out] == [
        ("a", "", "no annotations"),
        ("c", "", "annotation file missing"),
    ]
    assert found.left_out[0].as_json()["key"] is None


def test_lists(tmp_path):
    write_annotations(tmp_path, {"a": [row(1, 2.0)], "b": [row(1, 2.0)]}, {"c": [row(1, 2.0)]})
    (tmp_path / "train_ssl.txt").write_text("\ufeffb\r\n\na \nb\n", encoding="utf-8")
    found = read(tmp_path)
    assert [(pair.video, pair.split) for pair in found.pairs] == [("b", "train"), ("a", "train"), ("c", "test")]
    for name in ("train_ssl.txt", "test_ssl.txt"):  # the published tree has them inside
        (tmp_path / name).rename(tmp_path / "annotation" / name)
    assert read(tmp_path).videos == found.videos == {"train": ["b", "a"], "val": [], "test": ["c"]}
    (tmp_path / "annotation/test_ssl.txt").unlink()
    with pytest.raises(InputError) as error:
        read(tmp_path)
    for place in ("test_ssl.txt", "annotation/test_ssl.txt"):
        assert f"{tmp_path / place}" in str(error.value)


@pytest.mark.parametrize("name", ["../a", "x/a", "x\\a", "..", ".", "a\x00b"])
def test_a_video_name_is_no_path(tmp_path, name):
    write_annotations(tmp_path, {"a": [row(1, 2.0)]}, {})
    (tmp_path / "test_ssl.txt").write_text(f"b\n{name}\n")
    with pytest.raises(InputError, match="test_ssl.txt line 2: .* is not a plain video name"):
        read(tmp_path)


def test_a_video_in_both_lists_and_no_video_at_all(tmp_path):
    write_annotations(tmp_path, {"a": [], "b": []}, {"b": []})
    with pytest.raises(InputError, match="'b' is in both train_ssl.txt and test_ssl.txt"):
        read(tmp_path)
    write_annotations(tmp_path, {}, {})
    with pytest.raises(InputError, match="name no video"):
        read(tmp_path)


def test_settings_out_of_range(tmp_path):
    write_annotations(tmp_path, {"a": []}, {})
    wrong = [
        ("frame", "end"),
        ("row_boxes", "last"),
        ("size", (0, 180)),
        ("size", (320,)),
        ("validation", 1),
        ("validation", -0.1),
        ("validation", math.nan),
    ]
    for settings in ({name: value} for name, value in wrong):
        with pytest.raises(InputError, match="is .*: (choose|give)"):
            read(tmp_path, **settings)
    with pytest.raises(InputError, match="annotation/group is not a folder"):
        read(Path(tmp_path / "nowhere"))


def test_validation_split_has_whole_videos(tmp_path):
    write_annotations(tmp_path, {f"v{n}": [row(1, 2.0), row(2, 2.0, "[]")] for n in range(10)}, {"t": [row(1, 2.0)]})
    found = read(tmp_path, validation=0.3, seed=5)
    assert len(found.videos["val"]) == 3 and len(found.videos["train"]) == 7
    assert {p.video for p in found.pairs if p.split == "val"} == set(found.videos["val"])
    assert all(left.video in found.videos["val"] and left.reason == "no box" for left in found.left_out)
    assert len(found.left_out) == 3


def test_pairs_are_a_sequence_of_columns(tmp_path):
    write_annotations(tmp_path, {"a": [row(5, 2.0), row(3, 1.0, "[]")], "b": [], "c": [row(1, 2.0, label="x")]}, {})
    pairs = read(tmp_path, row_boxes="all").pairs
    assert len(pairs) == 3 and [pair.key for pair in pairs] == [pairs[n].key for n in range(3)]
    assert pairs[-1].key == "c_000001" and pairs[1].key == "a_000003" and pairs[1].boxes.shape == (0, 4)
    with pytest.raises(IndexError):
        pairs[3]
    assert [(video, list(span)) for video, _, span in pairs.videos()] == [("a", [0, 1]), ("b", []), ("c", [2])]
    assert pairs.fid.tolist() == [5, 3, 1] and pairs.time.tolist() == [2.0, 1.0, 2.0]
    assert pairs.class_id.tolist() == [0, 0, 1] and pairs.class_sets == [("siren",), ("x",)]
    assert pairs.box_end.tolist() == [1, 1, 2] and pairs.boxes.shape == (2, 4)


def test_digest_notices_any_change(tmp_path):
    seen = {
        digest(one(tmp_path, rows))
        for rows in (
            [row(1, 2.0)],
            [row(1, 2.5)],
            [row(2, 2.0)],
            [row(1, 2.0, "[[0, 0, 9, 9]]")],
            [row(1, 2.0, label="x")],
            [row(1, 2.0, "[]")],
            [row(1, 2.0), row(0, 2.0)],
        )
    }
    assert len(seen) == 7
    assert digest(one(tmp_path, [row(1, 2.0)])) in seen

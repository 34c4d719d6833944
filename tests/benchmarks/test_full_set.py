"""The rehearsal of the full data set, tiny."""

import csv
import json

import pytest

from benchmarks import full_set


def test_the_stand_in_has_the_shape_that_was_asked_for(tmp_path):
    shape = full_set.Shape(videos=6, instances=500, minutes=(0.1, 0.12), size=(32, 16))
    frames = full_set.make_world(tmp_path, shape)
    tables = [list(csv.DictReader(file.open())) for file in sorted((tmp_path / "notes/annotation/frame").iterdir())]
    assert sum(map(len, tables)) == 500 and len(tables) == len(list((tmp_path / "videos").iterdir())) == 6
    assert frames == sum(len({row["fid"] for row in table}) for table in tables)
    of_frames = [[row["fid"] for row in table].count(fid) for table in tables for fid in {row["fid"] for row in table}]
    assert max(of_frames) <= full_set.SOUNDS[1] and sum(count < full_set.SOUNDS[0] for count in of_frames) <= 6
    assert shape.share(0.5) == full_set.Shape(3, 250, (0.1, 0.12), (32, 16))


def test_growth_is_a_power_of_the_pairs():
    few = {"videos": 1, "pairs": 100, "prepare_seconds": 3.0, "open_seconds": 1.0, "disk_gb": 0.0}
    many = {"videos": 4, "pairs": 400, "prepare_seconds": 12.0, "open_seconds": 2.0, "disk_gb": 1.0}
    assert full_set.growth([few, many]) == pytest.approx({"prepare_seconds": 1.0, "open_seconds": 0.5})
    assert full_set.growth([few]) == {}
    assert full_set.table([few, many])[4].endswith("| 3.00 | 12.00 | 1.00 |")


@pytest.mark.nightly  # the whole benchmark, twice
def test_every_step_is_measured(tmp_path):
    size = "--videos 8 --instances 1200 --minutes 0.2 0.3 --shares 0.5 1 --workers 1".split()
    assert full_set.main([*size, "--work", str(tmp_path), "--json", str(tmp_path / "told.json")]) == 0
    half, whole = json.loads((tmp_path / "told.json").read_text())["results"]
    assert (half["instances"], whole["instances"]) == (600, 1200) and whole["pairs"] == whole["read_pairs"]
    assert 1.5 < whole["disk_gb"] / half["disk_gb"] < 2.5
    assert [file.name for file in tmp_path.iterdir()] == ["told.json"]  # it tidied up

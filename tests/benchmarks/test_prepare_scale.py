"""The scale check, small: its numbers, and that they do not grow as the pairs do."""

import json

import pytest

from benchmarks import prepare_scale


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """300 and 1500 pairs in as many videos: the results."""
    work = tmp_path_factory.mktemp("scale")
    found = []
    for pairs in (300, 1500):
        options = ["--pairs", str(pairs), "--videos", "5", "--workers", "1", "--work", str(work)]
        assert prepare_scale.main([*options, "--json", str(work / "told.json")]) == 0
        found.append(json.loads((work / "told.json").read_text())["results"])
    assert [file.name for file in work.iterdir()] == ["told.json"]
    return found


@pytest.mark.nightly  # the whole benchmark, 1,500 pairs
def test_every_pair_is_there(measured):
    assert [told["pairs"] for told in measured] == [300, 1500]
    for told in measured:
        assert 0.1e6 < 1e9 * told["disk_gb"] / told["pairs"] < 0.12e6  # bytes a pair
        assert 0 < told["open_seconds"] < told["first_batch_seconds"]


@pytest.mark.nightly  # the whole benchmark, 1,500 pairs
def test_memory_does_not_grow_with_the_pairs(measured):
    few, many = measured
    assert 0.05 < few["memory_of_main_process_gb"] <= few["memory_gb"]
    assert many["memory_gb"] < few["memory_gb"] + 0.06


def test_its_own_processes_are_found():
    import os

    assert prepare_scale.resident(os.getpid())[0] > 50e6

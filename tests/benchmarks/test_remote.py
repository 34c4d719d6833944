"""The benchmark of remote data runs, reads the right pairs, and says what it measured."""

import json

import pytest

from benchmarks import remote

pytest.importorskip("aiohttp")  # of the extra `remote`


def test_both_ways_are_measured(tmp_path, capsys):
    assert (
        remote.main(["--pairs", "24", "--per-shard", "12", "--delay", "0", "--json", str(tmp_path / "told.json")]) == 0
    )
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["whole", "ranges"]
    found = json.loads((tmp_path / "told.json").read_text())["found"]
    assert [each["way"] for each in found] == ["whole", "ranges"]
    assert all(0 < each["first"] <= each["epoch"] and each["again"] > 0 for each in found)

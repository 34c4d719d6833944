"""Runs side by side that were not trained and tested alike: who was not, and in what, on the page and as a warning."""

import json

import pytest

from essl_fast.common.errors import InputError, Notice
from essl_fast.report import write_report
from essl_fast.report.alike import groups
from essl_fast.report.page import UNLIKE
from essl_fast.report.runs import Run, read
from tests.report.test_report import make_run

SAME = {"train": ("a" * 64, 288), "val": ("b" * 64, 32), "test": ("c" * 64, 80)}


def run_of(label, config=None, tested=80, **splits):
    """A run whose log tells of its data, as SAME unless it says otherwise; none: an earlier version's."""
    held = {split: {"sha256": sha, "pairs": pairs} for split, (sha, pairs) in {**SAME, **splits}.items()}
    settings = {"data": {"root": "/data"}, "select_on": "val", "objective": {"consensus": 0}, **(config or {})}
    results = {"test": {"pairs": tested}} if tested else {}
    return Run(label, label, config=settings, dataset="chaotic", splits=held, results=results)


def test_runs_of_the_same_data_have_no_groups():
    elsewhere = run_of("b", {"data": {"root": "s3://copy"}})
    assert groups([run_of("a"), elsewhere]) == ([], [])
    assert groups([run_of("a"), run_of("still training", tested=0)]) == ([], [])
    assert groups([run_of("a")]) == ([], [])


@pytest.mark.parametrize(
    ("other", "a", "b"),
    [
        (
            {"train": ("d" * 64, 500)},
            "trained on 288 pairs of chaotic (SHA-256 aaaaaaaaaaaa)",
            "trained on 500 pairs of chaotic (SHA-256 dddddddddddd)",
        ),
        (
            {"test": ("d" * 64, 80)},
            "tested on 80 pairs of chaotic (SHA-256 cccccccccccc)",
            "tested on 80 pairs of chaotic (SHA-256 dddddddddddd)",
        ),
        ({"tested": 79}, "scored 80 test pairs", "scored 79 test pairs"),
        (
            {"config": {"select_on": "test"}},
            "trained on 288 pairs of chaotic (SHA-256 aaaaaaaaaaaa); epoch chosen on val",
            "trained on 320 pairs of chaotic (SHA-256 aaaaaaaaaaaa and bbbbbbbbbbbb); "
            "epoch chosen on the test set itself",
        ),
        (
            {"config": {"objective": {"consensus": 2}}},
            "annotators that must agree: the data set's own number",
            "annotators that must agree: 2",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_makes_runs_unlike_is_told(other, a, b):
    found, lines = groups([run_of("a"), run_of("b", **other), run_of("c")])
    assert found == [1, 2, 1] and lines == [f"group 1 (a, c): {a}", f"group 2 (b): {b}"]


def test_runs_of_earlier_versions_are_told_apart_by_where_their_data_is():
    old = [run_of(name, {"data": {"root": root}}) for name, root in (("a", "/one"), ("b", "/two"), ("c", "/one"))]
    for run in old[:2]:
        run.splits = {}
    assert groups(old) == ([1, 2, 1], ["group 1 (a, c): data chaotic in /one", "group 2 (b): data chaotic in /two"])
    worlds = [run_of(str(seed), {"data": {"root": "demo"}, "demo": {"seed": seed, "cache": "/x"}}) for seed in (0, 1)]
    for run in worlds:
        run.splits = {}
    assert groups(worlds)[1] == ["group 1 (0): data chaotic (seed 0)", "group 2 (1): data chaotic (seed 1)"]


def test_a_large_group_names_some():
    _, lines = groups([run_of("other", tested=7), *(run_of(f"r{at}") for at in range(6))])
    assert lines[1] == "group 2 (r0, r1, r2, r3 and 2 more): scored 80 test pairs"


def logged(folder, pairs):
    """Write into a run's log what its test split held."""
    first, *rest = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(first) | {"splits": {"test": {"pairs": pairs, "sha256": f"{pairs:064}"}}}
    (folder / "log.jsonl").write_text("".join([json.dumps(first) + "\n", *rest]))


def test_the_page_and_a_warning_say_so(tmp_path):
    folders = [make_run(tmp_path / name, name) for name in ("a", "b")]
    for folder in folders:
        logged(folder, 30)
    text = write_report(folders, tmp_path / "page.html")[0].read_text()
    assert "were not trained and tested alike" not in text and ">group<" not in text
    logged(folders[1], 40)
    with pytest.warns(Notice) as said:
        text = write_report(folders, tmp_path / "page.html")[0].read_text()
    told = [str(each.message).partition(" pairs")[0] for each in said]
    assert told == [UNLIKE, "group 1 (a): tested on 30", "group 2 (b): tested on 40"]
    assert "were not trained and tested alike" in text and "group 2 (b): tested on 40 pairs" in text
    head, *rows = text.partition("<h2>Results</h2>")[2].partition("</table>")[0].split("<tr")[1:]
    assert "group" in head and {row.count("<td") for row in rows} == {head.count("<th")}
    (folders[0] / "log.jsonl").write_text('{"event": "start", "splits": {"test": {"pairs": "x", "sha256": ""}}}\n')
    with pytest.raises(InputError, match="splits.test.pairs is 'x', which is of another kind"):
        read(folders[0])

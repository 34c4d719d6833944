"""The figures of the paper from runs that have ended, and the page that shows them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from essl_fast.reproduce import pictures
from essl_fast.reproduce.page import page
from essl_fast.reproduce.plan import Plan
from essl_fast.reproduce.results import Results, protocol_line, tables
from essl_fast.reproduce.rows import TABLES, fraction_rows
from essl_fast.reproduce.sweep import read_sweep, rows_of_sweep


def summary(success: float) -> dict:
    test = {"pairs": 4, "success_at_half": success, "auc": 0.5, "curve": [0.0] * 21}
    return {"test": test, "selected": {"epoch": 2, "score": [success, 0.5]}, "seconds": 1.0}


def logged(folder, *events: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))


def epoch(number: int, success: float | None) -> dict:
    found = {} if success is None else {"selection": {"success_at_half": success, "auc": 0.5}}
    return {"event": "epoch", "epoch": number, **found}


def drawn(found: list) -> list[str]:
    """The captions; each picture is one."""
    for _, path in found:
        with Image.open(path) as image:
            assert image.width > 100 and len(set(image.convert("L").resize((40, 40)).tobytes())) > 1
    return [caption for caption, _ in found]


def test_of_an_epoch_that_was_logged_twice_the_later_one_counts(tmp_path):
    assert pictures.selection(tmp_path / "none") == []
    logged(tmp_path, {"event": "start"}, epoch(2, 0.5), epoch(1, 0.25), epoch(3, None), epoch(2, 0.75))
    assert pictures.selection(tmp_path) == [(1, 0.25), (2, 0.75)]


@pytest.mark.parametrize("protocol", ["clean", "published"])
def test_success_by_epoch_of_the_rows_that_ran(tmp_path, monkeypatch, protocol):
    monkeypatch.setattr(pictures, "figure_samples", lambda results, seed: {})
    results = Results(Plan("demo", tmp_path, [3], protocol))
    assert pictures.draw(["table1"], results) == pictures.draw(["figures"], results) == []  # nothing ran
    first, second, third = TABLES["table1"][1][:3]
    for row in (first, second, third):
        results.add(row, 3, summary(0.5))
    logged(results.plan.folder(first, 3), epoch(1, 0.25), epoch(2, 0.5))
    logged(results.plan.folder(second, 3), epoch(1, 0.125))  # of another batch size: another figure
    split = "test" if protocol == "published" else "validation"
    expected = f"Figure 5: success on the {split} split by epoch, both learning rates; seed 3"
    assert drawn(pictures.draw(["figures"], results)) == [expected]


def test_success_by_share_of_labels(tmp_path):
    results = Results(Plan("demo", tmp_path, [0, 1]))
    assert pictures.draw(["fractions"], results) == []
    rows = fraction_rows()
    for row, success in zip(rows, (0.25, 0.5, 0.75, 0.5), strict=False):
        for seed in (0, 1):
            results.add(row, seed, summary(success + seed / 50))
    (caption,) = drawn(pictures.draw(["fractions"], results))
    assert caption.startswith("Success by share of labels. Success at cIoU 0.5 by labels: ")
    assert re.search(r"changes by [+-][0-9.]+ points, (within|more than) twice the largest spread", caption)
    (title, _, lines) = tables(["fractions"], results)[-1]
    assert "by share of labels" in title and len(lines) == len(rows)


def test_a_sweeps_curves_are_the_best_runs(tmp_path, monkeypatch):
    rows = rows_of_sweep(read_sweep(["epochs=1,2,3"]), "demo")
    results = Results(Plan("demo", tmp_path, [0], swept=rows))
    assert pictures.draw(["sweep"], results) == []
    shown = {}
    monkeypatch.setattr(pictures, "CURVES", 2)
    curves = pictures.figures.success_by_epoch

    def seen(path, histories, split):
        shown.update(histories)
        curves(path, histories, split)

    monkeypatch.setattr(pictures.figures, "success_by_epoch", seen)
    for row, success in zip(rows, (0.5, 0.25, 0.75), strict=True):
        results.add(row, 0, summary(success))
        logged(results.plan.folder(row, 0), epoch(1, success))
    (caption,) = drawn(pictures.draw(["sweep"], results))
    assert caption == "Success on the validation split by epoch, the best 2 of 3; seed 0"
    assert list(shown.values()) == [[(1, 0.75)], [(1, 0.5)]]
    assert tables(["sweep"], results)[0][0] == "Sweep of epochs"
    assert protocol_line(results.plan).startswith(
        "Protocol: clean. The best epoch was chosen on a validation split. Data"
    )
    assert "Protocol: published." in protocol_line(Plan("s3://bucket/x", tmp_path, [0], "published"))


def sample(key: str, ciou: float) -> dict:
    rng = np.random.default_rng(int(100 * ciou))
    return {
        "key": key,
        "ciou": ciou,
        "title": key,
        "frame": rng.integers(0, 256, (64, 64, 3), np.uint8),
        "similarity": rng.random((7, 7), np.float32),
        "boxes": np.array([[5, 5, 40, 40]]),
    }


def test_the_frames_where_all_methods_do_best_or_worst(tmp_path, monkeypatch):
    scores = {"A": {"x": 0.9, "y": 0.2, "z": 0.5}, "B": {"x": 0.1, "y": 0.3, "z": 0.6}}  # sums: 1.0, 0.5, 1.1
    samples = {label: [sample(key, ciou) for key, ciou in each.items()] for label, each in scores.items()}
    best = pictures.choose(samples, 2, hardest=False)
    assert {label: [one["key"] for one in shown] for label, shown in best.items()} == {"A": ["z", "x"], "B": ["z", "x"]}
    assert [one["key"] for one in pictures.choose(samples, 2, hardest=True)["A"]] == ["y", "x"]
    monkeypatch.setattr(pictures, "figure_samples", lambda results, seed: samples)
    found = drawn(pictures.draw(["figures"], Results(Plan("demo", tmp_path, [0]))))
    assert found == [
        "Figure 3: the same test frames under each method (where they do best on average); seed 0",
        "Figure 4: the same test frames under each method (where they do worst); seed 0",
    ]


def test_the_page_holds_the_pictures_and_no_markup_of_others(tmp_path):
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "a.png")
    text = page(
        "T<i>", "note & more", [("table", ("a", "b", "c"), [["1<2", "2", "3"]])], [("cap<b>", tmp_path / "a.png")]
    )
    assert text.count("data:image/png;base64,") == 1 and "<b>" not in text and "T<i>" not in text
    assert "1&lt;2" in text and "note &amp; more" in text and text.count("<td class=n>") == 1
